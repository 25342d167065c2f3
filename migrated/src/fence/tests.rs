use migrated_core::UnixMillis;
use migrated_core::record::Plan;
use migrated_core::source::BeforeRelease;
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{Attempt, DeploymentGeneration, MigrationId};

use super::*;
use crate::fixtures::{app, host};

/// A move of `db` from this host to `h2`.
fn at(phase: Phase) -> SourceMigration {
    let plan = Plan {
        application: app("db"),
        to: host("h2"),
        epoch: Epoch(1),
        generation: DeploymentGeneration(1),
        volumes: Vec::new(),
        limits: MigrationLimits::default(),
        was_running: true,
        started_at: UnixMillis(0),
    };
    let mut migration = SourceMigration::begin(MigrationId::generate(), plan);
    migration.phase = phase;
    migration
}

#[test]
fn a_move_that_nobody_heard_served_is_not_done() {
    let attempt = Attempt(1);
    let granting = || at(Phase::After(AfterRelease::Granting { attempt }));
    let handed = || at(Phase::After(AfterRelease::Handed { attempt }));
    let state =
        |migration: &SourceMigration, owner: &str| ending(migration, Epoch(3), &host(owner));
    for released in [granting(), handed()] {
        let (elsewhere, why) = state(&released, "h3");
        assert_eq!(elsewhere, MigrationState::Returned);
        assert!(
            why.contains("released to h2") && why.contains("h3 owns it at epoch 3"),
            "{why}"
        );
        assert_eq!(state(&released, "h2").0, MigrationState::Done, "it has it");
    }
    let finishing = at(Phase::After(AfterRelease::Finishing { attempt }));
    assert_eq!(state(&finishing, "h3").0, MigrationState::Done, "it served");
    let copying = at(Phase::Before(BeforeRelease::Preparing));
    assert_eq!(state(&copying, "h3").0, MigrationState::Aborted);
}
