//! The hands of a process that stops: everything goes into letters to the next one.

use std::collections::BTreeMap;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};

use proxyd_core::handover::{BatchError, Hello, Packer, Part};
use rehome_runtime::descriptor_store;

use super::Phase;
use super::channel::file_of;
use super::give::ARRIVE;
use super::letters::Letters;
use super::moving::{Courier, Moving};
use crate::Proxyd;

/// Leaves connections and UDP sockets to the process that starts next, as far as there is a
/// service manager that keeps them. What it does not keep stays here.
///
/// # Cancel safety
/// Not cancel safe: what has stopped would be lost.
pub(crate) async fn leave(proxy: &Proxyd) {
    let handover = &proxy.context.handover;
    // A handover that was broken off by the stop may still take back what it had.
    if !descriptor_store::is_there() || !handover.begin() {
        return;
    }
    let mut letters = match Letters::begin(known(&proxy.hello)).await {
        Ok(letters) => letters,
        Err(error) => {
            tracing::info!(%error, "the service manager keeps no connections");
            handover.set(Phase::Serving);
            return;
        }
    };
    if tokio::time::timeout(ARRIVE, proxy.desk.closed())
        .await
        .is_err()
    {
        tracing::warn!("the ports are not left: they are in use");
    }
    handover.keep_guests();
    handover.set(Phase::Moving);
    if !handover.arrived(ARRIVE).await {
        tracing::warn!("some clients are not left: they were just accepted");
    }
    let mut moving = Moving::new(&proxy.context);
    let left = match send_rest(proxy, &mut moving, &mut letters).await {
        Ok(()) => moving.all(&mut letters).await,
        error => error,
    };
    if let Err(error) = left {
        tracing::error!(%error, "connections are not left");
        moving.take_back();
    }
    let (held, relays, why) = (moving.held, moving.relays, &moving.why);
    tracing::info!(held, relays, ?why, "left to the next process");
}

/// What is not a connection: counts, and UDP sockets. The manager has the others, and the disk the
/// routes.
async fn send_rest(
    proxy: &Proxyd,
    moving: &mut Moving<'_>,
    letters: &mut Letters,
) -> Result<(), BatchError> {
    let ports = proxy.context.handover.take_ports().into_iter();
    let ports = ports.map(|(socket, shared)| (Part::Socket(socket), Some(shared)));
    let counts = Part::Counts(proxy.context.book.counted());
    for (part, shared) in iter::once((counts, None)).chain(ports) {
        let mut packer = Packer::default();
        let descriptor = shared.as_ref().map(AsFd::as_fd);
        packer.add(moving.next_part(), &part, descriptor.iter().len(), &[])?;
        if let Some(why) = send(packer, descriptor, letters).await? {
            tracing::warn!(why, "not everything is left");
            return Ok(());
        }
    }
    Ok(())
}

/// Sends a batch, and says why not where it is not taken.
async fn send(
    packer: Packer,
    descriptor: Option<BorrowedFd<'_>>,
    letters: &mut Letters,
) -> Result<Option<String>, BatchError> {
    let packed = packer.finish()?;
    let file = match file_of(&packed.content) {
        Ok(file) => file,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let all: Vec<_> = iter::once(file.as_fd()).chain(descriptor).collect();
    let refused = letters.bring(packed.batch, &all).await?;
    Ok(refused.into_iter().next().map(|refusal| refusal.reason))
}

/// What the next process has to know of this one: its file may be another.
pub(super) fn known(hello: &Hello) -> Hello {
    Hello {
        sockets: BTreeMap::new(),
        ..hello.clone()
    }
}
