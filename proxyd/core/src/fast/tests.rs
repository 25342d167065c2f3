//! Whatever happens in whatever order, and whether the kernel does it or not: an element leads where
//! its open route leads, or nothing is certain and the next look finds out.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use rehome_shared::api::proxy::{
    Announce, ClientAddress, Commit, CommitTarget, Content, GateRef, ParkLimits, Prepare,
    RouteIntent, RouteKey, RouteSpec, SetRoutes, Target,
};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};

use super::{Element, Found, Plan, Policy, Why, element};
use crate::table::{Changes, Owner, Phase, Route, RouteTable};

const APPS: [(&str, &[&str]); 2] = [("db", &["5432/tcp", "5433/udp"]), ("web", &["80/tcp"])];

/// What happens.
#[derive(Debug, Clone)]
enum Event {
    Put(usize, u64, RouteIntent),
    Prepare(usize, u64),
    Freeze(usize),
    Commit(usize, u64, Target),
    Rollback(usize, u64),
    /// With the routes of which somebody waits for the application.
    Look(BTreeSet<usize>),
    Policy(bool),
    /// The kernel does nothing of what it is asked, so many times.
    Fails(u8),
    /// Somebody else takes everything out.
    Flushed,
    /// The proxy begins anew with the table that it had.
    Restart,
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        3 => (1_u8..4).prop_map(|n| Target::Local { addr: ([172, 17, 0, n], 80).into() }),
        1 => Just(Target::Local { addr: ([127, 0, 0, 1], 80).into() }),
        1 => Just(Target::Remote {
            host: HostAddr::try_new("10.0.0.2").unwrap(),
            trunk: "10.0.0.2:7421".into(),
        }),
    ]
}

fn intent() -> impl Strategy<Value = RouteIntent> {
    prop_oneof![
        3 => target().prop_map(RouteIntent::Open),
        1 => Just(RouteIntent::Park),
        1 => Just(RouteIntent::Closed),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let app = 0..APPS.len();
    prop_oneof![
        3 => (app.clone(), 0_u64..6, intent()).prop_map(|(a, v, i)| Event::Put(a, v, i)),
        2 => (app.clone(), 0_u64..6).prop_map(|(a, v)| Event::Prepare(a, v)),
        1 => app.clone().prop_map(Event::Freeze),
        2 => (app.clone(), 0_u64..6, target()).prop_map(|(a, v, t)| Event::Commit(a, v, t)),
        1 => (app, 0_u64..6).prop_map(|(a, v)| Event::Rollback(a, v)),
        4 => prop::collection::btree_set(0_usize..3, 0..3).prop_map(Event::Look),
        1 => any::<bool>().prop_map(Event::Policy),
        1 => (1_u8..3).prop_map(Event::Fails),
        1 => Just(Event::Flushed),
        1 => Just(Event::Restart),
    ]
}

fn app(index: usize) -> (AppName, Vec<RouteKey>) {
    let (name, keys) = APPS[index];
    let keys = keys.iter().map(|key| key.parse().unwrap()).collect();
    (AppName::try_new(name).unwrap(), keys)
}

fn version(generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(1),
        generation: Generation(generation),
    }
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 10,
        park_timeout: Duration::from_mins(1),
    }
}

fn prepare(index: usize, at: u64) -> Prepare {
    Prepare {
        application: app(index).0,
        version: version(at),
        lease: Duration::from_secs(1),
        limits: limits(),
    }
}

/// A proxy and its kernel.
#[derive(Debug, Default)]
struct World {
    table: RouteTable,
    plan: Plan,
    kernel: Found,
    fails: u8,
    /// What the plan says of the kernel is not certain.
    unsettled: bool,
}

impl World {
    /// What the shell does with a flip; whether it was made.
    fn make(&mut self, flip: &super::Flip) -> bool {
        if flip.is_empty() {
            return true;
        }
        if self.fails > 0 {
            self.fails -= 1;
            self.unsettled = true;
            return false;
        }
        self.kernel.apply(flip);
        self.plan.done(flip);
        true
    }

