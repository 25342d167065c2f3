use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_util::io::ReaderStream;

use super::*;
use crate::http_server::{ErrorResponse, HttpServer};
use crate::supervise::{Criticality, Supervisor};
use crate::tls::tests::Authority;

const SOON: Duration = Duration::from_secs(10);
const LIMITS: StreamLimits = StreamLimits {
    stall: SOON,
    answer: SOON,
};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Number {
    n: u64,
}

async fn count(body: axum::body::Body) -> Result<Json<Number>, ErrorResponse> {
    let mut frames = body;
    let mut n = 0;
    while let Some(frame) = frames.frame().await {
        let frame = frame.map_err(|e| ErrorResponse::of(StatusCode::BAD_REQUEST, &e))?;
        n += u64::try_from(frame.into_data().unwrap_or_default().len()).unwrap();
    }
    Ok(Json(Number { n }))
}

fn app() -> Router {
    Router::new()
        .route(
            "/double",
            post(|Json(Number { n })| async move { Json(Number { n: n * 2 }) }),
        )
        .route("/nothing", post(|| async { StatusCode::NO_CONTENT }))
        .route("/text", get(|| async { "not json" }))
        .route("/large", get(|| async { "x".repeat(2000) }))
        .route("/never", get(std::future::pending::<()>))
        .route("/count", put(count))
        .route(
            "/stuck",
            put(|body: axum::body::Body| async move {
                let _kept = body;
                std::future::pending::<()>().await;
            }),
        )
        .route(
            "/busy",
            put(|| async { ErrorResponse::new(StatusCode::CONFLICT, "fenced").on_host("h2") }),
        )
        .route(
            "/plain",
            get(|| async { (StatusCode::NOT_FOUND, "no such\n") }),
        )
        .layer(DefaultBodyLimit::max(1000))
}

struct Server {
    client: HttpClient,
    _dir: tempfile::TempDir,
    _supervisor: Supervisor,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let supervisor = Supervisor::new();
    let serve = HttpServer::unix(&path)
        .await
        .unwrap()
        .serve(app(), supervisor.clone());
    supervisor.spawn("http", Criticality::Critical, serve);
    Server {
        client: HttpClient::unix(&path),
        _dir: dir,
        _supervisor: supervisor,
    }
}

impl Server {
    async fn get<Res: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Duration,
    ) -> Result<Res, ClientError> {
        self.client
            .request_json(Method::GET, path, None::<&()>, deadline)
            .await
    }
}

#[tokio::test]
async fn json_goes_both_ways() {
    let server = server().await;
    let answer: Number = server
        .client
        .request_json(Method::POST, "/double", Some(&Number { n: 21 }), SOON)
        .await
        .unwrap();
    assert_eq!(answer, Number { n: 42 });
    let () = server
        .client
        .request_json(Method::POST, "/nothing", None::<&()>, SOON)
        .await
        .unwrap();
}

#[tokio::test]
async fn each_failure_has_its_own_kind() {
    let server = server().await;
    let error = server.get::<Number>("/text", SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::BadAnswer { .. }), "{error}");
    let error = server
        .get::<Number>("/never", Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    let error = server.get::<Number>("/plain", SOON).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("answered 404 Not Found: no such"),
        "{error}"
    );
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND));
    let error = server.get::<Number>("no path", SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Request(_)), "{error}");
    let small = server.client.clone().with_answer_limit(1000);
    let error = small
        .request_json::<(), Number>(Method::GET, "/large", None, SOON)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::TooLong { limit: 1000, .. }),
        "{error}"
    );
    let nobody = HttpClient::unix(std::path::Path::new("/nonexistent/socket"));
    let error = nobody
        .request_json::<(), Number>(Method::GET, "/", None, SOON)
        .await
        .unwrap_err();
    assert!(
        error.had_no_effect() && matches!(error, ClientError::Unreachable { .. }),
        "{error}"
    );
}

/// A reader as a stream.
fn pieces<R: AsyncRead + Send + 'static>(reader: R) -> ReaderStream<R> {
    ReaderStream::with_capacity(reader, 256 << 10)
}

