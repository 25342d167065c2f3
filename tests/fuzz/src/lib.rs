//! Parsers of bytes from outside. Each target is a plain function that takes any bytes and panics
//! where a parser does, or where it breaks its word: what it accepts it writes as it was, it asks
//! for no more than its cap, and what it refuses it refuses with a reason.
//!
//! The tests of this package run every target on its kept seeds and, for some seconds, on changed
//! ones ([`mutate`]). `cargo fuzz` runs the same functions for as long as one likes, led by what
//! they cover: see `fuzz/`.

#![forbid(unsafe_code)]

pub mod corpus;
pub mod mutate;
mod parsers;

pub use parsers::{announce, configuration, control, http, journals, peer, stream, trunk};

/// A parser, or some that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its seeds' directory.
    pub name: &'static str,
    /// Panics when something is wrong.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "announce",
        run: announce::run,
    },
    Target {
        name: "configuration",
        run: configuration::run,
    },
    Target {
        name: "control",
        run: control::run,
    },
    Target {
        name: "http",
        run: http::run,
    },
    Target {
        name: "journals",
        run: journals::run,
    },
    Target {
        name: "peer",
        run: peer::run,
    },
    Target {
        name: "stream",
        run: stream::run,
    },
    Target {
        name: "trunk",
        run: trunk::run,
    },
];
