//! What a command asked for, and whether a newer deployment still says so: somebody else's does
//! not end the wait for what it leaves as it is.

use rehome_shared::api::cluster::{
    ApplicationState, Change, ChangeKind, Desired, Migration, MigrationState, Progress,
};
use rehome_shared::config::model::Applications;
use rehome_shared::ids::{AppName, DeploymentGeneration, HostAddr};

/// What counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// Everything in the deployment; what it changed, once another one has followed.
    Deployment {
        /// Which.
        generation: DeploymentGeneration,
        /// What it changed.
        changes: &'a [Change],
        /// The applications as it describes them; `None` when it left them as they were.
        applications: Option<&'a Applications>,
    },
    /// One application, which must have arrived.
    Move {
        /// Which.
        application: &'a AppName,
        /// Where.
        to: &'a HostAddr,
    },
}

impl Scope<'_> {
    /// Whether something that is told under a generation is about what was asked for; what is
    /// about no application is about the whole deployment.
    pub(super) fn covers(self, under: DeploymentGeneration, name: Option<&AppName>) -> bool {
        match self {
            Self::Deployment {
                generation,
                changes,
                ..
            } => {
                under <= generation
                    || name.is_none_or(|name| changes.iter().any(|c| c.application == *name))
            }
            Self::Move { application, .. } => name == Some(application),
        }
    }

    /// Whether a newer deployment still says what was asked for.
    pub(super) fn stands(self, now: &Desired) -> bool {
        match self {
            Self::Move { application, to } => place(now, application) == Some(to),
            Self::Deployment {
                changes,
                applications,
                ..
            } => changes.iter().all(|change| {
                let name = &change.application;
                let host = host_after(&change.kind);
                let described = host.is_none()
                    || applications.is_none_or(|all| all.get(name) == now.applications.get(name));
                place(now, name) == host && described
            }),
        }
    }

    /// Whether nothing is left to wait for. A move waits for nothing but its own application:
    /// until that has arrived, or has stayed where it was. `progress` holds only the migrations
    /// that were asked for.
    pub(super) fn is_over(self, progress: &Progress) -> bool {
        progress.settled
            || match self {
                Self::Deployment { .. } => false,
                Self::Move { application, to } => {
                    is_there(progress, application, to) || came_back(progress, application)
                }
            }
    }

    /// Whether a migration is one that was asked for, whichever deployment began it.
    pub(super) fn brought(self, migration: &Migration) -> bool {
        match self {
            Self::Move { application, to } => {
                migration.application == *application && migration.to == *to
            }
            Self::Deployment {
                generation,
                changes,
                ..
            } => migration.generation == generation || changes.iter().any(|change| {
                change.application == migration.application
                    && matches!(&change.kind, ChangeKind::Move { to, .. } if *to == migration.to)
            }),
        }
    }
}

/// Whether an application serves on a host and its migration is complete.
fn is_there(progress: &Progress, application: &AppName, to: &HostAddr) -> bool {
    let ended = progress
        .migrations
        .iter()
        .all(|migration| migration.state == MigrationState::Done);
    let serves = progress.applications.iter().any(|app| {
        app.name == *application
            && app.host.as_ref() == Some(to)
            && app.state == ApplicationState::Running
    });
    ended && serves
}

/// Whether the last migration was called off or given back and the application serves again.
fn came_back(progress: &Progress, application: &AppName) -> bool {
    let ended = progress.migrations.last().is_some_and(|migration| {
        matches!(
            migration.state,
            MigrationState::Aborted | MigrationState::Returned
        )
    });
    let serves = progress
        .applications
        .iter()
        .any(|app| app.name == *application && app.state == ApplicationState::Running);
    ended && serves
}

/// Where a deployment wants an application to run.
fn place<'a>(now: &'a Desired, name: &AppName) -> Option<&'a HostAddr> {
    now.host_of(name)
        .filter(|_| now.applications.contains_key(name))
}

