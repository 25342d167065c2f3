//! Redis as a plain command of this machine, and the part of its protocol that the tests need.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::{Failure, Store};
use crate::deployment::HARD_CAP;
use crate::lab::{Lab, Runtime};

/// Redis, which keeps its words as keys.
#[derive(Debug, Clone, Copy)]
pub struct Redis;

impl Store for Redis {
    const RUNTIME: Runtime = Runtime::Process;

    fn provide(self, _lab: &Lab) -> anyhow::Result<()> {
        Ok(())
    }

    fn body(self, external: u16) -> Value {
        json!({
            "image": "unused",
            "command": [
                "redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no",
                "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--save", "",
                "--auto-aof-rewrite-percentage", "0", "--loglevel", "warning",
            ],
            "ports": [{"internal": 6379, "external": external}],
            "volume": {"mountpoint": "/data"},
            // It accepts connections while it still loads its file.
            "healthcheck": {"command": ["redis-cli", "-e", "ping"], "interval": "100ms", "retries": 600},
            "migration": {"hard_cap": HARD_CAP},
        })
    }

    fn process(self) -> &'static str {
        "redis-server"
    }

    async fn prepare(self, at: SocketAddr) -> Result<(), Failure> {
        Connection::open(at).await.map(drop)
    }

    async fn add(self, at: SocketAddr, word: &str, earlier: Option<&str>) -> Result<(), Failure> {
        let mut connection = Connection::open(at).await?;
        connection.expect(&["SET", word, "1"], "OK").await?;
        match earlier {
            Some(earlier) => connection.expect(&["GET", earlier], "1").await,
            None => Ok(()),
        }
    }

    async fn words(self, at: SocketAddr) -> Result<BTreeSet<String>, Failure> {
        let mut connection = Connection::open(at).await?;
        let keys = connection.ask(&["KEYS", "w-*"]).await?;
        Ok(keys.into_iter().collect())
    }

    async fn ballast(self, at: SocketAddr, mebibytes: u32) -> Result<(), Failure> {
        let mut connection = Connection::open(at).await?;
        for block in 0..mebibytes {
            let key = format!("ballast-{block}-{}", rand_word());
            let set = [b"SET", key.as_bytes(), &noise(1 << 20)];
            connection.expect_bytes(&set, "OK").await?;
        }
        Ok(())
    }
}

/// Differs from call to call.
fn rand_word() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = rand_word() | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

struct Connection {
    stream: BufReader<TcpStream>,
    answered: bool,
}

impl Connection {
    async fn open(at: SocketAddr) -> Result<Self, Failure> {
        let stream = super::connect(at).await?;
        let mut connection = Self {
            stream: BufReader::new(stream),
            answered: false,
        };
        connection.expect(&["PING"], "PONG").await?;
        Ok(connection)
    }

    async fn expect(&mut self, words: &[&str], answer: &str) -> Result<(), Failure> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.expect_bytes(&words, answer).await
    }

    async fn expect_bytes(&mut self, words: &[&[u8]], answer: &str) -> Result<(), Failure> {
        let given = self.ask_bytes(words).await?;
        if given == [answer] {
            Ok(())
        } else {
            let verb = String::from_utf8_lossy(words.first().copied().unwrap_or_default());
            Err(Failure::Wrong(format!(
                "{verb}: {given:?} instead of {answer}"
            )))
        }
    }

    async fn ask(&mut self, words: &[&str]) -> Result<Vec<String>, Failure> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.ask_bytes(&words).await
    }

    async fn ask_bytes(&mut self, words: &[&[u8]]) -> Result<Vec<String>, Failure> {
        let answer = self.exchange(words).await;
        let failed = if self.answered {
            Failure::MidQuery
        } else {
            Failure::AtConnect
        };
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        self.answered = true;
        answer.map_err(Failure::MidQuery)
    }

    async fn exchange(&mut self, words: &[&[u8]]) -> io::Result<Result<Vec<String>, String>> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        self.stream.write_all(&request).await?;
        let first = self.line().await?;
        if let Some(count) = first.strip_prefix('*') {
            let mut values = Vec::new();
            for _ in 0..number(count)? {
                let head = self.line().await?;
                values.push(self.value(&head).await?);
            }
            return Ok(Ok(values));
        }
        if let Some(complaint) = first.strip_prefix('-') {
            return Ok(Err(complaint.to_owned()));
        }
        Ok(Ok(vec![self.value(&first).await?]))
    }

    /// A value whose first line was read: a string with its length, or the line itself. One that
    /// is not there is empty.
    async fn value(&mut self, head: &str) -> io::Result<String> {
        match head.strip_prefix('$') {
            Some("-1") => Ok(String::new()),
            Some(length) => {
                let mut bytes = vec![0; number(length)? + 2];
                self.stream.read_exact(&mut bytes).await?;
                Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
            }
            None => Ok(head.trim_start_matches(['+', ':']).to_owned()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
