//! Values for the tests of this crate.

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, ConnectionGauge, Connections, Desired, Migration,
    MigrationState,
};
use rehome_shared::api::peer::{Basis, HostReport, KnownOwner, OwnedApplication};
use rehome_shared::config::model::{Application, Image, ImageVersion};
use rehome_shared::ids::{AppName, DeploymentGeneration, Epoch, HostAddr, MigrationId};
use rehome_shared::units::Bytes;

use crate::{applications, desired};

pub(crate) fn app(name: &str) -> AppName {
    AppName::try_new(name).unwrap()
}

pub(crate) fn host(name: &str) -> HostAddr {
    HostAddr::try_new(name).unwrap()
}

pub(crate) fn spec() -> Application {
    let version = ImageVersion::Tag("7".to_owned());
    Application::new(Image {
        repository: "redis".to_owned(),
        version,
    })
}

/// A deployment of applications that are all alike.
pub(crate) fn deployment(generation: u64, placement: &[(&str, &[&str])]) -> Desired {
    let placed = |names: &[&str]| names.iter().map(|name| app(name)).collect::<Vec<_>>();
    Desired {
        generation: DeploymentGeneration(generation),
        applications: placement
            .iter()
            .flat_map(|(_, names)| placed(names))
            .map(|name| (name, spec()))
            .collect(),
        placement: placement
            .iter()
            .map(|(at, names)| (host(at), placed(names)))
            .collect(),
        births: BTreeMap::new(),
        kept: BTreeMap::new(),
        fenced: BTreeSet::new(),
        asked: BTreeMap::new(),
    }
}

/// A host that follows a deployment, has nothing to do, and owns these, which run there.
pub(crate) fn report(address: &str, follows: &Desired, owned: &[(&str, u64)]) -> HostReport {
    HostReport {
        host: host(address),
        version: String::new(),
        generation: follows.generation,
        desired_hash: desired::hash(follows),
        owned: owned
            .iter()
            .map(|(name, epoch)| OwnedApplication {
                application: app(name),
                epoch: Epoch(*epoch),
                volumes: Vec::new(),
                config_hash: Some(applications::config_hash(&host(address), &spec(), &[])),
            })
            .collect(),
        applications: owned
            .iter()
            .map(|(name, epoch)| status(address, name, *epoch))
            .collect(),
        migrations: Vec::new(),
        incoming: Vec::new(),
        settled: true,
        failures: Vec::new(),
        problem: None,
        known: owned
            .iter()
            .map(|(name, epoch)| known(name, *epoch, address))
            .collect(),
        heard: BTreeSet::new(),
        promised: BTreeMap::new(),
        diverged: Vec::new(),
        left: Vec::new(),
        instances: Some(Vec::new()),
    }
}

pub(crate) fn known(name: &str, epoch: u64, owner: &str) -> KnownOwner {
    KnownOwner {
        application: app(name),
        epoch: Epoch(epoch),
        owner: host(owner),
        basis: Basis::Journal,
    }
}

fn status(address: &str, name: &str, epoch: u64) -> ApplicationStatus {
    ApplicationStatus {
        name: app(name),
        state: ApplicationState::Running,
        host: Some(host(address)),
        desired_host: Some(host(address)),
        epoch: Epoch(epoch),
        ports: Vec::new(),
        volumes: Vec::new(),
        instance: None,
        started_at: None,
        connections: ConnectionGauge::default(),
        reason: None,
        diverged: Vec::new(),
    }
}

/// A migration from `h1` to `h2`.
pub(crate) fn migration(name: &str, state: MigrationState) -> Migration {
    Migration {
        id: MigrationId::generate(),
        application: app(name),
        from: host("h1"),
        to: host("h2"),
        state,
        epoch: Epoch(1),
        generation: DeploymentGeneration(1),
        started_at: String::new(),
        rounds: Vec::new(),
        phases: BTreeMap::new(),
        window_seconds: None,
        predicted_window: None,
        throttled: None,
        bytes: Bytes(0),
        connections: Connections::default(),
        error: None,
        now: None,
    }
}
