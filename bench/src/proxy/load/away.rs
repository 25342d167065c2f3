//! Connections that begin at a steady pace, whether the earlier ones were served or not, so that a
//! relay that makes some of them wait does not hide how long.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Load, Seen, Span, open_in_time};

/// From one connection to the next.
const PACE: Duration = Duration::from_millis(2);

pub(super) async fn run(load: &Load) -> anyhow::Result<Seen> {
    let span = Span::from_now(load)?;
    let mut clients = JoinSet::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut seen = Seen::default();
    let announce = span.announce();
    let mut announce = std::pin::pin!(announce);
    let mut announced = false;
    while Instant::now() < span.end {
        // Every arm is cancel safe: the first is pinned outside, a tick or a task stays.
        tokio::select! {
            said = &mut announce, if !announced => {
                said?;
                announced = true;
            }
            _tick = pace.tick() => drop(clients.spawn(client(load.to))),
            Some(served) = clients.join_next(), if !clients.is_empty() => note(&mut seen, served?),
        }
    }
    while let Some(served) = clients.join_next().await {
        note(&mut seen, served?);
    }
    seen.seconds = span.begin.elapsed().as_secs_f64();
    Ok(seen)
}

/// One connection: how long it took to be served.
async fn client(to: SocketAddr) -> io::Result<Duration> {
    let begun = Instant::now();
    drop(open_in_time(to).await?);
    Ok(begun.elapsed())
}

fn note(seen: &mut Seen, served: io::Result<Duration>) {
    match served {
        Ok(wait) => {
            seen.done += 1;
            seen.longest = seen.longest.max(wait.as_secs_f64());
        }
        Err(error) => seen.fail(&error),
    }
}
