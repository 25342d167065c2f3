//! A predecessor that dies: its successor serves with all that it got, once it was told to accept,
//! and ends otherwise.

use anyhow::ensure;

use crate::scene::{Scene, runs, until};
use crate::{CLIENTS, CONNECTIONS, GO, WAITING, WORDS};

async fn dies_at(place: usize, word: &str, when: &str) -> anyhow::Result<()> {
    let mut scene = Scene::begin(CLIENTS, WAITING).await?;
    let point = scene.at(word, when, "hold")?;
    let upgrade = scene.begin_upgrade()?;
    point.hit().await?;
    let successor = scene.take_successor()?;
    scene.kill().await?;
    point.let_go()?;
    let upgraded = scene.end_upgrade(upgrade).await?;
    ensure!(!upgraded.worked, "{upgraded:?}");
    if place < GO {
        until("the successor ends", || Ok(!runs(successor))).await?;
        ensure!(scene.is_closed().await, "somebody still listens");
        return Ok(());
    }
    let _newcomer = scene.newcomer().await?;
    let gone = scene.replace_gone(0).await?;
    ensure!(place < CONNECTIONS || gone == 0, "{gone} are gone");
    ensure!(runs(successor), "it has ended");
    // It answers requests too, and is as good a predecessor as any.
    let upgraded = scene.upgrade().await?;
    ensure!(upgraded.worked, "{upgraded:?}");
    ensure!(scene.replace_gone(0).await? == 0);
    scene.end_well().await
}

async fn dies_at_each(when: &str) -> anyhow::Result<()> {
    for (place, word) in WORDS.iter().enumerate() {
        let died = dies_at(place, word, when).await;
        died.map_err(|error| error.context(format!("{word} {when}")))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_dies_before_its_successor_follows_a_message() -> anyhow::Result<()> {
    dies_at_each("before").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_dies_when_its_successor_has_followed_a_message() -> anyhow::Result<()> {
    dies_at_each("after").await
}
