//! The journal's file: what survives, what is cut, what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use migrated_core::journal::MAGIC;
use migrated_core::record::Record;
use rehome_shared::ids::AppName;

use super::*;

fn open(dir: &Path) -> Result<Ledger, LedgerError> {
    Ledger::open(Place::take(dir)?)
}

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
    let ledger = open(dir).unwrap();
    for name in names {
        ledger.commit(vec![born(name)]).await.unwrap();
    }
    dir.join("journal")
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]).await;
    let again = open(dir.path()).unwrap();
    assert_eq!(owned(&again), ["a", "b"]);
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_next_record_follows_what_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &["a", "b"]).await;
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let ledger = open(dir.path()).unwrap();
    assert_eq!(owned(&ledger), ["a"]);
    ledger.commit(vec![born("c")]).await.unwrap();
    drop(ledger);
    assert_eq!(owned(&open(dir.path()).unwrap()), ["a", "c"]);
}

#[tokio::test]
async fn damage_in_the_middle_is_refused_and_the_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), &["a", "b"]).await;
    let mut bytes = fs::read(&path).unwrap();
    bytes[MAGIC.len() + 14] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let refused = open(dir.path());
    assert!(
        matches!(refused, Err(LedgerError::Corrupt { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn decisions_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path()).unwrap();
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
    let ledger = open(dir.path()).unwrap();
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
    assert_eq!(owned(&open(dir.path()).unwrap()), ["a"]);
}

#[tokio::test]
async fn a_second_daemon_cannot_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let refused = open(dir.path());
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

#[tokio::test]
async fn what_cannot_be_written_down_is_a_problem_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, registry) = Writer::open(Place::take(dir.path()).unwrap()).unwrap();
    writer.close_for_writing();
    let ledger = Ledger::begin(writer, registry).unwrap();
    assert_eq!(*ledger.problem().borrow(), None);
    let first = ledger.commit(vec![born("a")]).await;
    assert!(matches!(first, Err(LedgerError::Io { .. })), "{first:?}");
    let told = ledger.problem().borrow().clone().unwrap();
    assert!(told.contains("the journal"), "{told}");
    // What the disk holds is unknown: nothing is written any more, whatever the file would take.
    let again = ledger.commit(vec![born("b")]).await;
    assert!(matches!(again, Err(LedgerError::Failed(_))), "{again:?}");
    let told = ledger.problem().borrow().clone().unwrap();
    assert!(told.contains("restart migrated"), "{told}");
    assert!(owned(&ledger).is_empty());
}

#[test]
fn what_fails_in_the_compaction_at_the_start_is_told_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, registry) = Writer::open(Place::take(dir.path()).unwrap()).unwrap();
    writer.fail("its directory could not be synced");
    let ledger = Ledger::begin(writer, registry).unwrap();
    let told = ledger.problem().borrow().clone().unwrap();
    assert!(told.contains("directory could not be synced"), "{told}");
}
