//! Whether an application is healthy: a TCP connect, an HTTP request, or a command inside.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rehome_runtime::backoff::Backoff;
use rehome_shared::config::model::{Application, Probe};
use rehome_shared::ids::{AppName, Protocol};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::host::Host;
use crate::runtime::{Instance, InstanceState};

/// The first pause between tries: a start that takes milliseconds is noticed in milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(15);

/// While a try is under way, so often the instance is looked at.
const EXIT_LOOK: Duration = Duration::from_millis(200);

/// An application without a port or a probe is healthy when it has run for so long.
const SETTLED: Duration = Duration::from_millis(500);

/// Why an application is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// It ended.
    #[error("it exited{}: {output}", .code.map(|c| format!(" with status {c}")).unwrap_or_default())]
    Exited {
        /// Its exit status.
        code: Option<i32>,
        /// What the runtime says, and the end of its output.
        output: String,
    },
    /// It runs, and its probe fails.
    #[error("after {waited:?} its health check still fails: {reason}")]
    Failing {
        /// How long it was waited for.
        waited: Duration,
        /// What the last try said.
        reason: String,
    },
    /// It is gone.
    #[error("its instance is gone")]
    Gone,
}

/// Waits until an application is healthy: at most `interval × retries`, and no longer than it runs.
///
/// # Errors
/// [`Unhealthy`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn wait(
    host: &Host,
    application: &AppName,
    spec: &Application,
    instance: &Instance,
) -> Result<(), Unhealthy> {
    let check = &spec.healthcheck;
    let started = Instant::now();
    let limit = check.interval.saturating_mul(check.retries.max(1));
    let mut pause = Backoff::new(FIRST_PAUSE, check.interval);
    let mut reason = String::from("not tried yet");
    loop {
        // An address without an instance behind it answers nothing for seconds: who waits for
        // the answer must not miss the exit.
        let tried = tokio::select! {
            tried = probe(host, application, spec, instance.address, started) => tried,
            ended = until_exit(host, application) => return Err(ended),
        };
        match tried {
            Ok(()) => return Ok(()),
            Err(error) => reason.clone_from(&error),
        }
        exited(host, application).await?;
        if started.elapsed() >= limit {
            return Err(Unhealthy::Failing {
                waited: limit,
                reason,
            });
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}

/// One try.
///
/// # Errors
/// What the try said.
///
/// # Cancel safety
/// Cancel safe.
pub async fn probe(
    host: &Host,
    application: &AppName,
    spec: &Application,
    address: Option<IpAddr>,
    since: Instant,
) -> Result<(), String> {
    let limit = spec.healthcheck.timeout;
    let default = spec
        .ports
        .iter()
        .find(|port| port.protocol != Protocol::Udp);
    let address = || address.ok_or_else(|| "it has no address".to_owned());
    let attempt = async {
        match (&spec.healthcheck.probe, default) {
            (Some(Probe::Tcp(port)), _) => tcp(address()?, *port).await,
            (Some(Probe::Http { port, path }), _) => get(address()?, *port, path).await,
            (Some(Probe::Command(command)), _) => {
                match host.runtime.exec(application, command, limit).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err("the command failed".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            }
            (None, Some(port)) => tcp(address()?, port.internal).await,
            (None, None) if since.elapsed() >= SETTLED => Ok(()),
            (None, None) => Err("it has just started".to_owned()),
        }
    };
    timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
}

async fn tcp(address: IpAddr, port: u16) -> Result<(), String> {
    let address = SocketAddr::new(address, port);
    TcpStream::connect(address)
        .await
        .map(drop)
        .map_err(|error| format!("{address}: {error}"))
}

async fn get(address: IpAddr, port: u16, path: &str) -> Result<(), String> {
    let address = SocketAddr::new(address, port);
    let failed = |error: &dyn std::error::Error| format!("http://{address}{path}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| failed(&e))?;
    let exchange = async { sender.send_request(request).await.map_err(|e| failed(&e)) };
    // The connection is driven only as long as the answer's head is awaited.
    let answer = tokio::select! {
        answer = exchange => answer?,
        ended = connection => {
            return Err(ended.map_or_else(|e| failed(&e), |()| "the connection was closed".to_owned()));
        }
    };
    let status = answer.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("http://{address}{path} answers {status}"))
    }
}

/// Returns when the application does not run any more.
async fn until_exit(host: &Host, application: &AppName) -> Unhealthy {
    loop {
        tokio::time::sleep(EXIT_LOOK).await;
        if let Err(ended) = exited(host, application).await {
            return ended;
        }
    }
}

async fn exited(host: &Host, application: &AppName) -> Result<(), Unhealthy> {
    // A runtime that does not answer says nothing about the application.
    let Ok(instances) = host.runtime.list().await else {
        return Ok(());
    };
    match instances
        .into_iter()
        .find(|i| i.application == *application)
        .map(|i| i.state)
    {
        Some(InstanceState::Running | InstanceState::Created) => Ok(()),
        Some(InstanceState::Exited { code, reason }) => {
            let tail = host
                .runtime
                .log_tail(application, 5)
                .await
                .unwrap_or_default();
            let output = [reason.unwrap_or_default(), tail.trim().to_owned()];
            let output: Vec<String> = output.into_iter().filter(|t| !t.is_empty()).collect();
            Err(Unhealthy::Exited {
                code,
                output: output.join("; "),
            })
        }
        None => Err(Unhealthy::Gone),
    }
}
