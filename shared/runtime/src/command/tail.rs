//! The end of what a program says on standard error.

use std::collections::VecDeque;
use std::io;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;

/// Enough for the message that matters; programs put it last.
const LIMIT: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    /// Reads to the end. Cancel safe: what was read is kept.
    pub(super) async fn fill(&mut self, stderr: &mut Option<ChildStderr>) -> io::Result<()> {
        let Some(pipe) = stderr else { return Ok(()) };
        let mut buffer = vec![0; LIMIT];
        loop {
            let length = pipe.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            self.0.extend(buffer.iter().take(length));
            let excess = self.0.len().saturating_sub(LIMIT);
            self.0.drain(..excess);
        }
    }

    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}
