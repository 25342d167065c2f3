//! The flows that the kernel carries for us, as its connection tracking has them.
//!
//! A flow is ours when it has our label; whose route it is, says the port that it was first sent to.
//! Flows that other programs have translated are never among them.

use std::net::{IpAddr, SocketAddr};

use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::Protocol;
use rustix::io::Errno;

use super::netlink::{Attributes, CTNETLINK, KernelError, Message, Netlink, attribute, number};
use super::ruleset::OURS;

const GET: u8 = 1;
const DELETE: u8 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const ID: u16 = 12;
const LABELS: u16 = 22;
const STATUS_MASK: u16 = 26;
/// `IPS_DST_NAT`: only flows that were sent elsewhere are told at all, where the kernel can choose.
const SENT_ELSEWHERE: u32 = 1 << 5;

/// A flow of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    /// Whose it is.
    pub(super) key: RouteKey,
    /// Who began it.
    pub(super) client: SocketAddr,
    /// Where the client sends to.
    pub(super) door: SocketAddr,
    /// Where it goes.
    pub(super) target: SocketAddr,
    pub(super) life: Life,
    /// Its entry, as the kernel names it.
    tuple: Vec<u8>,
    id: u32,
}

/// How far a flow has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The target has not answered.
    Begun,
    /// Bytes may flow. Datagrams always may.
    Flows,
    /// It is over; the kernel remembers it for a while.
    Over,
}

/// All flows of ours.
///
/// # Errors
/// When the kernel does not say.
pub(super) fn all(netlink: &mut Netlink) -> Result<Vec<Flow>, KernelError> {
    let filter = Attributes::default()
        .number(STATUS, SENT_ELSEWHERE)
        .number(STATUS_MASK, SENT_ELSEWHERE);
    let get = Message::new(CTNETLINK, GET, 0, 0, filter);
    let flows = netlink.dump(&get, read);
    flows.map_err(KernelError::of("tell its flows"))
}

/// Forgets a flow, unless it has gone already.
///
/// # Errors
/// When the kernel does not.
pub(super) fn forget(netlink: &mut Netlink, flow: &Flow) -> Result<(), KernelError> {
    let family = if flow.door.is_ipv4() { 2 } else { 10 };
    let which = Attributes::default()
        .bytes(TUPLE_ORIGINAL | 0x8000, &flow.tuple)
        .number(ID, flow.id);
    let delete = Message::new(CTNETLINK, DELETE, 0, family, which);
    match netlink.request(&delete) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(KernelError::of("forget a flow")(errno)),
    }
}

fn read(entry: &[u8]) -> Option<Flow> {
    let label = attribute(entry, LABELS)?;
    let bits = label.iter().zip(&OURS);
    if label.len() < OURS.len() || bits.into_iter().any(|(has, ours)| has & ours != *ours) {
        return None;
    }
    let tuple = attribute(entry, TUPLE_ORIGINAL)?;
    let (protocol, client, door) = read_tuple(tuple)?;
    let (_, target, _) = read_tuple(attribute(entry, TUPLE_REPLY)?)?;
    let life = match protocol {
        Protocol::Udp => Life::Flows,
        Protocol::Tcp | Protocol::Http => {
            let info = attribute(entry, PROTOINFO).and_then(|info| attribute(info, 1));
            let state = info.and_then(|info| attribute(info, 1)?.first());
            match state {
                // SYN_SENT, and SYN_SENT2 where both began at once.
                Some(1 | 9) => Life::Begun,
                // TIME_WAIT and CLOSE.
                Some(7 | 8) => Life::Over,
                _ => Life::Flows,
            }
        }
    };
    Some(Flow {
        key: RouteKey::new(door.port(), protocol),
        client,
        door,
        target,
        life,
        tuple: tuple.to_vec(),
        id: number(entry, ID)?,
    })
}

/// Who sends to whom.
fn read_tuple(tuple: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (ip, ports) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    let protocol = match attribute(ports, 1)?.first()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = attribute(ip, v4) {
            return Some(<[u8; 4]>::try_from(bytes).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(attribute(ip, v6)?).ok()?.into())
    };
    let port = |kind| Some(u16::from_be_bytes(attribute(ports, kind)?.try_into().ok()?));
    let source = (address(1, 3)?, port(2)?).into();
    let destination = (address(2, 4)?, port(3)?).into();
    Some((protocol, source, destination))
}
