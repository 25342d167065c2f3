//! Clients that write small words.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{PATIENCE, Target, Way};
use crate::window::session::Session;

/// From the beginning of a request on a connection of its own to that of the next one.
const PACE: Duration = Duration::from_millis(20);

/// Requests under way on connections of their own. More than these would meet the stores' limit
/// of connections all at once when they are let go.
const AT_ONCE: usize = 100;

/// From an answer on a kept connection to the next request.
const THINK: Duration = Duration::from_millis(10);

/// Requests on connections of their own, at a steady pace.
pub(super) async fn fresh(target: Target) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = JoinSet::new();
    for number in 0_u64.. {
        pace.tick().await;
        if target.is_over() {
            break;
        }
        while under_way.try_join_next().is_some() {}
        if under_way.len() < AT_ONCE {
            let target = target.clone();
            under_way.spawn(async move {
                let word = format!("w-fresh-{number}");
                let answer = timeout(PATIENCE, one(&target, &word)).await;
                let answer = answer.context("no answer").flatten();
                let answer = match answer {
                    Ok(session) => {
                        target.log.answered(Way::Fresh, word, Ok(()));
                        session.close().await;
                        return;
                    }
                    Err(error) => error,
                };
                target.log.answered(Way::Fresh, word, Err(answer));
            });
        }
    }
    while under_way.join_next().await.is_some() {}
}

async fn one(target: &Target, word: &str) -> anyhow::Result<Session> {
    let mut session = target.open().await?;
    session.add(word).await?;
    Ok(session)
}

/// Requests on a kept connection, one after the other. It is opened again when it has ended; an
/// end that the other side announced between two requests is no failure, as for a pool.
pub(super) async fn kept(target: Target, client: u32) {
    let mut kept: Option<Session> = None;
    for number in 0_u64.. {
        if target.is_over() {
            break;
        }
        let word = format!("w-kept-{client}-{number}");
        let answer = next(&target, &mut kept, &word).await;
        if answer.is_err() {
            kept = None;
        }
        target.log.answered(Way::Kept, word, answer);
        sleep(THINK).await;
    }
    if let Some(session) = kept {
        session.close().await;
    }
}

async fn next(target: &Target, kept: &mut Option<Session>, word: &str) -> anyhow::Result<()> {
    if let Some(session) = kept
        && !session.is_open().await
    {
        *kept = None;
    }
    let session = match kept {
        Some(session) => session,
        None => kept.insert(target.open().await?),
    };
    timeout(PATIENCE, session.add(word))
        .await
        .context("no answer")?
}
