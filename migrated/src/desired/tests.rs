//! Which deployment a host follows, and that it follows it after a restart.

use super::*;
use crate::fixtures::{app, deployment};

fn store() -> (tempfile::TempDir, DesiredStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DesiredStore::open(dir.path()).unwrap();
    (dir, store)
}

/// Two deployments of a generation, the one of the smaller hash first.
fn rivals(generation: u64) -> (Desired, Desired) {
    let one = deployment(generation, &[("h1", &["db"])]);
    let other = deployment(generation, &[("h2", &["db"])]);
    if hash(&one) < hash(&other) {
        (one, other)
    } else {
        (other, one)
    }
}

#[tokio::test]
async fn what_is_followed_is_followed_after_a_restart() {
    let (dir, store) = store();
    assert_eq!(store.get().generation, DeploymentGeneration(0));
    let desired = deployment(4, &[("h1", &["db"])]);
    store.accept(desired.clone()).await.unwrap();
    assert_eq!(*store.get(), desired);
    assert_eq!(*DesiredStore::open(dir.path()).unwrap().get(), desired);
}

#[tokio::test]
async fn an_older_deployment_is_refused_and_the_same_again_is_success() {
    let (_dir, store) = store();
    let desired = deployment(4, &[("h1", &["db"])]);
    store.accept(desired.clone()).await.unwrap();
    assert_eq!(
        store.accept(desired).await.unwrap(),
        DeploymentGeneration(4)
    );
    let older = store.accept(deployment(3, &[("h1", &["db"])])).await;
    assert!(
        matches!(
            older,
            Err(AcceptError::Older {
                known: DeploymentGeneration(4)
            })
        ),
        "{older:?}"
    );
}

#[tokio::test]
async fn of_two_of_one_generation_the_larger_hash_wins_in_either_order() {
    let (small, large) = rivals(2);
    for order in [[&small, &large], [&large, &small]] {
        let (_dir, store) = store();
        for desired in order {
            drop(store.accept(desired.clone()).await);
        }
        assert_eq!(*store.get(), large);
    }
}

#[tokio::test]
async fn a_deployment_made_here_never_takes_the_place_of_one_of_its_generation() {
    let (small, large) = rivals(2);
    let (_dir, store) = store();
    store.accept_own(small.clone()).await.unwrap();
    let late = store.accept_own(large).await;
    assert!(matches!(late, Err(AcceptError::Older { .. })), "{late:?}");
    assert_eq!(*store.get(), small);
}

#[tokio::test]
async fn nothing_is_done_for_a_deployment_that_is_not_in_force_any_more() {
    let (_dir, store) = store();
    let old = deployment(1, &[("h1", &["db"])]);
    store.accept(old.clone()).await.unwrap();
    assert_eq!(store.while_following(&old, async { 7 }).await, Some(7));
    store
        .accept(deployment(2, &[("h1", &["db"])]))
        .await
        .unwrap();
    assert_eq!(store.while_following(&old, async { 7 }).await, None);
}

#[tokio::test]
async fn a_damaged_file_is_not_taken_for_none() {
    let (dir, store) = store();
    store
        .accept(deployment(1, &[("h1", &["db"])]))
        .await
        .unwrap();
    let path = dir.path().join("desired.json");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(DesiredStore::open(dir.path()).is_err());
}

#[test]
fn only_what_another_deployment_changes_or_names_is_asked_for_anew() {
    let first = deployment(6, &[("h1", &["db", "web"]), ("h2", &["kv"])]);
    let mut moved = deployment(7, &[("h1", &["web"]), ("h2", &["kv", "db"])]);
    moved.asked = asked(&first, &moved, &BTreeSet::new());
    let generations = |of: &Desired| ["db", "kv", "web"].map(|name| of.asked(&app(name)).0);
    assert_eq!(generations(&moved), [7, 6, 6]);

    let mut other = moved.clone();
    other.generation = DeploymentGeneration(8);
    other.applications.remove(&app("kv"));
    let spec = other.applications.get_mut(&app("web")).unwrap();
    spec.environment.insert("A".to_owned(), "1".to_owned());
    other.asked = asked(&moved, &other, &BTreeSet::new());
    assert_eq!(generations(&other), [7, 8, 8], "kv is not in it any more");

    let mut again = other.clone();
    again.generation = DeploymentGeneration(9);
    again.asked = asked(&other, &again, &BTreeSet::from([app("db")]));
    assert_eq!(generations(&again), [9, 9, 8]);
}
