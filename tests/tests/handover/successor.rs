//! A successor that dies, hangs or is slow: the predecessor goes on with all that is its own.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use crate::scene::{Scene, runs, until};
use crate::{CLIENTS, CONNECTIONS, WAITING, WORDS};

/// The connections that end with a successor that dies at a word, where that is certain: one that
/// has just said that it holds them may die before or after they are released.
fn loses(place: usize, when: &str) -> Option<usize> {
    if place == CONNECTIONS && when == "after" {
        None
    } else if place > CONNECTIONS {
        Some(CLIENTS + WAITING)
    } else {
        Some(0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_dies_at_any_message_leaves_the_old_process_serving() -> anyhow::Result<()> {
    let mut scene = Scene::begin(CLIENTS, WAITING).await?;
    for (place, word) in WORDS.iter().enumerate() {
        for when in ["before", "after"] {
            let point = scene.at(word, when, "kill")?;
            let upgraded = scene.upgrade().await?;
            ensure!(!upgraded.worked, "{word} {when}: {upgraded:?}");
            ensure!(
                point.was_hit(),
                "{word} {when} was not reached: {upgraded:?}"
            );
            let told = upgraded.lost();
            let as_it_must_be = loses(place, when).is_none_or(|lost| lost == told);
            ensure!(as_it_must_be, "{word} {when}: {upgraded:?}");
            let gone = scene.replace_gone(told).await?;
            ensure!(gone == told, "{word} {when}: {gone} are gone: {upgraded:?}");
        }
    }
    let upgraded = scene.upgrade().await?;
    ensure!(upgraded.worked, "{upgraded:?}");
    ensure!(scene.replace_gone(0).await? == 0);
    scene.end_well().await
}

/// Before it accepts nothing is lost with it; then all is, so that it is given time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_is_ended_at_once_before_it_accepts_and_waited_for_then()
-> anyhow::Result<()> {
    let mut scene = Scene::begin(CLIENTS, WAITING).await?;
    let point = scene.at("batch", "before", "hold")?;
    let upgrade = scene.begin_upgrade()?;
    point.hit().await?;
    let hangs = scene.take_successor()?;
    let upgraded = scene.end_upgrade(upgrade).await?;
    ensure!(
        !upgraded.worked && upgraded.said.contains("silent"),
        "{upgraded:?}"
    );
    until("it is ended", || Ok(!runs(hangs))).await?;
    point.let_go()?;
    ensure!(scene.replace_gone(0).await? == 0);
    for word in ["connections", "release", "end"] {
        let point = scene.at(word, "before", "hold")?;
        let upgrade = scene.begin_upgrade()?;
        point.hit().await?;
        // Longer than a word takes.
        sleep(Duration::from_secs(6)).await;
        point.let_go()?;
        let upgraded = scene.end_upgrade(upgrade).await?;
        ensure!(upgraded.worked, "{word}: {upgraded:?}");
        ensure!(scene.replace_gone(0).await? == 0, "{word}");
    }
    scene.end_well().await
}

/// What has stopped for a batch that cannot be made goes on where it is, for its time, and the
/// others go on where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_for_which_there_is_no_room_stay() -> anyhow::Result<()> {
    const BATCH: usize = 100;
    const STAY: usize = BATCH + 50;
    let mut scene = Scene::begin(BATCH + STAY, 0).await?;
    let point = scene.at("connections", "before", "hold")?;
    let upgrade = scene.begin_upgrade()?;
    point.hit().await?;
    scene.set_room(3)?;
    point.let_go()?;
    let upgraded = scene.end_upgrade(upgrade).await?;
    ensure!(
        upgraded.worked && upgraded.said.contains("no room for a batch"),
        "{upgraded:?}"
    );
    // The next one waits for the end of those that stay, of which it would not know.
    let upgraded = scene.upgrade().await?;
    ensure!(
        upgraded.worked && !upgraded.said.contains("stay"),
        "{upgraded:?}"
    );
    scene.first_ends().await?;
    let gone = scene.replace_gone(STAY).await?;
    ensure!(gone == STAY, "{gone}: {upgraded:?}");
    scene.end_well().await
}
