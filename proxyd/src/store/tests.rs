use std::time::Duration;

use rehome_shared::api::proxy::{
    Announce, Commit, CommitTarget, Content, ParkLimits, Prepare, RouteIntent, RouteKey, RouteSpec,
    SetRoutes, Target,
};
use rehome_shared::ids::{AppName, Epoch, Generation, HostAddr, RouteVersion};

use super::*;

fn at(generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(1),
        generation: Generation(generation),
    }
}

fn app(number: u16) -> AppName {
    AppName::try_new(format!("app{number}")).unwrap()
}

fn limits() -> ParkLimits {
    ParkLimits {
        park_limit: 10,
        park_timeout: Duration::from_mins(1),
    }
}

fn key(number: u16) -> RouteKey {
    format!("{number}/tcp").parse().unwrap()
}

fn target(port: u16) -> Target {
    let addr = ([172, 17, 0, 2], port).into();
    Target::Local { addr }
}

/// Each route is an application of its own.
fn desired(routes: u16) -> SetRoutes {
    let spec = |number| RouteSpec {
        content: Content::default(),
        announce: Announce::default(),
        key: key(number),
        application: app(number),
        version: at(0),
        intent: RouteIntent::Open(target(number)),
        limits: limits(),
    };
    SetRoutes {
        host: HostAddr::try_new("10.0.0.1").unwrap(),
        peers: vec![],
        routes: (1..=routes).map(spec).collect(),
    }
}

fn prepare(table: &mut RouteTable, number: u16, version: RouteVersion) -> Changes {
    let verb = Prepare {
        application: app(number),
        version,
        lease: Duration::from_secs(30),
        limits: limits(),
    };
    table.prepare(&verb).unwrap()
}

fn commit(table: &mut RouteTable, number: u16, version: RouteVersion) -> Changes {
    let to = CommitTarget {
        key: key(number),
        target: target(number + 1),
    };
    let verb = Commit {
        application: app(number),
        version,
        targets: vec![to],
    };
    table.commit(&verb).unwrap()
}

fn load(directory: &Path) -> (Store, Found) {
    let mut store = Store::open(directory).unwrap();
    let found = store.load().unwrap();
    (store, found)
}

fn kept(directory: &Path) -> RouteTable {
    match load(directory).1 {
        Found::Routes(table) => table,
        other => panic!("{other:?}"),
    }
}

fn length(store: &Store) -> u64 {
    fs::metadata(&store.path).unwrap().len()
}

/// A store with a table in it.
async fn begun(directory: &Path, routes: u16) -> (Store, RouteTable) {
    let (mut store, found) = load(directory);
    assert!(matches!(found, Found::Nothing));
    let mut table = RouteTable::default();
    let changes = table.apply(&desired(routes)).changes;
    store.append(&table, &changes).await.unwrap();
    (store, table)
}

#[tokio::test]
async fn a_change_adds_its_own_routes_to_the_file_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 1000).await;
    let whole = length(&store);
    let changes = prepare(&mut table, 7, at(1));
    store.append(&table, &changes).await.unwrap();
    assert!(length(&store) - whole < 500, "{whole}, {}", length(&store));
    assert_eq!(kept(directory.path()), table);
    // Another process goes on where this one ended.
    let (mut next, _) = load(directory.path());
    let before = length(&next);
    let changes = commit(&mut table, 7, at(2));
    next.append(&table, &changes).await.unwrap();
    assert!(length(&next) - before < 500);
    assert_eq!(kept(directory.path()), table);
}

#[tokio::test]
async fn a_file_cut_anywhere_in_its_last_change_is_the_table_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 3).await;
    let (before, whole) = (table.clone(), length(&store));
    let changes = prepare(&mut table, 1, at(1));
    store.append(&table, &changes).await.unwrap();
    let bytes = fs::read(&store.path).unwrap();
    for cut in usize::try_from(whole).unwrap()..bytes.len() {
        fs::write(&store.path, &bytes[..cut]).unwrap();
        assert_eq!(kept(directory.path()), before, "cut at {cut}");
    }
    // The next change finds the file whole again.
    let (mut next, _) = load(directory.path());
    let mut table = before;
    let changes = prepare(&mut table, 2, at(1));
    next.append(&table, &changes).await.unwrap();
    assert_eq!(kept(directory.path()), table);
}

