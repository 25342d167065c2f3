//! Over the real client and server, with a link between them that is cut.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use axum::extract::{Query, State};
use axum::routing::put;
use axum::{Json, Router};
use futures_util::TryStreamExt;
use http::StatusCode;
use rehome_runtime::http_client::HttpClient;
use rehome_runtime::http_server::{ErrorResponse, HttpServer};
use rehome_runtime::supervise::{Criticality, Supervisor};
use rehome_shared::api::peer::{Received, StreamProgress, StreamQuery};
use rehome_shared::ids::{DatasetId, StreamId};
use rehome_shared::units::Bytes;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::super::{Lane, SendError, Wire};
use super::*;

const PATIENCE: Duration = Duration::from_mins(2);

/// What becomes of the connections that carry a stream, one after the other.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is closed after so many bytes.
    Close(u64),
    /// It stays open after so many bytes, and brings no more.
    Freeze(u64),
    /// As `Freeze`, and nobody gets through any more.
    Sever(u64),
}

/// The destination.
struct Destination {
    streams: Mutex<BTreeMap<StreamId, Arc<Stream>>>,
    supervisor: Supervisor,
    /// How long the storage pauses after its first bytes.
    slowness: Duration,
}

struct Stream {
    intake: Intake,
    stored: watch::Sender<Option<Vec<u8>>>,
}

type Shared = Arc<Destination>;

async fn take(
    State(destination): State<Shared>,
    Query(query): Query<StreamQuery>,
    body: axum::body::Body,
) -> Result<Json<Received>, ErrorResponse> {
    let gone = || ErrorResponse::new(StatusCode::GONE, "unknown stream");
    let known = destination
        .streams
        .lock()
        .unwrap()
        .get(&query.stream)
        .cloned();
    let stream = match known {
        Some(stream) => stream,
        None if query.offset == 0 => destination.begin(&query.stream),
        None => return Err(gone()),
    };
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let reader = tokio_util::io::StreamReader::new(bytes);
    let fed = stream
        .intake
        .feed(query.connection, query.offset, reader)
        .await;
    fed.map_err(|error| ErrorResponse::of(StatusCode::INTERNAL_SERVER_ERROR, &error))?;
    let mut stored = stream.stored.subscribe();
    let stored = stored.wait_for(Option::is_some).await.map_err(|_| gone())?;
    let length = stored.as_ref().map_or(0, Vec::len);
    Ok(Json(Received {
        bytes: Bytes(u64::try_from(length).unwrap()),
    }))
}

#[derive(Deserialize)]
struct Which {
    stream: StreamId,
}

async fn progress(
    State(destination): State<Shared>,
    Query(Which { stream }): Query<Which>,
) -> Result<Json<StreamProgress>, StatusCode> {
    let streams = destination.streams.lock().unwrap();
    let stream = streams.get(&stream).ok_or(StatusCode::GONE)?;
    Ok(Json(stream.intake.progress()))
}

impl Destination {
    fn begin(&self, id: &StreamId) -> Arc<Stream> {
        let (intake, mut arrivals) = Intake::new();
        let stream = Arc::new(Stream {
            intake,
            stored: watch::Sender::new(None),
        });
        let (slowness, of_stream) = (self.slowness, Arc::clone(&stream));
        let stop = self.supervisor.token().clone();
        self.supervisor
            .spawn("store", Criticality::Ordinary, async move {
                let storing = async {
                    let mut data = vec![0; 1000];
                    let first = arrivals.read(&mut data).await?;
                    data.truncate(first);
                    tokio::time::sleep(slowness).await;
                    arrivals.read_to_end(&mut data).await?;
                    std::io::Result::Ok(data)
                };
                if let Ok(data) = of_stream.intake.store(&stop, storing).await {
                    of_stream.stored.send_replace(Some(data));
                    of_stream.intake.set_answered();
                }
            });
        self.streams
            .lock()
            .unwrap()
            .insert(id.clone(), Arc::clone(&stream));
        stream
    }
}

/// A link that hands each connection on, until its fault.
struct Link {
    faults: Mutex<std::vec::IntoIter<Fault>>,
    /// Nobody gets through while it is.
    severed: watch::Sender<bool>,
    /// Bytes that sources sent.
    carried: AtomicU64,
    to: PathBuf,
}

