use rehome_shared::ids::Epoch;

use super::*;
use crate::fixtures::{app, deployment, host, migration, report};

fn request(to: &str, fenced: &str, epoch: u64) -> FailoverRequest {
    FailoverRequest {
        application: app("db"),
        to: host(to),
        fenced: rehome_shared::api::cluster::FencedOwner {
            host: host(fenced),
            epoch: Epoch(epoch),
        },
        also_fenced: BTreeSet::new(),
        accept_loss: false,
    }
}

fn offer(means: Option<FailoverMeans>, loss: Option<&str>) -> FailoverOffer {
    FailoverOffer {
        means,
        loss: loss.map(str::to_owned),
        newest: None,
        live: false,
        refusal: means.is_none().then(|| "because".to_owned()),
    }
}

fn answers(all: Vec<HostReport>) -> BTreeMap<HostAddr, HostReport> {
    all.into_iter().map(|r| (r.host.clone(), r)).collect()
}

#[test]
fn names_that_are_not_there_are_wrong_input() {
    let current = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
    assert!(check_names(&current, &request("h2", "h1", 1)).is_ok());
    let invalid = |request: &FailoverRequest| {
        matches!(
            check_names(&current, request),
            Err(FailoverError::Invalid(_))
        )
    };
    let mut unknown = request("h2", "h1", 1);
    unknown.application = app("web");
    assert!(invalid(&unknown));
    assert!(invalid(&request("h9", "h1", 1)));
    assert!(
        !invalid(&request("h1", "h1", 1)),
        "its own successor: the host itself refuses that, or not"
    );
    let mut both = request("h2", "h1", 1);
    both.also_fenced.insert(host("h2"));
    assert!(invalid(&both));
}

#[test]
fn the_new_place_names_the_successor_and_remembers_who_is_fenced() {
    let mut current = deployment(3, &[("h1", &["db", "web"]), ("h2", &[])]);
    current.births.insert(app("db"), current.generation);
    let mut wanted = request("h2", "h1", 1);
    wanted.also_fenced.insert(host("h4"));
    let none = BTreeMap::new();
    let desired = new_place(&current, &wanted, &none);
    assert_eq!(desired.generation, current.generation.next());
    assert_eq!(desired.host_of(&app("db")), Some(&host("h2")));
    assert_eq!(desired.host_of(&app("web")), Some(&host("h1")));
    assert_eq!(desired.fenced, BTreeSet::from([host("h1"), host("h4")]));
    assert!(desired.births.is_empty(), "it is never born again, empty");
    assert_eq!(new_place(&desired, &wanted, &none), desired, "repeated");
    let answers = answers(vec![report("h1", &current, &[])]);
    let desired = new_place(&current, &wanted, &answers);
    assert_eq!(
        desired.fenced,
        BTreeSet::from([host("h4")]),
        "who answers agrees, and is not fenced"
    );
}

#[test]
fn loss_must_be_accepted_and_a_refusal_says_why() {
    let none = answers(Vec::new());
    let loss = offer(Some(FailoverMeans::Claimed), Some("an hour of it"));
    let mut wanted = request("h2", "h1", 1);
    let refused = check_offer(&none, &wanted, &loss).unwrap_err().to_string();
    assert!(
        refused.contains("an hour of it") && refused.contains("--accept-loss"),
        "{refused}"
    );
    wanted.accept_loss = true;
    assert!(check_offer(&none, &wanted, &loss).is_ok());
    wanted.accept_loss = false;
    assert!(check_offer(&none, &wanted, &offer(Some(FailoverMeans::Granted), None)).is_ok());
    let cannot = check_offer(&none, &wanted, &offer(None, None)).unwrap_err();
    assert!(cannot.to_string().contains("because"), "{cannot}");
}

