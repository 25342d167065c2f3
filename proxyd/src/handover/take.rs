//! The successor's hands.
//!
//! Until the go it only builds itself, of sockets that the predecessor still accepts on; whatever
//! fails there, it ends, and nothing has happened. From then on it accepts. A connection that
//! came and was not released yet stands in [`Take::standing`], watched by nobody.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use proxyd_core::handover::{
    Batch, Broken, Counts, End, Fate, Message, Part, PartId, Refusal, Socket, Taker, ToDo,
    Unpacked, table_of, unpack,
};
use proxyd_core::reload::{Place, Spot};
use proxyd_core::table::RouteTable;
use rehome_runtime::failpoint;
use rehome_runtime::http_server::HttpServer;
use rehome_runtime::report::Report;
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::config::daemon::ProxydConfig;
use tokio::net::TcpListener;

use super::channel::{Channel, ChannelError, content_of};
use super::departure::Arrival;
use super::hello;
use crate::Proxyd;
use crate::context::Context;
use crate::listener::Inherited;
use crate::start::{Built, Sockets, StartError};

/// The longest silence of a predecessor before this process accepts; later it is only told.
const SILENCE: Duration = Duration::from_mins(1);
/// What a message of this side gets.
const WORD: Duration = Duration::from_secs(10);
/// The longest that a predecessor passes on what could not go over.
pub(super) const REMAINDER: Duration = Duration::from_mins(1);

