//! Any order of steps and messages, with either side dying at any moment: what both may do at
//! the same time, and what is left at the end.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::super::*;
use super::hello;

const CONNECTIONS: u64 = 6;

/// What a schedule is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The giver does its next step, when it waits for nothing.
    Step,
    /// A message reaches the giver.
    ToGiver,
    /// A message reaches the taker.
    ToTaker,
    /// The taker is killed.
    TakerDies,
    /// The giver is killed.
    GiverDies,
    /// The giver waits no longer.
    TimeOut,
    /// The taker has heard nothing for long.
    Silence,
    /// The giver cannot make the batch for which it has stopped connections.
    NoRoom,
}

/// What the giver does next by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Nothing,
    Equip,
    Equipped,
    Counts,
    Go,
    Offer,
    /// They have stopped, and the batch is being made.
    Send,
    Release,
}

/// One who passes bytes on.
#[derive(Debug, Default)]
struct Side {
    dead: bool,
    accepts: bool,
    passes: BTreeSet<PartId>,
}

struct World {
    giver: Giver,
    taker: Taker,
    old: Side,
    new: Side,
    next: Next,
    to_giver: VecDeque<Message>,
    to_taker: VecDeque<Message>,
    /// Not offered yet.
    waiting: Vec<PartId>,
    /// What the giver has taken its hands off, and not released.
    stopped: BTreeSet<PartId>,
    /// What the giver could not hand over.
    stays: BTreeSet<PartId>,
    released: BTreeSet<PartId>,
    /// What the taker holds and was not released.
    holds: BTreeSet<PartId>,
    /// The giver has said its last word.
    ended: bool,
    /// Bits decide which parts the taker refuses.
    refuses: u64,
}

impl World {
    fn new(refuses: u64) -> Self {
        let all: Vec<_> = (1..=CONNECTIONS).map(PartId).collect();
        let taker = Taker::new(hello(2, 1));
        let to_giver = VecDeque::from([taker.greeting()]);
        Self {
            giver: Giver::new(hello(1, 1)),
            taker,
            old: Side {
                dead: false,
                accepts: true,
                passes: all.iter().copied().collect(),
            },
            new: Side::default(),
            next: Next::Nothing,
            to_giver,
            to_taker: VecDeque::new(),
            waiting: all,
            stopped: BTreeSet::new(),
            stays: BTreeSet::new(),
            released: BTreeSet::new(),
            holds: BTreeSet::new(),
            ended: false,
            refuses,
        }
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Step if !self.old.dead && !self.ended => self.step(),
            Event::ToGiver if !self.old.dead && !self.ended => self.giver_hears(),
            Event::ToTaker if !self.new.dead => self.taker_hears(),
            Event::TakerDies => self.taker_dies(),
            Event::GiverDies => {
                self.old.dead = true;
                self.old.accepts = false;
                self.old.passes.clear();
            }
            Event::TimeOut if !self.old.dead && !self.ended => self.fail(),
            Event::NoRoom if !self.old.dead && !self.ended && self.next == Next::Send => {
                self.fail();
            }
            // Before it is told to accept, a taker that hears nothing gives up.
            Event::Silence if self.to_taker.is_empty() && !self.new.accepts => self.taker_dies(),
            Event::Step
            | Event::ToGiver
            | Event::ToTaker
            | Event::TimeOut
            | Event::NoRoom
            | Event::Silence => {}
        }
    }

    /// False when the taker is gone.
    fn say(&mut self, message: Message) -> bool {
        if !self.new.dead {
            self.to_taker.push_back(message);
        }
        !self.new.dead
    }

    fn step(&mut self) {
        let said = match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Nothing => true,
            Next::Equip => self.offer(vec![PartId(100), PartId(101)]),
            Next::Equipped => {
                let message = self.giver.equipped().unwrap();
                self.say(message)
            }
            Next::Counts => {
                self.old.accepts = false;
                self.offer(vec![PartId(102)])
            }
            Next::Go => {
                let message = self.giver.go().unwrap();
                self.next = Next::Offer;
                self.say(message)
            }
            Next::Offer if self.waiting.is_empty() => {
                let message = self.giver.end(End::default()).unwrap();
                self.say(message)
            }
            Next::Offer => {
                let rest = self.waiting.split_off(self.waiting.len().min(2));
                let batch = std::mem::replace(&mut self.waiting, rest);
                for id in &batch {
                    self.old.passes.remove(id);
                    self.stopped.insert(*id);
                }
                self.next = Next::Send;
                true
            }
            Next::Send => {
                let batch = self.stopped.iter().copied().collect();
                self.offer(batch)
            }
            Next::Release => {
                let message = self.giver.release().unwrap();
                let Message::Release { ids } = message.clone() else {
                    unreachable!("it is a release");
                };
                self.next = Next::Offer;
                let said = self.say(message);
                if said {
                    self.giver.released();
                    self.stopped.retain(|id| !ids.contains(id));
                    self.released.extend(ids);
                }
                said
            }
        };
        if !said {
            self.fail();
        }
    }

    fn offer(&mut self, ids: Vec<PartId>) -> bool {
        self.giver.offer(ids.clone()).unwrap();
        self.say(Message::Batch(Batch {
            ids,
            records: 0,
            bytes: 0,
        }))
    }

    fn giver_hears(&mut self) {
        let Some(message) = self.to_giver.pop_front() else {
            if self.new.dead {
                self.fail();
            }
            return;
        };
        match self.giver.hear(message) {
            Ok(Heard::Greeted(_)) => {
                self.next = Next::Equip;
                if !self.say(Message::Hello(hello(1, 1))) {
                    self.fail();
                }
            }
            Ok(Heard::Held { taken, refused }) => {
                for refusal in refused {
                    self.stopped.remove(&refusal.id);
                    self.old.passes.insert(refusal.id);
                    self.stays.insert(refusal.id);
                }
                self.next = if taken.contains(&PartId(100)) {
                    Next::Equipped
                } else if taken.contains(&PartId(102)) {
                    Next::Go
                } else {
                    Next::Release
                };
            }
            Ok(Heard::Ready) => self.next = Next::Counts,
            // Its sockets are closed; what it could not hand over it still passes on.
            Ok(Heard::Serving) => self.ended = true,
            Err(_) => self.fail(),
        }
    }

    fn taker_hears(&mut self) {
        let Some(message) = self.to_taker.pop_front() else {
            if self.old.dead {
                match self.taker.lost() {
                    Fate::Quit => self.taker_dies(),
                    Fate::GoOn => self.new.passes.append(&mut self.holds),
                }
            }
            return;
        };
        let answer = match self.taker.hear(message).unwrap() {
            ToDo::Wait(_) => None,
            ToDo::Hold(batch) => {
                let (refused, held): (Vec<_>, Vec<_>) = batch
                    .ids
                    .into_iter()
                    .partition(|id| self.refuses & (1 << (id.0 % 64)) != 0);
                let refused = refused.into_iter().map(|id| Refusal {
                    id,
                    reason: String::new(),
                });
                self.holds.extend(held.iter().filter(|id| id.0 < 100));
                Some(self.taker.hold(held, refused.collect()))
            }
            ToDo::Build => Some(self.taker.built()),
            ToDo::Accept => {
                self.new.accepts = true;
                None
            }
            ToDo::Pass(ids) => {
                self.holds.retain(|id| !ids.contains(id));
                self.new.passes.extend(ids);
                None
            }
            ToDo::Serve(_) => Some(Message::Serving),
        };
        if let Some(answer) = answer {
            self.to_giver.push_back(answer);
        }
    }

    fn taker_dies(&mut self) {
        self.holds.clear();
        self.new = Side {
            dead: true,
            ..Side::default()
        };
        self.to_taker.clear();
    }

    /// What a giver does whose handover has failed: it ends the taker first.
    fn fail(&mut self) {
        self.taker_dies();
        self.to_giver.clear();
        self.old.passes.append(&mut self.stopped);
        self.old.accepts = true;
        self.next = Next::Nothing;
        self.ended = true;
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(!(self.old.accepts && self.new.accepts), "two accept");
        let both = self.old.passes.intersection(&self.new.passes).count();
        prop_assert_eq!(both, 0, "two pass on");
        Ok(())
    }

    /// Plays on without faults until nothing happens any more.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..100 {
            for event in [Event::Step, Event::ToGiver, Event::ToTaker] {
                self.play(event);
                self.check()?;
            }
        }
        Ok(())
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => Just(Event::Step),
        20 => Just(Event::ToGiver),
        20 => Just(Event::ToTaker),
        1 => Just(Event::TakerDies),
        1 => Just(Event::GiverDies),
        1 => Just(Event::TimeOut),
        1 => Just(Event::Silence),
        1 => Just(Event::NoRoom),
    ]
}

