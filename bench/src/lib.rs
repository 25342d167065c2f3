//! Comparisons with what a user would build or install instead, side by side in one run.
//!
//! [`window`] moves stores, [`proxy`] relays connections. Each has a plan, a run, a record (JSON),
//! a report (Markdown) and a plot (SVG); what they share is beside them: the arithmetic of
//! [`stats`], the order of [`turns`], the [`table`]s, what a plot is [`draw`]n of, and the
//! [`machine`]. No test depends on a time; the tests of this package are about its arithmetic.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

pub mod draw;
pub mod machine;
pub mod proxy;
pub mod stats;
pub mod table;
pub mod turns;
pub mod window;
