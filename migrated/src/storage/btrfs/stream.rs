//! Streams: what a sender writes, read until it has ended well; and the way into a receiver.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rehome_runtime::command::{CommandError, Running};
use rehome_shared::units::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::process::ChildStdout;

use crate::storage::StorageError;

/// How long a sender may take to end after its last byte.
const SEND_END: Duration = Duration::from_secs(30);

type Ending = Pin<Box<dyn Future<Output = Result<String, CommandError>> + Send>>;

/// A sender that runs. Its end of data is the end of the stream only if it ended with success;
/// otherwise the reader gets an error. Dropping it kills the sender.
pub(super) struct Sending {
    output: ChildStdout,
    state: State,
}

enum State {
    Running(Box<Running>),
    Ending(Ending),
    Ended,
}

impl Sending {
    /// Wraps a sender that was just started.
    pub(super) fn new(mut running: Running) -> Result<Self, StorageError> {
        let output = running.take_stdout().ok_or_else(|| {
            StorageError::Unsupported("the sending program has no output".to_owned())
        })?;
        Ok(Self {
            output,
            state: State::Running(Box::new(running)),
        })
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Running(mut running) => {
                    let end = async move { running.finish(SEND_END).await };
                    self.state = State::Ending(Box::pin(end));
                }
                State::Ending(mut end) => {
                    let Poll::Ready(ended) = end.as_mut().poll(cx) else {
                        self.state = State::Ending(end);
                        return Poll::Pending;
                    };
                    return Poll::Ready(ended.map(drop).map_err(io::Error::other));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.output).poll_read(cx, buf))?;
        if buf.filled().len() > before || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_end(cx)
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending")
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// Passes a stream on until its end, an error of the stream, which is returned, or a failure of
/// the sink, which knows best itself why. Also returns how many bytes were read.
pub(super) async fn pass_on(
    stream: &mut (dyn AsyncBufRead + Send + Unpin),
    sink: &mut (dyn AsyncWrite + Send + Unpin),
) -> (Bytes, Option<io::Error>) {
    let mut passed = Bytes::default();
    loop {
        let piece = match stream.fill_buf().await {
            Ok([]) => return (passed, None),
            Ok(piece) => piece,
            Err(error) => return (passed, Some(error)),
        };
        let length = piece.len();
        passed = passed.saturating_add(Bytes(u64::try_from(length).unwrap_or(u64::MAX)));
        if sink.write_all(piece).await.is_err() {
            return (passed, None);
        }
        stream.consume(length);
    }
}
