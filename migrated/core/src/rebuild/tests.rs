//! A journal that was lost at any moment of a move, and what is certain afterwards.

mod left;
mod lost;

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::cluster::{Desired, Migration, MigrationNow, MigrationState};
use rehome_shared::api::peer::{HandoffState, HandoffView};
use rehome_shared::ids::{Attempt, DatasetId, DeploymentGeneration, Epoch};
use rehome_shared::units::Bytes;

use super::*;
use crate::fixtures::{NOW, application, born, host, id, plan, report, spec, volume};
use crate::registry::{Ownership, Registry, Role};
use crate::source::{AfterRelease, Phase, SourceMigration};
use crate::stamp::Of;

fn deployment() -> Desired {
    Desired {
        generation: DeploymentGeneration(3),
        applications: BTreeMap::from([(application(), spec())]),
        placement: BTreeMap::from([
            (host("h1"), vec![application()]),
            (host("h2"), Vec::new()),
            (host("h3"), Vec::new()),
        ]),
        births: BTreeMap::new(),
        kept: BTreeMap::from([(application(), host("h4"))]),
        fenced: std::collections::BTreeSet::new(),
        asked: BTreeMap::new(),
    }
}

fn held(at: &str, epoch: u64) -> Stamp {
    let volumes = [volume("data")];
    let of = Of {
        application: &application(),
        volumes: &volumes,
    };
    Stamp::held(of, &volumes[0], &host(at), Epoch(epoch))
}

fn moving() -> Stamp {
    let migration = SourceMigration::begin(id(1), plan());
    Stamp::moving(&host("h1"), &migration, &volume("data"))
}

fn on(name: &str, stamp: Stamp) -> Volume {
    Volume {
        dataset: volume(name).dataset,
        stamp: Some(stamp),
        live: true,
    }
}

fn owner_is(at: &str, epoch: u64) -> Word {
    Word {
        host: host(at),
        owners: vec![(application(), Epoch(epoch), host(at))],
        migrations: Vec::new(),
    }
}

fn view(state: HandoffState) -> BTreeMap<MigrationId, HandoffView> {
    let view = HandoffView {
        migration: id(1),
        attempt: Attempt(1),
        state,
        phases: BTreeMap::new(),
        reason: None,
    };
    BTreeMap::from([(id(1), view)])
}

/// What the journal of `h1` says after a rebuild.
fn rebuilt(
    volumes: &[Volume],
    words: &[Word],
    handoffs: &BTreeMap<MigrationId, HandoffView>,
) -> Result<Registry, Vec<Undecided>> {
    rebuilt_for("h1", &deployment(), volumes, words, handoffs)
}

fn rebuilt_for(
    here: &str,
    desired: &Desired,
    volumes: &[Volume],
    words: &[Word],
    handoffs: &BTreeMap<MigrationId, HandoffView>,
) -> Result<Registry, Vec<Undecided>> {
    let (here, limits, leave) = (host(here), BTreeMap::new(), BTreeSet::new());
    let evidence = Evidence {
        here: &here,
        desired,
        limits: &limits,
        now: NOW,
        volumes,
        words,
        handoffs,
        leave: &leave,
    };
    let verdicts = decide(&evidence, &mut fresh)?;
    let records: Vec<Record> = verdicts.into_iter().flat_map(|v| v.records).collect();
    Ok(Registry::replay(&records))
}

fn fresh() -> DatasetId {
    DatasetId::try_new("7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3bff").unwrap()
}

fn known(registry: &Registry) -> Option<(Epoch, Role)> {
    let known = registry.applications().get(&application());
    known.map(|known| (known.epoch, known.role.clone()))
}

fn gone(to: &str) -> Role {
    Role::Gone { to: host(to) }
}

#[test]
fn what_is_held_is_owned_unless_another_host_knows_better() {
    let volumes = [on("data", held("h1", 3))];
    let at = |words: &[Word]| rebuilt(&volumes, words, &BTreeMap::new());
    let alone = at(&[]).unwrap();
    assert_eq!(known(&alone), Some((Epoch(3), Role::Owner)));
    let owned = alone.owned(&application()).unwrap();
    assert_eq!((owned.volumes.len(), owned.unmade.len()), (1, 0));
    assert_eq!(
        known(&at(&[owner_is("h2", 2)]).unwrap()),
        Some((Epoch(3), Role::Owner))
    );
    assert_eq!(
        known(&at(&[owner_is("h2", 5)]).unwrap()),
        Some((Epoch(5), gone("h2")))
    );
    assert!(matches!(
        at(&[owner_is("h2", 3)]).unwrap_err()[..],
        [Undecided::Contested { .. }]
    ));
}

