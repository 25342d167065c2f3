//! What a change says of itself is all that it did: whoever follows it by its change set ends up
//! with the same table as one who looks at everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rehome_shared::api::proxy::Announce;

use super::*;
use crate::saved::{KIND, Record};
use crate::table::{FileRoute, Route};
use rehome_shared::journal::{self, Position};

/// What happens to a table.
#[derive(Debug, Clone)]
enum Event {
    Call(Call),
    /// The configuration file is read again.
    File(Vec<RouteKey>),
}

fn key() -> impl Strategy<Value = RouteKey> {
    let keys = ["80/tcp", "81/tcp", "5432/tcp", "5433/udp"];
    prop::sample::select(keys.to_vec()).prop_map(|key| key.parse().unwrap())
}

/// Desired sets in which ports go from one application to another.
fn moving_put() -> impl Strategy<Value = Call> {
    let spec = (app(), version(), intent(), 1_u32..4);
    prop::collection::btree_map(key(), spec, 0..4).prop_map(|specs| {
        let specs = specs.into_iter();
        let spec = |(key, ((application, _), version, intent, park_limit))| RouteSpec {
            content: if park_limit == 1 {
                Content::Bytes
            } else {
                Content::Http
            },
            announce: if park_limit == 2 {
                Announce::ProxyV2
            } else {
                Announce::Nothing
            },
            key,
            application,
            version,
            intent,
            limits: ParkLimits {
                park_limit,
                ..limits()
            },
        };
        Call::Put(specs.map(spec).collect())
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => call().prop_map(Event::Call),
        3 => moving_put().prop_map(Event::Call),
        1 => prop::collection::vec(key(), 0..2).prop_map(Event::File),
    ]
}

fn happen(table: &mut RouteTable, event: &Event) -> Changes {
    match event {
        Event::Call(call) => run(table, call),
        Event::File(keys) => {
            let addr = ([10, 0, 0, 5], 80).into();
            let route = FileRoute {
                target: Target::Local { addr },
                limits: limits(),
                content: Content::default(),
                announce: Announce::default(),
            };
            let routes = keys.iter().map(|key| (*key, route.clone())).collect();
            table.apply_file(&routes)
        }
    }
}

/// The keys of each application, found by looking at every route.
fn scan(table: &RouteTable) -> BTreeMap<AppName, BTreeSet<RouteKey>> {
    let mut found: BTreeMap<AppName, BTreeSet<RouteKey>> = BTreeMap::new();
    for (key, route) in table.routes() {
        if let Some(application) = route.application() {
            found.entry(application.clone()).or_default().insert(*key);
        }
    }
    found
}

/// The table without the routes of the file, which are not kept.
fn without_file(table: &RouteTable) -> RouteTable {
    let mut table = table.clone();
    let _changes = table.apply_file(&BTreeMap::new());
    table
}

fn read(bytes: &[u8]) -> (RouteTable, usize) {
    let scan = journal::scan::<Record>(KIND, bytes).unwrap();
    let mut table = RouteTable::default();
    let count = scan.records.len();
    scan.records
        .into_iter()
        .for_each(|record| table.replay(record));
    (table, count)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_routes_of_an_application_are_those_that_a_scan_finds(
        events in prop::collection::vec(event(), 1..40)
    ) {
        let mut table = RouteTable::default();
        for event in &events {
            let _changes = happen(&mut table, event);
            let found = scan(&table);
            for (name, _) in APPS {
                let application = AppName::try_new(name).unwrap();
                let keys: BTreeSet<_> = table.of(&application).map(|(key, _)| key).collect();
                prop_assert_eq!(Some(&keys).filter(|keys| !keys.is_empty()), found.get(&application));
            }
            let known: BTreeSet<_> = table.applications().cloned().collect();
            prop_assert!(found.keys().all(|application| known.contains(application)));
        }
    }

    #[test]
    fn a_change_names_exactly_what_it_changed(events in prop::collection::vec(event(), 1..40)) {
        let mut table = RouteTable::default();
        for event in &events {
            let before = table.clone();
            let changes = happen(&mut table, event);
            prop_assert_eq!(changes.is_empty(), before == table, "{:?}", event);
            let mut copy: BTreeMap<RouteKey, Arc<Route>> = before.routes().clone();
            for key in &changes.removed {
                prop_assert!(copy.remove(key).is_some() && table.route(*key).is_none());
            }
            for key in &changes.added {
                let route = Arc::clone(table.route(*key).unwrap());
                prop_assert!(copy.insert(*key, route).is_none());
            }
            // A set that names a route twice may add it and then change it.
            for key in changes.updated.iter().filter(|key| !changes.added.contains(key)) {
                let route = Arc::clone(table.route(*key).unwrap());
                prop_assert!(before.route(*key).is_some_and(|old| *old != route), "{key} is as it was");
                copy.insert(*key, route);
            }
            prop_assert_eq!(&copy, table.routes());
        }
    }

    #[test]
    fn a_journal_of_what_changed_is_the_table_and_cut_anywhere_one_of_its_past(
        events in prop::collection::vec(event(), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut table = RouteTable::default();
        let (mut bytes, mut position) = (KIND.magic().to_vec(), Position::start(KIND));
        let mut kept = RouteTable::default();
        let mut pasts = vec![kept.clone()];
        for event in &events {
            let changes = happen(&mut table, event);
            if let Some(record) = table.record_of(&changes) {
                let (frame, next) = journal::encode(position, &record).unwrap();
                bytes.extend(frame);
                position = next;
                kept.replay(record);
                pasts.push(without_file(&table));
            }
            prop_assert_eq!(&without_file(&table), &kept, "{:?}", event);
        }
        let (all, count) = read(&bytes);
        prop_assert_eq!((&all, count), (&kept, pasts.len() - 1));
        let cut = cut.index(bytes.len());
        let (some, count) = read(&bytes[..cut]);
        prop_assert_eq!(&some, &pasts[count]);

        let mut anew = RouteTable::default();
        table.records().for_each(|record| anew.replay(record));
        prop_assert_eq!(anew, kept);
    }
}
