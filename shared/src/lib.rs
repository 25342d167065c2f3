//! The vocabulary of Rehome: the words that the command and both daemons share.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | names, addresses, epochs, generations: one newtype for each role |
//! | [`network`] | networks of addresses |
//! | [`units`] | bytes and durations as people write them |
//! | [`config`] | the user's files: native, Fig, Compose; deployment; the daemons' own files |
//! | [`api`] | the JSON that travels over the control sockets and between hosts |
//! | [`trunk`] | the header of a connection from one `proxyd` to another |
//! | [`journal`] | the bytes of the files to which both daemons append records |
//!
//! Nothing here does I/O: text and bytes go in, values or typed errors come out.

#![forbid(unsafe_code)]

pub mod api;
pub mod config;
pub mod ids;
pub mod journal;
pub mod network;
pub mod trunk;
pub mod units;
