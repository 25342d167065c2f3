//! External programs, with a deadline. What is run, how it ended and the end of what it said on
//! standard error stay together in the error.
//!
//! A program runs in a process group of its own, which is killed when the deadline passes or
//! the caller gives up: nothing it started stays behind. Arguments are never joined into a
//! shell line.

mod tail;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use tail::Tail;

/// The most that is kept of standard output.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// What runs: the program and its arguments, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(Vec<String>);

impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot start `{argv}`")]
    Start {
        /// What.
        argv: Argv,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("`{argv}` ended with {status}: {stderr}")]
    Failed {
        /// What.
        argv: Argv,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("`{argv}` did not end within {limit:?} and was killed: {stderr}")]
    Timeout {
        /// What.
        argv: Argv,
        /// How long.
        limit: Duration,
        /// The end of what it said.
        stderr: String,
    },
    /// Its input or output broke.
    #[error("cannot talk to `{argv}`")]
    Io {
        /// What.
        argv: Argv,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It wrote more than is kept.
    #[error("`{argv}` wrote more than {OUTPUT_LIMIT} bytes")]
    TooLong {
        /// What.
        argv: Argv,
    },
}

/// What a program that ended with success wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// The end of standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text, without the line end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

/// A program to run.
#[derive(Debug)]
pub struct ExternalCommand {
    inner: tokio::process::Command,
    argv: Argv,
    input: Vec<u8>,
}

impl ExternalCommand {
    /// A program by its name or path, in the C locale.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut inner = tokio::process::Command::new(program.as_ref());
        inner
            .env("LC_ALL", "C")
            // What it starts is not the daemon and must not speak for it.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .process_group(0)
            .kill_on_drop(true);
        let argv = Argv(vec![program.as_ref().to_string_lossy().into_owned()]);
        Self {
            inner,
            argv,
            input: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv
            .0
            .push(arg.as_ref().to_string_lossy().into_owned());
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, A>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString>,
    {
        for arg in args {
            self = self.arg(arg.into());
        }
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// What it reads on standard input; nothing by default.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`CommandError`]; anything but exit status 0 is [`CommandError::Failed`].
    ///
    /// # Cancel safety
    /// A dropped call kills the program.
    pub async fn run(mut self, deadline: Duration) -> Result<Output, CommandError> {
        let input = std::mem::take(&mut self.input);
        let stdin = if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        };
        self.inner
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut running = self.start()?;
        let (stdin, stdout) = (running.stdin.take(), running.stdout.take());
        let talk = async {
            let ((), output) = tokio::try_join!(feed(stdin, &input), read_all(stdout))?;
            io::Result::Ok(output)
        };
        let output = running.finish_with(talk, deadline).await;
        let (stdout, stderr) = output?;
        if u64::try_from(stdout.len()).is_ok_and(|length| length <= OUTPUT_LIMIT) {
            return Ok(Output { stdout, stderr });
        }
        Err(CommandError::TooLong {
            argv: running.argv.clone(),
        })
    }

    /// Starts it with standard output for the caller to read: take it with
    /// [`Running::take_stdout`], read it to its end, then call [`Running::finish`].
    ///
    /// # Errors
    /// [`CommandError::Start`].
    pub fn start_reading(mut self) -> Result<Running, CommandError> {
        self.inner
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let running = self.start()?;
        if let Some(stdout) = &running.stdout {
            widen(stdout);
        }
        Ok(running)
    }

    /// Starts it with standard input for the caller to write: take it with
    /// [`Running::take_stdin`], drop it at the end, then call [`Running::finish`].
    ///
    /// # Errors
    /// [`CommandError::Start`].
    pub fn start_writing(mut self) -> Result<Running, CommandError> {
        self.inner
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let running = self.start()?;
        if let Some(stdin) = &running.stdin {
            widen(stdin);
        }
        Ok(running)
    }

    fn start(mut self) -> Result<Running, CommandError> {
        let mut child = match self.inner.spawn() {
            Ok(child) => child,
            Err(source) => {
                return Err(CommandError::Start {
                    argv: self.argv,
                    source,
                });
            }
        };
        Ok(Running {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            tail: Tail::default(),
            child,
            argv: self.argv,
        })
    }
}

/// What a pipe to or from a program holds where the kernel allows it. With the usual 64 KiB both
/// sides wake each other for every piece; with much more the bytes leave the processor's cache
/// before they are read.
const WIDE: usize = 256 << 10;

/// Lets a pipe hold more. One that stays narrow is slower, no more.
fn widen(pipe: impl AsFd) {
    let _wide = rustix::pipe::fcntl_setpipe_size(pipe, WIDE);
}

/// A program that runs. Dropping it kills its process group.
///
/// Standard error is read by [`Running::finish`] only; a program that says more than a pipe
/// holds (64 KiB) before then waits.
#[derive(Debug)]
#[must_use]
pub struct Running {
    child: Child,
    argv: Argv,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    tail: Tail,
}

impl Running {
    /// Its standard output, once, when it was started with [`ExternalCommand::start_reading`].
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// Its standard input, once, when it was started with [`ExternalCommand::start_writing`].
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Waits for its end and returns the end of its standard error.
    ///
    /// # Errors
    /// [`CommandError`]; anything but exit status 0 is [`CommandError::Failed`].
    ///
    /// # Cancel safety
    /// A dropped call may be repeated; dropping `self` kills the program.
    pub async fn finish(&mut self, deadline: Duration) -> Result<String, CommandError> {
        drop(self.stdin.take());
        self.finish_with(async { Ok(()) }, deadline)
            .await
            .map(|((), stderr)| stderr)
    }

    async fn finish_with<T>(
        &mut self,
        talk: impl Future<Output = io::Result<T>>,
        deadline: Duration,
    ) -> Result<(T, String), CommandError> {
        let Self {
            child,
            stderr,
            tail,
            ..
        } = self;
        let end = async { tokio::try_join!(talk, tail.fill(stderr), child.wait()) };
        let ended = tokio::time::timeout(deadline, end).await;
        let stderr = self.tail.text();
        let argv = self.argv.clone();
        match ended {
            Ok(Ok((value, (), status))) if status.success() => Ok((value, stderr)),
            Ok(Ok((_, (), status))) => Err(CommandError::Failed {
                argv,
                status,
                stderr,
            }),
            Ok(Err(source)) => Err(CommandError::Io { argv, source }),
            Err(_) => {
                self.kill();
                // Reaped here or, should it hang in the kernel, by tokio's reaper later.
                let _reaped = tokio::time::timeout(Duration::from_secs(1), self.child.wait()).await;
                Err(CommandError::Timeout {
                    argv,
                    limit: deadline,
                    stderr,
                })
            }
        }
    }

    /// Kills the group, unless its leader was waited for: then the number may be another's.
    fn kill(&self) {
        let group = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        if let Some(group) = group {
            // It may have ended just now, which is as good.
            let _killed = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that does not read its input is not a failure here: its status tells.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) -> io::Result<()> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    match stdin.write_all(input).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn read_all(stdout: Option<ChildStdout>) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    if let Some(stdout) = stdout {
        // One byte more than allowed, so that "too long" is seen.
        stdout
            .take(OUTPUT_LIMIT + 1)
            .read_to_end(&mut output)
            .await?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests;
