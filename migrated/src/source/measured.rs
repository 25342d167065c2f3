//! What the parts of a window took in an application's earlier moves.

use std::time::Duration;

use rehome_shared::api::cluster::{Migration, MigrationState, Window};
use rehome_shared::ids::AppName;

/// What stop, start and messages take when nothing of this application was measured.
const UNMEASURED: Duration = Duration::from_millis(1500);

/// Of that, the application's own part.
const UNMEASURED_OWN: f64 = 0.5;

/// The parts that do not depend on how much was written.
const FIXED: [&str; 7] = [
    "stop", "flush", "release", "adopt", "start", "health", "open",
];

/// Of these, the ones after the last byte has arrived.
const AHEAD: [&str; 5] = ["release", "adopt", "start", "health", "open"];

/// The application's own.
const OWN: [&str; 2] = ["stop", "health"];

/// What the application's last good move took in these phases.
fn measured(history: &[Migration], application: &AppName, phases: &[&str]) -> Option<Duration> {
    let past = history.iter().rev().find(|past| {
        past.application == *application
            && past.state == MigrationState::Done
            && past.window_seconds.is_some()
    })?;
    let seconds: f64 = phases
        .iter()
        .filter_map(|phase| past.phases.get(*phase))
        .sum();
    Duration::try_from_secs_f64(seconds).ok()
}

/// The parts of a window that do not depend on how much was written.
pub(crate) fn fixed(history: &[Migration], application: &AppName) -> Duration {
    measured(history, application, &FIXED).unwrap_or(UNMEASURED)
}

/// The two shares of such a window; `None` when the application was never moved from here.
pub(crate) fn shares(history: &[Migration], application: &AppName) -> Option<Window> {
    let fixed = measured(history, application, &FIXED)?.as_secs_f64();
    let application = measured(history, application, &OWN)?.as_secs_f64();
    Some(Window {
        platform: (fixed - application).max(0.0),
        application,
    })
}

/// What these shares are taken for when nothing was measured.
pub(crate) fn unmeasured_shares() -> Window {
    Window {
        platform: UNMEASURED.as_secs_f64() - UNMEASURED_OWN,
        application: UNMEASURED_OWN,
    }
}

/// What comes after the last byte has arrived; nothing when it was not measured.
pub(super) fn ahead(history: &[Migration], application: &AppName) -> Duration {
    measured(history, application, &AHEAD).unwrap_or_default()
}

/// What stopping took; nothing when it was not measured.
pub(super) fn stopping(history: &[Migration], application: &AppName) -> Duration {
    measured(history, application, &["stop", "flush"]).unwrap_or_default()
}

/// What starting took; nothing when it was not measured.
pub(super) fn starting(history: &[Migration], application: &AppName) -> Duration {
    measured(history, application, &["start", "health"]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{app, migration};

    fn moved(state: MigrationState, stop: f64) -> Migration {
        let phases = [
            ("stop", stop),
            ("flush", 0.25),
            ("final_delta", 8.0),
            ("adopt", 0.5),
            ("start", 1.0),
            ("health", 2.0),
        ];
        Migration {
            phases: phases
                .into_iter()
                .map(|(name, seconds)| (name.to_owned(), seconds))
                .collect(),
            window_seconds: Some(Window {
                platform: 1.0,
                application: 1.0,
            }),
            ..migration("db", state)
        }
    }

    #[test]
    fn the_last_good_move_counts_without_its_difference() {
        let history = [
            moved(MigrationState::Done, 9.0),
            moved(MigrationState::Done, 1.0),
            moved(MigrationState::Aborted, 30.0),
        ];
        let seconds = |time: Duration| time.as_secs_f64();
        let db = app("db");
        assert!((seconds(fixed(&history, &db)) - 4.75).abs() < 1e-9);
        assert!((seconds(ahead(&history, &db)) - 3.5).abs() < 1e-9);
        assert!((seconds(stopping(&history, &db)) - 1.25).abs() < 1e-9);
        assert!((seconds(starting(&history, &db)) - 3.0).abs() < 1e-9);
        let shares = shares(&history, &db).unwrap();
        assert!((shares.application - 3.0).abs() < 1e-9 && (shares.platform - 1.75).abs() < 1e-9);
    }

    #[test]
    fn an_application_that_was_never_moved_is_taken_for_an_ordinary_one() {
        let history = [moved(MigrationState::Done, 9.0)];
        let web = app("web");
        assert_eq!(fixed(&history, &web), UNMEASURED);
        assert_eq!(ahead(&history, &web), Duration::ZERO);
        assert_eq!(shares(&history, &web), None);
        let guess = unmeasured_shares();
        let sum = guess.platform + guess.application;
        assert!((sum - UNMEASURED.as_secs_f64()).abs() < 1e-9);
    }
}
