//! A `migrated` (and `proxyd`) on a Unix socket that answers what a test has put in, and
//! remembers what it was asked.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use rehome_runtime::http_server::HttpServer;
use rehome_runtime::supervise::{Criticality, Stop, Supervisor};
use rehome_runtime::tls::Tls;
use rehome_shared::api::cluster::Desired;
use rehome_shared::config::model::{Application, Image, ImageVersion};
use rehome_shared::ids::{AppName, DeploymentGeneration, HostAddr};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// The most that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// One request, as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) what: String,
    pub(crate) body: Value,
}

/// What it answers, and what it was asked.
#[derive(Debug, Default)]
struct Script {
    /// By `METHOD path`: the answers in their order; the last one stays.
    answers: Vec<(String, VecDeque<(StatusCode, Value)>)>,
    asked: Vec<Asked>,
}

/// The daemon and a directory for its socket and the user's files.
pub(crate) struct Fake {
    directory: TempDir,
    script: Arc<Mutex<Script>>,
    server: Option<Supervisor>,
}

impl Fake {
    /// A daemon that listens.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut fake = Self::stopped()?;
        fake.restart().await?;
        Ok(fake)
    }

    /// A daemon that does not run.
    pub(crate) fn stopped() -> anyhow::Result<Self> {
        Ok(Self {
            directory: tempfile::tempdir()?,
            script: Arc::default(),
            server: None,
        })
    }

    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        let supervisor = Supervisor::new();
        let server = HttpServer::unix(&self.socket()).await?;
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&self.script));
        supervisor.spawn(
            "fake",
            Criticality::Critical,
            server.serve(router, supervisor.clone()),
        );
        self.server = Some(supervisor);
        Ok(())
    }

    /// Serves over mutual TLS too; the port is free.
    pub(crate) async fn listen_with(&self, tls: Tls) -> anyhow::Result<u16> {
        let supervisor = self.server.as_ref().context("it does not run")?;
        let server = HttpServer::mutual_tls("127.0.0.1:0".parse()?, tls).await?;
        let port = server.local_addr().context("an address")?.port();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&self.script));
        supervisor.spawn(
            "fake",
            Criticality::Critical,
            server.serve(router, supervisor.clone()),
        );
        Ok(port)
    }

    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(supervisor) = self.server.take() {
            ensure!(
                supervisor.stop(LIMIT).await == Stop::Clean,
                "the server did not end"
            );
        }
        Ok(())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("daemon.sock")
    }

    /// Puts in the next answer to `METHOD path`.
    pub(crate) fn answers(&self, what: &str, body: Value) {
        self.answers_with(what, StatusCode::OK, body);
    }

    pub(crate) fn answers_with(&self, what: &str, status: StatusCode, body: Value) {
        let mut script = self.script();
        match script.answers.iter_mut().find(|(known, _)| known == what) {
            Some((_, queue)) => queue.push_back((status, body)),
            None => script
                .answers
                .push((what.to_owned(), VecDeque::from([(status, body)]))),
        }
    }

    /// What it was asked by `METHOD path`.
    pub(crate) fn asked(&self, what: &str) -> Vec<Asked> {
        self.script()
            .asked
            .iter()
            .filter(|asked| asked.what == what)
            .cloned()
            .collect()
    }

    /// Everything that it was asked.
    pub(crate) fn asked_in_all(&self) -> usize {
        self.script().asked.len()
    }

    /// Writes a file of the user.
    pub(crate) fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// The command, pointed at this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command
            .arg("--host")
            .arg(format!("unix:{}", self.socket().display()));
        command
    }

    /// Runs the command to its end.
    pub(crate) async fn rehome(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        run(self.command(arguments)).await
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        locked(&self.script)
    }
}

