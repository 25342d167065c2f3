//! What the tests of the whole share. The tests themselves are in `tests/`: those of the house
//! (layering, units, alert rules) and those on lab hosts.
//!
//! A test on lab hosts makes a cluster with [`lab::with_lab`], says what shall run where with
//! [`deployment::Deployment`], lets clients work with [`load::Load`] and looks at the cluster
//! only as a user would: through the `rehome` command, the hosts' ports and `/metrics`.

#![forbid(unsafe_code)]
#![expect(
    clippy::indexing_slicing,
    reason = "only JSON documents are indexed, in which what is absent is null"
)]

use std::path::{Path, PathBuf};

pub mod clock;
pub mod cluster;
pub mod deployment;
pub mod http;
pub mod lab;
pub mod load;
pub mod log;
pub mod network;
pub mod page;
pub mod program;
pub mod proxy;
pub mod soak;
pub mod store;
pub mod storm;
pub mod wait;
pub mod web;

/// `promtool` of this machine, or the one that `make deps-test` unpacks.
///
/// # Errors
/// As [`project`].
pub fn promtool() -> anyhow::Result<PathBuf> {
    let unpacked = project()?.join("target/tools/usr/bin/promtool");
    Ok(if unpacked.is_file() {
        unpacked
    } else {
        PathBuf::from("promtool")
    })
}

/// The top directory of the project.
///
/// # Errors
/// When this package does not lie in the project.
pub fn project() -> anyhow::Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = package.parent().map(Path::to_path_buf);
    top.ok_or_else(|| anyhow::anyhow!("{} has no parent", package.display()))
}
