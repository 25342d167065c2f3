//! Clients of a storm: each connects, says one byte, and waits for the number that the application
//! answers with. All of them are begun in their order before any result is looked at. One line
//! tells that they are begun, and then one line for each how it went.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

#[derive(Debug, Parser)]
struct Arguments {
    /// The address that they come from
    #[arg(long)]
    from: IpAddr,
    /// Where they go
    #[arg(long)]
    to: SocketAddr,
    /// How many
    #[arg(long)]
    count: usize,
    /// How long each waits, in seconds
    #[arg(long)]
    patience: u64,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(storm(&Arguments::parse()))
}

async fn storm(arguments: &Arguments) -> anyhow::Result<()> {
    let patience = Duration::from_secs(arguments.patience);
    let begin = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..arguments.count {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(arguments.from, 0))?;
        let (port, to) = (socket.local_addr()?.port(), arguments.to);
        clients.spawn(async move {
            let mut connected = None;
            let visit = async {
                let mut stream = socket.connect(to).await.context("connect")?;
                connected = Some(begin.elapsed());
                stream.write_u8(b'?').await.context("ask")?;
                let number = stream.read_u64().await.context("answer")?;
                let more = stream.read(&mut [0]).await.context("end")?;
                anyhow::ensure!(more == 0, "more than one answer");
                anyhow::Ok(number)
            };
            let visit = timeout(patience, visit).await;
            let visit = visit.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
            (port, connected, visit, begin.elapsed())
        });
        // In its turn: it sends its SYN before the next one does.
        tokio::task::yield_now().await;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "begun")?;
    out.flush()?;
    while let Some(visit) = clients.join_next().await {
        let (port, connected, visit, ended) = visit?;
        let connected = connected.map_or(-1, |at| i128::try_from(at.as_millis()).unwrap_or(-1));
        match visit {
            Ok(number) => {
                writeln!(out, "{port} {connected} {} {number}", ended.as_millis())?;
            }
            Err(error) => writeln!(out, "{port} {connected} {} {error:#}", ended.as_millis())?,
        }
    }
    Ok(())
}