/// Where an application runs after a change.
fn host_after(kind: &ChangeKind) -> Option<&HostAddr> {
    match kind {
        ChangeKind::Move { to: host, .. }
        | ChangeKind::Create { host }
        | ChangeKind::Start { host }
        | ChangeKind::Restart { host }
        | ChangeKind::Update { host } => Some(host),
        ChangeKind::Stop { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rehome_shared::api::cluster::MigrationState;
    use rehome_shared::config::model::{Application, Image, ImageVersion};

    use super::*;
    use crate::render::sample::{app, application, host, migration};

    /// `db` of a version on a host, `web` on another.
    fn deployment(version: &str, at: &str) -> Desired {
        let spec = |repository: &str, version: &str| {
            Application::new(Image {
                repository: repository.to_owned(),
                version: ImageVersion::Tag(version.to_owned()),
            })
        };
        Desired {
            generation: DeploymentGeneration(9),
            applications: BTreeMap::from([
                (app("db"), spec("db", version)),
                (app("web"), spec("web", "1")),
            ]),
            placement: BTreeMap::from([
                (host(at), vec![app("db")]),
                (host("10.0.0.3"), vec![app("web")]),
            ]),
            ..Desired::default()
        }
    }

    fn change(kind: ChangeKind) -> [Change; 1] {
        [Change {
            application: app("db"),
            kind,
        }]
    }

    fn moved() -> [Change; 1] {
        change(ChangeKind::Move {
            from: host("10.0.0.1"),
            to: host("10.0.0.2"),
            volumes: true,
        })
    }

    fn scope<'a>(changes: &'a [Change], applications: Option<&'a Applications>) -> Scope<'a> {
        Scope::Deployment {
            generation: DeploymentGeneration(7),
            changes,
            applications,
        }
    }

    #[test]
    fn a_move_stands_while_its_application_is_wanted_there() {
        let (db, to) = (app("db"), host("10.0.0.2"));
        let scope = Scope::Move {
            application: &db,
            to: &to,
        };
        assert!(scope.stands(&deployment("1", "10.0.0.2")));
        assert!(scope.stands(&deployment("2", "10.0.0.2")), "as it is");
        assert!(!scope.stands(&deployment("1", "10.0.0.1")));
        let mut gone = deployment("1", "10.0.0.2");
        gone.applications.remove(&db);
        assert!(!scope.stands(&gone));
    }

    /// `db` in a state on a host, its migration to 10.0.0.2 in another, `web` still starting.
    fn progress(state: ApplicationState, at: &str, of: MigrationState) -> Progress {
        let mut db = application(state);
        db.host = Some(host(at));
        let mut web = application(ApplicationState::Starting);
        web.name = app("web");
        Progress {
            generation: DeploymentGeneration(7),
            settled: false,
            applications: vec![db, web],
            migrations: vec![migration(of)],
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_move_does_not_wait_for_other_applications() {
        use ApplicationState::{Migrating, Running};
        use MigrationState::{Aborted, Blocked, Done, Returned};
        let (db, to) = (app("db"), host("10.0.0.2"));
        let scope = Scope::Move {
            application: &db,
            to: &to,
        };
        let over = |state, at, of| scope.is_over(&progress(state, at, of));
        assert!(over(Running, "10.0.0.2", Done));
        assert!(over(Running, "10.0.0.1", Aborted) && over(Running, "10.0.0.1", Returned));
        assert!(!over(Migrating, "10.0.0.1", Aborted), "it does not serve");
        assert!(!over(Running, "10.0.0.2", MigrationState::Running));
        assert!(!over(Running, "10.0.0.1", Blocked));
        let mut none = progress(Running, "10.0.0.1", Done);
        none.migrations.clear();
        assert!(!scope.is_over(&none), "it has not begun");
        none.settled = true;
        assert!(scope.is_over(&none));
    }

    #[test]
    fn a_deployment_waits_for_all_of_it() {
        let changes = moved();
        let mut progress = progress(ApplicationState::Running, "10.0.0.2", MigrationState::Done);
        assert!(!scope(&changes, None).is_over(&progress));
        progress.settled = true;
        assert!(scope(&changes, None).is_over(&progress));
    }

    #[test]
    fn a_deployment_stands_while_what_it_changed_is_as_it_says() {
        let (changes, asked) = (moved(), deployment("1", "10.0.0.2").applications);
        let deployed = scope(&changes, Some(&asked));
        assert!(deployed.stands(&deployment("1", "10.0.0.2")));
        assert!(!deployed.stands(&deployment("2", "10.0.0.2")));
        assert!(!deployed.stands(&deployment("1", "10.0.0.1")));
        let drained = scope(&changes, None);
        assert!(drained.stands(&deployment("2", "10.0.0.2")));
        let mut web_is_elsewhere = deployment("1", "10.0.0.2");
        web_is_elsewhere.placement.remove(&host("10.0.0.3"));
        assert!(deployed.stands(&web_is_elsewhere));
    }

    #[test]
    fn what_was_stopped_must_not_be_started_by_another() {
        let changes = change(ChangeKind::Stop {
            host: host("10.0.0.1"),
        });
        let stopped = scope(&changes, None);
        assert!(!stopped.stands(&deployment("1", "10.0.0.1")));
        let mut without = deployment("1", "10.0.0.1");
        without.placement.clear();
        assert!(stopped.stands(&without));
    }

    #[test]
    fn a_migration_is_told_by_whom_it_was_asked_for_whatever_began_it() {
        let mut later = migration(MigrationState::Done);
        later.generation = DeploymentGeneration(9);
        let (db, to) = (app("db"), host("10.0.0.2"));
        let (changes, one) = (
            moved(),
            Scope::Move {
                application: &db,
                to: &to,
            },
        );
        assert!(one.brought(&later) && scope(&changes, None).brought(&later));
        later.to = host("10.0.0.3");
        assert!(!one.brought(&later) && !scope(&changes, None).brought(&later));
    }

    #[test]
    fn under_a_newer_deployment_only_what_was_changed_counts() {
        let changes = moved();
        let scope = scope(&changes, None);
        let (own, newer) = (DeploymentGeneration(7), DeploymentGeneration(8));
        assert!(scope.covers(own, Some(&app("web"))));
        assert!(!scope.covers(newer, Some(&app("web"))));
        assert!(scope.covers(newer, Some(&app("db"))) && scope.covers(newer, None));
    }
}
