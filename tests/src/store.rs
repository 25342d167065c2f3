//! Applications with a volume, and their clients: Redis as a process, PostgreSQL in a container.
//! A store keeps a set of words; every request is a connection of its own.

mod postgres;
mod redis;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;

use crate::lab::{Lab, Runtime};

pub use postgres::{IMAGE as POSTGRES_IMAGE, Postgres};
pub use redis::Redis;

/// What a client met instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The connection was refused.
    #[error("refused")]
    Refused,
    /// The connection was accepted and ended before the first answer.
    #[error("ended before the first answer: {0}")]
    AtConnect(String),
    /// The connection ended, or the store complained, after the first answer.
    #[error("failed after the first answer: {0}")]
    MidQuery(String),
    /// The answer was another one than the store must give.
    #[error("answered wrongly: {0}")]
    Wrong(String),
}

/// A store that the tests can deploy, write to and read.
pub trait Store: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// What runs it.
    const RUNTIME: Runtime;

    /// Gives the lab what the store is made of.
    ///
    /// # Errors
    /// When it cannot.
    fn provide(self, lab: &Lab) -> anyhow::Result<()>;

    /// The application, on an external port.
    fn body(self, external: u16) -> Value;

    /// A word that is in the command line of its process.
    fn process(self) -> &'static str;

    /// Makes an empty store ready for words.
    fn prepare(self, at: SocketAddr) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Adds a word, and insists that one which was added earlier is there.
    fn add(
        self,
        at: SocketAddr,
        word: &str,
        earlier: Option<&str>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// All words.
    fn words(
        self,
        at: SocketAddr,
    ) -> impl Future<Output = Result<BTreeSet<String>, Failure>> + Send;

    /// Adds data that cannot be compressed, besides the words.
    fn ballast(
        self,
        at: SocketAddr,
        mebibytes: u32,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

async fn connect(at: SocketAddr) -> Result<tokio::net::TcpStream, Failure> {
    let stream = tokio::net::TcpStream::connect(at).await;
    stream.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Failure::Refused,
        _ => Failure::AtConnect(error.to_string()),
    })
}