/// The command without a daemon.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rehome"));
    command.args(arguments).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> anyhow::Result<Ended> {
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .context("it does not end")??;
    Ended::try_from(output)
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl TryFrom<Output> for Ended {
    type Error = anyhow::Error;

    fn try_from(output: Output) -> anyhow::Result<Self> {
        Ok(Self {
            status: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }
}

impl Ended {
    /// The one document on standard output.
    pub(crate) fn document(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("not one document: {self:?}"))
    }
}

/// A handler that panicked has made its test fail already.
fn locked(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let what = format!("{method} {uri}");
    let mut script = locked(&script);
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    };
    script.asked.push(Asked {
        what: what.clone(),
        body,
    });
    let queue = script
        .answers
        .iter_mut()
        .find(|(known, _)| *known == what)
        .map(|(_, queue)| queue);
    let next = queue.and_then(|queue| {
        if queue.len() > 1 {
            queue.pop_front()
        } else {
            queue.front().cloned()
        }
    });
    let (status, value) = next.unwrap_or((
        StatusCode::NOT_FOUND,
        json!({"error": format!("no answer to {what}")}),
    ));
    (
        status,
        [("content-type", "application/json")],
        value.to_string(),
    )
        .into_response()
}

/// A deployment file and an application file that say: `db` on 10.0.0.2.
pub(crate) fn files(fake: &Fake) -> anyhow::Result<[String; 2]> {
    let deployment = fake.file(
        "deployment.yml",
        "version: 1\nnodes:\n  10.0.0.1: []\n  10.0.0.2: [db]\n",
    )?;
    let application = fake.file(
        "application.yml",
        "version: 1\napplications:\n  db:\n    image: postgres:15\n",
    )?;
    Ok([text(&deployment)?, text(&application)?])
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// `db` in a state on a host; it should be on 10.0.0.2.
pub(crate) fn application(state: &str, host: &str) -> Value {
    json!({
        "name": "db", "state": state, "host": host, "desired_host": "10.0.0.2", "epoch": 2,
        "ports": [{"internal": 5432, "external": 15432, "protocol": "tcp"}],
        "volumes": [{"name": "data", "bytes": 4096}],
    })
}

/// A migration of `db` from 10.0.0.1 to 10.0.0.2.
pub(crate) fn migration(state: &str) -> Value {
    json!({
        "id": "01jd0000000000000000000000", "application": "db",
        "from": "10.0.0.1", "to": "10.0.0.2", "state": state, "epoch": 2, "generation": 7,
        "started_at": "2026-11-22T10:00:00Z",
        "rounds": [{"bytes": 2_097_152, "seconds": 0.5}],
        "phases": {"prepare": 0.2, "precopy": 0.5, "stop": 0.4, "start": 0.3, "health": 0.1},
        "window_seconds": {"platform": 0.3, "application": 0.5},
        "bytes": 2_101_248, "connections": {"drained": 5, "parked": 12, "refused": 0},
        "error": null,
    })
}

/// The same migration under way.
pub(crate) fn under_way(phase: &str, round: u32) -> Value {
    let now = json!({
        "phase": phase, "round": round, "bytes": 1_048_576, "rate": 2_097_152,
        "predicted_window": 0.75, "elapsed": 1.5,
    });
    let mut value = migration("running");
    if let Some(fields) = value.as_object_mut() {
        fields.insert("window_seconds".to_owned(), Value::Null);
        fields.insert("now".to_owned(), now);
    }
    value
}

/// Deployment 7.
pub(crate) fn progress(settled: bool, applications: &[Value], migrations: &[Value]) -> Value {
    json!({
        "generation": 7, "settled": settled, "applications": applications,
        "migrations": migrations, "failures": [],
    })
}

/// Deployment 8 of somebody else, in which `db` of this version of its image is on a host.
pub(crate) fn newer(version: &str, host: &str) -> anyhow::Result<Value> {
    let db = AppName::try_new("db")?;
    let spec = Application::new(Image {
        repository: "postgres".to_owned(),
        version: ImageVersion::Tag(version.to_owned()),
    });
    Ok(serde_json::to_value(Desired {
        generation: DeploymentGeneration(8),
        applications: [(db.clone(), spec)].into(),
        placement: [(HostAddr::try_new(host)?, vec![db])].into(),
        ..Desired::default()
    })?)
}

/// Two hosts, `db` on the first.
pub(crate) fn status() -> Value {
    json!({
        "generation": 6,
        "hosts": [
            {"address": "10.0.0.1", "reachable": true, "version": "0.1.0"},
            {"address": "10.0.0.2", "reachable": true, "version": "0.1.0"},
        ],
        "applications": [application("running", "10.0.0.1")],
    })
}

/// The move of `db`, accepted as deployment 7.
pub(crate) fn accepted() -> Value {
    json!({"generation": 7, "changes": [{
        "application": "db",
        "kind": {"change": "move", "from": "10.0.0.1", "to": "10.0.0.2", "volumes": true},
    }]})
}

/// What a move of `db` would take.
pub(crate) fn prediction() -> Value {
    json!({
        "bytes": 4096, "delta": true, "base": "mig-01jd-final-1", "dirty_rate": 1024,
        "bandwidth": 8_388_608, "rounds": 2, "copy_seconds": 0.25,
        "window_seconds": 1.5, "window": {"platform": 1.0, "application": 0.5},
        "throttled": null, "gives_up": null, "basis": "one move before",
    })
}
