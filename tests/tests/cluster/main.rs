//! A cluster as its user works with it: deploying, changing, reloading, restarting, and what is
//! said when something is wrong. Each test has a lab of its own.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

mod deploy;
mod gc;
mod http;
mod leftovers;
mod proxy;
mod reload;
mod wrong;
