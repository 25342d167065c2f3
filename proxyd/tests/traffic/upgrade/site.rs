//! A real process that hands over to others.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use rehome_runtime::http_client::{ClientError, HttpClient};
use rehome_shared::api::proxy::{
    Announce, ConnectionInfo, ConnectionsReply, Content, ReloadReply, RouteIntent, RouteKey,
    RouteSpec, RouteStatus, RoutesReply, SetRoutes, Target, Upgrade, UpgradeReply,
};
use rehome_shared::ids::{AppName, RouteVersion};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::binary::{PROGRAM, config, wait_for};
use crate::host::{LIMIT, db, free_port, park_limits, seal_line, tcp, unused_address};

/// Another application than [`db`].
pub(crate) fn other() -> AppName {
    "web"
        .parse()
        .unwrap_or_else(|_| unreachable!("a valid name"))
}

/// What asks.
#[derive(Clone)]
pub(crate) struct Control(HttpClient);

impl Control {
    pub(crate) async fn verb<Req: Serialize + Sync, Res: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Req,
    ) -> Result<Res, ClientError> {
        let path = format!("/v1/gates/{verb}");
        self.0
            .request_json(Method::POST, &path, Some(body), LIMIT)
            .await
    }
}

/// A proxy of a directory of its own. Its processes end with the value.
pub(crate) struct Site {
    pub(crate) address: Ipv4Addr,
    trunk: u16,
    /// Where its metrics are.
    pub(super) page: SocketAddr,
    directory: TempDir,
    first: Child,
    /// The process that serves.
    pid: u32,
    control: Control,
    /// What travels on the routes that are set from now on.
    pub(crate) content: Content,
}

impl Site {
    pub(crate) async fn start(program: &str) -> Result<Self> {
        Self::start_with(program, "").await
    }

    /// With more in its file.
    pub(crate) async fn start_with(program: &str, more: &str) -> Result<Self> {
        Self::start_in(program, more, &[]).await
    }

