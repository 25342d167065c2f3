//! Sending a stream over as many connections as it takes.
//!
//! A connection that breaks, or that is found dead, is followed by a question: how much arrived?
//! From there the stream goes on. A connection is found dead long before TCP would say so, but
//! never on silence alone: only the destination's answer, over a new connection, proves that the
//! way is there and the old connection is not. See [`migrated_core::stream::link`].

use std::time::Duration;

use futures_util::stream::poll_fn;
use http::{HeaderMap, Method, StatusCode};
use migrated_core::stream::{Reading, link};
use rehome_runtime::http_client::{ClientError, HttpClient, StreamLimits};
use rehome_runtime::report::Report;
use rehome_shared::api::peer::{Received, StreamProgress, StreamQuery};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{FillError, GRACE, Meter, Metered, Outgoing, Wire};

/// A connection that stands still for so long is given up, whatever the destination says.
const STREAM: StreamLimits = StreamLimits {
    stall: Duration::from_secs(20),
    answer: Duration::from_mins(2),
};

/// After so long without a byte going on, the destination is asked, and again and again.
const LOOK: Duration = Duration::from_millis(500);

/// How long the destination may take to say how much arrived.
const ASK: Duration = Duration::from_secs(2);

/// The pause before a destination that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Frames between the maker and the connection.
const PIPE: usize = 2;

/// So many connections in a row may bring the stream nowhere.
const TRIES: u32 = 4;

/// The way to the destination's end of a stream.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The destination.
    pub client: HttpClient,
    /// Where it takes streams of the migration.
    pub path: String,
    /// Which stream; offset and connection are filled in.
    pub query: StreamQuery,
    /// What its bytes on the wire count on and are held to.
    pub wire: Wire,
}

