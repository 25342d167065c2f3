//! Messages there and back, one at a time on each connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Load, PATIENCE, Seen, Span, open_in_time};
use crate::stats::quantile;

/// Bytes of a message.
const MESSAGE: usize = 64;
/// More times than these of one connection are not kept; there are never as many.
const TIMES: usize = 4_000_000;

pub(super) async fn run(load: &Load, connections: u32) -> anyhow::Result<Seen> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = open_in_time(load.to).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let span = Span::from_now(load)?;
    let mut clients = JoinSet::new();
    for stream in streams {
        clients.spawn(client(stream, span));
    }
    span.announce().await?;
    let mut seen = Seen::default();
    let mut times = Vec::new();
    while let Some(client) = clients.join_next().await {
        let (own, failure) = client?;
        times.extend(own);
        if let Some(error) = failure {
            seen.fail(&error);
        }
    }
    seen.seconds = span.begin.elapsed().as_secs_f64();
    seen.done = u64::try_from(times.len())?;
    times.sort_unstable();
    let longest = times.last().copied().unwrap_or_default();
    seen.longest = Duration::from_nanos(longest.into()).as_secs_f64();
    let of = |per_mille| quantile(&times, per_mille);
    seen.waits = of(500)
        .zip(of(990))
        .zip(of(999))
        .map(|((a, b), c)| [a, b, c]);
    Ok(seen)
}

/// The times of one connection, and why they ended too early.
async fn client(mut stream: TcpStream, span: Span) -> (Vec<u32>, Option<io::Error>) {
    let mut times = Vec::new();
    loop {
        let begun = Instant::now();
        if begun >= span.end || times.len() >= TIMES {
            return (times, None);
        }
        let turn = timeout(PATIENCE, turn(&mut stream)).await;
        match turn.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) if begun >= span.begin => {
                let time = begun.elapsed().as_nanos();
                times.push(u32::try_from(time).unwrap_or(u32::MAX));
            }
            Ok(()) => {}
            Err(error) => return (times, Some(error)),
        }
    }
}

async fn turn(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [1; MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await?;
    Ok(())
}
