//! Connections that pass a byte each way and end, some at a time, each after the one before it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Load, Seen, Span, open_in_time};

/// After a failure a client pauses: one that is refused at once would otherwise only spin.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) async fn run(load: &Load, at_once: u32) -> anyhow::Result<Seen> {
    let span = Span::from_now(load)?;
    let mut clients = JoinSet::new();
    for _ in 0..at_once {
        clients.spawn(client(load.to, span));
    }
    span.announce().await?;
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let seen = seen?;
        all.done += seen.done;
        all.failed += seen.failed;
        all.failure = all.failure.or(seen.failure);
        all.longest = all.longest.max(seen.longest);
    }
    all.seconds = span.begin.elapsed().as_secs_f64();
    Ok(all)
}

async fn client(to: SocketAddr, span: Span) -> Seen {
    let mut seen = Seen::default();
    loop {
        let begun = Instant::now();
        if begun >= span.end {
            return seen;
        }
        let opened = open_in_time(to).await;
        let failed = opened.is_err();
        if begun >= span.begin {
            match opened {
                Ok(stream) => {
                    drop(stream);
                    seen.done += 1;
                    seen.longest = seen.longest.max(begun.elapsed().as_secs_f64());
                }
                Err(error) => seen.fail(&error),
            }
        }
        if failed {
            sleep(PAUSE).await;
        }
    }
}
