//! What is done to many flows at once. All but [`list`] blocks.

use std::collections::BTreeSet;
use std::time::Duration;

use proxyd_core::fast::Found;
use rehome_shared::api::proxy::RouteKey;
use rustix::io::Errno;

use super::flows::{self, Flow, Life};
use super::netlink::{KernelError, Netlink};
use super::nudge::Nudger;
use crate::fair;

/// The longest that the kernel is waited for: several answers.
const LIMIT: Duration = Duration::from_secs(10);

/// A flow through which bytes may go and that ends some time: datagrams do not.
pub(super) fn is_counted(flow: &Flow) -> bool {
    flow.life == Life::Flows && !flow.key.is_udp()
}

pub(super) fn count<'a>(flows: impl Iterator<Item = &'a Flow>) -> u64 {
    u64::try_from(flows.count()).unwrap_or(u64::MAX)
}

/// The flows of these routes.
pub(super) async fn list(keys: &[RouteKey]) -> Result<Vec<Flow>, KernelError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let keys: BTreeSet<RouteKey> = keys.iter().copied().collect();
    in_thread("list", move || {
        let mut flows = flows::all(&mut Netlink::open()?)?;
        flows.retain(|flow| keys.contains(&flow.key));
        Ok(flows)
    })
    .await
}

pub(super) fn forget_all(flows: &[Flow]) -> Result<(), KernelError> {
    let mut netlink = Netlink::open()?;
    flows
        .iter()
        .try_for_each(|flow| flows::forget(&mut netlink, flow))
}

pub(super) fn nudge_all(flows: &[Flow]) {
    let mut nudger = Nudger::default();
    for flow in flows {
        if let Err(error) = nudger.nudge(flow.client, flow.door) {
            // It hears of it when it speaks.
            tracing::debug!(%error, "an idle client was not told that its flow has ended");
        }
    }
}

/// Forgets flows of these ports that never got anywhere.
///
/// # Errors
/// When the kernel does not.
pub(super) fn forget_stuck(keys: &BTreeSet<RouteKey>) -> Result<(), KernelError> {
    let mut netlink = Netlink::open()?;
    let flows = flows::all(&mut netlink)?.into_iter();
    let stuck = flows.filter(|flow| keys.contains(&flow.key) && !is_counted(flow));
    for flow in stuck {
        flows::forget(&mut netlink, &flow)?;
    }
    Ok(())
}

/// Forgets flows that go where no element leads and whose next packet would go there, too: nothing
/// else ends those of datagrams, and who has no answer yet comes again, and finds user space.
///
/// # Errors
/// When the kernel does not.
pub(super) fn sweep(there: &Found) -> Result<(), KernelError> {
    let mut netlink = Netlink::open()?;
    let leads = |flow: &Flow| {
        let element = there.elements.get(&flow.key);
        element.is_some_and(|element| element.target == flow.target)
    };
    let flows = flows::all(&mut netlink)?.into_iter();
    let lasts = |flow: &Flow| flow.key.is_udp() || flow.life == Life::Begun;
    for flow in flows.filter(|flow| lasts(flow) && !leads(flow)) {
        flows::forget(&mut netlink, &flow)?;
    }
    Ok(())
}

/// Runs what blocks on a thread of its own, for a bounded time.
pub(super) async fn in_thread<T: Send + 'static>(
    what: &'static str,
    task: impl FnOnce() -> Result<T, KernelError> + Send + 'static,
) -> Result<T, KernelError> {
    match fair::within(LIMIT, tokio::task::spawn_blocking(task)).await {
        Some(Ok(done)) => done,
        // It has panicked, or the runtime ends.
        Some(Err(_)) => Err(KernelError::of(what)(Errno::CANCELED)),
        None => Err(KernelError::of(what)(Errno::TIMEDOUT)),
    }
}