#[test]
fn a_claim_is_refused_while_another_host_has_all_of_it() {
    let current = deployment(3, &[("h1", &["db"]), ("h2", &[]), ("h3", &[])]);
    let claim = offer(Some(FailoverMeans::Claimed), None);
    let wanted = request("h3", "h1", 4);
    let mut promised = report("h2", &current, &[]);
    promised.promised.insert(app("db"), Epoch(5));
    let refused = check_offer(&answers(vec![promised.clone()]), &wanted, &claim)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("rehome failover db --to h2 --fenced h1@4"),
        "{refused}"
    );
    promised.promised.insert(app("db"), Epoch(4));
    assert!(
        check_offer(&answers(vec![promised]), &wanted, &claim).is_ok(),
        "a promise of an older owner"
    );

    let mut released = report("h1", &current, &[]);
    let mut open = migration("db", MigrationState::Blocked);
    open.epoch = Epoch(5);
    released.migrations.push(open);
    let answers = answers(vec![released]);
    assert!(check_offer(&answers, &request("h3", "h2", 5), &claim).is_err());
    assert!(check_offer(&answers, &request("h3", "h2", 6), &claim).is_ok());
    assert!(
        check_offer(&answers, &request("h1", "h2", 5), &claim).is_ok(),
        "itself"
    );
}

fn known(epoch: u64, owner: &str) -> deploy::Known {
    deploy::Known::from([(app("db"), (Epoch(epoch), host(owner)))])
}

#[test]
fn the_owner_that_is_known_must_be_the_one_that_is_fenced() {
    let current = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
    let nobody = answers(vec![report("h2", &current, &[])]);
    let wanted = request("h2", "h1", 4);
    assert!(check_owner(&deploy::Known::new(), &nobody, &wanted).is_ok());
    assert!(check_owner(&known(4, "h1"), &nobody, &wanted).is_ok());
    assert!(
        check_owner(&known(5, "h2"), &nobody, &wanted).is_ok(),
        "done"
    );
    assert!(check_owner(&known(5, "h1"), &nobody, &wanted).is_err());
    assert!(check_owner(&known(4, "h3"), &nobody, &wanted).is_err());
}

#[test]
fn of_two_owners_of_one_epoch_one_can_be_fenced_and_no_promise_is_taken_for_an_owner() {
    let current = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
    let wanted = request("h2", "h1", 4);
    let alone = report("h2", &current, &[("db", 4)]);
    let mut waits = alone.clone();
    waits.applications[0].state = ApplicationState::Blocked;
    let mut third = report("h3", &current, &[]);
    third.known.push(crate::fixtures::known("db", 4, "h1"));
    for both in [vec![waits], vec![alone.clone(), third]] {
        for first_heard in ["h1", "h2"] {
            let said = check_owner(&known(4, first_heard), &answers(both.clone()), &wanted);
            assert!(said.is_ok());
        }
    }
    let sole = check_owner(&known(4, "h2"), &answers(vec![alone]), &wanted);
    assert!(sole.is_err(), "nobody ever knew the other one as its owner");
    let promised = answers(vec![report("h2", &current, &[])]);
    assert!(check_owner(&known(4, "h2"), &promised, &wanted).is_err());
}

#[test]
fn who_has_lost_all_of_it_or_left_it_open_has_no_part_in_it() {
    let current = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
    let (db, plain) = (app("db"), report("h1", &current, &[]));
    assert!(plain.is_out_of(&db), "a machine that was replaced");
    let known = |owner: &str| {
        let mut report = plain.clone();
        report.known.push(crate::fixtures::known("db", 3, owner));
        report
    };
    assert!(known("h1").is_out_of(&db), "it only heard so of itself");
    assert!(!known("h2").is_out_of(&db), "it gave it away");
    let mut heard = known("h2");
    heard.heard.insert(db.clone());
    assert!(heard.is_out_of(&db), "a new machine was told so");
    let mut left = known("h2");
    left.left.push(rehome_shared::api::peer::LeftOpen {
        application: db.clone(),
        owner: host("h2"),
        epoch: Epoch(3),
        why: "because".to_owned(),
    });
    assert!(left.is_out_of(&db));
    assert!(!report("h1", &current, &[("db", 3)]).is_out_of(&db));
    left.instances = Some(vec![db.clone()]);
    assert!(!left.is_out_of(&db), "it still runs there");
    left.instances = None;
    assert!(!left.is_out_of(&db), "nobody has looked yet");
    left.instances = Some(vec![app("web")]);
    assert!(left.is_out_of(&db));
    let mut coming = plain.clone();
    coming.incoming.push(db.clone());
    assert!(!coming.is_out_of(&db));
    let mut source = plain;
    source
        .migrations
        .push(migration("db", MigrationState::Running));
    assert!(!source.is_out_of(&db), "it gives it away");
}
