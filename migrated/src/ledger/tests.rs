//! The journal's file: what survives, what is cut, what is refused.

use std::fs;
use std::path::PathBuf;

use migrated_core::record::Record;
use rehome_shared::ids::AppName;

use super::*;

fn born(name: &str) -> Record {
    Record::Born {
        application: AppName::try_new(name).unwrap(),
        volumes: Vec::new(),
    }
}

fn owned(ledger: &Ledger) -> Vec<String> {
    ledger.read(|registry| {
        registry
            .applications()
            .keys()
            .map(AppName::to_string)
            .collect()
    })
}

async fn written(dir: &Path, names: &[&str]) -> PathBuf {
    let ledger = Ledger::open(dir).unwrap();
    for name in names {
        ledger.commit(vec![born(name)]).await.unwrap();
    }
    dir.join("journal")
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]).await;
    let again = Ledger::open(dir.path()).unwrap();
    assert_eq!(owned(&again), ["a", "b"]);
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_next_record_follows_what_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &["a", "b"]).await;
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(owned(&ledger), ["a"]);
    ledger.commit(vec![born("c")]).await.unwrap();
    drop(ledger);
    assert_eq!(owned(&Ledger::open(dir.path()).unwrap()), ["a", "c"]);
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_and_the_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &["a", "b"]).await;
    let mut bytes = fs::read(&path).unwrap();
    bytes[MAGIC.len() + 14] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let refused = Ledger::open(dir.path());
    assert!(
        matches!(refused, Err(LedgerError::Corrupt { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn decisions_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let only_one = |ledger: Ledger| async move {
        ledger
            .transact(|registry| {
                let first = registry.applications().is_empty();
                (if first { vec![born("a")] } else { Vec::new() }, first)
            })
            .await
            .unwrap()
    };
    let (one, other) = tokio::join!(only_one(ledger.clone()), only_one(ledger.clone()));
    assert!(one != other, "both or neither was first");
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_decision() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let mut changes = ledger.changes();
    // One poll hands the decision over; then the caller is gone.
    let mut commit = Box::pin(ledger.commit(vec![born("a")]));
    assert!(futures_util::poll!(commit.as_mut()).is_pending());
    drop(commit);
    tokio::time::timeout(std::time::Duration::from_secs(10), changes.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(owned(&ledger), ["a"]);
    drop(ledger);
    assert_eq!(owned(&Ledger::open(dir.path()).unwrap()), ["a"]);
}

#[tokio::test]
async fn a_second_daemon_cannot_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Ledger::open(dir.path()).unwrap();
    let refused = Ledger::open(dir.path());
    assert!(
        matches!(
            refused,
            Err(LedgerError::Io {
                attempt: "lock",
                ..
            })
        ),
        "{refused:?}"
    );
    first.commit(vec![born("a")]).await.unwrap();
}