#[test]
fn a_pool_that_is_older_than_the_others_knowledge_of_this_host_is_not_believed() {
    let volumes = [on("data", held("h1", 3))];
    let mut word = owner_is("h2", 2);
    word.owners.push((application(), Epoch(5), host("h1")));
    assert!(matches!(
        rebuilt(&volumes, &[word], &BTreeMap::new()).unwrap_err()[..],
        [Undecided::OldPool { .. }]
    ));
}

#[test]
fn two_hosts_that_are_both_said_to_own_it_are_left_undecided() {
    let volumes = [on("data", held("h1", 3))];
    let words = [owner_is("h2", 5), owner_is("h3", 5)];
    assert!(matches!(
        rebuilt(&volumes, &words, &BTreeMap::new()).unwrap_err()[..],
        [Undecided::Contested { .. }]
    ));
}

#[test]
fn a_cut_over_that_the_destination_has_promised_for_is_released() {
    for state in [
        HandoffState::Verified,
        HandoffState::Owned,
        HandoffState::Serving,
        HandoffState::Returned,
    ] {
        let registry = rebuilt(&[on("data", moving())], &[], &view(state)).unwrap();
        assert_eq!(known(&registry), Some((Epoch(2), gone("h2"))), "{state:?}");
        let granting = Phase::After(AfterRelease::Granting {
            attempt: Attempt(1),
        });
        assert_eq!(registry.sources()[&id(1)].phase, granting, "{state:?}");
    }
}

#[test]
fn a_cut_over_that_was_called_off_is_this_hosts_and_one_that_was_not_is_nobodys_yet() {
    for state in [HandoffState::Dropped, HandoffState::Unknown] {
        let registry = rebuilt(&[on("data", moving())], &[], &view(state)).unwrap();
        assert_eq!(known(&registry), Some((Epoch(1), Role::Owner)), "{state:?}");
        assert!(registry.sources().is_empty());
    }
    let undecided = rebuilt(&[on("data", moving())], &[], &view(HandoffState::Reserved));
    assert!(matches!(
        undecided.unwrap_err()[..],
        [Undecided::NotCalledOff { .. }]
    ));
    assert!(rebuilt(&[on("data", moving())], &[], &BTreeMap::new()).is_err());
}

#[test]
fn a_destination_that_has_passed_it_on_or_given_it_back_has_forgotten_the_handoff() {
    let forgotten = view(HandoffState::Unknown);
    let at = |words: &[Word]| rebuilt(&[on("data", moving())], words, &forgotten).unwrap();
    assert_eq!(
        known(&at(&[owner_is("h3", 3)])),
        Some((Epoch(3), gone("h3")))
    );
    let mut word = owner_is("h2", 1);
    word.owners = vec![(application(), Epoch(3), host("h1"))];
    assert_eq!(known(&at(&[word])), Some((Epoch(3), Role::Owner)));
}

#[test]
fn a_missing_volume_is_missed_and_not_made_anew() {
    let volumes = [volume("data"), volume("log")];
    let of = Of {
        application: &application(),
        volumes: &volumes,
    };
    let stamp = Stamp::held(of, &volumes[0], &host("h1"), Epoch(3));
    let one = on("data", stamp.clone());
    let lost = Volume {
        dataset: volumes[1].dataset.clone(),
        stamp: None,
        live: true,
    };
    let all =
        |registry: &Registry| -> Ownership { registry.owned(&application()).unwrap().clone() };
    for pool in [vec![one.clone()], vec![one, lost]] {
        let registry = rebuilt(&pool, &[], &BTreeMap::new()).unwrap();
        let owned = all(&registry);
        assert_eq!((owned.volumes, owned.unmade), (volumes.to_vec(), vec![]));
    }
    // A stamp of an earlier version does not know the others; the deployment does.
    let mut desired = deployment();
    let spec = desired.applications.get_mut(&application()).unwrap();
    let mut second = spec.volumes[0].clone();
    second.name = volume("log").name;
    spec.volumes.push(second);
    let old = Stamp {
        volumes: Vec::new(),
        ..stamp
    };
    let pool = [on("data", old)];
    let registry = rebuilt_for("h1", &desired, &pool, &[], &BTreeMap::new()).unwrap();
    let names: Vec<_> = all(&registry).volumes.into_iter().map(|v| v.name).collect();
    assert_eq!(names, [volume("data").name, volume("log").name]);
}

