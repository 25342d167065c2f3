//! The ways that bytes can go, each with the proxies that it takes. Another way is another value
//! here, and what it does to the proxies in [`Stage::set`] or [`Stage::midway`].

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, ensure};
use rehome_tests::network;
use rehome_tests::proxy::{PATIENCE, Proxy, Seal, Setup, Used, Version, local, remote, route, sum};
use rehome_tests::wait::wait_until;

use crate::peer::{APPLICATION, accept, carry, connect};

/// The port of the route.
const PORT: u16 = 5000;
/// Enough that both directions take to pipes.
const BULK: usize = 4 << 20;

/// By which means bytes go from one socket to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    Copy,
    Splice,
}

/// What is between the client's host and the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// They are the same.
    None,
    /// A trunk without encryption.
    Plain,
    /// One of TLS, through which nothing is spliced.
    Sealed,
}

/// A way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) means: Means,
    pub(crate) link: Link,
    pub(crate) proxies: Proxies,
}

/// Whether the proxies of the beginning see the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxies {
    Stay,
    /// Each hands over in the middle.
    HandOver,
}

/// The ends that the proxies have counted, by their word.
pub(crate) type Ends = BTreeMap<&'static str, u64>;

/// Every end that a case may bring about.
const ENDS: [&str; 7] = [
    "finished",
    "client_reset",
    "upstream_reset",
    "client_gone",
    "half_close_timeout",
    "connect_failed",
    "refused",
];

/// A client's host, the application's, and the application.
pub(crate) struct Stage {
    way: Way,
    here: Proxy,
    owner: Option<Proxy>,
    application: TcpListener,
    /// What each proxy uses when it has nothing to do.
    base: Vec<Used>,
}

impl Stage {
    pub(crate) fn set(way: Way) -> anyhow::Result<Self> {
        network::own()?;
        let seal = match way.link {
            Link::None | Link::Plain => None,
            Link::Sealed => Some(Seal::of(&[1, 2])?),
        };
        let setup = || {
            let setup = Setup::with(match way.means {
                // Less than one pipe: there is none.
                Means::Copy => "limits: {pipe_bytes: 1KiB}",
                Means::Splice => "",
            });
            match &seal {
                Some(seal) => setup.sealed(seal),
                None => setup,
            }
        };
        let here = Proxy::start(1, setup())?;
        let owner = match way.link {
            Link::None => None,
            Link::Plain | Link::Sealed => Some(Proxy::start(2, setup())?),
        };
        let to_it = route(PORT, "db", Version(1, 0), &local(APPLICATION));
        match &owner {
            None => drop(here.set(&[to_it])?),
            Some(owner) => {
                owner.set(&[to_it])?;
                let there = remote(owner.number());
                here.set(&[route(PORT, "db", Version(1, 0), &there)])?;
            }
        }
        let application = TcpListener::bind(APPLICATION)?;
        let mut stage = Self {
            way,
            here,
            owner,
            application,
            base: Vec::new(),
        };
        // What is opened for the first connection and kept is no leak.
        drop(stage.connect()?);
        stage.wait_for_silence()?;
        let mut base = Vec::new();
        for proxy in stage.proxies() {
            base.push(at_rest(proxy)?);
        }
        stage.base = base;
        Ok(stage)
    }

    /// Every proxy.
    pub(crate) fn proxies(&self) -> Vec<&Proxy> {
        std::iter::once(&self.here).chain(&self.owner).collect()
    }

    /// Their processes.
    pub(crate) fn pids(&self) -> anyhow::Result<Vec<u32>> {
        self.proxies().into_iter().map(Proxy::pid).collect()
    }

    /// The application.
    pub(crate) fn application(&self) -> &TcpListener {
        &self.application
    }

    /// The proxy whose gate decides.
    pub(crate) fn owner(&self) -> &Proxy {
        self.owner.as_ref().unwrap_or(&self.here)
    }

    /// A client and the application's side of its connection, over which this way's means are at
    /// work in both directions.
    pub(crate) fn connect(&self) -> anyhow::Result<(TcpStream, TcpStream)> {
        let client = self.client()?;
        let server = accept(&self.application)?;
        self.warm_up(&client, &server)?;
        self.midway()?;
        Ok((client, server))
    }