impl Link {
    async fn serve(self: Arc<Self>, listener: UnixListener, supervisor: Supervisor) {
        while let Ok((client, _)) = listener.accept().await {
            let link = Arc::clone(&self);
            supervisor.spawn("link", Criticality::Ordinary, async move {
                // However it ends, both sides are closed.
                let _end = link.carry(client).await;
            });
        }
    }

    async fn carry(&self, mut client: UnixStream) -> std::io::Result<()> {
        self.wait_whole().await;
        let mut server = UnixStream::connect(&self.to).await?;
        let mut head = vec![0; 4];
        client.read_exact(&mut head).await?;
        server.write_all(&head).await?;
        let fault = if head == b"PUT " {
            self.faults.lock().unwrap().next()
        } else {
            None
        };
        let (Some(Fault::Close(most) | Fault::Freeze(most) | Fault::Sever(most)), Some(fault)) =
            (fault, fault)
        else {
            let (sent, _) = tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            self.carried.fetch_add(sent, Ordering::Relaxed);
            return Ok(());
        };
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let forth = async {
            let mut part = (&mut from_client).take(most);
            let sent = tokio::io::copy(&mut part, &mut to_server).await?;
            self.carried.fetch_add(sent, Ordering::Relaxed);
            match fault {
                Fault::Close(_) => Ok(()),
                Fault::Freeze(_) => std::future::pending().await,
                Fault::Sever(_) => {
                    self.severed.send_replace(true);
                    std::future::pending().await
                }
            }
        };
        let back = tokio::io::copy(&mut from_server, &mut to_client);
        tokio::select! {
            end = forth => end,
            // An answer that comes after the cut does not get through either.
            _end = back => std::future::pending().await,
        }
    }

    async fn wait_whole(&self) {
        let mut severed = self.severed.subscribe();
        severed.wait_for(|severed| !severed).await.unwrap();
    }
}

struct Scene {
    destination: Shared,
    link: Arc<Link>,
    lane: Lane,
    resumes: AtomicU32,
    _dir: tempfile::TempDir,
    supervisor: Supervisor,
}

impl Scene {
    async fn new(faults: &[Fault], slowness: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { Path::join(dir.path(), name) };
        let supervisor = Supervisor::new();
        let destination = Arc::new(Destination {
            streams: Mutex::default(),
            supervisor: supervisor.clone(),
            slowness,
        });
        let router = Router::new()
            .route("/stream", put(take).get(progress))
            .with_state(Arc::clone(&destination));
        let server = HttpServer::unix(&path("server")).await.unwrap();
        let serving = server.serve(router, supervisor.clone());
        supervisor.spawn("http", Criticality::Critical, serving);
        let link = Arc::new(Link {
            faults: Mutex::new(Vec::from(faults).into_iter()),
            severed: watch::Sender::new(false),
            carried: AtomicU64::new(0),
            to: path("server"),
        });
        let listener = UnixListener::bind(path("link")).unwrap();
        let serving = Arc::clone(&link).serve(listener, supervisor.clone());
        supervisor.spawn("links", Criticality::Ordinary, serving);
        let lane = Lane {
            client: HttpClient::unix(&path("link")),
            path: "/stream".to_owned(),
            query: StreamQuery {
                dataset: DatasetId::generate(),
                snapshot: "s".to_owned(),
                guid: "g".to_owned(),
                stream: StreamId::generate(),
                offset: 0,
                connection: 0,
            },
            wire: Wire::default(),
        };
        Self {
            destination,
            link,
            lane,
            resumes: AtomicU32::new(0),
            _dir: dir,
            supervisor,
        }
    }

    async fn send(&self, data: &[u8]) -> Result<Received, SendError> {
        self.send_from(outgoing(data)).await
    }

    async fn send_from(
        &self,
        outgoing: Outgoing<std::io::Cursor<Vec<u8>>>,
    ) -> Result<Received, SendError> {
        let resumed = || {
            self.resumes.fetch_add(1, Ordering::Relaxed);
        };
        let sending = self.lane.send(outgoing, resumed);
        tokio::time::timeout(PATIENCE, sending).await.unwrap()
    }

    fn resumes(&self) -> u32 {
        self.resumes.load(Ordering::Relaxed)
    }

    fn carried(&self) -> u64 {
        self.link.carried.load(Ordering::Relaxed)
    }

