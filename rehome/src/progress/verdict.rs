//! Whether what was asked for has come about, and if not, what stands in its way.

use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, Migration, MigrationState, Progress,
};
use rehome_shared::ids::{AppName, HostAddr};
use serde::Serialize;

use super::Scope;

/// Something that is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// On which host, when that is known.
    pub(crate) host: Option<HostAddr>,
    /// Which application, when it is about one.
    pub(crate) application: Option<AppName>,
    /// What, with its cause.
    pub(crate) reason: String,
}

/// Everything that is not as it was asked for: what the hosts report, migrations that ended
/// badly, applications that do not run where they should. Each application is named for its
/// first cause only.
pub(crate) fn problems(progress: &Progress, scope: Scope<'_>) -> Vec<Problem> {
    let mut found: Vec<Problem> = progress
        .failures
        .iter()
        .filter(|failure| scope.covers(progress.generation, failure.application.as_ref()))
        .map(|failure| Problem {
            host: Some(failure.host.clone()),
            application: failure.application.clone(),
            reason: failure.reason.clone(),
        })
        .collect();
    for app in progress
        .applications
        .iter()
        .filter(|app| scope.covers(progress.generation, Some(&app.name)))
    {
        let named = found
            .iter()
            .any(|problem| problem.application.as_ref() == Some(&app.name));
        if !named {
            found.extend(of_application(app, progress, scope));
        }
    }
    if let Scope::Move { application, to } = scope
        && !progress
            .applications
            .iter()
            .any(|app| app.name == *application)
    {
        found.push(Problem {
            host: Some(to.clone()),
            application: Some(application.clone()),
            reason: "the application is gone".to_owned(),
        });
    }
    found
}

fn of_application(
    app: &ApplicationStatus,
    progress: &Progress,
    scope: Scope<'_>,
) -> Option<Problem> {
    let target = match scope {
        Scope::Deployment { .. } => app.desired_host.as_ref(),
        Scope::Move { to, .. } => Some(to),
    };
    let astray = target.is_some() && app.host.as_ref() != target;
    // The latest decides: an earlier one that ended badly has been made good by a later one.
    let last = progress
        .migrations
        .iter()
        .rfind(|migration| migration.application == app.name);
    let reason = match last {
        Some(migration) if ended_badly(migration) && app.host.as_ref() != Some(&migration.to) => {
            let why = migration.error.as_deref().unwrap_or("no reason given");
            format!(
                "the migration to {} was {}: {why}",
                migration.to,
                migration.state.as_str()
            )
        }
        _ => match app.state {
            ApplicationState::Failed | ApplicationState::Blocked => {
                let why = app.reason.as_deref().unwrap_or("no reason given");
                format!("{}: {why}", app.state.as_str())
            }
            ApplicationState::Starting
            | ApplicationState::Running
            | ApplicationState::Stopped
            | ApplicationState::Migrating => {
                if !astray {
                    return None;
                }
                let target = target.map(ToString::to_string).unwrap_or_default();
                app.reason
                    .clone()
                    .unwrap_or_else(|| format!("it is not on {target}"))
            }
        },
    };
    Some(Problem {
        host: app.host.clone().or_else(|| app.desired_host.clone()),
        application: Some(app.name.clone()),
        reason,
    })
}

fn ended_badly(migration: &Migration) -> bool {
    match migration.state {
        MigrationState::Running | MigrationState::Done => false,
        MigrationState::Aborted | MigrationState::Returned | MigrationState::Blocked => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::sample::{app, application, failure, host, migration, progress};

    fn reasons(progress: &Progress) -> Vec<String> {
        let scope = Scope::Deployment {
            generation: progress.generation,
            changes: &[],
            applications: None,
        };
        problems(progress, scope)
            .into_iter()
            .map(|problem| problem.reason)
            .collect()
    }

    #[test]
    fn all_is_well_when_everything_runs_where_it_should() {
        assert!(reasons(&progress(application(ApplicationState::Running))).is_empty());
        assert!(reasons(&progress(application(ApplicationState::Stopped))).is_empty());
    }

    #[test]
    fn an_application_is_named_once_for_its_first_cause() {
        let mut value = progress(application(ApplicationState::Failed));
        assert_eq!(reasons(&value), ["failed: no reason given"]);
        value.failures = vec![failure("image missing")];
        assert_eq!(reasons(&value), ["image missing"]);
    }

    #[test]
    fn an_application_on_the_wrong_host_is_a_problem() {
        let mut astray = application(ApplicationState::Running);
        astray.desired_host = Some(host("10.0.0.2"));
        assert_eq!(reasons(&progress(astray)), ["it is not on 10.0.0.2"]);
    }

    #[test]
    fn an_application_that_nobody_wants_may_be_anywhere() {
        let mut kept = application(ApplicationState::Stopped);
        kept.desired_host = None;
        assert!(reasons(&progress(kept)).is_empty());
    }

    #[test]
    fn a_migration_that_was_returned_says_why() {
        let mut value = progress(application(ApplicationState::Running));
        let mut returned = migration(MigrationState::Returned);
        returned.error = Some("not healthy".to_owned());
        value.migrations = vec![returned];
        assert_eq!(
            reasons(&value),
            ["the migration to 10.0.0.2 was returned: not healthy"]
        );
    }

    #[test]
    fn a_later_migration_makes_good_an_earlier_one() {
        let mut arrived = application(ApplicationState::Running);
        arrived.host = Some(host("10.0.0.2"));
        arrived.desired_host = Some(host("10.0.0.2"));
        let mut value = progress(arrived);
        value.migrations = vec![
            migration(MigrationState::Aborted),
            migration(MigrationState::Done),
        ];
        assert!(reasons(&value).is_empty());
    }

    #[test]
    fn a_move_looks_at_its_own_application_and_its_own_target() {
        let mut value = progress(application(ApplicationState::Running));
        let mut other = application(ApplicationState::Failed);
        other.name = app("web");
        value.applications.push(other);
        let (db, here, there) = (app("db"), host("10.0.0.1"), host("10.0.0.2"));
        let found = |to| {
            problems(
                &value,
                Scope::Move {
                    application: &db,
                    to,
                },
            )
        };
        assert!(found(&here).is_empty());
        assert_eq!(found(&there).len(), 1);
    }

    #[test]
    fn an_application_that_disappears_has_not_arrived() {
        let mut value = progress(application(ApplicationState::Running));
        value.applications.clear();
        let scope = Scope::Move {
            application: &app("db"),
            to: &host("10.0.0.2"),
        };
        assert_eq!(problems(&value, scope).len(), 1);
    }
}
