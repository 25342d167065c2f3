//! A move is played record by record and stamp by stamp, and at every moment one of its hosts
//! loses its journal. After the rebuild both machines go on, and in the end one host owns the
//! application: the one that answered clients last, if any could have.

use super::*;
use crate::destination::{DestinationHandoff, Event as There};
use crate::fixtures::{destination, reserved, round, source};
use crate::record::{DestinationRecord, SourceRecord};
use crate::source::{Effect, Event as Here};

/// One thing that happens in a move from `h1` to `h2`.
#[derive(Debug, Clone)]
enum Act {
    /// A record in the journal of the source.
    Source(SourceRecord),
    /// A record in the journal of the destination.
    Destination(Record),
    /// A stamp on the source's volume.
    StampHere(Stamp),
    /// A stamp on the destination's.
    StampThere(Stamp),
    /// Clients may be answered by this host from now on, or by nobody.
    Serves(Option<&'static str>),
}

#[derive(Debug, Clone, Default)]
struct World {
    here: Vec<Record>,
    there: Vec<Record>,
    on_source: Option<Stamp>,
    on_destination: Option<Stamp>,
    /// Who answered clients last, since the last stop.
    served: Option<&'static str>,
}

impl World {
    fn act(&mut self, act: Act) {
        match act {
            Act::Source(step) => self.here.push(source(1, step)),
            Act::Destination(record) => self.there.push(record),
            Act::StampHere(stamp) => self.on_source = Some(stamp),
            Act::StampThere(stamp) => self.on_destination = Some(stamp),
            Act::Serves(host) => self.served = host,
        }
    }
}

fn gone_to(to: &str, epoch: u64) -> Stamp {
    let volumes = [volume("data")];
    let of = Of {
        application: &application(),
        volumes: &volumes,
    };
    Stamp::gone(of, &volumes[0], &host(to), Epoch(epoch))
}

fn until_the_stop() -> Vec<Act> {
    let handoff = DestinationHandoff::begin(id(1), crate::fixtures::reservation());
    vec![
        Act::Source(SourceRecord::Planned(plan())),
        Act::Destination(reserved(1)),
        Act::StampThere(Stamp::incoming(&handoff, &volume("data"))),
        Act::Source(SourceRecord::Round(round())),
        Act::Source(SourceRecord::CutOver {
            attempt: Attempt(1),
            deadline: NOW,
        }),
        Act::StampHere(moving()),
        Act::Serves(None),
    ]
}

fn until_it_is_adopted() -> Vec<Act> {
    let released = SourceRecord::Released {
        attempt: Attempt(1),
    };
    let mut acts = until_the_stop();
    acts.extend([
        Act::Destination(crate::fixtures::verified(1)),
        Act::Source(released),
        Act::Destination(destination(1, DestinationRecord::Adopted)),
        Act::StampThere(held("h2", 2)),
    ]);
    acts
}

fn done() -> Vec<Act> {
    let mut acts = until_it_is_adopted();
    let close = |state| report(id(1), state);
    acts.extend([
        Act::Destination(destination(1, DestinationRecord::Serving)),
        Act::Serves(Some("h2")),
        Act::Source(SourceRecord::Served),
        Act::StampHere(gone_to("h2", 2)),
        Act::Destination(destination(1, DestinationRecord::Closed)),
        Act::Source(SourceRecord::Closed {
            report: close(MigrationState::Done),
        }),
    ]);
    acts
}

fn why() -> String {
    "because".to_owned()
}

fn returned() -> Vec<Act> {
    let mut acts = until_it_is_adopted();
    acts.extend([
        Act::Destination(destination(
            1,
            DestinationRecord::Returned { reason: why() },
        )),
        Act::StampThere(gone_to("h1", 3)),
        Act::Source(SourceRecord::Reclaimed { reason: why() }),
        Act::StampHere(held("h1", 3)),
        Act::Serves(Some("h1")),
        Act::Destination(destination(1, DestinationRecord::Closed)),
        Act::Source(SourceRecord::Closed {
            report: report(id(1), MigrationState::Returned),
        }),
    ]);
    acts
}

fn aborted(promised: bool) -> Vec<Act> {
    let mut acts = until_the_stop();
    if promised {
        acts.push(Act::Destination(crate::fixtures::verified(1)));
    }
    acts.extend([
        Act::Source(SourceRecord::Aborted { reason: why() }),
        Act::StampHere(held("h1", 1)),
        Act::Serves(Some("h1")),
        Act::Destination(destination(1, DestinationRecord::Dropped)),
        Act::Destination(destination(1, DestinationRecord::Closed)),
        Act::Source(SourceRecord::Closed {
            report: report(id(1), MigrationState::Aborted),
        }),
    ]);
    acts
}

/// How much hosts tell of what they gave away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tells {
    Everything,
    OnlyItsOwn,
}

