//! The line keeps its order and its limits, and nobody waits without a reason; a line that is
//! fed through the limits never holds more than they allow.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::limits::{Limits, Load, admit};
use crate::line::{Flow, Line, Retry, Ticket, Turn};
use proptest::prelude::*;
use rehome_shared::api::proxy::ParkLimits;

#[derive(Debug, Clone, Copy)]
enum Event {
    Arrive,
    Succeed,
    Fail,
    GiveUp,
    Leave,
    Open,
    Park,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Arrive),
        3 => Just(Event::Succeed),
        2 => Just(Event::Fail),
        1 => Just(Event::GiveUp),
        1 => Just(Event::Leave),
        1 => Just(Event::Open),
        1 => Just(Event::Park),
    ]
}

/// The line and what an onlooker knows about it.
struct Model {
    line: Line,
    flow: Flow,
    waiting: BTreeSet<Ticket>,
    going: VecDeque<Ticket>,
    active: u64,
    tickets: u64,
}

impl Model {
    fn call_next(&mut self) -> Result<(), TestCaseError> {
        while let Some(ticket) = self.line.next(self.flow) {
            prop_assert_eq!(Some(&ticket), self.waiting.first(), "out of order");
            self.waiting.remove(&ticket);
            self.going.push_back(ticket);
        }
        Ok(())
    }

    fn arrive(&mut self, limits: &Limits, route: &ParkLimits) {
        let held = u64::try_from(self.waiting.len() + self.going.len()).unwrap();
        let load = Load {
            route_held: held,
            route_active: self.active,
            all: held + self.active,
            ..Load::default()
        };
        if admit(limits, route, &load).is_err() {
            return;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        match self.line.arrive(ticket, self.flow) {
            Turn::Go => self.going.push_back(ticket),
            Turn::Wait => {
                self.waiting.insert(ticket);
            }
        }
    }

    fn step(&mut self, event: Event, limits: &Limits, route: &ParkLimits) {
        match event {
            Event::Arrive => self.arrive(limits, route),
            Event::Succeed => {
                if let Some(ticket) = self.going.pop_front() {
                    self.line.succeeded(ticket);
                    self.active += 1;
                }
            }
            Event::Fail => {
                if let Some(ticket) = self.going.pop_front() {
                    match self.line.failed(ticket) {
                        Retry::Again(_) => self.going.push_front(ticket),
                        Retry::Wait => {
                            self.waiting.insert(ticket);
                        }
                    }
                }
            }
            Event::GiveUp => {
                if let Some(ticket) = self.going.pop_front() {
                    self.line.leave(ticket);
                }
            }
            Event::Leave => {
                if let Some(ticket) = self.waiting.pop_last() {
                    self.line.leave(ticket);
                }
            }
            Event::Open => {
                self.flow = Flow::May;
                self.line.forgive();
            }
            Event::Park => self.flow = Flow::MustNot,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_limits_and_progress_hold(
        events in prop::collection::vec(event(), 1..400),
        park_limit in 1_u32..200,
    ) {
        let limits = Limits { connections: 500, per_route: 400, parked_bytes: 0 };
        let route = ParkLimits { park_limit, park_timeout: Duration::from_secs(1) };
        let mut model = Model {
            line: Line::default(),
            flow: Flow::May,
            waiting: BTreeSet::new(),
            going: VecDeque::new(),
            active: 0,
            tickets: 0,
        };
        for event in events {
            model.step(event, &limits, &route);
            model.call_next()?;
            prop_assert_eq!(model.line.waiting(), model.waiting.len());
            prop_assert_eq!(model.line.going(), model.going.len());
            prop_assert!(model.going.len() <= Line::AT_ONCE);
            prop_assert!(model.waiting.len() + model.going.len() <= usize::try_from(park_limit).unwrap());
            let stuck = model.flow == Flow::May && !model.waiting.is_empty() && model.going.is_empty();
            prop_assert!(!stuck, "the line may flow and nobody goes");
        }
    }
}

/// A line in which so many go and so many wait.
fn crowd(going: u64, waiting: u64) -> Line {
    let mut line = Line::default();
    for ticket in 1..=going + waiting {
        // Told later, by what the line says of itself.
        let _turn: Turn = line.arrive(Ticket(ticket), Flow::May);
    }
    line
}

fn called(line: &mut Line) -> Vec<Ticket> {
    std::iter::from_fn(|| line.next(Flow::May)).collect()
}

#[test]
fn when_a_crowd_fails_the_first_of_it_tries_next() {
    let at_once = u64::try_from(Line::AT_ONCE).unwrap();
    let mut line = crowd(at_once, 10);
    for ticket in 1..at_once {
        assert_eq!(line.failed(Ticket(ticket)), Retry::Wait);
        assert!(called(&mut line).is_empty(), "{ticket}");
    }
    // The last to fail has waited out the pause for all, and stands behind the others.
    assert!(matches!(line.failed(Ticket(at_once)), Retry::Again(_)));
    assert_eq!(line.arrive(Ticket(at_once), Flow::May), Turn::Wait);
    assert_eq!(called(&mut line), [Ticket(1)]);
    assert_eq!(line.arrive(Ticket(1), Flow::May), Turn::Go);
}

#[test]
fn after_a_failure_more_and_more_try_at_a_time() {
    let mut line = crowd(1, 0);
    assert!(matches!(line.failed(Ticket(1)), Retry::Again(1)));
    for ticket in 2..=20_000 {
        assert_eq!(line.arrive(Ticket(ticket), Flow::May), Turn::Wait);
    }
    line.succeeded(Ticket(1));
    assert_eq!(called(&mut line), [Ticket(2), Ticket(3)]);
    line.succeeded(Ticket(2));
    line.succeeded(Ticket(3));
    assert_eq!(called(&mut line).len(), 4);
    let mut widest = Vec::new();
    for ticket in 4..15_000 {
        line.succeeded(Ticket(ticket));
        called(&mut line);
        widest.push(line.going());
    }
    // Half of what was too much is there soon, all of it much later.
    assert_eq!((widest[60], widest[14_000]), (64, Line::AT_ONCE));
    assert!(widest[1_000] < 80);
    // Another target is another application.
    assert!(matches!(line.failed(Ticket(15_000)), Retry::Wait));
    line.forgive();
    assert_eq!(called(&mut line).len(), 1);
}
