//! Two that change the deployment at once: one comes first, and the other changes what that one
//! made of it.

use std::time::Duration;

use rehome_runtime::backoff::Backoff;
use rehome_shared::api::cluster::Desired;
use rehome_shared::ids::{DeploymentGeneration, HostAddr};
use tokio::time::Instant;

use crate::desired;
use crate::host::Host;

/// So long it is tried anew. One try may take a minute and a half more, and who asks waits for two
/// minutes.
const PATIENCE: Duration = Duration::from_secs(20);

/// So long the deployment that another host preferred is on its way here.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// The tries of one change.
#[derive(Debug)]
pub(super) struct Turn {
    until: Instant,
    pauses: Backoff,
    /// Other hosts wait for another while, so that they do not meet again.
    stagger: Duration,
}

impl Turn {
    pub(super) fn new(here: &HostAddr) -> Self {
        let hash = blake3::hash(here.as_str().as_bytes());
        let share = hash.as_bytes().first().copied().unwrap_or_default();
        Self {
            until: Instant::now() + PATIENCE,
            pauses: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
            stagger: Duration::from_millis(share.into()),
        }
    }

    /// How long to wait before the next try; `None` when there have been enough.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let pause = self.pauses.next_delay() + self.stagger;
        (Instant::now() + pause < self.until).then_some(pause)
    }
}

/// The generation that has taken the place of a deployment here, once another host has refused
/// it; `None` when none does.
pub(super) async fn overtaken(host: &Host, by_us: &Desired) -> Option<DeploymentGeneration> {
    let ours = desired::hash(by_us);
    let mut now = host.desired.watch();
    let other = now.wait_for(|now| desired::hash(now) != ours);
    let came = tokio::time::timeout(ON_ITS_WAY, other).await.ok()?.ok()?;
    Some(came.generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::host;

    #[tokio::test(start_paused = true)]
    async fn the_tries_are_bounded() {
        let mut turn = Turn::new(&host("h1"));
        let begin = Instant::now();
        let mut tries = 0;
        while let Some(pause) = turn.pause() {
            tokio::time::sleep(pause).await;
            tries += 1;
        }
        assert!(tries > 10, "{tries}");
        assert!(begin.elapsed() < PATIENCE);
    }
}
