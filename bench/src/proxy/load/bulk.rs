//! Streams that carry as much as they can, until the load is told to end. What arrives is counted
//! by the server.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{BEGIN, Seen, WARM_UP, until_told};
use crate::proxy::role::say;

/// What is written at once.
static BYTES: [u8; 128 * 1024] = [0x5a; 128 * 1024];
/// After so many writes in a row other streams have their turn.
const TURN: u32 = 8;

pub(super) async fn run(to: SocketAddr, streams: u32) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut senders = JoinSet::new();
    for _ in 0..streams {
        let stream = TcpStream::connect(to).await?;
        senders.spawn(async move { send(&stream).await });
    }
    sleep(WARM_UP).await;
    say(BEGIN)?;
    let begin = Instant::now();
    let mut over = std::pin::pin!(until_told());
    loop {
        // Both arms are cancel safe: the first is pinned outside, a task stays in its set.
        tokio::select! {
            () = &mut over => break,
            Some(ended) = senders.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => seen.fail(&error),
                Err(error) => seen.fail(&error),
            },
        }
    }
    seen.seconds = begin.elapsed().as_secs_f64();
    Ok(seen)
}

/// Sends until the connection breaks.
async fn send(stream: &TcpStream) -> io::Result<()> {
    loop {
        stream.writable().await?;
        for _ in 0..TURN {
            match stream.try_write(&BYTES) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        tokio::task::yield_now().await;
    }
}
