//! Whatever is called in whatever order: versions never go back, and a verb twice is a verb once.

mod changes;

use std::time::Duration;

use crate::saved::Saved;
use crate::table::{Changes, RouteTable};
use proptest::prelude::*;
use rehome_shared::api::proxy::{
    Announce, Commit, CommitTarget, Content, Gate, GateRef, ParkLimits, Prepare, RouteIntent,
    RouteKey, RouteSpec, SetRoutes, Target,
};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};

const APPS: [(&str, &[&str]); 2] = [("db", &["5432/tcp", "5433/udp"]), ("web", &["80/tcp"])];

#[derive(Debug, Clone)]
enum Call {
    Put(Vec<RouteSpec>),
    Prepare(Prepare),
    Commit(Commit),
    Rollback(GateRef),
}

fn version() -> impl Strategy<Value = RouteVersion> {
    (0_u64..4, 0_u64..4).prop_map(|(e, g)| RouteVersion {
        epoch: Epoch(e),
        generation: Generation(g),
    })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (1_u16..4).prop_map(|p| Target::Local {
            addr: ([172, 17, 0, 2], p).into()
        }),
        (2_u8..4).prop_map(|n| {
            let host = HostAddr::try_new(format!("10.0.0.{n}")).unwrap();
            Target::Remote {
                trunk: host.with_port(7421),
                host,
            }
        }),
    ]
}

fn intent() -> impl Strategy<Value = RouteIntent> {
    prop_oneof![
        target().prop_map(RouteIntent::Open),
        Just(RouteIntent::Park),
        Just(RouteIntent::Closed)
    ]
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 10,
        park_timeout: Duration::from_mins(1),
    }
}

fn app() -> impl Strategy<Value = (AppName, Vec<RouteKey>)> {
    prop::sample::select(APPS.to_vec()).prop_map(|(name, keys)| {
        (
            AppName::try_new(name).unwrap(),
            keys.iter().map(|k| k.parse().unwrap()).collect(),
        )
    })
}

fn put() -> impl Strategy<Value = Call> {
    prop::collection::vec((app(), version(), intent()), 0..3).prop_map(|apps| {
        let mut specs: Vec<RouteSpec> = Vec::new();
        for ((application, keys), version, intent) in apps {
            for key in keys {
                specs.push(RouteSpec {
                    content: Content::default(),
                    announce: Announce::default(),
                    key,
                    application: application.clone(),
                    version,
                    intent: intent.clone(),
                    limits: limits(),
                });
            }
        }
        Call::Put(specs)
    })
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        put(),
        (app(), version()).prop_map(|((application, _), version)| Call::Prepare(Prepare {
            application,
            version,
            lease: Duration::from_secs(30),
            limits: limits(),
        })),
        (app(), version(), target()).prop_map(|((application, keys), version, target)| {
            let targets = keys
                .into_iter()
                .map(|key| CommitTarget {
                    key,
                    target: target.clone(),
                })
                .collect();
            Call::Commit(Commit {
                application,
                version,
                targets,
            })
        }),
        (app(), version()).prop_map(|((application, _), version)| Call::Rollback(GateRef {
            application,
            version
        })),
    ]
}

/// Nothing, when the call is refused.
fn run(table: &mut RouteTable, call: &Call) -> Changes {
    match call {
        Call::Put(routes) => {
            let host = HostAddr::try_new("10.0.0.1").unwrap();
            let routes = routes.clone();
            let peers = vec![];
            let desired = SetRoutes {
                host,
                peers,
                routes,
            };
            table.apply(&desired).changes
        }
        Call::Prepare(verb) => table.prepare(verb).unwrap_or_default(),
        Call::Commit(verb) => table.commit(verb).unwrap_or_default(),
        Call::Rollback(verb) => table.rollback(verb).unwrap_or_default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn versions_never_go_back(calls in prop::collection::vec(call(), 1..40)) {
        let mut table = RouteTable::default();
        for call in &calls {
            let before = table.clone();
            let _changes = run(&mut table, call);
            for (key, old) in before.routes() {
                let Some(new) = table.route(*key) else { continue };
                prop_assert!(new.version >= old.version, "{key} after {call:?}");
                // Within one version a gate may only park or go back; it never leads elsewhere.
                if new.version == old.version
                    && let (Some(now), Some(then)) = (new.phase.target(), old.phase.target())
                {
                    prop_assert_eq!(now, then);
                }
            }
        }
    }

    #[test]
    fn a_verb_twice_is_a_verb_once(calls in prop::collection::vec(call(), 1..40)) {
        let mut table = RouteTable::default();
        for call in &calls {
            let _changes = run(&mut table, call);
            let once = table.clone();
            let twice = run(&mut table, call);
            prop_assert_eq!(&once, &table, "{:?}", call);
            prop_assert!(twice.is_empty(), "{:?}", call);
        }
    }

    #[test]
    fn a_call_that_is_refused_changes_nothing(calls in prop::collection::vec(call(), 1..40)) {
        let mut table = RouteTable::default();
        for call in &calls {
            let before = table.clone();
            let refused = match call {
                Call::Put(_) => { let _changes = run(&mut table, call); false }
                Call::Prepare(verb) => table.prepare(verb).is_err(),
                Call::Commit(verb) => table.commit(verb).is_err(),
                Call::Rollback(verb) => table.rollback(verb).is_err(),
            };
            if refused {
                prop_assert_eq!(&before, &table);
            }
        }
    }

    #[test]
    fn a_table_survives_the_disk(calls in prop::collection::vec(call(), 1..20)) {
        let mut table = RouteTable::default();
        for call in &calls {
            let _changes = run(&mut table, call);
        }
        let text = serde_json::to_string(&Saved::from(&table)).unwrap();
        let saved: Saved = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(RouteTable::try_from(saved).unwrap(), table);
    }

    #[test]
    fn once_a_handoff_ended_its_prepare_cannot_park_again(
        calls in prop::collection::vec(call(), 0..20),
        at in version(),
    ) {
        let mut table = RouteTable::default();
        for call in &calls {
            let _changes = run(&mut table, call);
        }
        let application = AppName::try_new("db").unwrap();
        if table.rollback(&GateRef { application: application.clone(), version: at }).is_ok() {
            let lease = Duration::from_secs(1);
            let late = Prepare { application: application.clone(), version: at, lease, limits: limits() };
            prop_assert!(table.prepare(&late).is_err());
            prop_assert_ne!(table.gate(&application).map(|view| view.gate), Some(Gate::Parked));
        }
    }
}