    /// A client.
    pub(crate) fn client(&self) -> anyhow::Result<TcpStream> {
        connect(self.here.door(PORT))
    }

    fn warm_up(&self, client: &TcpStream, server: &TcpStream) -> anyhow::Result<()> {
        // An application that resets at once was not reached, and is tried again.
        carry(client, server, 1, 1)?;
        let bulk = match self.way.means {
            Means::Copy => 1,
            Means::Splice => BULK,
        };
        carry(client, server, 2, bulk)?;
        carry(server, client, 3, bulk)?;
        for proxy in self.proxies() {
            let pipes = proxy.metric("rehome_proxy_pipe_bytes", &[])?;
            let spliced = pipes > 0;
            ensure!(
                spliced == (self.way.means == Means::Splice),
                "{pipes} bytes of pipes"
            );
        }
        Ok(())
    }

    /// What happens to the proxies when bytes have flowed and before the end comes.
    fn midway(&self) -> anyhow::Result<()> {
        if self.way.proxies == Proxies::HandOver {
            for proxy in self.proxies() {
                let reply = proxy.upgrade()?;
                ensure!(reply["stayed"] == 0, "not all went over: {reply}");
            }
        }
        Ok(())
    }

    /// Holds new connections; returns the version that lets them go.
    pub(crate) fn park(&self) -> anyhow::Result<Version> {
        let (Version(epoch, _), _) = self.owner().gate(PORT)?;
        self.owner().prepare("db", Version(epoch, 1))?;
        Ok(Version(epoch + 1, 0))
    }

    /// Waits until so many clients are held.
    pub(crate) fn wait_for_parked(&self, count: u64) -> anyhow::Result<()> {
        wait_until("clients are held", PATIENCE, || {
            Ok(self.owner().parked(PORT)? == count)
        })
    }

    /// Lets those go that are held.
    pub(crate) fn release(&self, at: Version) -> anyhow::Result<()> {
        self.owner().commit("db", at, PORT, &local(APPLICATION))?;
        Ok(())
    }

    /// How connections have ended so far, over all proxies.
    pub(crate) fn ends(&self) -> anyhow::Result<Ends> {
        let mut ends = Ends::new();
        for proxy in self.proxies() {
            let page = proxy.metrics()?;
            for end in ENDS {
                let label = format!("result=\"{end}\"");
                let count = sum(&page, "rehome_proxy_connections_total", &[&label])?;
                *ends.entry(end).or_default() += count;
            }
        }
        Ok(ends)
    }

    fn wait_for_silence(&self) -> anyhow::Result<()> {
        for proxy in self.proxies() {
            proxy.wait("no connection is left", |page| {
                let mut left = 0;
                for name in [
                    "rehome_proxy_connections_active",
                    "rehome_proxy_connections_parked",
                    "rehome_proxy_relay_bytes",
                    "rehome_proxy_parked_bytes",
                ] {
                    left += sum(page, name, &[])?;
                }
                Ok(left == 0)
            })?;
        }
        Ok(())
    }

    /// No connection, no buffer, no descriptor.
    pub(crate) fn nothing_is_left(&self) -> anyhow::Result<()> {
        self.wait_for_silence()?;
        for (proxy, base) in self.proxies().into_iter().zip(&self.base) {
            let live = proxy.send(("GET", "/v1/connections"), None)?.ok()?;
            ensure!(live["total"] == 0, "connections are left: {live}");
            let mut now = *base;
            wait_until("descriptors are closed", PATIENCE, || {
                now = proxy.used()?;
                Ok(now.descriptors == base.descriptors)
            })
            .with_context(|| format!("{now:?}, and at first {base:?}"))?;
        }
        Ok(())
    }
}

/// What a proxy uses once that does not change any more.
fn at_rest(proxy: &Proxy) -> anyhow::Result<Used> {
    let (mut last, mut same) = (proxy.used()?, 0);
    wait_until("a proxy is at rest", PATIENCE, || {
        let now = proxy.used()?;
        same = if now.descriptors == last.descriptors {
            same + 1
        } else {
            0
        };
        last = now;
        Ok(same >= 4)
    })?;
    Ok(last)
}
