//! Applications for the tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use rehome_shared::api::proxy::Target;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Answers each line with its own name and the line. Ends with the value.
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    pub(crate) accepted: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl App {
    pub(crate) async fn start(name: &'static str) -> Result<Self> {
        Self::start_at(name, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub(crate) async fn start_at(name: &'static str, addr: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&accepted);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(name, stream));
            }
        });
        Ok(Self {
            addr,
            accepted,
            tasks,
        })
    }

    pub(crate) fn target(&self) -> Target {
        Target::Local { addr: self.addr }
    }

    /// Ends it and waits until its port is free.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve(name: &'static str, stream: TcpStream) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if write
            .write_all(format!("{name}: {line}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// A listener whose connections the test handles itself.
pub(crate) async fn raw() -> Result<(TcpListener, Target)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    Ok((listener, Target::Local { addr }))
}
