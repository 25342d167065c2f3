//! One request to a daemon's Unix socket. A socket is a file, so a test reaches it in any host of
//! a lab without starting a program there.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// No answer takes longer.
const LIMIT: Duration = Duration::from_secs(15);

/// Asks, and returns the document of a good answer.
///
/// # Errors
/// When nobody answers, or not well.
pub fn ask(socket: &Path, method: &str, path: &str) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // HTTP/1.0 keeps this small: one request, one answer, end of file.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer to {method} {path}: {answer:?}"))?;
    let status = head.split_whitespace().nth(1);
    ensure!(status == Some("200"), "{method} {path}: {head}\n{body}");
    serde_json::from_str(body).with_context(|| format!("{method} {path}: {body}"))
}
