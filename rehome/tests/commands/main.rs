//! The commands as a user runs them, against a daemon that answers what the test says.

#![forbid(unsafe_code)]

mod deploy;
mod drain;
mod failover;
mod fake;
mod moves;
mod questions;