#[test]
fn the_stamps_of_one_application_are_judged_together() {
    let of = |name: &str, stamp: Stamp| {
        let mut volume = on(name, stamp);
        if let Some(stamp) = &mut volume.stamp {
            stamp.volume = super::tests::volume(name).name;
        }
        volume
    };
    let verified = view(HandoffState::Verified);
    // The crash came before the other stamp, in the park and on the way back.
    let parked = [of("data", moving()), of("log", held("h1", 1))];
    let registry = rebuilt(&parked, &[], &verified).unwrap();
    assert_eq!(known(&registry), Some((Epoch(2), gone("h2"))));
    let reclaimed = [of("data", held("h1", 3)), of("log", moving())];
    let registry = rebuilt(&reclaimed, &[], &verified).unwrap();
    assert_eq!(known(&registry), Some((Epoch(3), Role::Owner)));
    let twice = [on("data", held("h1", 1)), on("log", held("h1", 1))];
    assert!(matches!(
        rebuilt(&twice, &[], &BTreeMap::new()).unwrap_err()[..],
        [Undecided::Twice { .. }]
    ));
}

#[test]
fn what_has_nothing_in_the_pool_is_what_the_others_say() {
    let word = |at: &str| Word {
        owners: vec![(application(), Epoch(4), host(at))],
        ..owner_is("h2", 1)
    };
    let none = BTreeMap::new();
    let elsewhere = rebuilt(&[], &[word("h3")], &none).unwrap();
    assert_eq!(known(&elsewhere), None);
    let lost = rebuilt(&[], &[word("h1")], &none).unwrap();
    assert!(
        lost.owned(&application()).is_none() && lost.is_left(&application()),
        "a machine without its pool is the owner of nothing: another host may go on"
    );
    assert_eq!(known(&lost).unwrap().0, Epoch(4));
    let mut desired = deployment();
    let spec = desired.applications.get_mut(&application()).unwrap();
    spec.volumes.clear();
    let plain = rebuilt_for("h1", &desired, &[], &[word("h1")], &none).unwrap();
    assert_eq!(known(&plain), Some((Epoch(4), Role::Owner)));
    assert!(plain.owned(&application()).unwrap().volumes.is_empty());
}

#[test]
fn a_source_in_its_window_is_waited_for() {
    let handoff =
        crate::destination::DestinationHandoff::begin(id(1), crate::fixtures::reservation());
    let incoming = Stamp::incoming(&handoff, &volume("data"));
    let told = |phase: &str| Migration {
        epoch: Epoch(1),
        now: Some(MigrationNow {
            phase: phase.to_owned(),
            round: 0,
            bytes: Bytes(0),
            rate: Bytes(0),
            predicted_window: None,
            waits: None,
            elapsed: std::time::Duration::ZERO,
        }),
        ..*report(id(1), MigrationState::Running)
    };
    let at = |phase: &str| {
        let word = Word {
            migrations: vec![told(phase)],
            ..owner_is("h1", 1)
        };
        let pool = [on("data", incoming.clone())];
        rebuilt_for("h2", &deployment(), &pool, &[word], &BTreeMap::new())
    };
    let coming = at("precopy").unwrap();
    assert_eq!(coming.owned(&application()), None);
    assert_eq!(
        coming.applications()[&application()].role,
        Role::Gone { to: host("h1") },
        "an older offer would find nobody who knows better"
    );
    assert!(coming.destinations().is_empty() && coming.sources().is_empty());
    assert!(matches!(
        at("final_delta").unwrap_err()[..],
        [Undecided::InWindow { .. }]
    ));
}

#[test]
fn everybody_whose_word_counts_is_asked() {
    let all = must_answer(&host("h1"), &deployment(), &[]);
    let names = |hosts: BTreeSet<HostAddr>| -> Vec<String> {
        hosts.iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(all), ["h2", "h3", "h4"]);
    let nobody = Desired::default();
    let volumes = [on("data", moving())];
    assert_eq!(names(must_answer(&host("h1"), &nobody, &volumes)), ["h2"]);
    let question = Question {
        migration: id(1),
        to: host("h2"),
        epoch: Epoch(1),
    };
    assert_eq!(questions(&host("h1"), &volumes), [question]);
}

#[test]
fn a_journal_that_knows_less_than_the_stamps_is_not_the_newest() {
    let registry = Registry::replay(&born());
    let here = host("h1");
    let tells = |stamp: Stamp| unknown_to(&registry, &here, &[on("data", stamp)]).is_some();
    assert!(!tells(held("h1", 1)));
    assert!(tells(held("h1", 2)), "of a larger epoch");
    assert!(!tells(held("h9", 7)), "another host's pool");
    assert!(!tells(moving()));
    let empty = Registry::default();
    let lost = |stamp: Stamp| unknown_to(&empty, &here, &[on("data", stamp)]).is_some();
    assert!(lost(held("h1", 1)));
    let handoff =
        crate::destination::DestinationHandoff::begin(id(1), crate::fixtures::reservation());
    assert!(!lost(Stamp::incoming(&handoff, &volume("data"))));
}
