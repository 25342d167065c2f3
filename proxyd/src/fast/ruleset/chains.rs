//! The chains of our tables, and the rules in them.

use std::net::IpAddr;

use proxyd_core::reload::Place;
use rehome_shared::api::proxy::ClientAddress;

use super::sets::{ANSWERED, ASKED, CARRIED, FENCED, INNER, MAPS, Notes, REFUSED};
use super::{ANCHOR, OURS, REPLACED, SILENT, message};
use crate::fast::expression::{IPV4, IPV6, Rule};
use crate::fast::netlink::{Attributes, CREATE, Message};

/// The chain of the anchor that asks for the state of flows.
pub(super) const TRACK: &str = "track";

const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// A chain, and where it hooks in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Its kind, hook and priority; absent where others lead to it.
    base: Option<(&'static str, u32, i32)>,
}

impl Chain {
    pub(super) fn message(self, table: &str) -> Message {
        let mut inside = Attributes::default().text(1, table).text(3, self.name);
        if let Some((kind, hook, priority)) = self.base {
            let hook = Attributes::default()
                .number(1, hook)
                .bytes(2, &priority.to_be_bytes());
            inside = inside.nest(4, &hook).text(7, kind);
        }
        message(NEW_CHAIN, CREATE, inside)
    }
}

pub(super) fn new_rule(table: &str, chain: &str, rule: &Rule) -> Message {
    /// `NLM_F_APPEND`
    const APPEND: u16 = 0x800;
    let inside = Attributes::default()
        .text(1, table)
        .text(2, chain)
        .nest(4, rule.steps());
    message(NEW_RULE, CREATE | APPEND, inside)
}

pub(super) fn anchor() -> Vec<Message> {
    let chains = [
        chain("pre", "nat", PREROUTING, -95),
        chain("post", "nat", POSTROUTING, 105),
        chain(TRACK, "filter", PREROUTING, -149),
    ];
    chains.iter().map(|chain| chain.message(ANCHOR)).collect()
}

pub(super) fn chains(places: &[Place]) -> Vec<(Chain, Vec<Rule>)> {
    let rule = Rule::default;
    let fenced = |rule: Rule| rule.first_port_key().found_in(FENCED);
    let goes_on = || vec![noted(ours().over_udp().first_packet(), ANSWERED)];
    let mut chains = strays(places);
    chains.extend([
        (
            chain("asks", "filter", PREROUTING, -49),
            vec![
                noted(ours().first_packet(), ASKED),
                noted(ours().over_tcp().first_packet(), CARRIED),
            ],
        ),
        (chain("answers", "filter", PREROUTING, -148), answers()),
        (chain("refuses", "filter", OUTPUT, -148), refusals()),
        (chain("leaves", "filter", POSTROUTING, 300), goes_on()),
        (chain("comes", "filter", INPUT, 300), goes_on()),
        (inner("to4"), lookups(IPV4)),
        (inner("to6"), lookups(IPV6)),
        (
            chain("pre", "nat", PREROUTING, -110),
            doors(places, ["to4", "to6"]),
        ),
        (
            chain("back", "filter", PREROUTING, -50),
            vec![
                rule()
                    .labelled(&OURS, &REPLACED)
                    .first_packet()
                    .goes_back()
                    .label(&REPLACED),
            ],
        ),
        (
            chain("post", "nat", POSTROUTING, 90),
            vec![rule().labelled(&REPLACED, &REPLACED).masquerade()],
        ),
        (
            chain("fence", "filter", PREROUTING, -150),
            vec![
                // Nobody has answered it yet: when it comes again, user space holds it.
                fenced(ours().first_packet()).dropped(),
                fenced(ours().over_tcp()).reset(),
                fenced(ours()).dropped(),
            ],
        ),
        (
            chain("silent", "filter", OUTPUT, -300),
            vec![rule().has_mark(SILENT).untracked()],
        ),
    ]);
    chains
}

