//! Sealed connections that are kept ready: clients use them, and their deaths cost little.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::Target;
use socket2::{SockFilter, SockRef};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::certificates::Authority;
use crate::host::{ask, commit_verb, prepare_verb, read_line, version};
use crate::sealed::{Two, until};

/// Both keep so many ready.
async fn keeping(cluster: &Authority, ready: u32) -> Result<Two> {
    let tls = |name: &str| {
        let mut tls = cluster.tls(name)?;
        tls.ready = ready;
        Ok(Some(tls))
    };
    Two::set(tls, tls).await
}

#[tokio::test]
async fn connections_that_are_ready_carry_clients_and_cost_nothing_when_they_die() -> Result<()> {
    let cluster = Authority::new()?;
    let Two {
        here,
        owner,
        app,
        port,
        key,
    } = keeping(&cluster, 3).await?;
    for round in 0..3 {
        let mut client = here.client(port).await?;
        ensure!(ask(&mut client, "x").await? == "one: x", "round {round}");
        until(&here, "rehome_proxy_trunks_ready 3\n").await?;
    }
    // All of them die with the other proxy, which comes back at the same place.
    let trunk = owner.proxy.trunk_addr();
    let mut owner = owner;
    owner.config.trunk.listen = trunk;
    let owner = owner.restart().await?;
    let mut client = here.client(port).await?;
    ensure!(ask(&mut client, "y").await? == "one: y");
    until(&here, "rehome_proxy_trunks_ready 3\n").await?;
    // A client that is held there has taken one; the move comes, and it goes on.
    owner.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let mut waits = here.client(port).await?;
    waits.write_all(b"z\n").await?;
    owner.wait(key, |status| status.parked == 1).await?;
    let commit = commit_verb(key, version(2, 0), app.target());
    owner.proxy.commit(commit).await?;
    ensure!(read_line(&mut waits).await? == "one: z");
    // Without certificates there is nothing to keep.
    let mut config = here.config.clone();
    config.trunk.tls = None;
    here.proxy.configure(&config).await?;
    until(&here, "rehome_proxy_trunks_ready 0\n").await?;
    // They do not keep anybody from stopping.
    drop((client, waits));
    here.stop().await?;
    owner.stop().await
}

/// A way to the owner's trunk through the test.
struct Way {
    accepted: Arc<Mutex<Vec<OwnedFd>>>,
    trunk: String,
    _tasks: JoinSet<Result<()>>,
}

impl Way {
    async fn to(two: &Two) -> Result<Self> {
        let listener = TcpListener::bind((two.owner.address, 0)).await?;
        let trunk = listener.local_addr()?.to_string();
        let accepted: Arc<Mutex<Vec<OwnedFd>>> = Arc::default();
        let (from, to) = (two.here.address, two.owner.proxy.trunk_addr());
        let (all, mut tasks) = (Arc::clone(&accepted), JoinSet::new());
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await?;
                let same = std::os::fd::AsFd::as_fd(&near).try_clone_to_owned()?;
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(same);
                let socket = TcpSocket::new_v4()?;
                socket.bind((from, 0).into())?;
                let mut far = socket.connect(to).await?;
                ways.spawn(async move {
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        Ok(Self {
            accepted,
            trunk,
            _tasks: tasks,
        })
    }

    /// Nothing arrives any more by the connections that there are, and nobody says so.
    fn goes_dark(&self) -> Result<()> {
        const RETURN: u16 = 0x06;
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in accepted.iter() {
            let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
            SockRef::from(socket).attach_filter(&nothing)?;
        }
        Ok(())
    }
}

/// As after a loss of power, or in a firewall that forgot what it had let through. Otherwise bytes may
/// stay unacknowledged for a minute.
#[tokio::test]
async fn one_whose_host_is_gone_without_a_word_is_given_up_soon() -> Result<()> {
    let two = keeping(&Authority::new()?, 1).await?;
    let way = Way::to(&two).await?;
    let over = Target::Remote {
        host: two.owner.name()?,
        trunk: way.trunk.clone(),
    };
    let (here, key) = (&two.here, two.key);
    here.open(&[&two.owner], key, version(2, 0), over).await?;
    let mut first = here.client(two.port).await?;
    ensure!(ask(&mut first, "1").await? == "one: 1");
    until(here, "rehome_proxy_trunks_ready 1\n").await?;
    way.goes_dark()?;
    let mut second = here.client(two.port).await?;
    ensure!(ask(&mut second, "2").await? == "one: 2");
    Ok(())
}

#[tokio::test]
async fn those_of_a_host_that_left_the_cluster_carry_nobody() -> Result<()> {
    let two = keeping(&Authority::new()?, 2).await?;
    let (here, owner, key) = (&two.here, &two.owner, two.key);
    let mut client = here.client(two.port).await?;
    ensure!(ask(&mut client, "1").await? == "one: 1");
    until(here, "rehome_proxy_trunks_ready 2\n").await?;
    // The owner hears of it first.
    let app = two.app.target();
    owner.open(&[], key, version(2, 0), app).await?;
    let mut late = here.client(two.port).await?;
    late.write_all(b"2\n").await?;
    until(owner, "reason=\"trunk_sender\"").await?;
    ensure!(two.app.accepted.load(std::sync::atomic::Ordering::Relaxed) == 1);
    drop(late);
    let to = owner.as_target()?;
    here.open(&[], key, version(2, 0), to).await?;
    until(here, "rehome_proxy_trunks_ready 0\n").await
}