/// Of the parts that a giver hands over at the begin none is refused; of connections some are.
fn refuses() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0_u64..128]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_connection_is_passed_on_by_one_side_whatever_fails(
        events in proptest::collection::vec(event(), 0..120),
        refuses in refuses(),
    ) {
        let mut world = World::new(refuses & !1);
        let mut giver_died = false;
        for event in events {
            giver_died |= event == Event::GiverDies;
            world.play(event);
            world.check()?;
        }
        world.settle()?;
        let all: BTreeSet<_> = (1..=CONNECTIONS).map(PartId).collect();
        let served: BTreeSet<_> =
            world.old.passes.union(&world.new.passes).copied().collect();
        match (giver_died, world.new.dead) {
            // Both live, or the old one had ended by itself.
            (false, false) => {
                prop_assert!(world.ended, "they did not come to an end");
                prop_assert_eq!(served, all);
                prop_assert!(world.new.accepts);
                prop_assert_eq!(world.old.passes, world.stays);
            }
            // Lost is only what was the taker's already; and who is left accepts, unless the
            // old one had ended before the new one died.
            (false, true) => {
                let kept: BTreeSet<_> = all.difference(&world.released).copied().collect();
                prop_assert!(served.is_superset(&kept), "{served:?} of {kept:?}");
            }
            // A successor that was told to accept goes on with all that it got.
            (true, false) => {
                prop_assert!(world.new.accepts);
                prop_assert!(world.new.passes.is_superset(&world.released));
                let sent = world.released.union(&world.stopped).copied().collect();
                prop_assert!(world.new.passes.is_subset(&sent));
                prop_assert!(world.holds.is_empty());
            }
            (true, true) => {}
        }
    }

    #[test]
    fn a_taker_that_dies_before_the_end_leaves_the_giver_accepting(
        at in 0_usize..60,
        refuses in refuses(),
    ) {
        let mut world = World::new(refuses & !1);
        let turns = [Event::Step, Event::ToGiver, Event::ToTaker];
        for event in turns.iter().cycle().take(at) {
            world.play(*event);
            world.check()?;
        }
        let ended = world.ended || world.to_giver.contains(&Message::Serving);
        world.play(Event::TakerDies);
        world.settle()?;
        prop_assert_eq!(world.old.accepts, !ended);
        let all: BTreeSet<_> = (1..=CONNECTIONS).map(PartId).collect();
        let kept: BTreeSet<_> = all.difference(&world.released).copied().collect();
        prop_assert_eq!(world.old.passes, kept);
    }
}