/// Why a stream did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The destination refuses it, or cannot be reached for too long.
    #[error("it cannot be sent")]
    Client(#[from] ClientError),
    /// The backend's stream broke off.
    #[error("the volume cannot be read")]
    Source(#[source] std::io::Error),
    /// It was cut for too long, or too far back.
    #[error("the stream was cut and cannot go on")]
    Lost,
}

/// How a connection ended without an answer.
enum Cut {
    Broken(ClientError),
    /// The destination waits for what this connection does not bring.
    Dead,
}

impl Lane {
    /// Sends a stream to its end. `resumed` is called for each connection that goes on where
    /// another one was cut.
    ///
    /// # Errors
    /// [`SendError`].
    ///
    /// # Cancel safety
    /// A dropped call breaks the connection off. The destination waits for [`GRACE`] in vain.
    pub async fn send<R: AsyncRead + Send + Unpin>(
        &self,
        mut outgoing: Outgoing<R>,
        resumed: impl Fn() + Sync,
    ) -> Result<Received, SendError> {
        let (mut offset, mut connection, mut tries) = (0, 0_u32, 0);
        loop {
            connection = connection.saturating_add(1);
            let cut = match self.converse(&mut outgoing, connection, offset).await? {
                Ok(received) => return Ok(received),
                Err(cut) => cut,
            };
            let before = offset;
            let taken = self.ask_again(Instant::now() + GRACE).await?;
            // A destination that knows nothing of it begins anew.
            offset = taken.unwrap_or(0);
            tries = if offset > before { 0 } else { tries + 1 };
            let reason = match &cut {
                Cut::Broken(error) => Report(error).to_string(),
                Cut::Dead => "bytes that were sent do not arrive".to_owned(),
            };
            tracing::info!(
                reason,
                offset,
                tries,
                known = taken.is_some(),
                "a stream was cut"
            );
            if tries >= TRIES || !outgoing.reaches(offset) {
                return Err(match cut {
                    Cut::Broken(error) if taken.is_some() => error.into(),
                    Cut::Broken(_) | Cut::Dead => SendError::Lost,
                });
            }
            if taken.is_some() {
                resumed();
            }
        }
    }

    /// One connection: the outer error is for good.
    async fn converse<R: AsyncRead + Send + Unpin>(
        &self,
        outgoing: &mut Outgoing<R>,
        connection: u32,
        offset: u64,
    ) -> Result<Result<Received, Cut>, SendError> {
        let (pipe, mut frames) = mpsc::channel(PIPE);
        let sent = Meter::default();
        let frames = poll_fn(move |cx| {
            let next = frames.poll_recv(cx);
            next.map(|frame| frame.map(Ok::<_, std::io::Error>))
        });
        let wire = self.wire.clone().counted_on(&sent);
        let body = Metered::new(frames, wire);
        let path = self.stream_path(connection, offset);
        let mut put = Box::pin(
            self.client
                .put_stream(&path, HeaderMap::new(), body, STREAM),
        );
        let mut fill = std::pin::pin!(outgoing.fill(offset, pipe));
        let mut watch = std::pin::pin!(self.watch(connection, &sent));
        let mut filled = false;
        loop {
            // The first and the last arm end the connection, and what is lost of it is sent
            // again; the second keeps its state in what it is pinned to.
            tokio::select! {
                answer = &mut put => return Self::judge(answer),
                done = &mut fill, if !filled => match done {
                    Ok(()) => filled = true,
                    Err(FillError::Source(error)) => return Err(SendError::Source(error)),
                    Err(FillError::Gone(_)) => return Err(SendError::Lost),
                },
                () = &mut watch => return Ok(Err(Cut::Dead)),
            }
        }
    }

    fn judge(answer: Result<Received, ClientError>) -> Result<Result<Received, Cut>, SendError> {
        match answer {
            Ok(received) => Ok(Ok(received)),
            Err(
                error @ (ClientError::Broken { .. }
                | ClientError::Unreachable { .. }
                | ClientError::Timeout { .. }),
            ) => Ok(Err(Cut::Broken(error))),
            // It was given up between the question and the stream.
            Err(error) if error.status() == Some(StatusCode::GONE) => Err(SendError::Lost),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when the connection is dead and the destination can be reached.
    async fn watch(&self, connection: u32, sent: &Meter) {
        let mut before: Option<Reading> = None;
        let mut seen = sent.bytes();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = sent.bytes();
            if now != seen {
                (seen, before) = (now, None);
                continue;
            }
            // Without an answer nothing is known, and the connection may yet go on.
            let Ok(progress) = self.ask().await else {
                continue;
            };
            let reading = reading(progress.as_ref(), connection);
            let moved = sent.bytes() != now;
            if !moved && before.is_some_and(|before| link::is_dead(&before, &reading, now.0)) {
                return;
            }
            before = Some(reading);
        }
    }

    /// How much arrived; `None` when the destination knows nothing of the stream.
    async fn ask(&self) -> Result<Option<StreamProgress>, ClientError> {
        let path = format!("{}?stream={}", self.path, self.query.stream);
        let asked = self
            .client
            .request_json(Method::GET, &path, None::<&()>, ASK);
        match asked.await {
            Ok(progress) => Ok(Some(progress)),
            Err(error) if error.status() == Some(StatusCode::GONE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks until there is an answer, a refusal, or the deadline.
    async fn ask_again(&self, deadline: Instant) -> Result<Option<u64>, ClientError> {
        loop {
            let error = match self.ask().await {
                Ok(progress) => return Ok(progress.map(|progress| progress.bytes)),
                Err(error) => error,
            };
            let refused = error
                .status()
                .is_some_and(|status| status.is_client_error());
            if refused || Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn stream_path(&self, connection: u32, offset: u64) -> String {
        let StreamQuery {
            dataset,
            snapshot,
            guid,
            stream,
            ..
        } = &self.query;
        format!(
            "{}?dataset={dataset}&snapshot={snapshot}&guid={guid}&stream={stream}&offset={offset}&connection={connection}",
            self.path
        )
    }
}

/// What the destination's word says of a connection. One that it has not seen brought nothing.
fn reading(progress: Option<&StreamProgress>, connection: u32) -> Reading {
    let unseen = Reading {
        wire: 0,
        hungry: true,
        answered: false,
    };
    progress.map_or(unseen, |progress| {
        let seen = progress.connection == connection;
        Reading {
            wire: if seen { progress.wire } else { 0 },
            hungry: progress.hungry || !seen,
            answered: progress.answered,
        }
    })
}