    fn settle(&mut self) -> bool {
        self.unsettled = true;
        if self.fails > 0 {
            self.fails -= 1;
            return false;
        }
        self.plan.learn(self.kernel.clone());
        let flip = self.plan.change_all(&self.table);
        self.unsettled = !self.make(&flip);
        !self.unsettled
    }

    fn follow(&mut self, changes: &Changes) -> bool {
        if self.unsettled {
            return self.settle();
        }
        let flip = self.plan.change(&self.table, changes.keys());
        self.make(&flip) || self.settle()
    }

    /// What the table makes of an event; nothing, when it refuses it.
    fn told(&mut self, event: &Event) -> Option<Changes> {
        match event {
            Event::Put(index, at, intent) => {
                let (application, keys) = app(*index);
                let spec = |key| RouteSpec {
                    key,
                    application: application.clone(),
                    version: version(*at),
                    intent: intent.clone(),
                    limits: limits(),
                    content: Content::default(),
                    announce: Announce::default(),
                };
                let desired = SetRoutes {
                    host: HostAddr::try_new("10.0.0.1").unwrap(),
                    peers: vec![],
                    routes: keys.into_iter().map(spec).collect(),
                };
                Some(self.table.apply(&desired).changes)
            }
            Event::Prepare(index, at) => self.table.prepare(&prepare(*index, *at)).ok(),
            Event::Commit(index, at, target) => {
                let (application, keys) = app(*index);
                let target = |key| CommitTarget {
                    key,
                    target: target.clone(),
                };
                let verb = Commit {
                    application,
                    version: version(*at),
                    targets: keys.into_iter().map(target).collect(),
                };
                self.table.commit(&verb).ok()
            }
            Event::Rollback(index, at) => {
                let verb = GateRef {
                    application: app(*index).0,
                    version: version(*at),
                };
                self.table.rollback(&verb).ok()
            }
            _ => None,
        }
    }

    fn step(&mut self, event: &Event, waiting: &mut BTreeSet<RouteKey>) -> bool {
        match event {
            Event::Put(..) | Event::Prepare(..) | Event::Commit(..) | Event::Rollback(..) => {
                let changed = self.told(event);
                changed.is_some_and(|changes| self.follow(&changes))
            }
            Event::Freeze(index) => {
                if self.unsettled && !self.settle() {
                    return false;
                }
                let flip = self.plan.fence(app(*index).1);
                self.make(&flip)
            }
            Event::Look(held) => {
                let all: Vec<RouteKey> = (0..APPS.len()).flat_map(|app_| app(app_).1).collect();
                *waiting = held.iter().map(|index| all[*index]).collect();
                if !self.settle() {
                    return false;
                }
                let plan = &mut self.plan;
                let flip = plan.promote(&self.table, 2, |key| !waiting.contains(&key));
                assert!(flip.add.iter().all(|(key, _)| !waiting.contains(key)));
                self.make(&flip)
            }
            Event::Policy(wanted) => {
                self.plan.set_policy(Policy {
                    wanted: *wanted,
                    ..Policy::default()
                });
                self.settle()
            }
            Event::Fails(times) => {
                self.fails = *times;
                false
            }
            Event::Flushed => {
                self.kernel = Found::default();
                false
            }
            Event::Restart => {
                let policy = self.plan.policy().clone();
                self.plan = Plan::default();
                self.plan.set_policy(policy);
                self.settle()
            }
        }
    }
}

