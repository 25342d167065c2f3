//! From one answer to the next: what is new, as lines. Pure, so that what a log shows of a
//! deployment can be tested without one.

use std::collections::BTreeMap;

use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, Migration, MigrationState, Progress,
};
use rehome_shared::ids::{AppName, HostAddr, MigrationId};

use crate::render::migration;

/// Remembers what was said.
#[derive(Debug, Default)]
pub(super) struct Feed {
    applications: BTreeMap<AppName, (ApplicationState, Option<HostAddr>)>,
    migrations: BTreeMap<MigrationId, Seen>,
}

/// What was said last of a migration.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Running { phase: String, round: u32 },
    Ended(MigrationState),
}

/// How much a feed says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Each phase and round of a migration: there is nothing else to look at.
    Phases,
    /// Only how a migration ends: a bar shows the rest.
    Endings,
}

impl Feed {
    /// The lines for what changed since the last answer.
    pub(super) fn next(&mut self, progress: &Progress, detail: Detail) -> Vec<String> {
        let mut lines: Vec<_> = progress
            .applications
            .iter()
            .filter_map(|app| self.application(app))
            .collect();
        lines.extend(
            progress
                .migrations
                .iter()
                .filter_map(|m| self.migration(m, detail)),
        );
        lines
    }

    fn application(&mut self, app: &ApplicationStatus) -> Option<String> {
        let now = (app.state, app.host.clone());
        let before = self.applications.insert(app.name.clone(), now.clone());
        // An application that runs when the wait begins is no news.
        let news = match &before {
            None => app.state != ApplicationState::Running,
            Some(before) => *before != now,
        };
        // A migration is told in its own lines.
        if !news || app.state == ApplicationState::Migrating {
            return None;
        }
        let place = app
            .host
            .as_ref()
            .map(|host| format!(" on {host}"))
            .unwrap_or_default();
        let reason = app
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        Some(format!(
            "{}: {}{place}{reason}",
            app.name,
            app.state.as_str()
        ))
    }

    fn migration(&mut self, migration: &Migration, detail: Detail) -> Option<String> {
        let seen = if migration.state == MigrationState::Running {
            let now = migration.now.as_ref();
            Seen::Running {
                phase: now.map(|now| now.phase.clone()).unwrap_or_default(),
                round: now.map_or(0, |now| now.round),
            }
        } else {
            Seen::Ended(migration.state)
        };
        let running = matches!(seen, Seen::Running { .. });
        if self.migrations.get(&migration.id) == Some(&seen) {
            return None;
        }
        self.migrations.insert(migration.id.clone(), seen);
        if running && detail == Detail::Endings {
            return None;
        }
        Some(line(migration))
    }
}

/// A migration on one line, as it stands.
pub(super) fn line(migration: &Migration) -> String {
    let what = match (&migration.state, &migration.now) {
        (MigrationState::Running, Some(now)) => migration::now(now, migration.throttled),
        (MigrationState::Running, None) => "begins".to_owned(),
        (
            MigrationState::Done
            | MigrationState::Aborted
            | MigrationState::Returned
            | MigrationState::Blocked,
            _,
        ) => migration::ending(migration),
    };
    format!("{}: {what}", migration::title(migration))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rehome_shared::api::cluster::MigrationNow;
    use rehome_shared::units::Bytes;

    use super::*;
    use crate::render::sample;

    fn precopy(round: u32, megabytes: u64) -> Migration {
        Migration {
            now: Some(MigrationNow {
                phase: "precopy".to_owned(),
                round,
                bytes: Bytes(megabytes << 20),
                rate: Bytes(0),
                predicted_window: None,
                elapsed: Duration::from_secs(1),
                waits: None,
            }),
            ..sample::migration(MigrationState::Running)
        }
    }

    #[test]
    fn a_phase_is_said_once_and_each_round_is_news() {
        let mut feed = Feed::default();
        let mut progress = sample::progress(sample::application(ApplicationState::Migrating));
        let mut said = Vec::new();
        let steps = [
            precopy(1, 1),
            precopy(1, 2),
            precopy(2, 1),
            sample::migration(MigrationState::Done),
        ];
        for migration in steps {
            progress.migrations = vec![migration];
            said.extend(feed.next(&progress, Detail::Phases));
        }
        assert_eq!(
            said,
            [
                "db 10.0.0.1 → 10.0.0.2: precopy, round 1, 1.00 MiB",
                "db 10.0.0.1 → 10.0.0.2: precopy, round 2, 1.00 MiB",
                "db 10.0.0.1 → 10.0.0.2: done, window 850 ms",
            ]
        );
    }

    #[test]
    fn beside_a_bar_only_the_ending_is_said() {
        let mut feed = Feed::default();
        let mut progress = sample::progress(sample::application(ApplicationState::Running));
        progress.migrations = vec![precopy(1, 1)];
        assert!(feed.next(&progress, Detail::Endings).is_empty());
        progress.migrations = vec![sample::migration(MigrationState::Done)];
        assert_eq!(feed.next(&progress, Detail::Endings).len(), 1);
    }

    #[test]
    fn an_application_is_news_when_its_state_changes() {
        let mut feed = Feed::default();
        let mut app = sample::application(ApplicationState::Starting);
        let mut say = |app: &ApplicationStatus| {
            feed.next(&sample::progress(app.clone()), Detail::Phases)
                .join("\n")
        };
        assert_eq!(say(&app), "db: starting on 10.0.0.1");
        assert_eq!(say(&app), "");
        app.state = ApplicationState::Failed;
        app.reason = Some("exit status 1".to_owned());
        assert_eq!(say(&app), "db: failed on 10.0.0.1: exit status 1");
    }

    #[test]
    fn an_application_that_runs_already_is_no_news() {
        let mut feed = Feed::default();
        let progress = sample::progress(sample::application(ApplicationState::Running));
        assert!(feed.next(&progress, Detail::Phases).is_empty());
    }
}