    /// What the destination stored of the stream.
    fn stored(&self) -> Vec<u8> {
        let streams = self.destination.streams.lock().unwrap();
        let stream = streams.get(&self.lane.query.stream).unwrap();
        stream.stored.borrow().clone().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.supervisor.cancel();
    }
}

const SIZE: usize = 12 << 20;

#[tokio::test]
async fn connections_that_are_closed_are_followed_by_others_and_nothing_is_sent_twice() {
    let data = noise(SIZE);
    let faults = [1, 100, 5_000_000, 3_333_333].map(Fault::Close);
    let scene = Scene::new(&faults, Duration::ZERO).await;
    let received = scene.send(&data).await.unwrap();
    assert_eq!(received.bytes, Bytes(u64::try_from(SIZE).unwrap()));
    assert!(scene.stored() == data);
    assert!((2..=4).contains(&scene.resumes()), "{}", scene.resumes());
    // What a cut costs is the frame that it hit.
    let most = SIZE + 5 * (1 << 20);
    assert!(
        scene.carried() < u64::try_from(most).unwrap(),
        "{}",
        scene.carried()
    );
}

#[tokio::test]
async fn a_connection_that_is_open_and_dead_is_found_out_and_replaced() {
    let data = noise(SIZE);
    let scene = Scene::new(&[Fault::Freeze(4_000_000)], Duration::ZERO).await;
    let begun = std::time::Instant::now();
    scene.send(&data).await.unwrap();
    assert!(scene.stored() == data);
    assert_eq!(scene.resumes(), 1);
    // Long before anything else would have noticed.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_link_that_comes_back_within_the_grace_is_gone_on_over() {
    let data = noise(SIZE);
    let scene = Scene::new(&[Fault::Sever(4_000_000)], Duration::ZERO).await;
    let heal = async {
        let mut severed = scene.link.severed.subscribe();
        severed.wait_for(|severed| *severed).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.link.severed.send_replace(false);
    };
    let (sent, ()) = tokio::join!(scene.send(&data), heal);
    sent.unwrap();
    assert!(scene.stored() == data);
    assert_eq!(scene.resumes(), 1);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for() {
    let data = noise(2_000_000);
    // All of the stream and its end get through, the answer does not.
    let scene = Scene::new(&[Fault::Freeze(u64::MAX)], Duration::from_secs(2)).await;
    let begun = std::time::Instant::now();
    let sending = scene.send(&data);
    let received = sending.await.unwrap();
    assert_eq!(received.bytes, Bytes(2_000_000));
    assert!(scene.stored() == data);
    assert!(begun.elapsed() < Duration::from_mins(1));
}

#[tokio::test]
async fn a_slow_storage_is_waited_for_on_the_same_connection() {
    let data = noise(SIZE);
    let scene = Scene::new(&[], Duration::from_secs(4)).await;
    scene.send(&data).await.unwrap();
    assert!(scene.stored() == data);
    assert_eq!(scene.resumes(), 0);
}

#[tokio::test]
async fn a_stream_that_the_destination_gave_up_begins_anew_while_the_ring_reaches() {
    let data = noise(SIZE);
    let scene = Scene::new(&[Fault::Sever(4_000_000)], Duration::ZERO).await;
    let forget = async {
        let mut severed = scene.link.severed.subscribe();
        severed.wait_for(|severed| *severed).await.unwrap();
        scene.destination.streams.lock().unwrap().clear();
        scene.link.severed.send_replace(false);
    };
    let (sent, ()) = tokio::join!(scene.send(&data), forget);
    sent.unwrap();
    assert!(scene.stored() == data);
    assert_eq!(scene.resumes(), 0, "it began anew");
}

#[tokio::test]
async fn a_stream_that_was_given_up_and_is_out_of_the_ring_is_lost() {
    let data = noise(SIZE);
    let scene = Scene::new(&[Fault::Sever(6_000_000)], Duration::ZERO).await;
    let forget = async {
        let mut severed = scene.link.severed.subscribe();
        severed.wait_for(|severed| *severed).await.unwrap();
        scene.destination.streams.lock().unwrap().clear();
        scene.link.severed.send_replace(false);
    };
    let small = outgoing(&data).with_ring(2 << 20);
    let (sent, ()) = tokio::join!(scene.send_from(small), forget);
    assert!(matches!(sent, Err(SendError::Lost)), "{sent:?}");
}
