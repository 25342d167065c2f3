//! PostgreSQL in the container that the demonstration uses.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, Error, NoTls, SimpleQueryMessage};

use super::{Failure, Store};
use crate::deployment::HARD_CAP;
use crate::lab::{Lab, Runtime};

/// The name of its image.
pub const IMAGE: &str = "rehome-demo/postgres";

/// PostgreSQL, which keeps its words in a table.
#[derive(Debug, Clone, Copy)]
pub struct Postgres;

impl Store for Postgres {
    const RUNTIME: Runtime = Runtime::Docker;

    fn provide(self, lab: &Lab) -> anyhow::Result<()> {
        lab.load_postgres()
    }

    fn body(self, external: u16) -> Value {
        let ready = "/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1";
        json!({
            "image": IMAGE,
            "ports": [{"internal": 5432, "external": external}],
            "volume": {"mountpoint": "/var/lib/postgresql/data"},
            // It accepts connections while it still recovers.
            "healthcheck": {"command": ["sh", "-c", ready], "interval": "100ms", "retries": 600},
            "migration": {"hard_cap": HARD_CAP},
        })
    }

    fn process(self) -> &'static str {
        "postgres -D"
    }

    async fn prepare(self, at: SocketAddr) -> Result<(), Failure> {
        let tables = "CREATE TABLE words (word text PRIMARY KEY); \
                      CREATE TABLE ballast (bytes bytea); \
                      ALTER TABLE ballast ALTER bytes SET STORAGE EXTERNAL;";
        with_client(at, async |client| ask(client, tables).await.map(drop)).await
    }

    async fn add(self, at: SocketAddr, word: &str, earlier: Option<&str>) -> Result<(), Failure> {
        let insert = format!("INSERT INTO words VALUES ('{word}')");
        let select = earlier.map(|word| format!("SELECT word FROM words WHERE word = '{word}'"));
        with_client(at, async |client| {
            ask(client, &insert).await?;
            let Some(select) = &select else { return Ok(()) };
            let found = ask(client, select).await?;
            if found.iter().map(String::as_str).eq(earlier) {
                Ok(())
            } else {
                Err(Failure::Wrong(format!("{found:?} instead of {earlier:?}")))
            }
        })
        .await
    }

    async fn words(self, at: SocketAddr) -> Result<BTreeSet<String>, Failure> {
        with_client(at, async |client| {
            let words = ask(client, "SELECT word FROM words").await?;
            Ok(words.into_iter().collect())
        })
        .await
    }

    async fn ballast(self, at: SocketAddr, mebibytes: u32) -> Result<(), Failure> {
        // 16 bytes from each row of the series.
        let insert = format!(
            "INSERT INTO ballast SELECT decode((SELECT string_agg(md5(random()::text || i || j), '') \
             FROM generate_series(1, 4096) j), 'hex') FROM generate_series(1, {}) i",
            mebibytes * 16
        );
        with_client(at, async |client| ask(client, &insert).await.map(drop)).await
    }
}

/// Opens a connection, works with it, and closes it.
async fn with_client<T>(
    at: SocketAddr,
    work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stream = super::connect(at).await?;
    let (client, connection) = login(stream).await?;
    let mut connection = Box::pin(connection);
    let (result, alive) = {
        let mut work = std::pin::pin!(work(&client));
        tokio::select! {
            biased;
            result = &mut work => (result, Some(connection)),
            // The server has ended the connection. What it still owed is lost with it, and the
            // work hears of that only when the connection is gone.
            _ended = &mut connection => {
                drop(connection);
                (work.await, None)
            }
        }
    };
    drop(client);
    if let Some(connection) = alive {
        // The farewell: a server that has closed already has no more to say.
        drop(connection.await);
    }
    result
}

async fn login(stream: TcpStream) -> Result<(Client, Connection<TcpStream, NoTlsStream>), Failure> {
    let mut config = Config::new();
    config.user("postgres").dbname("postgres");
    let login = config.connect_raw(stream, NoTls).await;
    login.map_err(|error| Failure::AtConnect(describe(&error)))
}

async fn ask(client: &Client, query: &str) -> Result<Vec<String>, Failure> {
    let answer = client.simple_query(query).await;
    let messages = answer.map_err(|error| Failure::MidQuery(describe(&error)))?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect())
}

fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} {}", said.code().code(), said.message()),
        None => format!("{:#}", anyhow::anyhow!("{error:?}")),
    }
}
