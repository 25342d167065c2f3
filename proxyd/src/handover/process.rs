//! The successor's process.
//!
//! It is started by a process in between that ends at once, so that the service manager adopts
//! it: a child of this process would not be watched. Its end of the socket is its standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rehome_shared::api::proxy::Upgrade;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::channel::{Channel, ChannelError};

/// What the process in between gets to read its configuration and start the successor.
const START: Duration = Duration::from_secs(20);

/// What a killed process gets to be gone.
const END: Duration = Duration::from_secs(5);

/// What is kept of what the process in between says.
const SAID: u64 = 4096;

/// What the service manager told this process, and not its successor.
const NOT_INHERITED: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A successor that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket to speak with it.
    #[error("cannot make a socket for the successor")]
    Socket(#[source] io::Error),
    /// Not a program that runs.
    #[error(
        "cannot start {executable} (a service may have a /tmp and a /home of its own: \
         put the program into a system directory)",
        executable = .executable.display()
    )]
    Run {
        /// The program.
        executable: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not a whole path: it would mean something else in this process.
    #[error("{executable} is no absolute path", executable = .executable.display())]
    Relative {
        /// The path.
        executable: PathBuf,
    },
    /// It said why not.
    #[error("the successor does not start: {0}")]
    Refused(String),
    /// It said nothing.
    #[error("the successor did not start within {}s", START.as_secs())]
    Silent,
    /// It was gone at once.
    #[error("the successor ended at once")]
    Gone(#[source] io::Error),
}

/// A successor that runs.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) channel: Channel,
    pub(super) pid: u32,
    process: OwnedFd,
}

/// Starts a successor.
///
/// # Cancel safety
/// A successor whose start is not awaited reads the end of its socket, and ends.
pub(super) async fn start(upgrade: &Upgrade) -> Result<Successor, StartError> {
    if !upgrade.executable.is_absolute() {
        let executable = upgrade.executable.clone();
        return Err(StartError::Relative { executable });
    }
    let (channel, end) = Channel::pair().map_err(StartError::Socket)?;
    let said = timeout(START, run(upgrade, end))
        .await
        .map_err(|_| StartError::Silent)??;
    let pid = said
        .strip_prefix("pid ")
        .and_then(|pid| pid.trim().parse::<i32>().ok())
        .and_then(Pid::from_raw)
        .ok_or_else(|| StartError::Refused(said.trim().to_owned()))?;
    let process =
        pidfd_open(pid, PidfdFlags::empty()).map_err(|error| StartError::Gone(error.into()))?;
    // While somebody has the other end, the successor lives, and the number is its own.
    if channel.is_closed() {
        return Err(StartError::Gone(io::ErrorKind::BrokenPipe.into()));
    }
    Ok(Successor {
        channel,
        pid: pid.as_raw_pid().unsigned_abs(),
        process,
    })
}

/// Runs the process in between to its end. This process keeps no copy of the socket's other end.
async fn run(upgrade: &Upgrade, end: OwnedFd) -> Result<String, StartError> {
    let fail = |source| StartError::Run {
        executable: upgrade.executable.clone(),
        source,
    };
    let mut command = Command::new(&upgrade.executable);
    command
        .args(&upgrade.arguments)
        .args(["--succeed", "begin"])
        .stdin(Stdio::from(end))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(fail)?;
    drop(command);
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(SAID)
            .read_to_string(&mut said)
            .await
            .map_err(fail)?;
    }
    let status = child.wait().await.map_err(fail)?;
    if status.success() {
        Ok(said)
    } else if said.trim().is_empty() {
        Err(StartError::Refused(status.to_string()))
    } else {
        Err(StartError::Refused(said.trim().to_owned()))
    }
}

impl Successor {
    /// Ends it, and waits until nothing of it runs any more: then its end of the socket closes.
    ///
    /// # Errors
    /// When it cannot be ended: then it may live, and all that it was given may be in its hands.
    ///
    /// # Cancel safety
    /// A dropped call may leave it running for a moment.
    pub(super) async fn end(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            // One that is gone already needs no signal.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = async {
            loop {
                match self.channel.receive(END).await {
                    // What it had still said.
                    Ok(_) | Err(ChannelError::Broken(_)) => {}
                    Err(error) => return error,
                }
            }
        };
        // Where the kernel takes its time to end it, it runs none of its own code any more.
        match timeout(END, gone).await {
            Ok(ChannelError::Closed) => {}
            Ok(error) => {
                tracing::error!(%error, pid = self.pid, "a killed successor is still there");
            }
            Err(_) => tracing::error!(pid = self.pid, "a killed successor is still there"),
        }
        Ok(())
    }
}
