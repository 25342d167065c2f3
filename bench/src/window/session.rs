//! A client's connection to a store: as much of each protocol as the measurements need.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::window::plan::Kind;

/// What PostgreSQL needs before the first word.
const TABLES: &str = "CREATE TABLE IF NOT EXISTS words (word text PRIMARY KEY); \
    CREATE TABLE IF NOT EXISTS large (slot int PRIMARY KEY, value bytea); \
    ALTER TABLE large ALTER value SET STORAGE EXTERNAL;";

/// Puts a value into its place, whatever is there.
const PUT: &str = "INSERT INTO large VALUES ($1, $2) \
    ON CONFLICT (slot) DO UPDATE SET value = EXCLUDED.value";

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
pub struct Session(Inner);

#[derive(Debug)]
enum Inner {
    Redis(TcpStream),
    Postgres(Box<Postgres>),
}

#[derive(Debug)]
struct Postgres {
    client: Client,
    put: Option<Statement>,
    /// What reads and writes the socket.
    driver: JoinSet<()>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// When the connection is refused, or ends before the store has answered.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing.
    pub async fn open(kind: Kind, at: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(at).await.context("connect")?;
        stream.set_nodelay(true)?;
        match kind {
            Kind::Redis => Ok(Self(Inner::Redis(stream))),
            Kind::Postgres => {
                let mut config = Config::new();
                config.user("postgres").dbname("postgres");
                let (client, connection) =
                    config.connect_raw(stream, NoTls).await.context("login")?;
                let mut driver = JoinSet::new();
                // How the connection ends, whoever asks next hears from the client.
                driver.spawn(async move { drop(connection.await) });
                Ok(Self(Inner::Postgres(Box::new(Postgres {
                    client,
                    put: None,
                    driver,
                }))))
            }
        }
    }

    /// Whether the other side has not said farewell. A pool looks before it lends a connection.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn is_open(&mut self) -> bool {
        match &mut self.0 {
            Inner::Redis(stream) => {
                let mut byte = [0];
                let mut room = ReadBuf::new(&mut byte);
                // There is nothing to read unless it has ended.
                poll_fn(|context| {
                    std::task::Poll::Ready(stream.poll_peek(context, &mut room).is_pending())
                })
                .await
            }
            Inner::Postgres(postgres) => !postgres.client.is_closed(),
        }
    }

    /// Makes an empty store ready.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// A dropped call may be repeated, on another connection.
    pub async fn prepare(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            Inner::Redis(stream) => expect(stream, &[b"PING"], "+PONG").await,
            Inner::Postgres(postgres) => Ok(postgres.client.batch_execute(TABLES).await?),
        }
    }

    /// Writes a word; it is acknowledged when this returns.
    ///
    /// # Errors
    /// When there was no acknowledgement.
    ///
    /// # Cancel safety
    /// What became of the word of a dropped call is not known.
    pub async fn add(&mut self, word: &str) -> anyhow::Result<()> {
        match &mut self.0 {
            Inner::Redis(stream) => expect(stream, &[b"SET", word.as_bytes(), b"1"], "+OK").await,
            Inner::Postgres(postgres) => {
                let insert = format!("INSERT INTO words VALUES ('{word}')");
                Ok(postgres.client.batch_execute(&insert).await?)
            }
        }
    }

    /// Puts a large value into a slot.
    ///
    /// # Errors
    /// When it was not acknowledged.
    ///
    /// # Cancel safety
    /// What became of the value of a dropped call is not known.
    pub async fn put(&mut self, slot: u32, value: &[u8]) -> anyhow::Result<()> {
        match &mut self.0 {
            Inner::Redis(stream) => {
                let key = format!("large-{slot}");
                expect(stream, &[b"SET", key.as_bytes(), value], "+OK").await
            }
            Inner::Postgres(postgres) => {
                let statement = match &postgres.put {
                    Some(statement) => statement.clone(),
                    None => postgres.client.prepare(PUT).await?,
                };
                postgres.put = Some(statement.clone());
                let slot = i32::try_from(slot)?;
                let client = &postgres.client;
                client.execute(&statement, &[&slot, &value]).await?;
                Ok(())
            }
        }
    }

    /// What a writer of much does in PostgreSQL: it does not wait for each commit to be synced,
    /// and makes room of what it has overwritten.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// A dropped call may be repeated, on another connection.
    pub async fn be_bulk(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            Inner::Redis(_) => Ok(()),
            Inner::Postgres(postgres) => {
                let setting = "SET synchronous_commit = off";
                Ok(postgres.client.batch_execute(setting).await?)
            }
        }
    }

    /// Makes the room of overwritten values usable again, where the store does not by itself.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// A dropped call may be repeated, on another connection.
    pub async fn reclaim(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            Inner::Redis(_) => Ok(()),
            Inner::Postgres(postgres) => Ok(postgres.client.batch_execute("VACUUM large").await?),
        }
    }

    /// Says farewell.
    ///
    /// # Cancel safety
    /// A dropped call ends the connection without a farewell.
    pub async fn close(self) {
        if let Inner::Postgres(mut postgres) = self.0 {
            drop(postgres.client);
            // The driver sends the farewell and ends. A server that hangs is left alone.
            drop(tokio::time::timeout(FAREWELL, postgres.driver.join_next()).await);
        }
    }
}

/// Sends a command to Redis and insists on its one line of an answer.
async fn expect(stream: &mut TcpStream, words: &[&[u8]], answer: &str) -> anyhow::Result<()> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request).await.context("ask")?;
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n") {
        ensure!(said.len() < 1024, "an answer without an end");
        if stream.read_buf(&mut said).await.context("the answer")? == 0 {
            bail!("ended without an answer");
        }
    }
    let said = String::from_utf8_lossy(&said);
    ensure!(said.trim_end() == answer, "answered {said:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Session, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let session = Session::open(Kind::Redis, at).await.unwrap();
        (session, listener.accept().await.unwrap().0)
    }

    async fn exchange(answer: &[u8]) -> (anyhow::Result<()>, Vec<u8>) {
        let (mut session, mut server) = pair().await;
        let expected = b"*3\r\n$3\r\nSET\r\n$3\r\nw-1\r\n$1\r\n1\r\n";
        let mut asked = vec![0; expected.len()];
        let serve = async {
            server.read_exact(&mut asked).await.unwrap();
            server.write_all(answer).await.unwrap();
            drop(server);
        };
        let (added, ()) = tokio::join!(session.add("w-1"), serve);
        assert_eq!(asked, expected);
        (added, asked)
    }

    #[tokio::test]
    async fn only_the_right_answer_is_an_acknowledgement() {
        assert!(exchange(b"+OK\r\n").await.0.is_ok());
        assert!(exchange(b"-LOADING\r\n").await.0.is_err());
        assert!(exchange(b"+O").await.0.is_err());
        assert!(exchange(b"").await.0.is_err());
    }

    #[tokio::test]
    async fn a_farewell_of_the_other_side_is_seen_before_the_next_request() {
        let (mut session, server) = pair().await;
        assert!(session.is_open().await);
        drop(server);
        tokio::time::timeout(Duration::from_secs(5), async {
            while session.is_open().await {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
