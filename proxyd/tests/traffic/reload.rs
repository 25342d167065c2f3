//! Another configuration takes effect whole or not at all, and who has nothing to do with the
//! change notices nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxyd::ReloadError;
use rehome_shared::config::daemon::{ListenOn, ProxydConfig};
use rehome_shared::ids::Protocol;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::App;
use crate::host::{Host, LIMIT, ask, file_route, free_port, quiet_port, tcp, version};

const CLIENTS: usize = 16;
const RELOADS: u16 = 10;

/// Clients that open a connection for each question, and some that keep theirs.
struct Storm {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    tasks: JoinSet<Result<()>>,
}

impl Storm {
    fn start(to: SocketAddr) -> Self {
        let mut storm = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            tasks: JoinSet::new(),
        };
        for number in 0..CLIENTS {
            let (stop, answers) = (Arc::clone(&storm.stop), Arc::clone(&storm.answers));
            storm.tasks.spawn(async move {
                let mut kept = TcpStream::connect(to).await?;
                let mut turn = 0_usize;
                while !stop.load(Ordering::Relaxed) {
                    let text = format!("{number}.{turn}");
                    let answer = ask(&mut kept, &text).await.context("kept")?;
                    ensure!(answer == format!("app: {text}"), "{answer}");
                    let mut fresh = timeout(LIMIT, TcpStream::connect(to)).await??;
                    let answer = ask(&mut fresh, &text).await.context("fresh")?;
                    ensure!(answer == format!("app: {text}"), "{answer}");
                    answers.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                }
                Ok(())
            });
        }
        storm
    }

    /// Waits until so many more questions are answered.
    async fn answers(&mut self, more: usize) -> Result<()> {
        let wanted = self.answers.load(Ordering::Relaxed) + more;
        timeout(LIMIT, async {
            while self.answers.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
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

#[tokio::test]
async fn a_port_of_the_file_that_is_taken_is_named_and_nothing_changes() -> Result<()> {
    let (app, kept, other) = (
        App::start("app").await?,
        free_port().await?,
        free_port().await?,
    );
    let host = Host::start_with(|config| config.routes = vec![file_route(kept, app.addr)]).await?;
    let mut client = host.client(kept).await?;
    ensure!(ask(&mut client, "a").await? == "app: a");
    let taken = std::net::TcpListener::bind((host.address, 0))?;
    let port = taken.local_addr()?.port();
    let mut config = host.config.clone();
    config.routes = vec![file_route(other, app.addr), file_route(port, app.addr)];
    config.limits.per_route = 1;

    let refused = host.proxy.configure(&config).await.err();
    let Some(ReloadError::Ports(taken_ports)) = refused else {
        bail!("{refused:?}");
    };
    ensure!(taken_ports.0.len() == 1 && taken_ports.0[0].key == tcp(port)?);
    let said = taken_ports.to_string();
    for word in [
        format!("port {port}/tcp"),
        host.address.to_string(),
        app.addr.to_string(),
        "in use".to_owned(),
    ] {
        ensure!(said.contains(&word), "{word} is not in {said}");
    }
    ensure!(
        host.client(other).await.is_err(),
        "what was opened stays open"
    );
    ensure!(host.proxy.routes().routes.len() == 1);
    // The old limit is in force too: there is room for two.
    let mut second = host.client(kept).await?;
    ensure!(ask(&mut second, "b").await? == "app: b" && ask(&mut client, "c").await? == "app: c");

    drop(taken);
    let missing = host.proxy.configure(&config).await?;
    ensure!(missing.is_empty(), "{missing:?}");
    ensure!(host.client(kept).await.is_err());
    for port in [other, port] {
        let mut client = host.client(port).await?;
        ensure!(ask(&mut client, "d").await? == "app: d");
    }
    ensure!(ask(&mut client, "e").await? == "app: e", "a relay was cut");
    Ok(())
}

#[tokio::test]
async fn a_port_that_migrated_tells_of_does_not_hold_the_file_back() -> Result<()> {
    let (app, port) = (App::start("app").await?, free_port().await?);
    let host = Host::start().await?;
    let taken = std::net::TcpListener::bind((host.address, 0))?;
    let key = tcp(taken.local_addr()?.port())?;
    host.open(&[], key, version(1, 0), app.target()).await?;
    let mut config = host.config.clone();
    config.routes = vec![file_route(port, app.addr)];
    let missing = host.proxy.configure(&config).await?;
    ensure!(missing.len() == 1 && missing[0].key == key, "{missing:?}");
    let cure = format!(
        "another program has it: `ss -ltnp 'sport = :{}'`",
        key.external()
    );
    ensure!(missing[0].reason.contains(&cure), "{missing:?}");
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "x").await? == "app: x");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_unchanged_route_notices_nothing_of_ten_reloads() -> Result<()> {
    let (app, port) = (App::start("app").await?, free_port().await?);
    let host = Host::start_with(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let mut storm = Storm::start((host.address, port).into());
    storm.answers(50).await?;
    for turn in 0..RELOADS {
        let mut config = host.config.clone();
        config.limits.parked += u32::from(turn);
        config.limits.per_source = std::num::NonZeroU32::new(u32::from(turn % 2) * 1000);
        config.timeouts.user_timeout += Duration::from_secs(u64::from(turn));
        for _ in 0..3 {
            config.routes.push(file_route(free_port().await?, app.addr));
        }
        host.proxy.configure(&config).await?;
        storm.answers(20).await.context("after a reload")?;
    }
    storm.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_port_that_changes_its_address_refuses_nobody() -> Result<()> {
    let (app, port) = (App::start("app").await?, quiet_port()?);
    let host = Host::start_with(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let to = SocketAddr::from((host.address, port));
    let mut storm = Storm::start(to);
    storm.answers(50).await?;
    let everywhere = ListenOn::DualStack;
    let all_of_v4 = ListenOn::Addresses(vec![Ipv4Addr::UNSPECIFIED.into()]);
    let here = ListenOn::Addresses(vec![IpAddr::V4(host.address)]);
    for listen in [
        &everywhere,
        &all_of_v4,
        &here,
        &all_of_v4,
        &everywhere,
        &here,
    ] {
        let config = ProxydConfig {
            listen: listen.clone(),
            ..host.config.clone()
        };
        host.proxy.configure(&config).await?;
        storm
            .answers(20)
            .await
            .with_context(|| format!("{listen:?}"))?;
        let elsewhere = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        ensure!(elsewhere.is_ok() == (listen != &here), "{listen:?}");
    }
    storm.stop().await
}

#[tokio::test]
async fn a_udp_port_changes_its_address_too() -> Result<()> {
    let application = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = quiet_port()?;
    let mut route = file_route(port, application.local_addr()?);
    route.protocol = Protocol::Udp;
    let host = Host::start_with(|config| config.routes = vec![route]).await?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let here = ListenOn::Addresses(vec![IpAddr::V4(host.address)]);
    for listen in [ListenOn::DualStack, here] {
        let config = ProxydConfig {
            listen,
            ..host.config.clone()
        };
        host.proxy.configure(&config).await?;
        client.send_to(b"question", (host.address, port)).await?;
        let mut buffer = [0; 64];
        let (length, from) = timeout(LIMIT, application.recv_from(&mut buffer)).await??;
        ensure!(buffer.starts_with(b"question") && length == 8);
        application.send_to(b"answer", from).await?;
        let (length, from) = timeout(LIMIT, client.recv_from(&mut buffer)).await??;
        ensure!(buffer.starts_with(b"answer") && (length, from.port()) == (6, port));
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_this_machine_does_not_have_is_refused() -> Result<()> {
    let (app, port) = (App::start("app").await?, free_port().await?);
    let host = Host::start_with(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let mut config = host.config.clone();
    config.listen = ListenOn::Addresses(vec!["192.0.2.77".parse()?]);
    let refused = host.proxy.configure(&config).await.err();
    let said = refused.context("it was taken over")?.to_string();
    ensure!(said.contains("192.0.2.77"), "{said}");
    let mut client = host.client(port).await?;
    ensure!(ask(&mut client, "x").await? == "app: x");
    Ok(())
}

/// A client that connects before a route goes is answered; one that comes later is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_clients_of_a_route_are_served() -> Result<()> {
    let (app, port) = (App::start("app").await?, free_port().await?);
    let host = Host::start_with(|config| config.routes = vec![file_route(port, app.addr)]).await?;
    let to = SocketAddr::from((host.address, port));
    let mut without = host.config.clone();
    without.routes.clear();
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        tasks.spawn(async move {
            let mut answered = 0;
            while let Ok(mut client) = timeout(LIMIT, TcpStream::connect(to)).await? {
                let answer = ask(&mut client, "x").await;
                let answer = answer.with_context(|| format!("{number} after {answered}"))?;
                ensure!(answer == "app: x");
                answered += 1;
            }
            anyhow::Ok(answered)
        });
    }
    timeout(LIMIT, async {
        while app.accepted.load(Ordering::Relaxed) < 100 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await?;
    host.proxy.configure(&without).await?;
    while let Some(client) = tasks.join_next().await {
        ensure!(client?? > 0);
    }
    Ok(())
}
