//! A journal that is replaced: a crash after each step, and what is there then.

use std::os::unix::fs::PermissionsExt as _;

use migrated_core::UnixMillis;
use migrated_core::record::{Plan, SourceRecord};
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{Attempt, DeploymentGeneration, Epoch, MigrationId};

use super::*;
use crate::fixtures::{app, host};

fn born(name: &str) -> Record {
    Record::Born {
        application: app(name),
        volumes: Vec::new(),
    }
}

fn open(dir: &Path) -> (Writer, Registry) {
    Writer::open(Place::take(dir).unwrap()).unwrap()
}

fn on_disk(dir: &Path) -> u64 {
    fs::metadata(dir.join("journal")).unwrap().len()
}

/// A long journal that nobody has open, of which next to nothing is needed.
fn long(dir: &Path) -> Registry {
    let (mut writer, _) = open(dir);
    writer.append(&vec![born("a"); 20_000]).unwrap();
    writer.append(&[born("b")]).unwrap();
    assert!(on_disk(dir) > SMALL);
    Registry::replay(&[born("a"), born("b")])
}

fn with_one_more(registry: &Registry, name: &str) -> Registry {
    let mut more = registry.clone();
    more.apply(&born(name));
    more
}

/// What is there goes on: it says the same, and takes what comes.
fn goes_on(dir: &Path, expected: &Registry) {
    let (mut writer, registry) = open(dir);
    assert_eq!(registry, *expected);
    assert!(!dir.join("journal.new").exists());
    writer.append(&[born("c")]).unwrap();
    let expected = with_one_more(expected, "c");
    writer.compact(&expected);
    drop(writer);
    assert_eq!(open(dir).1, expected);
}

#[test]
fn a_long_journal_becomes_a_short_one_that_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let expected = long(dir.path());
    let (mut writer, registry) = open(dir.path());
    writer.compact(&registry);
    assert!(on_disk(dir.path()) < 1024);
    let meta = fs::metadata(dir.path().join("journal")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    // The lock is still held, and what is appended goes to the new file.
    assert!(Place::take(dir.path()).is_err());
    writer.append(&[born("d")]).unwrap();
    drop(writer);
    goes_on(dir.path(), &with_one_more(&expected, "d"));
}

#[test]
fn a_journal_that_is_small_or_needed_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(dir.path());
    writer.append(&[born("a"), born("a")]).unwrap();
    let small = on_disk(dir.path());
    writer.compact(&Registry::replay(&[born("a")]));
    assert_eq!(on_disk(dir.path()), small);
    let all: Vec<Record> = (0..20_000).map(|n| born(&format!("a{n}"))).collect();
    writer.append(&all).unwrap();
    let needed = on_disk(dir.path());
    writer.compact(&Registry::replay(&all));
    assert_eq!(on_disk(dir.path()), needed);
    assert!(
        writer.enough > needed,
        "it is not looked at again before it has grown"
    );
}

#[test]
fn a_journal_is_not_replaced_while_a_change_of_owner_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    long(dir.path());
    let (mut writer, mut registry) = open(dir.path());
    let plan = Plan {
        application: app("a"),
        to: host("h2"),
        epoch: Epoch(1),
        generation: DeploymentGeneration(1),
        volumes: Vec::new(),
        limits: MigrationLimits::default(),
        was_running: true,
        started_at: UnixMillis(0),
    };
    let steps = [
        SourceRecord::Planned(plan),
        SourceRecord::CutOver {
            attempt: Attempt(1),
            deadline: UnixMillis(1),
        },
        SourceRecord::Aborted {
            reason: "because".to_owned(),
        },
    ];
    let id = MigrationId::generate();
    for (number, step) in steps.into_iter().enumerate() {
        let migration = id.clone();
        let record = Record::Source { migration, step };
        writer.append(std::slice::from_ref(&record)).unwrap();
        registry.apply(&record);
        if number > 0 {
            let before = on_disk(dir.path());
            writer.compact(&registry);
            assert_eq!(on_disk(dir.path()) == before, number == 1, "step {number}");
        }
    }
}