/// What a host says of itself, and which migrations it coordinates.
fn word(at: &str, registry: &Registry, tells: Tells) -> Word {
    let owners = registry
        .applications()
        .iter()
        .filter(|(_, known)| tells == Tells::Everything || known.role == Role::Owner)
        .map(|(name, known)| {
            let owner = known.role.owner(&host(at)).clone();
            (name.clone(), known.epoch, owner)
        })
        .collect();
    let migrations = registry.sources().values().map(|migration| Migration {
        epoch: match &migration.phase {
            Phase::After(_) => migration.plan.epoch.next(),
            Phase::Before(_) | Phase::Ended(_) => migration.plan.epoch,
        },
        ..*report(migration.id.clone(), MigrationState::Running)
    });
    Word {
        host: host(at),
        owners,
        migrations: migrations.collect(),
    }
}

fn pool(stamp: Option<&Stamp>) -> Vec<Volume> {
    stamp
        .map(|stamp| on("data", stamp.clone()))
        .into_iter()
        .collect()
}

/// The source loses its journal: it asks the destination, which calls off what it may.
fn lose_the_source(world: &World, tells: Tells) -> (Registry, Registry) {
    let mut there = Registry::replay(&world.there);
    let state = |registry: &Registry| {
        let known = registry.destinations().get(&id(1));
        known.map_or(HandoffState::Unknown, DestinationHandoff::state)
    };
    if state(&there) == HandoffState::Reserved
        && world.on_source.as_ref().is_some_and(|s| *s == moving())
    {
        there.apply(&destination(1, DestinationRecord::Dropped));
    }
    let volumes = pool(world.on_source.as_ref());
    let words = [word("h2", &there, tells)];
    let rebuilt = rebuilt(&volumes, &words, &view(state(&there))).unwrap();
    (rebuilt, there)
}

fn lose_the_destination(world: &World, tells: Tells) -> (Registry, Registry) {
    let here = Registry::replay(&world.here);
    let volumes = pool(world.on_destination.as_ref());
    let words = [word("h1", &here, tells)];
    let there = rebuilt_for("h2", &deployment(), &volumes, &words, &BTreeMap::new()).unwrap();
    (here, there)
}

fn take(there: &mut Registry, event: There) -> HandoffState {
    if let Some(handoff) = there.destinations().get(&id(1)).cloned()
        && let Ok(step) = handoff.step(event)
    {
        for record in step.records {
            there.apply(&destination(1, record));
        }
    }
    let known = there.destinations().get(&id(1));
    known.map_or(HandoffState::Unknown, DestinationHandoff::state)
}

fn outcome(state: HandoffState) -> Here {
    match state {
        HandoffState::Owned => Here::Adopted,
        HandoffState::Serving => Here::Served,
        HandoffState::Returned => Here::Returned { reason: why() },
        other => panic!("the source is stuck: the handoff is {other:?}"),
    }
}

/// Both hosts go on until nothing is open. Before C1 a source that was restarted calls it off.
fn go_on(here: &mut Registry, there: &mut Registry) {
    while let Some(migration) = here.sources().get(&id(1)).cloned() {
        let closed = |state| Here::Closed {
            report: report(id(1), state),
        };
        let event = match migration.effect().unwrap() {
            Effect::Restore { .. } => {
                take(there, There::Aborted);
                closed(MigrationState::Aborted)
            }
            Effect::Grant { attempt, epoch } => {
                outcome(take(there, There::Granted { attempt, epoch }))
            }
            Effect::AwaitOutcome { .. } => outcome(take(there, There::Healthy)),
            Effect::Finish { .. } | Effect::Reclaim { .. } => {
                take(there, There::Closed);
                closed(MigrationState::Done)
            }
            _before_the_release => Here::AbortRequested { reason: why() },
        };
        for step in migration.step(NOW, event).unwrap().records {
            here.apply(&source(1, step));
        }
    }
}

fn check(world: &World, mut here: Registry, mut there: Registry, at: &str) {
    go_on(&mut here, &mut there);
    let owner_of = |registry: &Registry| registry.owned(&application()).map(|known| known.epoch);
    let (ours, theirs) = (owner_of(&here), owner_of(&there));
    let owner = match (ours, theirs) {
        (Some(_), None) => "h1",
        (None, Some(_)) => "h2",
        other => panic!("{at}: the owners are {other:?}"),
    };
    if let Some(served) = world.served {
        assert_eq!(owner, served, "{at}: acknowledged writes are lost");
    }
}

fn lose_either(world: &World, at: &str) {
    for tells in [Tells::Everything, Tells::OnlyItsOwn] {
        let (here, there) = lose_the_source(world, tells);
        check(
            world,
            here,
            there,
            &format!("{at}: the source's journal is lost"),
        );
        let (here, there) = lose_the_destination(world, tells);
        check(
            world,
            here,
            there,
            &format!("{at}: the destination's journal is lost"),
        );
    }
}

fn play(name: &str, acts: Vec<Act>) {
    let mut world = World {
        here: born(),
        on_source: Some(held("h1", 1)),
        served: Some("h1"),
        ..World::default()
    };
    for (number, act) in acts.into_iter().enumerate() {
        lose_either(&world, &format!("{name}, before step {number}: {act:?}"));
        world.act(act);
    }
    lose_either(&world, name);
}

#[test]
fn a_journal_may_be_lost_at_any_moment_of_a_move() {
    play("done", done());
    play("returned", returned());
    play("aborted before the promise", aborted(false));
    play("aborted after the promise", aborted(true));
}
