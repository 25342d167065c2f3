//! An application that speaks HTTP/1.1, and clients of it, both by hand: what travels is in the
//! tests' own control, byte by byte.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use rehome_shared::api::proxy::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::host::LIMIT;

/// One side of a connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// The head of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) async fn say(&mut self, text: &str) -> Result<()> {
        Ok(timeout(LIMIT, self.stream.write_all(text.as_bytes())).await??)
    }

    /// Zero at the end.
    async fn more(&mut self) -> Result<usize> {
        let mut piece = [0; 4096];
        let length = timeout(LIMIT, self.stream.read(&mut piece)).await??;
        self.read.extend(piece.iter().take(length));
        Ok(length)
    }

    /// So many bytes.
    pub(crate) async fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.read.len() < length {
            ensure!(self.more().await? > 0, "an end instead of {length} bytes");
        }
        Ok(self.read.drain(..length).collect())
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8(self.exactly(at + 2).await?)?;
                return Ok(line.trim_end().to_owned());
            }
            ensure!(self.more().await? > 0, "an end within a line");
        }
    }

    /// Whether the other side has finished, without another byte.
    pub(crate) async fn ends(&mut self) -> Result<bool> {
        Ok(self.read.is_empty() && self.more().await? == 0)
    }

    /// None at the end.
    pub(crate) async fn head(&mut self) -> Result<Option<Head>> {
        if self.ends().await? {
            return Ok(None);
        }
        let first = self.line().await?;
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(Some(Head { first, fields }));
            }
            let (name, value) = line.split_once(':').context("a field without a colon")?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub(crate) async fn body(&mut self, head: &Head) -> Result<Vec<u8>> {
        if head.field("transfer-encoding").is_none() {
            let length = head.field("content-length").unwrap_or("0");
            return self.exactly(length.parse()?).await;
        }
        let mut body = Vec::new();
        loop {
            let size = self.line().await?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16)?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            ensure!(self.line().await?.is_empty(), "no end of a chunk");
        }
    }

    /// Sends a request and reads its answer: the first line and the body.
    pub(crate) async fn ask(&mut self, request: &str) -> Result<(String, String)> {
        self.say(request).await?;
        self.answer(request.starts_with("HEAD")).await
    }

    pub(crate) async fn answer(&mut self, headless: bool) -> Result<(String, String)> {
        let head = self.head().await?.context("an end instead of an answer")?;
        let empty = headless || head.first.contains(" 304 ") || head.first.contains(" 1");
        let body = if empty {
            Vec::new()
        } else {
            self.body(&head).await?
        };
        Ok((head.first, String::from_utf8(body)?))
    }

    /// The body of the answer to a plain GET.
    pub(crate) async fn get(&mut self, path: &str) -> Result<String> {
        let (first, body) = self.ask(&get(path)).await?;
        ensure!(first == "HTTP/1.1 200 OK", "{first}");
        Ok(body)
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

pub(crate) fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Answers each request with its own name, the path and the body. What it does besides is in the
/// path.
pub(crate) struct WebApp {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    name: &'static str,
    /// The paths of all requests that came whole.
    asked: Mutex<Vec<String>>,
    /// What may answer `/slow`.
    may: Semaphore,
    /// Closes all idle connections.
    close: tokio::sync::watch::Sender<bool>,
}

impl WebApp {
    pub(crate) async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name,
            asked: Mutex::default(),
            may: Semaphore::new(0),
            close: tokio::sync::watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        let with = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&with);
                connections.spawn(async move {
                    // An end in the middle is the client's.
                    drop(shared.serve(Wire::new(stream)).await);
                });
            }
        });
        Ok(Self {
            addr,
            shared,
            tasks,
        })
    }

    pub(crate) fn target(&self) -> Target {
        Target::Local { addr: self.addr }
    }

    /// The requests that came whole, in their order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.asked().clone()
    }

    /// Lets so many more requests for `/slow` be answered.
    pub(crate) fn release(&self, requests: usize) {
        self.shared.may.add_permits(requests);
    }

    /// Ends connections that have no request in flight.
    pub(crate) fn close_idle(&self) {
        self.shared.close.send_replace(true);
    }

    /// Ends it with all its connections.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until so many requests came.
    pub(crate) async fn was_asked(&self, requests: usize) -> Result<()> {
        let waits = async {
            while self.asked().len() < requests {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        let waited = timeout(LIMIT, waits).await;
        waited.with_context(|| format!("only {:?} were asked", self.asked()))
    }
}

impl Shared {
    fn asked(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, mut wire: Wire) -> Result<()> {
        let mut close = self.close.subscribe();
        loop {
            let head = tokio::select! {
                head = wire.head() => head?,
                _ = close.wait_for(|close| *close) => None,
            };
            let Some(head) = head else { return Ok(()) };
            let mut words = head.first.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next());
            let path = path.unwrap_or_default().to_owned();
            if head.field("expect").is_some() {
                if path == "/refuse" {
                    wire.say("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
                        .await?;
                    return Ok(());
                }
                wire.say("HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            let body = wire.body(&head).await?;
            self.asked().push(path.clone());
            if path.starts_with("/slow") {
                self.may.acquire().await?.forget();
            }
            let body = format!("{}: {path} {}", self.name, String::from_utf8_lossy(&body));
            let body = body.trim_end();
            if !respond(&mut wire, method, &path, body).await? {
                return Ok(());
            }
        }
    }
}

/// Whether the connection goes on.
async fn respond(wire: &mut Wire, method: &str, path: &str, body: &str) -> Result<bool> {
    let length = body.len();
    match path {
        "/chunked" => {
            wire.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            for byte in body.chars() {
                wire.say(&format!("1\r\n{byte}\r\n")).await?;
            }
            wire.say("0\r\n\r\n").await?;
        }
        "/unchanged" => {
            let head = "HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n";
            wire.say(head).await?;
        }
        "/upgrade" => {
            wire.say("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n")
                .await?;
            loop {
                let byte = wire.exactly(1).await?;
                wire.stream.write_all(&byte).await?;
            }
        }
        "/close" => {
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
            wire.say(&format!("{head}Content-Length: {length}\r\n\r\n{body}"))
                .await?;
            return Ok(false);
        }
        "/until-end" => {
            wire.say(&format!("HTTP/1.1 200 OK\r\n\r\n{body}")).await?;
            return Ok(false);
        }
        _ => {
            let body = if method == "HEAD" { "" } else { body };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            wire.say(&format!("{head}{body}")).await?;
        }
    }
    Ok(true)
}
