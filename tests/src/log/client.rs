//! A client's connection to the log, with a bound on every wait.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::protocol::{self, Answer, LINE, Question};
use super::{Digest, Record};

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; no wait of this connection is longer than `patience`.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn open(at: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks a question that has an answer of one line. After an error the answer may still come:
    /// the connection is of no more use.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub fn ask(&mut self, question: Question) -> anyhow::Result<Answer> {
        self.stream
            .get_mut()
            .write_all(format!("{question}\n").as_bytes())?;
        Ok(self.line()?.parse()?)
    }

    /// All records.
    ///
    /// # Errors
    /// When they do not all come, or are not what their digest says.
    pub fn dump(&mut self) -> anyhow::Result<Vec<Record>> {
        let Answer::Is(length, digest) = self.ask(Question::Dump)? else {
            bail!("another answer than the log");
        };
        let mut records = Vec::new();
        let mut found = Digest::default();
        for index in 0..length {
            let record = protocol::dumped(&self.line().context("the log is cut short")?)?;
            found = found.then(index, record);
            records.push(record);
        }
        ensure!(
            found == digest,
            "the log is {found:?}, and not {digest:?} as it says"
        );
        Ok(records)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(LINE).read_line(&mut line)?;
        // The rest of an answer that was cut short could be another number.
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }
}
