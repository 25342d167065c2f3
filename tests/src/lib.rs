//! What the tests of the whole share: where the project's files are. The tests themselves are
//! in `tests/`: those of the house (layering, units, alert rules) and those on lab hosts.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// The top directory of the project.
///
/// # Errors
/// When this package does not lie in the project.
pub fn project() -> anyhow::Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = package.parent().map(Path::to_path_buf);
    top.ok_or_else(|| anyhow::anyhow!("{} has no parent", package.display()))
}