/// What keeps packets from going astray that belong to no flow.
fn strays(places: &[Place]) -> Vec<(Chain, Vec<Rule>)> {
    let rule = Rule::default;
    let to_client = INNER.map(|(family, notes)| {
        let stray = rule().source_key(family).found_in(notes.name);
        stray.dropped()
    });
    let to_doors = rule().over_tcp().port_key().found_in(CARRIED.name);
    let but_flows = || vec![rule().tracked().leaves()];
    vec![
        (inner("stray"), vec![to_doors.dropped()]),
        (
            chain("strays", "filter", PREROUTING, -140),
            [but_flows(), doors(places, ["stray", "stray"])].concat(),
        ),
        (
            // What an application sends so would leave with its inner address.
            chain("inner", "filter", FORWARD, -140),
            [but_flows(), to_client.into()].concat(),
        ),
    ]
}

fn chain(name: &'static str, kind: &'static str, hook: u32, priority: i32) -> Chain {
    Chain {
        name,
        base: Some((kind, hook, priority)),
    }
}

fn inner(name: &'static str) -> Chain {
    Chain { name, base: None }
}

/// Only packets of flows of ours.
fn ours() -> Rule {
    Rule::default().labelled(&OURS, &OURS)
}

/// Has the port that the flow was first sent to noted.
fn noted(rule: Rule, notes: Notes) -> Rule {
    let rule = rule.first_port_key();
    rule.noted_in(notes.name, notes.milliseconds)
}

/// User space will try for this client, when it comes again: whether the application refuses it, a
/// router, or rules of this host.
fn refusals() -> Vec<Rule> {
    let first = || ours().first_answer();
    [
        first().with_reset(),
        first().with_error(IPV4),
        first().with_error(IPV6),
    ]
    .map(|refusal| noted(refusal, REFUSED).dropped())
    .into()
}

fn answers() -> Vec<Rule> {
    let mut rules = refusals();
    rules.push(noted(ours().over_tcp().first_answer(), ANSWERED));
    rules.extend(INNER.map(|(family, notes)| {
        let answer = ours().first_answer().source_key(family);
        answer.noted_in(notes.name, notes.milliseconds)
    }));
    rules
}

fn lookups(family: u8) -> Vec<Rule> {
    // What goes on without a flow is told so by this host: nobody else knows of it.
    let guard = Rule::default().goes_on().leaves();
    let maps = MAPS.iter().filter(|(_, of, _)| *of == family);
    let lookups = maps.map(|(map, _, client)| {
        let label = match client {
            ClientAddress::Kept => &OURS,
            ClientAddress::Replaced => &REPLACED,
        };
        Rule::default()
            .port_key()
            .target_of(map)
            .label(label)
            .redirect(family)
    });
    std::iter::once(guard).chain(lookups).collect()
}

/// Sends what is for the places that proxyd listens at to these chains, by family. Programs of this
/// host reach it by the loopback device, and no other way.
fn doors(places: &[Place], [to4, to6]: [&str; 2]) -> Vec<Rule> {
    let rule = Rule::default;
    let any = |family, chain| rule().family(family).for_this_host().goes_to(chain);
    let mut rules = vec![rule().came_by_loopback().leaves()];
    for place in places {
        match place {
            Place::Everywhere => rules.extend([any(IPV4, to4), any(IPV6, to6)]),
            Place::Address(IpAddr::V4(address)) if address.is_unspecified() => {
                rules.push(any(IPV4, to4));
            }
            Place::Address(IpAddr::V6(address)) if address.is_unspecified() => {
                rules.push(any(IPV6, to6));
            }
            Place::Address(IpAddr::V4(address)) => {
                let here = rule().family(IPV4).for_address(IPV4, &address.octets());
                rules.push(here.goes_to(to4));
            }
            Place::Address(IpAddr::V6(address)) => {
                let here = rule().family(IPV6).for_address(IPV6, &address.octets());
                rules.push(here.goes_to(to6));
            }
        }
    }
    rules
}
