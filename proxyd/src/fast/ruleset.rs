//! Our tables in the packet filter.
//!
//! ```text
//!   rehome_anchor   empty chains that keep address translation and tracking at work, whatever
//!                   becomes of the other table: without them every translated flow would end
//!   rehome
//!     pre           what comes for an address that proxyd listens on ──► to4, to6
//!     to4, to6      an element for its port: label the flow, send it to the target;
//!                   none: nothing happens, and user space accepts it
//!     back          a flow of a kept address that would leave by the way it came loses it
//!     post          flows with a replaced address come from this host
//!     fence         packets of our flows on a fenced port are answered with a reset, or dropped
//!     silent        what `nudge` sends belongs to no flow
//!     asks          the ports of new flows are noted, and in
//!     answers       those that answer or refuse, by a reset or an error; who is refused, as by
//!     refuses       this host itself, does not hear it
//!     strays, inner what belongs to no flow, in either direction: let through, it would meet a
//!                   stack that knows of no such connection, and whose reset ends it
//!     leaves, comes those whose datagrams go on from here
//! ```
//!
//! A flow of ours has our label and is known by it: marks are other programs' as well.

mod chains;
mod sets;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use proxyd_core::reload::Place;

use super::expression::{LABEL_LENGTH, Rule};
use super::netlink::{Attributes, CREATE, Message, NFTABLES, attribute};
use chains::{TRACK, anchor, chains, new_rule};
use sets::sets;
pub(super) use sets::{NOTES, Notes, clear, flip, get_elements, get_set, read_elements};

/// The table that stays.
pub(super) const ANCHOR: &str = "rehome_anchor";
/// The table of elements.
pub(super) const TABLE: &str = "rehome";

/// What a flow of ours is labelled with: bits of no particular meaning, together nobody else's.
pub(super) const OURS: [u8; LABEL_LENGTH] = *b"\x52\x65\x68\x6f\x6d\x65\0\0\0\0\0\0\0\0\0\0";
/// One whose client's address is replaced, too.
const REPLACED: [u8; LABEL_LENGTH] = *b"\x52\x65\x68\x6f\x6d\x65\x01\0\0\0\0\0\0\0\0\0";

/// The mark of what [`super::nudge`] sends, in this host only.
pub(super) const SILENT: u32 = 0x5265_686f;

/// Tables of both address families.
const INET: u8 = 1;

const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const GET_RULE: u8 = 7;
const GET_GENERATION: u8 = 16;

const OWNED: u32 = 2;
const PERSISTS: u32 = 4;

/// Whether the kernel keeps others from changing our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// It does, and leaves them when this process ends.
    Owned,
    /// It cannot.
    Open,
}

impl Guard {
    fn flags(self) -> u32 {
        match self {
            Self::Owned => OWNED | PERSISTS,
            Self::Open => 0,
        }
    }
}

/// Whether the anchor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Holds,
    Missing,
}

/// What our tables are to be.
#[derive(Debug, Clone)]
pub(super) struct Ruleset {
    anchor: Vec<Message>,
    body: Vec<Message>,
    /// Tells one set of rules from another.
    pub(super) mark: String,
    pub(super) rules: usize,
}

impl Ruleset {
    /// The rules for a proxy that listens at these places.
    pub(super) fn new(places: &[Place]) -> Self {
        let anchor = anchor();
        let chains = chains(places);
        let rules = chains.iter().map(|(_, rules)| rules.len()).sum();
        let mut body: Vec<Message> = sets();
        body.extend(chains.iter().map(|(chain, _)| chain.message(TABLE)));
        for (chain, rules) in &chains {
            body.extend(rules.iter().map(|rule| new_rule(TABLE, chain.name, rule)));
        }
        let mut hasher = DefaultHasher::new();
        for message in anchor.iter().chain(&body) {
            message.content().hash(&mut hasher);
        }
        let mark = format!("rehome proxyd {:016x}", hasher.finish());
        Self {
            anchor,
            body,
            mark,
            rules,
        }
    }

    /// Makes what is not there of the anchor, and the other table anew, with nothing in it.
    pub(super) fn build(&self, guard: Guard, anchor: Anchor) -> Vec<Message> {
        let mut all = vec![self.table(ANCHOR, guard)];
        all.extend(self.anchor.iter().cloned());
        if anchor == Anchor::Missing {
            // It is there to be asked, not to do anything.
            all.push(new_rule(ANCHOR, TRACK, &Rule::default().has_no_state()));
        }
        // What is there, if anything, goes and comes in one: no packet finds none.
        all.push(self.table(TABLE, guard));
        all.push(delete_table(TABLE));
        all.push(self.table(TABLE, guard));
        all.extend(self.body.iter().cloned());
        all
    }

    /// Makes this process the owner of tables that have none.
    pub(super) fn claim(&self) -> Vec<Message> {
        [ANCHOR, TABLE]
            .map(|name| self.table(name, Guard::Owned))
            .to_vec()
    }

    fn table(&self, name: &str, guard: Guard) -> Message {
        let inside = Attributes::default()
            .text(1, name)
            .number(2, guard.flags())
            .bytes(6, &comment(&self.mark));
        message(NEW_TABLE, CREATE, inside)
    }
}

/// User data that the `nft` program shows as a comment.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

fn message(kind: u8, flags: u16, inside: Attributes) -> Message {
    Message::new(NFTABLES, kind, flags, INET, inside)
}

/// Takes one of our tables out.
pub(super) fn delete_table(name: &str) -> Message {
    message(DELETE_TABLE, 0, Attributes::default().text(1, name))
}

/// Asks for one of our tables.
pub(super) fn get_table(name: &str) -> Message {
    message(GET_TABLE, 0, Attributes::default().text(1, name))
}

/// The mark of a table that was asked for.
pub(super) fn read_mark(table: &[u8]) -> Option<String> {
    let comment = attribute(table, 6)?.get(2..)?;
    let text = comment.strip_suffix(b"\0").unwrap_or(comment);
    String::from_utf8(text.to_vec()).ok()
}

/// Asks for the rules of one of our tables.
pub(super) fn get_rules(table: &str) -> Message {
    message(GET_RULE, 0, Attributes::default().text(1, table))
}

/// Asks for the number of the packet filter's last change, whoever made it.
pub(super) fn get_generation() -> Message {
    message(GET_GENERATION, 0, Attributes::default())
}