#[test]
fn a_crash_while_the_draft_is_written_leaves_the_old_journal() {
    let dir = tempfile::tempdir().unwrap();
    let expected = long(dir.path());
    let framed = Framed::new(&expected.compacted()).unwrap();
    let old = fs::read(dir.path().join("journal")).unwrap();
    for end in (0..=framed.bytes.len()).step_by(9) {
        fs::write(dir.path().join("journal.new"), &framed.bytes[..end]).unwrap();
        let (writer, registry) = open(dir.path());
        assert_eq!(registry, expected, "cut at {end}");
        drop(writer);
        assert!(!dir.path().join("journal.new").exists());
    }
    assert!(fs::read(dir.path().join("journal")).unwrap() == old);
}

#[test]
fn a_crash_after_each_step_of_a_compaction_leaves_a_whole_journal() {
    for steps in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        let expected = long(dir.path());
        let old = fs::read(dir.path().join("journal")).unwrap();
        let place = Place::take(dir.path()).unwrap();
        let framed = Framed::new(&expected.compacted()).unwrap();
        let draft = (steps > 0).then(|| Draft::write(&place, &framed).unwrap());
        if let Some(draft) = draft.filter(|_| steps > 1) {
            draft.put_in_place(&place).unwrap();
            assert!(on_disk(dir.path()) < 1024);
        }
        if steps > 2 {
            place.sync().unwrap();
        }
        drop(place);
        goes_on(dir.path(), &expected);
        if steps == 2 {
            // Without the directory's sync a power loss may bring the old file back.
            fs::write(dir.path().join("journal"), &old).unwrap();
            goes_on(dir.path(), &expected);
        }
    }
}

#[test]
fn a_compaction_that_fails_leaves_the_journal_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let expected = long(dir.path());
    let (mut writer, registry) = open(dir.path());
    let long = on_disk(dir.path());
    // Something stands where the draft would be written.
    fs::create_dir(dir.path().join("journal.new")).unwrap();
    writer.compact(&registry);
    assert_eq!(on_disk(dir.path()), long);
    assert_eq!(writer.failure(), None);
    writer.append(&[born("c")]).unwrap();
    drop(writer);
    fs::remove_dir(dir.path().join("journal.new")).unwrap();
    assert_eq!(open(dir.path()).1, with_one_more(&expected, "c"));
}

#[test]
fn nothing_torn_damaged_and_whole_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let place = Place::take(dir.path()).unwrap();
    let look = || place.look().unwrap();
    assert!(matches!(look(), Present::Nothing), "absent");
    for begun in [&b""[..], &MAGIC[..5]] {
        fs::write(&path, begun).unwrap();
        assert!(matches!(look(), Present::Nothing), "{begun:?}");
    }
    fs::remove_file(&path).unwrap();
    place.begin_with(&[born("a"), born("b")]).unwrap();
    let whole = fs::read(&path).unwrap();
    assert!(matches!(look(), Present::Journal(registry) if registry.applications().len() == 2));
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(look(), Present::Journal(registry) if registry.applications().len() == 1));
    let mut damaged = whole.clone();
    damaged[MAGIC.len() + 14] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(look(), Present::Damaged(corrupt) if !corrupt.is_foreign()));
    assert_eq!(fs::read(&path).unwrap(), damaged, "looking changes nothing");
    fs::write(&path, b"rehomeJ\x07").unwrap();
    assert!(matches!(look(), Present::Damaged(corrupt) if corrupt.is_foreign()));
}

#[test]
fn what_was_damaged_is_kept_beside_the_new_journal() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("journal"), b"precious").unwrap();
    let place = Place::take(dir.path()).unwrap();
    let kept = place.set_aside("journal.damaged-1").unwrap();
    place.begin_with(&[born("a")]).unwrap();
    assert_eq!(fs::read(&kept).unwrap(), b"precious");
    // A second one never takes the first one's place.
    assert!(place.set_aside("journal.damaged-1").is_err());
    drop(place);
    assert_eq!(open(dir.path()).1, Registry::replay(&[born("a")]));
}
