//! The server: it swallows what it gets and counts it, or sends it back. It goes away and comes
//! back when it is told to.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::proxy::role::{say, told};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Bytes that are read at once of a stream.
const BULK: usize = 128 * 1024;
/// After so many reads in a row other streams have their turn.
const TURN: u32 = 8;
/// Bytes of a message that is sent back.
const MESSAGE: usize = 64;

/// What the server does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manner {
    /// It swallows it.
    Swallow,
    /// It sends it back.
    Echo,
}

/// What a server is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where it listens.
    pub port: u16,
    /// How it answers.
    pub manner: Manner,
}

/// What it can be told.
pub const COUNT: &str = "count";
/// To close its door, but not on whom it let in.
pub const LEAVE: &str = "leave";
/// To open it again.
pub const RETURN: &str = "return";

/// Serves until its input ends.
///
/// # Errors
/// When the port is taken, or it is told what it does not understand.
///
/// # Cancel safety
/// Dropping it ends all connections.
pub async fn run(service: Service) -> anyhow::Result<()> {
    let mut lines = told();
    let mut door = Some(open(service.port)?);
    let bytes = Arc::new(AtomicU64::new(0));
    let mut guests = JoinSet::new();
    say("ready")?;
    loop {
        // Every arm is cancel safe: what was not taken is still there.
        tokio::select! {
            stream = next(door.as_ref()) => welcome(&mut guests, stream?, service.manner, &bytes),
            Some(_ended) = guests.join_next(), if !guests.is_empty() => {}
            line = lines.recv() => match line.as_deref() {
                None => return Ok(()),
                Some(COUNT) => say(&bytes.load(Ordering::Relaxed).to_string())?,
                Some(LEAVE) => {
                    if let Some(listener) = door.take() {
                        for stream in close(listener)? {
                            welcome(&mut guests, stream, service.manner, &bytes);
                        }
                    }
                    say(LEAVE)?;
                }
                Some(RETURN) => {
                    door = Some(open(service.port)?);
                    say(RETURN)?;
                }
                Some(other) => bail!("the server cannot {other}"),
            },
        }
    }
}

fn open(port: u16) -> anyhow::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(address).context("the server's port")?;
    Ok(socket.listen(BACKLOG)?)
}

async fn next(door: Option<&TcpListener>) -> io::Result<TcpStream> {
    match door {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Closes the door and answers who stood before it: a close alone would turn them away, although
/// the kernel had let them in.
fn close(listener: TcpListener) -> io::Result<Vec<TcpStream>> {
    let listener = listener.into_std()?;
    let mut waiting = Vec::new();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                waiting.push(TcpStream::from_std(stream)?);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(waiting),
            Err(error) => return Err(error),
        }
    }
}

fn welcome(guests: &mut JoinSet<()>, stream: TcpStream, manner: Manner, bytes: &Arc<AtomicU64>) {
    let bytes = Arc::clone(bytes);
    guests.spawn(async move {
        // How a connection ends is the clients' business.
        match manner {
            Manner::Swallow => drop(swallow(&stream, &bytes).await),
            Manner::Echo => drop(echo(stream).await),
        }
    });
}

async fn swallow(stream: &TcpStream, bytes: &AtomicU64) -> io::Result<()> {
    thread_local! {
        static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; BULK]);
    }
    loop {
        stream.readable().await?;
        for _ in 0..TURN {
            match SPACE.with_borrow_mut(|space| stream.try_read(space)) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    let read = u64::try_from(read).unwrap_or_default();
                    bytes.fetch_add(read, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        let read = stream.read(&mut message).await?;
        match message.get(..read) {
            None | Some([]) => return Ok(()),
            Some(bytes) => stream.write_all(bytes).await?,
        }
    }
}
