//! What our table holds: elements, fences, and what packets note.

use std::net::{IpAddr, SocketAddr};

use proxyd_core::fast::{Element, Flip};
use rehome_shared::api::proxy::{ClientAddress, RouteKey};
use rehome_shared::ids::Protocol;

use super::{TABLE, message};
use crate::fast::expression::{IPV4, IPV6};
use crate::fast::netlink::{Attributes, CREATE, Message, attribute, attributes};

pub(super) const FENCED: &str = "fenced";
/// Ports of which packets tell something, and for how long that is known.
#[derive(Debug, Clone, Copy)]
pub(in crate::fast) struct Notes {
    pub(in crate::fast) name: &'static str,
    pub(super) milliseconds: u64,
}

pub(super) const ASKED: Notes = Notes {
    name: "asked",
    milliseconds: 3000,
};
pub(super) const ANSWERED: Notes = Notes {
    name: "answered",
    milliseconds: 3000,
};
pub(super) const REFUSED: Notes = Notes {
    name: "refused",
    milliseconds: 3000,
};
/// Ports of which the kernel carries, or carried, connections.
pub(super) const CARRIED: Notes = Notes {
    name: "carried",
    milliseconds: DAY,
};
/// The addresses and ports of applications to which it did, of each family.
pub(super) const INNER: [(u8, Notes); 2] = [
    (
        IPV4,
        Notes {
            name: "inner4",
            milliseconds: DAY,
        },
    ),
    (
        IPV6,
        Notes {
            name: "inner6",
            milliseconds: DAY,
        },
    ),
];
/// A connection that is older and at rest has to do without.
const DAY: u64 = 24 * 3600 * 1000;
/// What is noted of ports for the keeper. Notes go by themselves: nobody has to change the tables for that.
pub(in crate::fast) const NOTES: [Notes; 3] = [ASKED, ANSWERED, REFUSED];
pub(super) const MAPS: [(&str, u8, ClientAddress); 4] = [
    ("to4", IPV4, ClientAddress::Replaced),
    ("to6", IPV6, ClientAddress::Replaced),
    ("keep4", IPV4, ClientAddress::Kept),
    ("keep6", IPV6, ClientAddress::Kept),
];

const NEW_SET: u8 = 9;
const NEW_ELEMENTS: u8 = 12;
const GET_ELEMENTS: u8 = 13;
const DELETE_ELEMENTS: u8 = 14;

const IS_MAP: u32 = 8;
/// Packets add to it, and what they add goes by itself.
const IS_DYNAMIC: u32 = 32 | 16;
/// All the ports there are, of both protocols.
const MOST_NOTES: u32 = 131_072;
/// The types of a protocol and a port, one after the other, as the `nft` program prints them.
const PORT_KEY: u32 = two(12, 13);
const ADDRESS4_PORT: u32 = two(7, 13);
const ADDRESS6_PORT: u32 = two(8, 13);

const fn two(first: u32, second: u32) -> u32 {
    (first << 6) + second
}

/// So many elements are surely less than one message holds.
const AT_ONCE: usize = 500;

pub(super) fn sets() -> Vec<Message> {
    let set = |name: &str, number: u32, (kind, length): (u32, u32)| {
        Attributes::default()
            .text(1, TABLE)
            .text(2, name)
            .number(10, number)
            .number(4, kind)
            .number(5, length)
    };
    let target = |family| {
        if family == IPV4 {
            (ADDRESS4_PORT, 8)
        } else {
            (ADDRESS6_PORT, 20)
        }
    };
    let port = (PORT_KEY, 8);
    let mut all = vec![message(NEW_SET, CREATE, set(FENCED, 1, port).number(3, 0))];
    for ((name, family, _), number) in MAPS.iter().zip(2..) {
        let (kind, length) = target(*family);
        let map = set(name, number, port)
            .number(3, IS_MAP)
            .number(6, kind)
            .number(7, length);
        all.push(message(NEW_SET, CREATE, map));
    }
    let size = Attributes::default().number(1, MOST_NOTES);
    let of_ports = NOTES
        .into_iter()
        .chain([CARRIED])
        .map(|notes| (notes, port));
    let of_targets = INNER.map(|(family, notes)| (notes, target(family)));
    for ((notes, key), number) in of_ports.chain(of_targets).zip(10..) {
        let notes = set(notes.name, number, key)
            .number(3, IS_DYNAMIC)
            .bytes(11, &notes.milliseconds.to_be_bytes())
            .nest(9, &size);
        all.push(message(NEW_SET, CREATE, notes));
    }
    all
}

