//! Waiting until the daemons of a host are ready. A host's sockets can only be reached from
//! inside its namespaces, so `lab up` runs this program there.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::console::Console;
use crate::invocation::{Invocation, InvocationError};
use crate::lab::Runtime;
use crate::lab::host::this_program;
use crate::lab::process::Process;
use crate::lab::state::{Daemons, Settings};
use crate::stop::{Stop, Waited, wait_until};

/// How long the daemons of a host have to become ready.
const LIMIT: Duration = Duration::from_secs(90);
/// How long one answer may take, and how much of it is read.
const ANSWER: (Duration, u64) = (Duration::from_secs(2), 4096);

/// The arguments of a probe.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    daemons: Vec<Daemon>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Daemon {
    Dockerd,
    Proxyd,
    Migrated,
}

/// Waits, from this machine, until the daemons of a host are ready.
pub(crate) fn wait_for(
    process: &Process,
    settings: &Settings,
    stop: &Stop,
) -> Result<(), InvocationError> {
    let mut daemons = Vec::new();
    if settings.runtime == Runtime::Docker {
        daemons.push("dockerd");
    }
    if settings.daemons != Daemons::Absent {
        daemons.extend(["proxyd", "migrated"]);
    }
    if daemons.is_empty() {
        return Ok(());
    }
    let program = this_program().unwrap_or_else(|_| "rehome".into());
    let pid = process.pid().to_string();
    Invocation::new("nsenter")
        .args(["--target", &pid, "--mount", "--net", "--"])
        .arg(program)
        .args(["lab-probe"])
        .args(daemons)
        .limit(LIMIT + Duration::from_secs(10))
        .run(stop)
        .map(drop)
}

/// Runs inside the host.
pub(crate) fn run(args: &ProbeArgs, console: Console) -> ExitCode {
    let mut unready = Vec::new();
    let waited = wait_until(LIMIT, &Stop::never(), || {
        unready = args
            .daemons
            .iter()
            .filter_map(|d| Some((*d, ask(*d).err()?)))
            .collect();
        unready.is_empty()
    });
    if waited == Waited::Met {
        return ExitCode::SUCCESS;
    }
    for (daemon, error) in unready {
        console.progress(&format!("{daemon:?} is not ready: {error}").to_lowercase());
    }
    ExitCode::FAILURE
}

fn ask(daemon: Daemon) -> io::Result<()> {
    match daemon {
        Daemon::Dockerd => get(UnixStream::connect("/run/docker.sock")?, "/_ping"),
        Daemon::Migrated => get(local(9420)?, "/readyz"),
        Daemon::Proxyd => get(local(9421)?, "/readyz"),
    }
}

fn local(port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, ANSWER.0)?;
    stream.set_read_timeout(Some(ANSWER.0))?;
    Ok(stream)
}

/// HTTP/1.0 keeps this small: one request, one answer, end of file.
fn get(mut stream: impl Read + Write, path: &str) -> io::Result<()> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER.1).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::other(
            answer.lines().last().unwrap_or("no answer").to_owned(),
        )),
    }
}
