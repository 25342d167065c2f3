//! What a trunk connection is: who sends it, and its header.
//!
//! Until that is known it is one of those that are greeted, of which there are not many. One that
//! another host keeps ready may say nothing for long: that takes a place of its own.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rehome_runtime::report::Report;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::ids::HostAddr;
use rehome_shared::trunk::{Decoded, Header};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::places::Places;
use crate::context::Context;
use crate::dial::read_more;
use crate::fair;
use crate::leg::Leg;
use crate::metrics::Shed;
use crate::ready::KEPT;
use crate::seal::{self, NotTaken};

/// The most that a handshake and a header may take to arrive, each.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long one that is kept ready may stay so: longer than the other side keeps it.
const READY_TIME: Duration = KEPT.saturating_mul(2);

/// Hears who sends it, and what it is to be. None when it is over.
pub(super) async fn hear(
    context: &Context,
    (stream, from): (TcpStream, IpAddr),
    permit: OwnedSemaphorePermit,
    places: &Places,
) -> Option<(Leg, Header)> {
    let (mut stream, peer) = open(context, (stream, from)).await?;
    let is_sealed = stream.plain().is_none();
    let ready = if is_sealed { places.take(from) } else { None };
    // Who has a place keeps nobody else from being greeted.
    let greeted = ready.is_none().then_some(permit);
    if is_sealed {
        let patience = if ready.is_some() {
            READY_TIME
        } else {
            HEADER_TIME
        };
        let asked = fair::within(patience, stream.has_byte()).await;
        if !matches!(asked, Some(Ok(true))) {
            // Whoever kept it had no use for it, or was to keep fewer.
            if ready.is_none() && asked.is_none() {
                context.book.metrics.shed(Shed::TrunkReady);
            }
            return None;
        }
    }
    let header = read_header(context, &mut stream).await?;
    drop((ready, greeted));
    if !may_speak(context, &header, (peer.as_ref(), from)) {
        stream.reset_on_drop();
        return None;
    }
    Some((stream, header))
}

/// Takes the connection in the form in which it comes, if that is accepted here.
async fn open(
    context: &Context,
    (stream, from): (TcpStream, IpAddr),
) -> Option<(Leg, Option<PeerIdentity>)> {
    let settings = context.settings();
    let taking = seal::take(settings.seal.as_ref(), stream, from);
    let taken = fair::within(HEADER_TIME, taking).await;
    let late = || Err(NotTaken::Silent(io::ErrorKind::TimedOut.into()));
    match taken.unwrap_or_else(late) {
        Ok(taken) => Some(taken),
        Err(error) => {
            let what = Report(&error).to_string();
            let what = format_args!("a trunk connection from {from} is not taken: {what}");
            context.book.metrics.shed_for(error.shed(), &what);
            None
        }
    }
}

/// Whether the sender is who it says, and one of the cluster's.
fn may_speak(
    context: &Context,
    header: &Header,
    (peer, from): (Option<&PeerIdentity>, IpAddr),
) -> bool {
    let sender = &header.sender;
    let fault = match peer {
        Some(peer) if !peer.is(sender) => "its certificate is another host's",
        Some(_) if !context.peers.has(sender) => "it is not of this cluster",
        // All that a plain one shows is its address, which a host may have as its name.
        None if !may_be_at(sender, from) => "its address is another host's",
        Some(_) | None => return true,
    };
    let what = format_args!("a trunk connection says that {sender} sends it: {fault}");
    context.book.metrics.shed_for(Shed::TrunkSender, &what);
    false
}

async fn read_header(context: &Context, stream: &mut Leg) -> Option<Header> {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            match Header::decode(&bytes).map_err(|error| error.to_string())? {
                Decoded::Done(header) => return Ok(header),
                Decoded::Need(more) => {
                    read_more(stream, &mut bytes, more)
                        .await
                        .map_err(|error| error.to_string())?;
                }
            }
        }
    };
    let read: Result<Header, String> = fair::within(HEADER_TIME, reading)
        .await
        .unwrap_or_else(|| Err("too slow".to_owned()));
    match read {
        Ok(header) => Some(header),
        Err(error) => {
            tracing::debug!(error, "a trunk header that is none");
            context.book.metrics.shed(Shed::Header);
            stream.reset_on_drop();
            None
        }
    }
}

/// Whether a host may connect from there, as far as its name says.
fn may_be_at(host: &HostAddr, from: IpAddr) -> bool {
    let address = host.as_str().parse::<IpAddr>();
    address.map_or(true, |address| {
        address.to_canonical() == from.to_canonical()
    })
}
