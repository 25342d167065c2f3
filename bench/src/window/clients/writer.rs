//! A client that overwrites large values.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::noise::Noise;
use super::{PATIENCE, Target, VALUE};
use crate::window::session::Session;

/// Values of one writer after which the room of overwritten ones is made usable again.
const RECLAIM: u32 = 64;

/// What a writer does.
#[derive(Debug)]
pub(super) struct Work {
    /// Which writer it is.
    pub(super) number: u32,
    /// How many values it overwrites, again and again.
    pub(super) slots: u32,
    /// From one value to the next.
    pub(super) every: Duration,
    /// The values.
    pub(super) noise: Arc<Noise>,
}

/// Overwrites at its pace, or as fast as the store takes it. A slow answer is made up for; what
/// was not written while there was no connection is not.
pub(super) async fn write(target: Target, work: Work) {
    let mut pace = interval(work.every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut kept: Option<Session> = None;
    for turn in 0_u32.. {
        pace.tick().await;
        if target.is_over() {
            break;
        }
        let was_open = kept.is_some();
        let overwritten = overwrite(&target, &mut kept, &work, turn).await;
        if !was_open {
            pace.reset();
        }
        match overwritten {
            Ok(()) => target.log.wrote(f64::from(VALUE)),
            // The probes count failures; this one only makes work.
            Err(_) => kept = None,
        }
    }
    if let Some(session) = kept {
        session.close().await;
    }
}

async fn overwrite(
    target: &Target,
    kept: &mut Option<Session>,
    work: &Work,
    turn: u32,
) -> anyhow::Result<()> {
    if let Some(session) = kept
        && !session.is_open().await
    {
        *kept = None;
    }
    let session = if let Some(session) = kept {
        session
    } else {
        let mut session = target.open().await?;
        session.be_bulk().await?;
        kept.insert(session)
    };
    let slot = work.number * work.slots + turn.checked_rem(work.slots).unwrap_or_default();
    let step = async {
        // One of the writers makes room for all.
        if work.number == 0 && turn % RECLAIM == RECLAIM - 1 {
            session.reclaim().await?;
        }
        let value = work.noise.value(turn.wrapping_mul(7).wrapping_add(slot));
        session.put(slot, value).await
    };
    timeout(PATIENCE, step).await.context("no answer")?
}
