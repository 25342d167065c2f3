//! What is undecided and left behind, so that a host gets a journal all the same; and which
//! journal is believed although it can be read.

use rehome_shared::ids::AppName;

use super::*;
use crate::fixtures::reservation;

fn other() -> AppName {
    AppName::try_new("web").unwrap()
}

/// What `h1` decides when an operator leaves `db` behind.
fn leaving(volumes: &[Volume], words: &[Word]) -> Result<Vec<Verdict>, Vec<Undecided>> {
    let (here, limits, handoffs) = (host("h1"), BTreeMap::new(), BTreeMap::new());
    let (desired, leave) = (deployment(), BTreeSet::from([application()]));
    let evidence = Evidence {
        here: &here,
        desired: &desired,
        limits: &limits,
        now: NOW,
        volumes,
        words,
        handoffs: &handoffs,
        leave: &leave,
    };
    decide(&evidence, &mut fresh)
}

fn journal(verdicts: &[Verdict]) -> Registry {
    Registry::replay(verdicts.iter().flat_map(|verdict| &verdict.records))
}

/// The pool of `h1` is an old copy of `db`, and whole of `web`.
fn old_pool() -> (Vec<Volume>, Word) {
    let mut web = on("log", held("h1", 2));
    if let Some(stamp) = &mut web.stamp {
        stamp.application = other();
        stamp.volume = volume("log").name;
        stamp.volumes = vec![volume("log")];
    }
    let mut word = owner_is("h2", 2);
    word.owners.push((application(), Epoch(5), host("h1")));
    (vec![on("data", held("h1", 3)), web], word)
}

#[test]
fn what_is_left_behind_keeps_no_other_application_from_its_journal() {
    let (pool, word) = old_pool();
    let words = [word];
    assert!(rebuilt(&pool, &words, &BTreeMap::new()).is_err());
    let verdicts = leaving(&pool, &words).unwrap();
    let left: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.left).collect();
    assert_eq!(left.len(), 1);
    assert!(
        left[0].why.contains("is the pool an old copy?"),
        "{}",
        left[0].why
    );

    let registry = journal(&verdicts);
    assert!(registry.owned(&other()).is_some());
    assert!(registry.owned(&application()).is_none() && registry.is_left(&application()));
    // Neither the stamps nor the other hosts know of anything newer than this journal.
    let newest = registry.known_owner(&host("h1"), &application());
    assert_eq!(newest, Some((Epoch(5), host("h1"))));
    assert_eq!(unknown_to(&registry, &host("h1"), &pool), None);
    assert_eq!(forgotten(&registry, &host("h1"), &words), None);
    assert_eq!(
        Registry::replay(&registry.compacted()),
        registry,
        "also when it was compacted"
    );
}

#[test]
fn of_two_owners_of_one_epoch_the_other_one_is_written_down() {
    let pool = [on("data", held("h1", 3))];
    let registry = journal(&leaving(&pool, &[owner_is("h2", 3)]).unwrap());
    let known = &registry.applications()[&application()];
    assert_eq!(known.role.owner(&host("h1")), &host("h2"));
    assert_eq!((known.epoch, known.volumes.len()), (Epoch(3), 1));
    assert_eq!(unknown_to(&registry, &host("h1"), &pool), None);
}

#[test]
fn both_of_two_volumes_of_one_name_stay_known() {
    let twice = [on("data", held("h1", 1)), on("log", held("h1", 1))];
    let registry = journal(&leaving(&twice, &[]).unwrap());
    assert_eq!(registry.applications()[&application()].volumes.len(), 2);
}

#[test]
fn what_is_decided_is_not_left_behind() {
    let verdicts = leaving(&[on("data", held("h1", 3))], &[]).unwrap();
    assert!(verdicts.iter().all(|verdict| !verdict.left));
    assert!(journal(&verdicts).owned(&application()).is_some());
}

#[test]
fn what_a_source_is_just_deciding_is_waited_for_and_not_left_behind() {
    let why = Undecided::InWindow {
        application: application(),
        from: host("h2"),
    };
    assert!(!why.may_be_left());
    assert_eq!(why.application(), &application());
}

#[test]
fn what_two_others_contend_for_is_not_for_a_host_to_decide_that_has_nothing_of_it() {
    let words = [owner_is("h2", 5), owner_is("h3", 5)];
    let registry = rebuilt(&[], &words, &BTreeMap::new()).unwrap();
    assert_eq!(known(&registry), None);
    let mine = Word {
        owners: vec![(application(), Epoch(5), host("h1"))],
        ..owner_is("h3", 5)
    };
    assert!(rebuilt(&[], &[owner_is("h2", 5), mine], &BTreeMap::new()).is_err());
}

#[test]
fn a_journal_that_knows_less_of_its_own_host_than_the_others_do_is_not_the_newest() {
    let here = host("h1");
    let says = |epoch: u64| {
        let owners = vec![(application(), Epoch(epoch), host("h1"))];
        let word = Word {
            owners,
            ..owner_is("h2", 1)
        };
        [word]
    };
    let registry = Registry::replay(&born());
    assert_eq!(forgotten(&registry, &here, &says(1)), None);
    assert_eq!(
        forgotten(&registry, &here, &says(3)),
        Some((application(), Epoch(3)))
    );
    assert_eq!(forgotten(&registry, &here, &[owner_is("h2", 9)]), None);
    let heard = Record::Heard {
        application: other(),
        epoch: Epoch(2),
        owner: host("h2"),
    };
    let anew = Registry::replay([&heard]);
    assert!(anew.is_hearsay(), "nothing of its own is in it");
    assert!(forgotten(&anew, &here, &says(1)).is_some());
    // Its source says so while it still comes.
    let reserved = crate::record::DestinationRecord::Reserved(Box::new(reservation()));
    let coming = Registry::replay([&crate::fixtures::destination(1, reserved)]);
    let to = |epoch| {
        let owners = vec![(application(), Epoch(epoch), host("h2"))];
        let word = Word {
            owners,
            ..owner_is("h1", 1)
        };
        forgotten(&coming, &host("h2"), &[word])
    };
    assert_eq!(to(2), None);
    assert!(to(4).is_some());
    assert!(!coming.is_hearsay());
}
