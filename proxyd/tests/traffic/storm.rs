//! An application that moves to and fro while clients come through every host: nobody is
//! refused, nobody is cut, and every answer is right.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rehome_shared::ids::RouteVersion;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::App;
use crate::host::{
    Host, LIMIT, ask, commit_verb, drain_verb, free_port, gate_ref, prepare_verb, tcp, version,
};

const MOVES: u64 = 8;
const CLIENTS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_of_all_hosts_notice_nothing_while_the_application_moves() -> Result<()> {
    let hosts = [
        Host::start().await?,
        Host::start().await?,
        Host::start().await?,
    ];
    let all: Vec<&Host> = hosts.iter().collect();
    let port = free_port().await?;
    let mut app = App::start("app").await?;
    let mut owner = 0;
    tell(&all, owner, &app, port, version(1, 0)).await?;
    let mut clients = Clients::start(&all, port);
    for epoch in 1..=MOVES {
        let next = (owner + 1) % all.len();
        let source = all.get(owner).context("no source")?;
        let destination = all.get(next).context("no destination")?;
        stop_traffic(source, epoch).await?;
        app.stop().await;
        app = App::start("app").await?;
        let at = version(epoch + 1, 0);
        destination.open(&all, tcp(port)?, at, app.target()).await?;
        let commit = commit_verb(tcp(port)?, at, destination.as_target()?);
        source.proxy.commit(commit).await?;
        owner = next;
        // Every other time the third host stays behind until the next move.
        if epoch % 2 == 0 {
            tell(&all, owner, &app, port, at).await?;
        }
        clients
            .make_progress()
            .await
            .context("the clients are stuck")?;
    }
    clients.stop().await?;
    for host in &all {
        host.wait(tcp(port)?, |status| {
            status.active == 0 && status.parked == 0
        })
        .await?;
        host.stop().await?;
    }
    Ok(())
}

/// Holds new connections and lets those that flow finish: none may have to be cut.
async fn stop_traffic(source: &Host, epoch: u64) -> Result<()> {
    source
        .proxy
        .prepare(prepare_verb(version(epoch, 1)))
        .await?;
    let verb = drain_verb(version(epoch, 1), LIMIT);
    let drained = source.proxy.drain(verb).await?;
    ensure!(drained.active == 0, "{drained:?}");
    let frozen = source.proxy.freeze(gate_ref(version(epoch, 1))).await?;
    ensure!(frozen.cut == 0, "{frozen:?}");
    Ok(())
}

/// Tells every host where the application is.
async fn tell(all: &[&Host], owner: usize, app: &App, port: u16, at: RouteVersion) -> Result<()> {
    let owner = all.get(owner).context("no owner")?;
    for host in all {
        let here = host.address == owner.address;
        let target = if here {
            app.target()
        } else {
            owner.as_target()?
        };
        host.open(all, tcp(port)?, at, target).await?;
    }
    Ok(())
}

/// Clients that open a connection for each question, through all hosts.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Clients {
    fn start(all: &[&Host], port: u16) -> Self {
        let (stop, answers) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let mut tasks = JoinSet::new();
        for (n, host) in all.iter().cycle().take(CLIENTS).enumerate() {
            let (stop, answers, address) = (Arc::clone(&stop), Arc::clone(&answers), host.address);
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = timeout(LIMIT, TcpStream::connect((address, port))).await??;
                    let answer = ask(&mut stream, &n.to_string()).await?;
                    ensure!(answer == format!("app: {n}"), "{answer}");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self {
            stop,
            answers,
            tasks,
        }
    }

    async fn make_progress(&mut self) -> Result<()> {
        let wanted = self.answers.load(Ordering::Relaxed) + 100;
        timeout(LIMIT, async {
            while self.answers.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
                // A client that ends before it is told to has failed.
                if let Some(ended) = self.tasks.try_join_next() {
                    ended??;
                }
            }
            Ok(())
        })
        .await?
    }

    async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.tasks.join_next().await {
            client??;
        }
        Ok(())
    }
}
