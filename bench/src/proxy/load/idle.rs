//! Connections that have passed a byte each way and then are silent, until the load is told to
//! end. Then each passes one more byte: only one that does was held all the time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{BEGIN, PATIENCE, Seen, exchange, open_in_time, until_told};
use crate::proxy::role::say;

/// Connections that are opened at a time.
const AT_ONCE: usize = 64;

pub(super) async fn run(to: SocketAddr, connections: u32) -> anyhow::Result<Seen> {
    let begin = Instant::now();
    let mut seen = Seen::default();
    let mut held: Vec<TcpStream> = Vec::new();
    let mut opening = JoinSet::new();
    for _ in 0..connections {
        if opening.len() >= AT_ONCE
            && let Some(opened) = opening.join_next().await
        {
            keep(opened?, &mut held, &mut seen);
        }
        opening.spawn(open_in_time(to));
    }
    while let Some(opened) = opening.join_next().await {
        keep(opened?, &mut held, &mut seen);
    }
    say(BEGIN)?;
    until_told().await;
    let mut longest = Duration::ZERO;
    for stream in &mut held {
        let asked = Instant::now();
        match timeout(PATIENCE, exchange(stream)).await {
            Ok(Ok(())) => seen.done += 1,
            Ok(Err(error)) => seen.fail(&error),
            Err(late) => seen.fail(&late),
        }
        longest = longest.max(asked.elapsed());
    }
    seen.longest = longest.as_secs_f64();
    seen.seconds = begin.elapsed().as_secs_f64();
    Ok(seen)
}

fn keep(opened: std::io::Result<TcpStream>, held: &mut Vec<TcpStream>, seen: &mut Seen) {
    match opened {
        Ok(stream) => held.push(stream),
        Err(error) => seen.fail(&error),
    }
}