#[tokio::test]
async fn a_stream_far_beyond_the_body_limit_arrives_whole() {
    let server = server().await;
    let body = tokio::io::repeat(7).take(100 << 20);
    let answer: Number = server
        .client
        .put_stream("/count", HeaderMap::new(), pieces(body), LIMITS)
        .await
        .unwrap();
    assert_eq!(answer, Number { n: 100 << 20 });
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let server = server().await;
    let error = server
        .client
        .put_stream::<_, Number>(
            "/busy",
            HeaderMap::new(),
            pieces(tokio::io::repeat(7)),
            LIMITS,
        )
        .await
        .unwrap_err();
    let ClientError::Status { status, reply, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*status, StatusCode::CONFLICT);
    assert_eq!(
        (reply.error.as_str(), reply.host.as_deref()),
        ("fenced", Some("h2"))
    );
}

#[tokio::test]
async fn a_reader_that_is_not_taken_from_is_not_read_ahead() {
    let server = server().await;
    let limits = StreamLimits {
        stall: Duration::from_millis(300),
        answer: SOON,
    };
    let (body, read) = Counted::new(tokio::io::repeat(7));
    let error = server
        .client
        .put_stream::<_, Number>("/stuck", HeaderMap::new(), pieces(body), limits)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no byte of a stream was taken"),
        "{error}"
    );
    assert!(read.load(std::sync::atomic::Ordering::Relaxed) < 4 << 20);
}

#[tokio::test]
async fn a_silent_source_is_named() {
    let server = server().await;
    let limits = StreamLimits {
        stall: Duration::from_millis(100),
        answer: SOON,
    };
    let (_held, silent) = tokio::io::duplex(16);
    let error = server
        .client
        .put_stream::<_, Number>("/count", HeaderMap::new(), pieces(silent), limits)
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("no byte of our own stream"),
        "{error}"
    );
}

#[tokio::test]
async fn a_source_that_breaks_is_not_a_broken_connection() {
    let server = server().await;
    let body = tokio::io::repeat(7).take(1 << 20).chain(Broken);
    let error = server
        .client
        .put_stream::<_, Number>("/count", HeaderMap::new(), pieces(body), LIMITS)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Source { .. }), "{error:?}");
    assert!(
        crate::report::Report(&error)
            .to_string()
            .contains("send died"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_host_that_is_not_the_one_meant_is_unreachable() {
    let authority = Authority::new();
    let supervisor = Supervisor::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let server = HttpServer::mutual_tls(address, authority.tls(&["10.9.9.9"]))
        .await
        .unwrap();
    let port = server.local_addr().unwrap().port();
    supervisor.spawn(
        "http",
        Criticality::Critical,
        server.serve(app(), supervisor.clone()),
    );
    let host = HostAddr::try_new("127.0.0.1").unwrap();
    let ours = authority.tls(&["10.0.0.2"]);
    let client = HttpClient::tls(&host, port, &ours);
    let error = client
        .request_json::<(), Number>(Method::GET, "/", None, SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let text = crate::report::Report(&error).to_string();
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn a_stream_over_tls_arrives_whole() {
    let authority = Authority::new();
    let supervisor = Supervisor::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let server = HttpServer::mutual_tls(address, authority.tls(&["127.0.0.1"]))
        .await
        .unwrap();
    let port = server.local_addr().unwrap().port();
    supervisor.spawn(
        "http",
        Criticality::Critical,
        server.serve(app(), supervisor.clone()),
    );
    let host = HostAddr::try_new("127.0.0.1").unwrap();
    let client = HttpClient::tls(&host, port, &authority.tls(&["10.0.0.2"]));
    let body = tokio::io::repeat(7).take(30 << 20);
    let answer: Number = client
        .put_stream("/count", HeaderMap::new(), pieces(body), LIMITS)
        .await
        .unwrap();
    assert_eq!(answer, Number { n: 30 << 20 });
    let error = client
        .put_stream::<_, Number>(
            "/busy",
            HeaderMap::new(),
            pieces(tokio::io::repeat(7)),
            LIMITS,
        )
        .await
        .unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::CONFLICT), "{error:?}");
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other("send died")))
    }
}

struct Counted<R> {
    inner: R,
    read: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl<R> Counted<R> {
    fn new(inner: R) -> (Self, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        let read = std::sync::Arc::default();
        (
            Self {
                inner,
                read: std::sync::Arc::clone(&read),
            },
            read,
        )
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.read.fetch_add(
            buf.filled().len() - before,
            std::sync::atomic::Ordering::Relaxed,
        );
        poll
    }
}
