//! The JSON over the control sockets and between hosts. Every type here is a wire type: fields
//! are only added, never renamed, so that the daemons and the command can be upgraded alone.

pub mod cluster;
pub mod gc;
pub mod peer;
pub mod proxy;

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What failed, with its causes, one line.
    pub error: String,
    /// The host that it failed on, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}
