//! A client that asks again and again on one connection: while it is drained, rounds are sent.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::stage::PATIENCE;

/// From an answer to the next question.
const THINK: Duration = Duration::from_millis(3);

/// The client, at work until its connection ends.
#[derive(Debug)]
pub(crate) struct Busy {
    stream: TcpStream,
    /// The count that it was told last.
    client: JoinHandle<u64>,
}

impl Busy {
    /// Begins, when the store has answered once.
    pub(crate) fn start(door: SocketAddr) -> anyhow::Result<Self> {
        let stream = connect(door)?;
        let mut count = add_one(&stream)?;
        let own = stream.try_clone()?;
        let client = thread::spawn(move || {
            while let Ok(more) = add_one(&own) {
                count = more;
                thread::park_timeout(THINK);
            }
            count
        });
        Ok(Self { stream, client })
    }

    /// Ends it, and insists that the store has all that it was told.
    pub(crate) fn stop_and_verify(self, door: SocketAddr) -> anyhow::Result<()> {
        // It may have ended already.
        drop(self.stream.shutdown(Shutdown::Both));
        let told = self.client.join().ok().context("the client panicked")?;
        let kept = add_one(&connect(door)?)?;
        ensure!(
            kept > told,
            "the store counts {kept} when it had counted {told} before"
        );
        Ok(())
    }
}

fn connect(door: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(door)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Has the store count one more, and returns the count.
fn add_one(mut stream: &TcpStream) -> io::Result<u64> {
    stream.write_all(b"INCR busy\r\n")?;
    let mut line = String::new();
    // Nothing more comes before the next question.
    BufReader::new(stream).read_line(&mut line)?;
    let count = line.strip_prefix(':').map(str::trim_end);
    count
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))
}
