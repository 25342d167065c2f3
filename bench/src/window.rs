//! The window of a move, part by part, beside what a user would build by hand.
//!
//! ```text
//! plan ──▶ run ──▶ trial ──▶ contender: rehome_move, by_hand (shell)
//!                    │
//!                    └─────▶ clients: probe, dirty (session)
//!                                │
//!          record (JSON) ◀── gap ┘
//!             ├──▶ report (Markdown)
//!             └──▶ plot (SVG)
//! ```
//!
//! Every contender moves the same store with the same data under the same load between the same
//! two lab hosts, behind a front on the third one. What is compared is measured outside of them:
//! clients at the front note when a write was acknowledged.

pub mod by_hand;
pub mod clients;
pub mod contender;
pub mod gap;
pub mod plan;
pub mod plot;
pub mod record;
pub mod rehome_move;
pub mod report;
pub mod run;
pub mod session;
pub mod shell;
pub mod store;
pub mod trial;
