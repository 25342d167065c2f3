//! `proxyd` as a program, held to what it promises: how connections end, storms, exhaustion, and
//! its own death at any moment. Each test has a network of its own, so tests run side by side.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

mod ends;
mod exhaustion;
mod fast;
mod gates;
mod peer;
mod soak;
mod storm;