    /// And with this in its environment.
    pub(crate) async fn start_in(
        program: &str,
        more: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = unused_address();
        let page = SocketAddr::from((address, free_port().await?));
        let trunk = free_port().await?;
        let text = config(directory.path(), address, page, trunk, "");
        let listen = format!("trunk: {{listen: \"{address}:{trunk}\"");
        let tls = seal_line(&address.to_string())?;
        let mut text = text.replace(&listen, &(listen.clone() + &tls));
        text.push_str(more);
        let file = directory.path().join("proxyd.yml");
        fs::write(&file, text)?;
        let first = Command::new(program)
            .arg("--config")
            .arg(&file)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let control = Control(HttpClient::unix(&directory.path().join("s")));
        let site = Self {
            address,
            trunk,
            page,
            pid: first.id(),
            directory,
            first,
            control,
            content: Content::default(),
        };
        wait_for(page, "/healthz", "ok").await?;
        Ok(site)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("proxyd.yml")
    }

    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }

    pub(crate) async fn verb<Req: Serialize + Sync, Res: DeserializeOwned>(
        &self,
        verb: &str,
        body: &Req,
    ) -> Result<Res, ClientError> {
        self.control.verb(verb, body).await
    }

    pub(crate) async fn route(&self, port: u16, at: RouteVersion, to: RouteIntent) -> Result<()> {
        self.routes(at, &[(tcp(port)?, to)]).await
    }

    pub(crate) async fn routes(
        &self,
        version: RouteVersion,
        routes: &[(RouteKey, RouteIntent)],
    ) -> Result<()> {
        self.set(&[], version, routes, |_| db()).await
    }

    /// Routes of a cluster, each of an application of its own: the first of `db`, the rest of
    /// [`other`].
    pub(crate) async fn tell(
        &self,
        peers: &[&Self],
        version: RouteVersion,
        routes: &[(RouteKey, RouteIntent)],
    ) -> Result<()> {
        let of = |place| if place == 0 { db() } else { other() };
        self.set(peers, version, routes, of).await
    }

    async fn set(
        &self,
        peers: &[&Self],
        version: RouteVersion,
        routes: &[(RouteKey, RouteIntent)],
        application: impl Fn(usize) -> AppName,
    ) -> Result<()> {
        let spec = |(place, (key, intent)): (usize, &(RouteKey, RouteIntent))| RouteSpec {
            key: *key,
            application: application(place),
            version,
            intent: intent.clone(),
            limits: park_limits(),
            content: self.content,
            announce: Announce::default(),
        };
        let name = |site: &Self| site.address.to_string().parse();
        let set = SetRoutes {
            host: name(self)?,
            peers: peers
                .iter()
                .map(|site| name(site))
                .collect::<Result<_, _>>()?,
            routes: routes.iter().enumerate().map(spec).collect(),
        };
        let http = &self.control.0;
        let reply: RoutesReply = http
            .request_json(Method::PUT, "/v1/routes", Some(&set), LIMIT)
            .await?;
        ensure!(
            reply
                .routes
                .iter()
                .all(|route| route.listen_error.is_none())
        );
        Ok(())
    }

    /// This host as others lead to it.
    pub(crate) fn as_target(&self) -> Target {
        Target::Remote {
            host: self
                .address
                .to_string()
                .parse()
                .unwrap_or_else(|_| unreachable!("an address is a name")),
            trunk: format!("{}:{}", self.address, self.trunk),
        }
    }

    pub(crate) async fn status(&self, port: u16) -> Result<RouteStatus> {
        let (http, none) = (&self.control.0, None::<&()>);
        let reply: RoutesReply = http
            .request_json(Method::GET, "/v1/routes", none, LIMIT)
            .await?;
        let key = tcp(port)?;
        let found = reply.routes.into_iter().find(|route| route.key == key);
        found.context("the route is missing")
    }

    /// The numbers of a route's connections.
    pub(crate) async fn connections(&self, port: u16) -> Result<BTreeSet<u64>> {
        let (http, none) = (&self.control.0, None::<&()>);
        let path = format!("/v1/connections?route={port}/tcp");
        let reply: ConnectionsReply = http.request_json(Method::GET, &path, none, LIMIT).await?;
        Ok(reply.connections.iter().map(|one| one.id).collect())
    }

    /// Waits until as many other connections of a route are there, and none of these.
    pub(crate) async fn until_others(&self, port: u16, before: &BTreeSet<u64>) -> Result<()> {
        let began = Instant::now();
        loop {
            let now = self.connections(port).await?;
            if now.len() == before.len() && now.is_disjoint(before) {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "{before:?}, and now {now:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The connections that there are.
    pub(crate) async fn all_connections(&self) -> Result<Vec<ConnectionInfo>> {
        let (http, none) = (&self.control.0, None::<&()>);
        let reply: ConnectionsReply = http
            .request_json(Method::GET, "/v1/connections", none, LIMIT)
            .await?;
        Ok(reply.connections)
    }

    /// Waits until the first connection has passed on so many bytes of its client.
    pub(crate) async fn until_bytes(&self, bytes: u64) -> Result<()> {
        let began = Instant::now();
        while self
            .all_connections()
            .await?
            .first()
            .map(|one| one.bytes_in)
            != Some(bytes)
        {
            ensure!(began.elapsed() < LIMIT, "{bytes} bytes do not come");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until the route is as wanted.
    pub(crate) async fn until(
        &self,
        port: u16,
        wanted: impl Fn(&RouteStatus) -> bool,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let status = self.status(port).await?;
            if wanted(&status) {
                return Ok(());
            }
            ensure!(began.elapsed() < LIMIT, "still {status:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has it hand over, and waits until the old process has ended.
    pub(crate) async fn upgrade(&mut self, program: &str) -> Result<UpgradeReply> {
        let reply = self.hand_over(Path::new(program)).await?;
        self.now_is(reply.pid).await?;
        Ok(reply)
    }

    /// Has it hand over.
    pub(crate) async fn hand_over(&self, program: &Path) -> Result<UpgradeReply> {
        let file = self.file().to_str().context("no text")?.to_owned();
        let upgrade = Upgrade {
            executable: program.into(),
            arguments: vec!["--config".to_owned(), file],
        };
        let http = &self.control.0;
        Ok(http
            .request_json(Method::POST, "/v1/upgrade", Some(&upgrade), 3 * LIMIT)
            .await?)
    }

    /// Has it read its file again.
    pub(crate) async fn reload(&self) -> Result<ReloadReply> {
        let (http, none) = (&self.control.0, None::<&()>);
        Ok(http
            .request_json(Method::POST, "/v1/reload", none, LIMIT)
            .await?)
    }

    /// Starts again from its file.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.signal_first(Signal::TERM)?;
        self.first.wait()?;
        let page = self.page;
        self.first = Command::new(PROGRAM)
            .arg("--config")
            .arg(self.file())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.pid = self.first.id();
        wait_for(page, "/healthz", "ok").await
    }

    /// Sends a signal to the process that served first.
    pub(crate) fn signal_first(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.first.id())?;
        Ok(kill_process(Pid::from_raw(pid).context("no pid")?, signal)?)
    }

    /// The process that serves is another one; waits until the last one has ended.
    pub(crate) async fn now_is(&mut self, pid: u32) -> Result<()> {
        let old = std::mem::replace(&mut self.pid, pid);
        let began = Instant::now();
        while runs(old) {
            // The first one is a child of this process.
            let _ended = self.first.try_wait()?;
            ensure!(began.elapsed() < LIMIT, "the old process does not end");
            sleep(Duration::from_millis(5)).await;
        }
        ensure!(runs(pid), "the successor does not run");
        Ok(())
    }
}

/// Whether a process runs; one that waits to be collected does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let state = stat.ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.chars().next()
    });
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended already.
            let _gone = kill_process(pid, Signal::KILL);
        }
        drop(self.first.kill());
        drop(self.first.wait());
    }
}
