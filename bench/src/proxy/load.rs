//! The clients of a trial. They say `begin` when they are warm and what follows counts, and at the
//! end what they saw.

mod away;
mod bulk;
mod connections;
mod idle;
mod round_trips;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::proxy::plan::Scene;
use crate::proxy::role::{say, told};

/// No load takes longer, whatever it is told.
const LIMIT: Duration = Duration::from_mins(5);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What comes before the begin.
const WARM_UP: Duration = Duration::from_millis(500);
/// The begin of what counts.
pub const BEGIN: &str = "begin";
/// Ends those loads that have no end of their own.
pub const END: &str = "end";

/// What clients are asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// What they do.
    pub scene: Scene,
    /// Where they connect.
    pub to: SocketAddr,
    /// For how long, where a load has an end of its own.
    pub seconds: f64,
}

/// What clients saw.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// How long it took.
    pub seconds: f64,
    /// What was done: connections, round trips.
    pub done: u64,
    /// What came to nothing.
    pub failed: u64,
    /// Why, of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The times of round trips in nanoseconds: the median, 99 of 100, 999 of 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<[u32; 3]>,
    /// The longest time in seconds until an answer.
    pub longest: f64,
}

impl Seen {
    /// Notes what came to nothing.
    fn fail(&mut self, why: &impl ToString) {
        self.failed += 1;
        self.failure.get_or_insert_with(|| why.to_string());
    }
}

/// Loads, and says what the clients saw.
///
/// # Errors
/// When it cannot begin or does not end. A connection that fails is no error.
///
/// # Cancel safety
/// Dropping it ends all connections.
pub async fn run(load: &Load) -> anyhow::Result<()> {
    let seen = timeout(LIMIT, seen(load)).await;
    let seen = seen.context("the load does not end")??;
    Ok(say(&serde_json::to_string(&seen)?)?)
}

async fn seen(load: &Load) -> anyhow::Result<Seen> {
    match load.scene {
        Scene::Bulk(streams) => bulk::run(load.to, streams).await,
        Scene::Connections(at_once) => connections::run(load, at_once).await,
        Scene::RoundTrips(connections) => round_trips::run(load, connections).await,
        Scene::Idle(connections) => idle::run(load.to, connections).await,
        Scene::Away | Scene::Told => away::run(load).await,
    }
}

/// When a load begins to count, and when it ends.
#[derive(Debug, Clone, Copy)]
struct Span {
    begin: Instant,
    end: Instant,
}

impl Span {
    fn from_now(load: &Load) -> anyhow::Result<Self> {
        let begin = Instant::now() + WARM_UP;
        let length = Duration::try_from_secs_f64(load.seconds)?;
        Ok(Self {
            begin,
            end: begin + length,
        })
    }

    /// Says when it begins to count.
    async fn announce(&self) -> io::Result<()> {
        tokio::time::sleep_until(self.begin).await;
        say(BEGIN)
    }
}

/// Waits until the load is told to end.
async fn until_told() {
    // The end of the input is an end too.
    drop(told().recv().await);
}

/// A connection that has passed a byte there and back.
async fn open(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    exchange(&mut stream).await?;
    Ok(stream)
}

/// A byte there and back.
async fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [7];
    stream.write_all(&byte).await?;
    stream.read_exact(&mut byte).await?;
    Ok(())
}

/// The same within a client's patience.
async fn open_in_time(to: SocketAddr) -> io::Result<TcpStream> {
    let opened = timeout(PATIENCE, open(to)).await;
    opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
