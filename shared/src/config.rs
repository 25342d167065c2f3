//! The files that people write, and what they mean.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | the meaning: what the rest of Rehome works with |
//! | [`load()`] | application file and deployment file to their meaning, or every problem |
//! | [`meaning`] | the meaning as the JSON that `rehome check` prints |
//! | [`links`] | the environment that an application gets |
//! | [`daemon`] | the daemons' own files |
//! | [`problem`] | what is wrong in a file, where, and the cure |
//!
//! Below them: `yaml` (text to a tree with line numbers), `read` (one typed value out of the
//! tree), one module for each part of an application, `native`, `fig` and `compose` (the three
//! forms of an application file), `deployment`, and `cluster` (what can only be seen across
//! applications and files).
//!
//! Nothing here stops at the first problem, and no text makes it panic: this is where input
//! that nobody has checked arrives.

mod cluster;
mod compose;
pub mod daemon;
mod deployment;
mod draft;
mod environment;
mod fig;
mod healthcheck;
mod image;
pub mod links;
mod load;
pub mod meaning;
pub mod model;
mod native;
mod network;
mod policy;
pub mod problem;
mod quantity;
mod read;
mod service;
mod volume;
mod yaml;

pub use load::{Format, Loaded, load};
pub use problem::{Problem, Source};