#[tokio::test]
async fn damage_is_moved_aside_whole_and_never_believed() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 3).await;
    let changes = prepare(&mut table, 1, at(1));
    store.append(&table, &changes).await.unwrap();
    let good = fs::read(&store.path).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&store.path, &bad).unwrap();
        match load(directory.path()).1 {
            Found::Corrupt { moved_to, .. } => {
                assert_eq!(fs::read(&moved_to).unwrap(), bad);
                fs::remove_file(moved_to).unwrap();
            }
            other => panic!("byte {at}: {other:?}"),
        }
        assert!(matches!(load(directory.path()).1, Found::Nothing));
    }
}

#[tokio::test]
async fn a_table_in_one_piece_is_read_and_becomes_a_journal() {
    let directory = tempfile::tempdir().unwrap();
    let mut table = RouteTable::default();
    let _changes = table.apply(&desired(3));
    let _changes = commit(&mut table, 2, at(4));
    let path = directory.path().join(FILE);
    store::save_blocking(&path, &Saved::from(&table)).unwrap();
    assert_eq!(kept(directory.path()), table);
    assert!(
        !KIND.began(&fs::read(&path).unwrap()),
        "reading changes nothing"
    );
    let (mut store, _) = load(directory.path());
    let changes = prepare(&mut table, 1, at(1));
    store.append(&table, &changes).await.unwrap();
    assert!(KIND.began(&fs::read(&path).unwrap()));
    assert_eq!(kept(directory.path()), table);
}

#[tokio::test]
async fn a_file_that_says_the_same_over_and_over_is_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 3).await;
    let (mut longest, mut shortened) = (0, false);
    for generation in 1..10_000 {
        let changes = prepare(&mut table, 1, at(generation));
        // What the disk does is not what is tested.
        let log = store.log.as_mut().unwrap();
        log.note_for_tests(&table.record_of(&changes).unwrap());
        if log.is_long().is_some() {
            longest = longest.max(length(&store));
            store.shorten(&table).await;
            shortened = length(&store) < 10_000;
            break;
        }
    }
    assert!(shortened && longest > 1 << 20, "{longest}");
    assert_eq!(kept(directory.path()), table);
    let changes = commit(&mut table, 1, at(20_000));
    store.append(&table, &changes).await.unwrap();
    assert_eq!(kept(directory.path()), table);
}

/// What a disk may leave of a write when the power fails: any of its sectors, in any order.
#[tokio::test]
async fn a_change_of_many_applications_is_kept_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, before) = begun(directory.path(), 40).await;
    let old = fs::read(&store.path).unwrap();
    let mut after = before.clone();
    let mut wanted = desired(40);
    for route in &mut wanted.routes {
        (route.version, route.intent) = (at(5), RouteIntent::Park);
    }
    let changes = after.apply(&wanted).changes;
    store.append(&after, &changes).await.unwrap();
    let new = fs::read(&store.path).unwrap();
    assert!(new.starts_with(&old) && new.len() > old.len() + 10 * 512);
    assert_eq!(kept(directory.path()), after);
    let mut begin = old.len();
    while begin < new.len() {
        let end = new.len().min((begin / 512 + 1) * 512);
        let mut torn = new.clone();
        torn[begin..end].fill(0);
        fs::write(&store.path, &torn).unwrap();
        assert_eq!(kept(directory.path()), before, "without {begin}..{end}");
        begin = end;
    }
}

#[tokio::test]
async fn what_another_process_did_to_the_file_does_not_spoil_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 3).await;
    let (mut other, _) = load(directory.path());
    let mut others = table.clone();
    for (number, rewrites) in [(1, false), (2, true)] {
        let changes = prepare(&mut others, number, at(1));
        if rewrites {
            other.rewrite(&others).await.unwrap();
        } else {
            other.append(&others, &changes).await.unwrap();
        }
        assert_eq!(kept(directory.path()), others);
        let changes = prepare(&mut table, 3, at(u64::from(number)));
        store.append(&table, &changes).await.unwrap();
        assert_eq!(kept(directory.path()), table);
    }
}

#[tokio::test]
async fn after_a_failure_all_of_the_table_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, mut table) = begun(directory.path(), 3).await;
    let changes = prepare(&mut table, 1, at(1));
    store.log.as_mut().unwrap().close_for_writing(&store.path);
    let error = store.append(&table, &changes).await.unwrap_err();
    assert!(matches!(error, KeepError::Append { .. }), "{error:?}");
    let changes = prepare(&mut table, 2, at(1));
    store.append(&table, &changes).await.unwrap();
    assert_eq!(kept(directory.path()), table);
}
