//! `proxyd --upgrade` where it goes wrong at each message: a successor that dies or hangs, and a
//! predecessor that does. With real processes, which say what they hear by fail points.

#![forbid(unsafe_code)]

mod predecessor;
mod scene;
mod successor;

/// Each message that a successor hears, in order. What is released with the sixth is its own.
const WORDS: [&str; 7] = [
    "hello",
    "batch",
    "equipped",
    "go",
    "connections",
    "release",
    "end",
];

/// The place of the word from which on a successor serves, whatever becomes of its predecessor.
const GO: usize = 3;
/// The place of the word that brings the connections.
const CONNECTIONS: usize = 4;

const CLIENTS: usize = 12;
const WAITING: usize = 5;