/// Why this process did not take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// No way to the predecessor.
    #[error("standard input is not a socket of a predecessor")]
    Socket(#[source] std::io::Error),
    /// It is gone, or says nothing.
    #[error("the predecessor is lost")]
    Lost(#[from] ChannelError),
    /// This process was told to stop.
    #[error("stopped before it had taken over")]
    Stopped,
    /// What it said does not fit.
    #[error("the handover failed")]
    Broken(#[from] Broken),
    /// This process cannot be built of what came.
    #[error("cannot start from what the predecessor gave")]
    Start(#[from] StartError),
    /// Something is missing.
    #[error("the predecessor gave no {0}")]
    Missing(&'static str),
    /// A socket cannot be used.
    #[error("cannot use a socket of the predecessor")]
    Adopt(#[source] std::io::Error),
}

/// The process that handed over, for as long as it lives.
#[derive(Debug)]
struct Predecessor {
    channel: Channel,
    context: Context,
}

impl Predecessor {
    /// Waits until it is gone, so that drains and freezes need not mind it.
    async fn gone(self) {
        loop {
            // It says nothing any more; its end closes with it.
            match self.channel.receive(REMAINDER).await {
                Ok(_) => {}
                Err(ChannelError::Closed) => break,
                Err(error) => {
                    tracing::error!(%error, "the predecessor still lives");
                    break;
                }
            }
        }
        self.context.handover.set_behind(None);
    }
}

/// Takes over from the process at the other end of a socket, and serves.
///
/// # Cancel safety
/// Dropping it before the predecessor's go leaves everything to that one.
pub(crate) async fn take_over(
    config: &ProxydConfig,
    supervisor: &Supervisor,
    socket: OwnedFd,
) -> Result<Proxyd, TakeError> {
    let channel = Channel::of(socket).map_err(TakeError::Socket)?;
    let mut take = Take {
        config,
        supervisor,
        channel,
        taker: Taker::new(hello(config)),
        table: None,
        ports: Inherited::default(),
        doors: BTreeMap::new(),
        counts: Counts::default(),
        built: None,
        standing: BTreeMap::new(),
    };
    let all = supervisor.token().run_until_cancelled(take.all());
    let outcome = Box::pin(all).await.unwrap_or(Err(TakeError::Stopped));
    let (end, built) = match (outcome, take.built.take()) {
        (Ok(end), Some(built)) => (end, built),
        (Ok(_), None) => return Err(TakeError::Missing("word to build")),
        (Err(error), built) => {
            if let Some(built) = built {
                built.let_down().await;
            }
            let reason = Report(&error).to_string();
            // It may be gone, and then it need not know.
            drop(take.say(&Message::Failed { reason }).await);
            return Err(error);
        }
    };
    let context = built.context().clone();
    context.book.all_came();
    let left = end.left.into_iter().collect();
    context.handover.set_behind(Some(left));
    let predecessor = Predecessor {
        channel: take.channel,
        context,
    };
    supervisor.spawn("predecessor", Criticality::Ordinary, predecessor.gone());
    Ok(built.serve(supervisor))
}

struct Take<'a> {
    config: &'a ProxydConfig,
    supervisor: &'a Supervisor,
    channel: Channel,
    taker: Taker,
    table: Option<RouteTable>,
    ports: Inherited,
    doors: BTreeMap<&'static str, OwnedFd>,
    counts: Counts,
    built: Option<Built>,
    /// Connections that are not this process's own yet.
    standing: BTreeMap<PartId, Arrival>,
}

impl Take<'_> {
    /// Everything, to the end.
    async fn all(&mut self) -> Result<End, TakeError> {
        let greeting = self.taker.greeting();
        self.say(&greeting).await?;
        loop {
            let (message, descriptors) = match self.channel.receive(SILENCE).await {
                Ok(received) => received,
                Err(ChannelError::Closed) => return self.alone(),
                // It may wake, and believe that everything is its own.
                Err(ChannelError::Silent(_)) if self.taker.is_moving() => {
                    tracing::warn!("the predecessor is silent; this process waits for it");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let name = match &message {
                Message::Batch(_) if self.taker.is_moving() => "connections",
                other => other.name(),
            };
            failpoint::reach(|| format!("handover/{name}/before")).await;
            let done = self.follow(message, descriptors).await;
            failpoint::reach(|| format!("handover/{name}/after")).await;
            match done {
                Ok(None) => {}
                Ok(Some(end)) => return self.serve(end).await,
                Err(TakeError::Lost(ChannelError::Closed)) => return self.alone(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Everything is here. The predecessor hears it before a request is answered here: until then
    /// it could go on instead. If it is gone, it need not know.
    async fn serve(&self, end: End) -> Result<End, TakeError> {
        match self.say(&Message::Serving).await {
            Ok(()) | Err(TakeError::Lost(ChannelError::Closed)) => Ok(end),
            Err(error) => Err(error),
        }
    }

    /// The predecessor is no more. What it had not released it has not taken back either: it would
    /// have ended this process first.
    fn alone(&mut self) -> Result<End, TakeError> {
        let built = self.built.as_ref();
        let context = built.filter(|_| self.taker.lost() == Fate::GoOn);
        let context = context.ok_or(ChannelError::Closed)?.context().clone();
        let held = self.standing.len();
        tracing::warn!(
            held,
            "the predecessor ended in the middle; this process goes on alone"
        );
        for (_, arrival) in std::mem::take(&mut self.standing) {
            arrival.pass(&context);
        }
        Ok(End::default())
    }

    async fn say(&self, message: &Message) -> Result<(), TakeError> {
        Ok(self.channel.send(message, &[], WORD).await?)
    }

    /// Does what a message asks for.
    async fn follow(
        &mut self,
        message: Message,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<End>, TakeError> {
        match self.taker.hear(message)? {
            ToDo::Wait(_) => {}
            ToDo::Hold(batch) => {
                let (held, refused) = self.hold(&batch, descriptors);
                let ack = self.taker.hold(held, refused);
                self.say(&ack).await?;
            }
            ToDo::Build => {
                self.built = Some(self.build().await?);
                let ready = self.taker.built();
                self.say(&ready).await?;
            }
            ToDo::Accept => {
                if let Some(built) = &mut self.built {
                    built.go_on(&self.counts);
                    built.accept();
                }
            }
            ToDo::Pass(ids) => {
                let context = self.built.as_ref().map(Built::context);
                for id in ids {
                    if let (Some(arrival), Some(context)) = (self.standing.remove(&id), context) {
                        arrival.pass(context);
                    }
                }
            }
            ToDo::Serve(end) => return Ok(Some(end)),
        }
        Ok(None)
    }

    /// Takes hold of a batch, and says what of it cannot be held.
    fn hold(&mut self, batch: &Batch, descriptors: Vec<OwnedFd>) -> (Vec<PartId>, Vec<Refusal>) {
        let (content, parts, mut descriptors) = match open(batch, descriptors) {
            Ok(opened) => opened,
            Err(reason) => {
                let refuse = |id: &PartId| Refusal {
                    id: *id,
                    reason: reason.clone(),
                };
                return (Vec::new(), batch.ids.iter().map(refuse).collect());
            }
        };
        let (mut held, mut refused) = (Vec::new(), Vec::new());
        for part in parts {
            let own: Vec<_> = descriptors.by_ref().take(part.descriptors.len()).collect();
            let bytes = content.get(part.bytes.clone()).unwrap_or_default();
            let id = part.id;
            match part
                .part
                .and_then(|kind| self.hold_one(id, kind, own, bytes))
            {
                Ok(()) => held.push(id),
                Err(reason) => refused.push(Refusal { id, reason }),
            }
        }
        (held, refused)
    }

    fn hold_one(
        &mut self,
        id: PartId,
        part: Part,
        descriptors: Vec<OwnedFd>,
        bytes: &[u8],
    ) -> Result<(), String> {
        match part {
            Part::Table { missing, .. } => {
                let table = table_of(bytes).map_err(|error| Report(&error).to_string())?;
                self.table = Some(table);
                self.ports.missing = missing;
            }
            Part::Socket(socket) => {
                let descriptor = descriptors.into_iter().next().ok_or("no descriptor")?;
                match socket {
                    Socket::Control => drop(self.doors.insert(CONTROL, descriptor)),
                    Socket::Metrics => drop(self.doors.insert(METRICS, descriptor)),
                    Socket::Trunk => drop(self.doors.insert(TRUNK, descriptor)),
                    Socket::Port { key, at } => {
                        let place = at.map_or(Place::Everywhere, Place::Address);
                        drop(self.ports.open.insert(Spot { key, place }, descriptor));
                    }
                }
            }
            Part::Counts(counts) => self.counts = counts,
            Part::Newcomer(_) | Part::Held(_) | Part::Relay(_) | Part::Rest(_) => {
                let built = self.built.as_ref().ok_or("nothing is built yet")?;
                let arrival = Arrival::hold(built.context(), part, descriptors, bytes)?;
                self.standing.insert(id, arrival);
            }
        }
        Ok(())
    }

    async fn build(&mut self) -> Result<Built, TakeError> {
        let table = self.table.take().ok_or(TakeError::Missing("routes"))?;
        let mut door = |name| self.doors.remove(name).ok_or(TakeError::Missing(name));
        let (control, metrics, trunk) = (door(CONTROL)?, door(METRICS)?, door(TRUNK)?);
        let sockets = Sockets {
            trunk: TcpListener::from_std(trunk.into()).map_err(TakeError::Adopt)?,
            control: HttpServer::adopt_unix(control, &self.config.socket)
                .map_err(StartError::from)?,
            metrics: HttpServer::adopt_tcp(metrics).map_err(TakeError::Adopt)?,
            ports: std::mem::take(&mut self.ports),
        };
        Ok(Built::of(self.config, self.supervisor, sockets, table).await?)
    }
}

const CONTROL: &str = "control socket";
const METRICS: &str = "metrics socket";
const TRUNK: &str = "trunk socket";

pub(super) type Opened = (Vec<u8>, Vec<Unpacked>, std::vec::IntoIter<OwnedFd>);

/// Reads what came with a batch.
pub(super) fn open(batch: &Batch, descriptors: Vec<OwnedFd>) -> Result<Opened, String> {
    let mut descriptors = descriptors.into_iter();
    let file = descriptors
        .next()
        .ok_or("this process has no room for more descriptors")?;
    let content = content_of(file).map_err(|error| error.to_string())?;
    let parts = unpack(batch, &content, descriptors.len()).map_err(|error| error.to_string())?;
    Ok((content, parts, descriptors))
}
