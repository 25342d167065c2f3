//! What can happen, and sequences of it that proptest makes and shrinks.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// A thing that happens, and perhaps a crash of the host that it happens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    #[serde(flatten)]
    pub(crate) event: Event,
    /// When it writes its first records: how many of their bytes (modulo all of them and one)
    /// reach the disk before the crash. Else it comes when the event is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crash: Option<Crash>,
}

/// Numbers choose among what there is; where there is nothing to choose from, nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The deployment wants an application on a host.
    Place { app: u8, host: u8 },
    /// A host looks after an application; beyond the hosts, its owner.
    Reconcile { app: u8, host: u8 },
    /// A host (beyond the hosts, all of them) does once all that there is to do, and what is said
    /// meanwhile arrives.
    Turn { host: u8, how: Settling },
    /// The source of one of all migrations performs its effect, twice.
    Drive { which: u8, how: How },
    /// Somebody calls a migration off.
    CallOff { which: u8 },
    /// The destination of one of all handoffs does what it does by itself.
    Settle { which: u8, how: Settling },
    /// A message arrives: this many before the newest. It may arrive again at any later time.
    Deliver { back: u8, how: How },
    /// A client writes.
    Write { app: u8 },
    /// A daemon or a host stops without a word.
    Crash { host: u8, whole: bool },
    /// And starts again; beyond the hosts, all of them.
    Restart { host: u8 },
}

/// How a thing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// As it should; a round is followed by the cut-over.
    Well,
    /// As it should; a round is followed by another.
    Slowly,
    /// After the deadline.
    Late,
    /// It fails.
    Fails,
}

/// What a destination does with a handoff, if its state allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Settling {
    Start,
    Healthy,
    Fail,
    Expire,
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crash {
    pub(crate) bytes: u16,
    pub(crate) whole: bool,
}

/// Sequences in which moves come far. Most of them begin with everything in its place.
pub(crate) fn sequences() -> impl Strategy<Value = Vec<Step>> {
    let all = Step {
        event: Event::Turn {
            host: u8::MAX,
            how: Settling::Healthy,
        },
        crash: None,
    };
    let first = prop_oneof![3 => Just(vec![all; 2]), 1 => Just(Vec::new())];
    let then = prop::collection::vec(step(), 1..140);
    (first, then).prop_map(|(first, then)| [first, then].concat())
}

fn step() -> impl Strategy<Value = Step> {
    let crash = prop_oneof![
        16 => Just(None),
        1 => (any::<u16>(), any::<bool>()).prop_map(|(bytes, whole)| Some(Crash { bytes, whole })),
    ];
    (event(), crash).prop_map(|(event, crash)| Step { event, crash })
}

fn event() -> impl Strategy<Value = Event> {
    let app = 0..3_u8;
    let host = || 0..3_u8;
    let or_more = || 0..6_u8;
    let back = prop_oneof![6 => 0..2_u8, 2 => 0..8_u8, 1 => any::<u8>()];
    prop_oneof![
        3 => (app.clone(), host()).prop_map(|(app, host)| Event::Place { app, host }),
        6 => (app.clone(), or_more()).prop_map(|(app, host)| Event::Reconcile { app, host }),
        10 => (or_more(), settling()).prop_map(|(host, how)| Event::Turn { host, how }),
        6 => (0..3_u8, how()).prop_map(|(which, how)| Event::Drive { which, how }),
        1 => (0..3_u8).prop_map(|which| Event::CallOff { which }),
        6 => (0..6_u8, settling()).prop_map(|(which, how)| Event::Settle { which, how }),
        6 => (back, how()).prop_map(|(back, how)| Event::Deliver { back, how }),
        4 => app.prop_map(|app| Event::Write { app }),
        1 => (host(), any::<bool>()).prop_map(|(host, whole)| Event::Crash { host, whole }),
        4 => or_more().prop_map(|host| Event::Restart { host }),
    ]
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        12 => Just(How::Well),
        2 => Just(How::Slowly),
        1 => Just(How::Late),
        1 => Just(How::Fails),
    ]
}

fn settling() -> impl Strategy<Value = Settling> {
    prop_oneof![
        6 => Just(Settling::Start),
        4 => Just(Settling::Healthy),
        3 => Just(Settling::Fail),
        1 => Just(Settling::Expire),
        2 => Just(Settling::Discard),
    ]
}
