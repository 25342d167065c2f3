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

/// What a daemon answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200 when all is well.
    pub status: u16,
    /// The document; a text where it is none.
    pub body: Value,
}

impl Answer {
    /// The document of a good answer.
    ///
    /// # Errors
    /// When it is not one.
    pub fn ok(self) -> anyhow::Result<Value> {
        ensure!(self.status == 200, "{}: {}", self.status, self.body);
        Ok(self.body)
    }
}

/// Asks, and returns the document of a good answer.
///
/// # Errors
/// When nobody answers, or not well.
pub fn ask(socket: &Path, method: &str, path: &str) -> anyhow::Result<Value> {
    let answer = request(socket, (method, path), None, LIMIT)?;
    answer.ok().with_context(|| format!("{method} {path}"))
}

/// Sends a document and returns the answer, whatever it is.
///
/// # Errors
/// When nobody answers in time.
pub fn request(
    socket: &Path,
    (method, path): (&str, &str),
    body: Option<&Value>,
    limit: Duration,
) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    // HTTP/1.0 keeps this small: one request, one answer, end of file.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer to {method} {path}: {answer:?}"))?;
    let status = head.split_whitespace().nth(1);
    let status = status.and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("no status: {head:?}"))?,
        body: serde_json::from_str(body).unwrap_or_else(|_| Value::from(body)),
    })
}