/// Takes every element out.
pub(in crate::fast) fn clear() -> Vec<Message> {
    let all_of = |name| {
        // Without a list it is all that there is.
        let inside = Attributes::default().text(1, TABLE).text(2, name);
        message(DELETE_ELEMENTS, 0, inside)
    };
    MAPS.iter().map(|(name, _, _)| all_of(name)).collect()
}

/// The messages of a flip; what goes goes first.
pub(in crate::fast) fn flip(flip: &Flip) -> Vec<Message> {
    let mut all = Vec::new();
    for (name, family, client) in MAPS {
        let of_map = |elements: &[(RouteKey, Element)]| {
            let mine = elements.iter().filter(|(_, element)| {
                element.client == client && element.target.is_ipv4() == (family == IPV4)
            });
            mine.map(|(key, element)| (port_key(*key), Some(target_bytes(element.target))))
                .collect::<Vec<Entry>>()
        };
        let remove = of_map(&flip.remove).into_iter();
        let remove: Vec<Entry> = remove.map(|(key, _)| (key, None)).collect();
        all.extend(elements(DELETE_ELEMENTS, name, &remove));
        all.extend(elements(NEW_ELEMENTS, name, &of_map(&flip.add)));
    }
    let ports = |keys: &[RouteKey]| -> Vec<Entry> {
        keys.iter().map(|key| (port_key(*key), None)).collect()
    };
    all.extend(elements(DELETE_ELEMENTS, FENCED, &ports(&flip.lift)));
    all.extend(elements(NEW_ELEMENTS, FENCED, &ports(&flip.fence)));
    all
}

type Entry = ([u8; 8], Option<Vec<u8>>);

fn elements(kind: u8, set: &str, entries: &[Entry]) -> Vec<Message> {
    let flags = if kind == NEW_ELEMENTS { CREATE } else { 0 };
    let some = |entries: &[Entry]| {
        let list = entries
            .iter()
            .fold(Attributes::default(), |list, (key, data)| {
                let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
                let mut entry = Attributes::default().nest(1, &value(key));
                if let Some(data) = data {
                    entry = entry.nest(2, &value(data));
                }
                list.nest(1, &entry)
            });
        let inside = Attributes::default()
            .text(1, TABLE)
            .text(2, set)
            .nest(3, &list);
        message(kind, flags, inside)
    };
    entries.chunks(AT_ONCE).map(some).collect()
}

/// How the packet filter writes a protocol and a port.
fn port_key(key: RouteKey) -> [u8; 8] {
    let [high, low] = key.external().to_be_bytes();
    [if key.is_udp() { 17 } else { 6 }, 0, 0, 0, high, low, 0, 0]
}

fn read_port_key(bytes: &[u8]) -> Option<RouteKey> {
    let [protocol, _, _, _, high, low, ..] = *bytes else {
        return None;
    };
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(RouteKey::new(u16::from_be_bytes([high, low]), protocol))
}

fn target_bytes(target: SocketAddr) -> Vec<u8> {
    let mut bytes = match target.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.extend(target.port().to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn read_target(bytes: &[u8]) -> Option<SocketAddr> {
    let (address, port) = match bytes.len() {
        8 => {
            let (address, port) = bytes.split_first_chunk::<4>()?;
            (IpAddr::from(*address), port)
        }
        20 => {
            let (address, port) = bytes.split_first_chunk::<16>()?;
            (IpAddr::from(*address), port)
        }
        _ => return None,
    };
    Some((address, u16::from_be_bytes(*port.first_chunk()?)).into())
}

/// Asks for what a set holds.
pub(in crate::fast) fn get_set(name: &str) -> Message {
    let inside = Attributes::default().text(1, TABLE).text(2, name);
    message(GET_ELEMENTS, 0, inside)
}

/// Where elements and fences are, to be asked for one by one.
pub(in crate::fast) fn get_elements() -> Vec<(Message, Option<ClientAddress>)> {
    let maps = MAPS.iter();
    let maps = maps.map(|(name, _, client)| (get_set(name), Some(*client)));
    maps.chain([(get_set(FENCED), None)]).collect()
}

/// The elements of a piece of an answer: ports, and where they lead.
pub(in crate::fast) fn read_elements(piece: &[u8]) -> Vec<(RouteKey, Option<SocketAddr>)> {
    let list = attribute(piece, 3).unwrap_or_default();
    let read = |entry: &[u8]| {
        let key = read_port_key(attribute(attribute(entry, 1)?, 1)?)?;
        let target = attribute(entry, 2).and_then(|data| read_target(attribute(data, 1)?));
        Some((key, target))
    };
    attributes(list)
        .filter_map(|(_, entry)| read(entry))
        .collect()
}
