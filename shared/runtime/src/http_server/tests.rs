use std::os::unix::fs::PermissionsExt;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Extension, Json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::supervise::Stop;
use crate::tls::PeerIdentity;

const SOON: Duration = Duration::from_secs(10);

fn app() -> Router {
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route(
            "/echo",
            post(|body: Json<serde_json::Value>| async { body }),
        )
        .layer(DefaultBodyLimit::max(1000))
}

struct Unix {
    dir: tempfile::TempDir,
    supervisor: Supervisor,
}

impl Unix {
    fn path(&self) -> PathBuf {
        self.dir.path().join("run/socket")
    }

    async fn serve(router: Router, limits: ServerLimits) -> Self {
        let unix = Self {
            dir: tempfile::tempdir().unwrap(),
            supervisor: Supervisor::new(),
        };
        let server = HttpServer::unix(&unix.path())
            .await
            .unwrap()
            .with_limits(limits);
        let serve = server.serve(router, unix.supervisor.clone());
        unix.supervisor.spawn("http", Criticality::Critical, serve);
        unix
    }

    async fn ask(&self, request: &str) -> String {
        ask(UnixStream::connect(self.path()).await.unwrap(), request).await
    }
}

async fn ask(mut stream: UnixStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    read_end(&mut stream).await
}

async fn read_end(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn the_socket_is_roots_alone_and_goes_with_the_server() {
    let unix = Unix::serve(app(), ServerLimits::default()).await;
    let mode = std::fs::metadata(unix.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(unix.ask(GET).await.ends_with("hello"));
    assert_eq!(unix.supervisor.stop(SOON).await, Stop::Clean);
    assert_eq!(
        std::fs::read_dir(unix.dir.path().join("run"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let unix = Unix::serve(app(), ServerLimits::default()).await;
    let error = HttpServer::unix(&unix.path()).await.unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(
        unix.ask(GET).await.ends_with("hello"),
        "the probe harmed the server"
    );

    let stale = unix.dir.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let first = HttpServer::unix(&stale).await.unwrap();
    // A newer server that took the name over keeps it when the older one goes.
    std::fs::remove_file(&stale).unwrap();
    let second = HttpServer::unix(&stale).await.unwrap();
    drop(first);
    assert!(UnixStream::connect(&stale).await.is_ok());
    drop(second);
    assert!(!stale.exists());

    let file = unix.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = HttpServer::unix(&file).await.unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_socket_that_goes_to_another_server_keeps_its_file_and_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let first = HttpServer::unix(&path).await.unwrap();
    let waiting = UnixStream::connect(&path).await.unwrap();
    let given_up = HttpServer::adopt_unix(first.descriptor().unwrap(), &path).unwrap();
    drop(given_up);
    assert!(path.exists(), "it was not its own");
    let second = HttpServer::adopt_unix(first.descriptor().unwrap(), &path).unwrap();
    first.file().unwrap().stay();
    second.file().unwrap().go();
    drop(first);
    let supervisor = Supervisor::new();
    let serve = second.serve(app(), supervisor.clone());
    supervisor.spawn("http", Criticality::Critical, serve);
    assert!(ask(waiting, GET).await.ends_with("hello"));
    let next = UnixStream::connect(&path).await.unwrap();
    assert!(ask(next, GET).await.ends_with("hello"));
    assert_eq!(supervisor.stop(SOON).await, Stop::Clean);
    assert!(!path.exists(), "the file goes with the last server");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_answered_not_reset() {
    let unix = Unix::serve(app(), ServerLimits::default()).await;
    let body = "1".repeat(4 << 20);
    let length = body.len();
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    let mut stream = UnixStream::connect(unix.path()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server stops reading as HTTP, but lets a client that sends blindly finish and read.
    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = read_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_closed() {
    let limits = ServerLimits {
        header_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let unix = Unix::serve(app(), limits).await;
    let mut silent = UnixStream::connect(unix.path()).await.unwrap();
    assert_eq!(read_end(&mut silent).await, "");
    let half = ask(UnixStream::connect(unix.path()).await.unwrap(), "GET / HT").await;
    assert!(!half.contains("hello"), "{half}");
    let idle = unix.ask("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(
        idle.ends_with("hello"),
        "an idle kept connection is closed too: {idle}"
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_room() {
    let limits = ServerLimits {
        connections: 1,
        ..Default::default()
    };
    let unix = Unix::serve(app(), limits).await;
    let mut first = UnixStream::connect(unix.path()).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut second = UnixStream::connect(unix.path()).await.unwrap();
    second.write_all(GET.as_bytes()).await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second was served beside the first");
    drop(first);
    assert!(read_end(&mut second).await.ends_with("hello"));
}

#[tokio::test]
async fn a_stop_lets_the_running_request_finish() {
    let (started, mut has_started) = tokio::sync::mpsc::channel(1);
    let (finish, may_finish) = tokio::sync::watch::channel(false);
    let slow = get(move || {
        let (started, mut may_finish) = (started.clone(), may_finish.clone());
        async move {
            started.send(()).await.unwrap();
            may_finish.wait_for(|finish| *finish).await.unwrap();
            "done"
        }
    });
    let unix = Unix::serve(Router::new().route("/", slow), ServerLimits::default()).await;
    let path = unix.path();
    let client = async { ask(UnixStream::connect(&path).await.unwrap(), GET).await };
    let stop = async {
        has_started.recv().await.unwrap();
        let supervisor = unix.supervisor.clone();
        supervisor.cancel();
        finish.send(true).unwrap();
        supervisor.stop(SOON).await
    };
    let (answer, stop) = tokio::join!(client, stop);
    assert!(answer.ends_with("done"), "{answer}");
    assert_eq!(stop, Stop::Clean);
}

#[tokio::test]
async fn mutual_tls_tells_handlers_who_asks() {
    let authority = crate::tls::tests::Authority::new();
    let supervisor = Supervisor::new();
    let who = get(|Extension(peer): Extension<PeerIdentity>| async move { Json(peer.to_string()) });
    let server = HttpServer::mutual_tls(
        "127.0.0.1:0".parse().unwrap(),
        authority.tls(&["127.0.0.1"]),
    )
    .await
    .unwrap();
    let port = server.local_addr().unwrap().port();
    let router = Router::new().route("/who", who);
    supervisor.spawn(
        "http",
        Criticality::Critical,
        server.serve(router, supervisor.clone()),
    );
    let host = rehome_shared::ids::HostAddr::try_new("127.0.0.1").unwrap();
    let client = crate::http_client::HttpClient::tls(&host, port, &authority.tls(&["10.0.0.2"]));
    let answer: String = client
        .request_json(http::Method::GET, "/who", None::<&()>, SOON)
        .await
        .unwrap();
    assert_eq!(answer, "10.0.0.2");
    assert_eq!(supervisor.stop(SOON).await, Stop::Clean);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = HttpServer::tcp("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = first.local_addr().unwrap();
    let error = HttpServer::tcp(address).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));
}
