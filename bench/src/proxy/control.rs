//! What a relay is told while it runs, each in the way that its documentation has for that.
//!
//! Ours is told what `migrated` tells it at a move, on the same socket in the same words: its
//! routes, then to park, to drain and to freeze, and its routes again with a larger epoch. HAProxy
//! has a server put into maintenance, or its frontend told to take nobody in, which its author
//! made for just this. The others have no word for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use rehome_runtime::http_client::HttpClient;
use rehome_shared::api::proxy::{
    Announce, Content, Drain, GateCounts, GateRef, ParkLimits, Prepare, RouteIntent, RouteKey,
    RouteSpec, RoutesReply, SetRoutes, Target,
};
use rehome_shared::ids::{AppName, Epoch, Generation, Protocol, RouteVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::proxy::network::{RELAY, SERVER};
use crate::proxy::plan::Contender;

/// No word takes longer.
const LIMIT: Duration = Duration::from_secs(5);
/// What `migrated` grants a drain, and a person who watches HAProxy's.
const DRAIN: Duration = Duration::from_secs(2);
/// From one look at what HAProxy still serves to the next.
const LOOK: Duration = Duration::from_millis(10);

/// The default limits of a park.
const PARK: ParkLimits = ParkLimits {
    park_limit: 10_000,
    park_timeout: Duration::from_mins(1),
};

/// A relay that can be told something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    contender: Contender,
    port: u16,
    socket: PathBuf,
}

/// The socket of a relay that is told something, in a directory of its own.
#[must_use]
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("relay.sock")
}

impl Control {
    /// Of a relay with this port and this directory.
    #[must_use]
    pub fn new(contender: Contender, port: u16, directory: &Path) -> Self {
        Self {
            contender,
            port,
            socket: socket(directory),
        }
    }

    /// Tells a relay that has just begun what is not in its file. May be repeated.
    ///
    /// # Errors
    /// When it does not listen yet, or refuses.
    ///
    /// # Cancel safety
    /// May have been told; say it again.
    pub async fn begin(&self) -> anyhow::Result<()> {
        match self.contender {
            Contender::Rehome => self.route(1).await,
            Contender::HaproxySplice
            | Contender::Haproxy
            | Contender::HaproxyPaused
            | Contender::Nginx
            | Contender::Envoy
            | Contender::Systemd
            | Contender::Routed => Ok(()),
        }
    }

    /// Tells it that the backend goes. When it returns nothing flows any more, or its time for
    /// that is up.
    ///
    /// # Errors
    /// When it refuses, or cannot be told.
    ///
    /// # Cancel safety
    /// May have been told.
    pub async fn hold(&self) -> anyhow::Result<()> {
        match self.contender {
            Contender::Rehome => self.park().await,
            Contender::Haproxy => self.order("set server bench/one state maint").await,
            Contender::HaproxyPaused => {
                self.order("set maxconn frontend bench 0").await?;
                self.served().await
            }
            Contender::HaproxySplice
            | Contender::Nginx
            | Contender::Envoy
            | Contender::Systemd
            | Contender::Routed => self.nothing_to_say(),
        }
    }

    /// Tells it that the backend is back.
    ///
    /// # Errors
    /// When it refuses, or cannot be told.
    ///
    /// # Cancel safety
    /// May have been told.
    pub async fn release(&self) -> anyhow::Result<()> {
        match self.contender {
            Contender::Rehome => self.route(2).await,
            Contender::Haproxy => self.order("set server bench/one state ready").await,
            // More than it may have in all is as many as it may have.
            Contender::HaproxyPaused => self.order("set maxconn frontend bench 100000").await,
            Contender::HaproxySplice
            | Contender::Nginx
            | Contender::Envoy
            | Contender::Systemd
            | Contender::Routed => self.nothing_to_say(),
        }
    }

    fn nothing_to_say(&self) -> anyhow::Result<()> {
        anyhow::bail!("{} cannot be told to wait", self.contender.title())
    }

