//! One request of each kind, from the connection to the checked answer.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls};

use super::Kind;

/// The most that a page may hold.
const PAGE_LIMIT: u64 = 1 << 20;

/// What a client met instead of its answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::demo) enum Failure {
    /// There was no connection.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The database ended the connection or complained.
    #[error("the database: {0}")]
    Database(String),
    /// The answer was another one than it has to be.
    #[error("a wrong answer: {0}")]
    Wrong(String),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        // The library's own text leaves the reason to the source.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self::Database(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

/// Makes a request. `token` names the line that it adds, `known` one that must be there.
pub(super) async fn perform(
    kind: Kind,
    at: SocketAddr,
    token: Option<&str>,
    known: Option<&str>,
) -> Result<(), Failure> {
    match kind {
        Kind::Log => log(at, token.unwrap_or_default()).await,
        Kind::Write => write(at, token.unwrap_or_default()).await,
        Kind::Search => search(at, known).await,
        Kind::Page => match known {
            Some(known) => page(at, known).await,
            // The page's own front, before there is anything to look for.
            None => get(at, "/").await.map(drop),
        },
    }
}

/// Adds lines to the store that the search has to tell from others.
pub(super) async fn fill(at: SocketAddr, lines: u32) -> Result<(), Failure> {
    const FILL: &str = "INSERT INTO log (sender, message) SELECT 'archive', \
        'order ' || n || ': ' || md5(n::text) || ' of ' || md5((n * 7)::text) \
        FROM generate_series(1, $1::bigint) n";
    with_client(at, async |client| {
        let lines = i64::from(lines);
        client.query_typed(FILL, &[(&lines, Type::INT8)]).await?;
        // As in a store that has been there for long, what is old is in its place on disk.
        for settle in ["VACUUM (FREEZE, ANALYZE) log", "CHECKPOINT"] {
            client.batch_execute(settle).await?;
        }
        Ok(())
    })
    .await
}

/// Sends a log line. The receiver has all of it when it closes the connection after us.
async fn log(at: SocketAddr, token: &str) -> Result<(), Failure> {
    let mut stream = connect(at).await?;
    let line = format!("{token} checkout: one lamp for the kitchen\n");
    stream
        .write_all(line.as_bytes())
        .await
        .map_err(Failure::Broken)?;
    stream.shutdown().await.map_err(Failure::Broken)?;
    let mut rest = Vec::new();
    let answer = stream.take(PAGE_LIMIT).read_to_end(&mut rest).await;
    match answer.map_err(Failure::Broken)? {
        0 => Ok(()),
        _ => Err(Failure::Wrong(text_of(&rest))),
    }
}

async fn write(at: SocketAddr, token: &str) -> Result<(), Failure> {
    const INSERT: &str =
        "INSERT INTO log (sender, message) VALUES ('client', $1) RETURNING message";
    let message = format!("{token} invoice: paid in full");
    let stored: String = with_client(at, async |client| {
        let row = client
            .query_typed_one(INSERT, &[(&message, Type::TEXT)])
            .await?;
        Ok(row.try_get(0)?)
    })
    .await?;
    if stored == message {
        Ok(())
    } else {
        Err(Failure::Wrong(stored))
    }
}

/// Searches for a line that was acknowledged: it is there, once.
async fn search(at: SocketAddr, known: Option<&str>) -> Result<(), Failure> {
    const COUNT: &str = "SELECT count(*) FROM log WHERE words @@ plainto_tsquery('simple', $1)";
    let (word, expected) = known.map_or(("checkout0", 0), |known| (known, 1));
    let found: i64 = with_client(at, async |client| {
        let row = client
            .query_typed_one(COUNT, &[(&word, Type::TEXT)])
            .await?;
        Ok(row.try_get(0)?)
    })
    .await?;
    if found == expected {
        Ok(())
    } else {
        Err(Failure::Wrong(format!(
            "{found} lines with {word} instead of {expected}"
        )))
    }
}

/// Searches for a line on the page: it shows it.
pub(in crate::demo) async fn page(at: SocketAddr, known: &str) -> Result<(), Failure> {
    let body = get(at, &format!("/?q={known}")).await?;
    if body.contains(&format!("<td>{known} ")) {
        Ok(())
    } else {
        Err(Failure::Wrong(format!("the page does not show {known}")))
    }
}

/// The tokens of all lines that clients have sent, as often as they are in the store.
pub(in crate::demo) async fn tokens_in(at: SocketAddr) -> Result<Vec<String>, Failure> {
    const TOKENS: &str =
        "SELECT split_part(message, ' ', 1) FROM log WHERE message ~ '^(log|sql)[0-9]{6,} '";
    with_client(at, async |client| {
        let rows = client.query_typed(TOKENS, &[]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    })
    .await
}

async fn connect(at: SocketAddr) -> Result<TcpStream, Failure> {
    TcpStream::connect(at).await.map_err(Failure::Connect)
}

/// A GET whose answer must be 200; returns the body.
async fn get(at: SocketAddr, path: &str) -> Result<String, Failure> {
    let mut stream = connect(at).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", at.ip());
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(Failure::Broken)?;
    let mut answer = Vec::new();
    stream
        .take(PAGE_LIMIT)
        .read_to_end(&mut answer)
        .await
        .map_err(Failure::Broken)?;
    let answer = text_of(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(Failure::Wrong(format!("{status:?} {}", body.trim())))
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Opens a connection to the database, works with it and closes it.
async fn with_client<T>(
    at: SocketAddr,
    work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stream = connect(at).await?;
    let mut config = Config::new();
    config.user("postgres").dbname("postgres");
    let (client, mut connection) = config.connect_raw(stream, NoTls).await?;
    let (result, connection) = {
        let mut work = std::pin::pin!(work(&client));
        // The work is awaited in both arms. A connection that has ended is dropped before,
        // because as long as it is there the work waits for its answers.
        tokio::select! {
            biased;
            result = &mut work => (result, Some(connection)),
            _ = &mut connection => {
                drop(connection);
                (work.await, None)
            }
        }
    };
    drop(client);
    if let (Ok(_), Some(connection)) = (&result, connection) {
        // The farewell; a server that has closed already has no more to say.
        drop(connection.await);
    }
    result
}
