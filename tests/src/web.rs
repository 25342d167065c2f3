//! An HTTP application with a volume, and clients that never give their connections up.
//!
//! `POST /WORD` appends the word to a file of the volume and answers when it is on the disk;
//! `GET /` answers with all words. A client keeps one connection for as long as it is served and
//! takes its end for a failure: that is what a port with `protocol: http` has to spare it.

pub mod client;
pub mod server;

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::deployment::HARD_CAP;
use crate::program;

/// The port inside.
const INTERNAL: u16 = 8080;

/// The application: serves on `external`.
///
/// # Errors
/// When its program is not built.
pub fn body(external: u16) -> anyhow::Result<Value> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a strange path");
    Ok(json!({
        "image": "unused",
        "command": [text(&program::built("web-server")?)?, "/data", INTERNAL.to_string()],
        "ports": [{"internal": INTERNAL, "external": external, "protocol": "http"}],
        "volume": {"mountpoint": "/data"},
        "stop_grace": "2s",
        "healthcheck": {"tcp": INTERNAL, "interval": "100ms", "timeout": "1s", "retries": 600},
        "migration": {"hard_cap": HARD_CAP},
    }))
}