fn on() -> Policy {
    Policy {
        wanted: true,
        ..Policy::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_answered_is_so_in_the_kernel(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World { unsettled: true, ..World::default() };
        world.plan.set_policy(on());
        let mut waiting = BTreeSet::new();
        for event in &events {
            let before = world.kernel.elements.clone();
            let answered = world.step(event, &mut waiting);
            if answered {
                for (key, there) in &world.kernel.elements {
                    let route = world.table.route(*key).expect("an element without a route");
                    prop_assert_eq!(Ok(*there), element(*key, route, world.plan.policy()));
                }
            }
            // Only a look puts one in, and where nobody waits.
            for (key, there) in &world.kernel.elements {
                let new = before.get(key) != Some(there);
                prop_assert!(!new || matches!(event, Event::Look(_)), "{:?}", event);
                prop_assert!(!new || !waiting.contains(key));
                prop_assert!(!new || !world.kernel.fences.contains(key));
            }
        }
    }

    #[test]
    fn in_the_end_whatever_may_have_an_element_has_one(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World { unsettled: true, ..World::default() };
        world.plan.set_policy(on());
        let mut waiting = BTreeSet::new();
        for event in &events {
            world.step(event, &mut waiting);
        }
        world.fails = 0;
        for _ in 0..4 {
            world.step(&Event::Look(BTreeSet::new()), &mut waiting);
        }
        let policy = world.plan.policy().clone();
        for (key, route) in world.table.routes() {
            let wanted = element(*key, route, &policy).ok();
            prop_assert_eq!(world.kernel.elements.get(key).copied(), wanted);
        }
    }
}

fn route(owner: Owner, target: Target, content: Content) -> Route {
    Route {
        owner,
        version: version(1),
        phase: Phase::Open(target),
        limits: limits(),
        content,
        announce: Announce::Nothing,
    }
}

#[test]
fn a_route_that_needs_its_bytes_or_its_connections_is_carried_in_user_space() {
    let key: RouteKey = "80/tcp".parse().unwrap();
    let here = || Target::Local {
        addr: ([10, 0, 0, 5], 80).into(),
    };
    let plain = route(Owner::File, here(), Content::Bytes);
    let why = |route: &Route, policy: &Policy| element(key, route, policy).unwrap_err();
    assert_eq!(why(&plain, &Policy::default()), Why::Off);
    let kept_out = Policy {
        kept_out: [key].into(),
        ..on()
    };
    assert_eq!(why(&plain, &kept_out), Why::Off);
    let counted = Policy {
        per_connection: true,
        ..on()
    };
    assert_eq!(why(&plain, &counted), Why::PerConnection);
    let http = route(Owner::File, here(), Content::Http);
    assert_eq!(why(&http, &on()), Why::Http);
    let told = Route {
        announce: Announce::ProxyV2,
        ..plain.clone()
    };
    assert_eq!(why(&told, &on()), Why::Announces);
    let announced = Policy {
        announced: true,
        ..on()
    };
    assert_eq!(why(&plain, &announced), Why::Announced);
    let but_this = Policy {
        unannounced: [key].into(),
        ..announced.clone()
    };
    assert!(element(key, &plain, &but_this).is_ok());
    // No datagram begins with a header.
    assert!(element("80/udp".parse().unwrap(), &plain, &announced).is_ok());
    for address in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80"] {
        let addr = address.parse().unwrap();
        let local = route(Owner::File, Target::Local { addr }, Content::Bytes);
        assert_eq!(why(&local, &on()), Why::Loopback);
    }
}

#[test]
fn only_an_instance_of_this_host_is_sure_to_answer_through_it() {
    let key: RouteKey = "80/tcp".parse().unwrap();
    let addr = ([10, 0, 0, 5], 80).into();
    let of = |owner| {
        let route = route(owner, Target::Local { addr }, Content::Bytes);
        element(key, &route, &on())
    };
    let with = |client| {
        Ok(Element {
            target: addr,
            client,
        })
    };
    let db = Owner::Application(AppName::try_new("db").unwrap());
    assert_eq!(of(db), with(ClientAddress::Kept));
    assert_eq!(of(Owner::File), with(ClientAddress::Replaced));
}

#[test]
fn all_routes_of_a_move_flip_together() {
    let mut world = World::default();
    world.plan.set_policy(on());
    let target = Target::Local {
        addr: ([172, 17, 0, 2], 80).into(),
    };
    let mut waiting = BTreeSet::new();
    world.step(&Event::Put(0, 1, RouteIntent::Open(target)), &mut waiting);
    for _ in 0..2 {
        world.step(&Event::Look(BTreeSet::new()), &mut waiting);
    }
    assert_eq!(world.kernel.elements.len(), 2);
    let changes = world.table.prepare(&prepare(0, 2)).unwrap();
    let flip = world.plan.change(&world.table, changes.keys());
    assert_eq!(flip.remove.len(), 2);
}