    /// Opens the route of an epoch.
    async fn route(&self, epoch: u64) -> anyhow::Result<()> {
        let routes = SetRoutes {
            host: RELAY.parse()?,
            peers: Vec::new(),
            routes: vec![RouteSpec {
                content: Content::default(),
                announce: Announce::default(),
                key: RouteKey::new(self.port, Protocol::Tcp),
                application: application()?,
                version: version(epoch, 0),
                intent: RouteIntent::Open(Target::Local {
                    addr: format!("{SERVER}:{}", self.port).parse()?,
                }),
                limits: PARK,
            }],
        };
        let reply: RoutesReply = self.ask(Method::PUT, "/v1/routes", &routes, LIMIT).await?;
        let error = reply.routes.iter().find_map(|r| r.listen_error.as_deref());
        ensure!(error.is_none(), "proxyd: {}", error.unwrap_or_default());
        Ok(())
    }

    async fn park(&self) -> anyhow::Result<()> {
        let (application, version) = (application()?, version(1, 1));
        let prepare = Prepare {
            application: application.clone(),
            version,
            lease: Duration::from_secs(15),
            limits: PARK,
        };
        let drain = Drain {
            application: application.clone(),
            version,
            deadline: DRAIN,
        };
        let freeze = GateRef {
            application,
            version,
        };
        let _: GateCounts = self.verb("prepare", &prepare, LIMIT).await?;
        let _: GateCounts = self.verb("drain", &drain, LIMIT + DRAIN).await?;
        let _: GateCounts = self.verb("freeze", &freeze, LIMIT).await?;
        Ok(())
    }

    async fn verb<T: serde::Serialize + Sync>(
        &self,
        verb: &str,
        body: &T,
        limit: Duration,
    ) -> anyhow::Result<GateCounts> {
        let path = format!("/v1/gates/{verb}");
        self.ask(Method::POST, &path, body, limit).await
    }

    async fn ask<Q: serde::Serialize + Sync, A: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Q,
        limit: Duration,
    ) -> anyhow::Result<A> {
        let client = HttpClient::unix(&self.socket);
        let answer = client.request_json(method, path, Some(body), limit).await;
        answer.with_context(|| format!("proxyd, {path}"))
    }

    /// Waits until HAProxy serves nobody any more.
    async fn served(&self) -> anyhow::Result<()> {
        let waits = async {
            while frontend_serves(&self.say("show stat").await?)? > 0 {
                sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        // Whoever stays longer is not waited for.
        timeout(DRAIN, waits).await.unwrap_or(Ok(()))
    }

    /// Tells HAProxy something to which silence is the answer.
    async fn order(&self, words: &str) -> anyhow::Result<()> {
        let answer = self.say(words).await?;
        ensure!(answer.trim().is_empty(), "HAProxy, {words}: {answer}");
        Ok(())
    }

    async fn say(&self, words: &str) -> anyhow::Result<String> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(format!("{words}\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(LIMIT, exchange).await;
        answer
            .with_context(|| format!("HAProxy does not answer {words}"))?
            .with_context(|| format!("HAProxy, {words}"))
    }
}

fn application() -> anyhow::Result<AppName> {
    Ok("bench".parse()?)
}

fn version(epoch: u64, generation: u64) -> RouteVersion {
    RouteVersion {
        epoch: Epoch(epoch),
        generation: Generation(generation),
    }
}

/// How many sessions a frontend has, in HAProxy's table: the fields are named in its first line.
fn frontend_serves(table: &str) -> anyhow::Result<u64> {
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let sessions = names.iter().position(|name| *name == "scur");
    let sessions = sessions.context("HAProxy does not count sessions")?;
    let frontend = lines
        .map(|line| line.split(',').collect::<Vec<&str>>())
        .find(|fields| fields.starts_with(&["bench", "FRONTEND"]));
    let fields = frontend.context("HAProxy knows no frontend")?;
    let count = fields.get(sessions).context("HAProxy's line is short")?;
    Ok(count.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_of_the_frontend_are_found_by_their_name() {
        let table = "# pxname,svname,qcur,qmax,scur,smax,\n\
                     bench,FRONTEND,,,7,16,\nbench,one,0,0,9,16,\n";
        assert_eq!(frontend_serves(table).unwrap(), 7);
        assert!(frontend_serves("").is_err());
        assert!(frontend_serves("# pxname,svname,scur\nbench,one,0\n").is_err());
    }

    #[tokio::test]
    async fn who_has_no_word_for_it_is_not_told() {
        let control = Control::new(Contender::Nginx, 5000, Path::new("/nowhere"));
        assert!(control.begin().await.is_ok());
        assert!(control.hold().await.is_err() && control.release().await.is_err());
    }
}
