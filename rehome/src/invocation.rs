//! The one way to run another program: its arguments, status and messages stay together, every
//! run has a deadline, and a user's Ctrl-C reaches Rehome first, not the program.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::stop::{Stop, Waited, wait_until};

/// Where administrators' programs lie, also for users whose `PATH` leaves these out.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a program's messages an error repeats.
const MESSAGE_LIMIT: u64 = 4096;

/// A program that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvocationError {
    /// It could not be started, or its output not be read.
    #[error("cannot run `{command}`")]
    Run {
        /// The program and its arguments.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a bad status.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// What it wrote to standard error.
        message: String,
    },
    /// It did not end in time and was killed.
    #[error("`{command}` did not end within {} s and was stopped", limit.as_secs())]
    TimedOut {
        /// The program and its arguments.
        command: String,
        /// The time that it had.
        limit: Duration,
    },
    /// The user asked to stop while it ran.
    #[error("interrupted while `{command}` ran")]
    Stopped {
        /// The program and its arguments.
        command: String,
    },
}

/// A program to run.
#[derive(Debug)]
pub(crate) struct Invocation {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: String,
    limit: Duration,
}

impl Invocation {
    /// A program without arguments, with 30 s to finish.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            input: String::new(),
            limit: Duration::from_secs(30),
        }
    }

    /// Adds an argument.
    pub(crate) fn arg(self, argument: impl AsRef<OsStr>) -> Self {
        self.args([argument])
    }

    /// Adds arguments.
    pub(crate) fn args<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The directory that it works in.
    pub(crate) fn directory(mut self, directory: PathBuf) -> Self {
        self.directory = Some(directory);
        self
    }

    /// What it reads from standard input; at most a few KiB.
    pub(crate) fn input(mut self, text: impl Into<String>) -> Self {
        self.input = text.into();
        self
    }

    /// How long it may take.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// [`InvocationError`]; the program does not run any more then.
    pub(crate) fn run(&self, stop: &Stop) -> Result<String, InvocationError> {
        let mut output = self.temporary()?;
        let mut messages = self.temporary()?;
        let mut child = self.spawn(&output, &messages).map_err(|e| self.cannot(e))?;
        let status = self.wait(&mut child, stop)?;
        if !status.success() {
            return Err(InvocationError::Failed {
                command: self.command(),
                status,
                message: last_words(&mut messages).map_err(|e| self.cannot(e))?,
            });
        }
        let mut text = String::new();
        output
            .rewind()
            .and_then(|()| output.read_to_string(&mut text))
            .map_err(|e| self.cannot(e))?;
        Ok(text)
    }

    fn spawn(&self, output: &File, messages: &File) -> io::Result<Child> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env("PATH", search_path())
            .env("LC_ALL", "C.UTF-8")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.directory.as_deref().unwrap_or(Path::new(".")))
            .stdin(if self.input.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(output.try_clone()?)
            .stderr(messages.try_clone()?)
            .process_group(0)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take()
            && let Err(error) = stdin.write_all(self.input.as_bytes())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            end(&mut child);
            return Err(error);
        }
        Ok(child)
    }

    fn wait(&self, child: &mut Child, stop: &Stop) -> Result<ExitStatus, InvocationError> {
        let mut ended = Ok(None);
        let waited = wait_until(self.limit, stop, || {
            ended = child.try_wait();
            !matches!(ended, Ok(None))
        });
        if let Some(status) = ended.map_err(|e| self.cannot(e))? {
            return Ok(status);
        }
        end(child);
        Err(match waited {
            Waited::Stopped => InvocationError::Stopped {
                command: self.command(),
            },
            Waited::TimedOut | Waited::Met => InvocationError::TimedOut {
                command: self.command(),
                limit: self.limit,
            },
        })
    }

    fn temporary(&self) -> Result<File, InvocationError> {
        tempfile::tempfile().map_err(|e| self.cannot(e))
    }

    fn cannot(&self, source: io::Error) -> InvocationError {
        InvocationError::Run {
            command: self.command(),
            source,
        }
    }

    fn command(&self) -> String {
        let mut words = vec![self.program.to_string_lossy().into_owned()];
        words.extend(
            self.arguments
                .iter()
                .map(|a| a.to_string_lossy().into_owned()),
        );
        if !self.input.is_empty() {
            words.push(format!("<<< {:?}", self.input));
        }
        words.join(" ")
    }
}

/// Where programs are looked for: the user's `PATH`, then the system's directories.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATH);
    path
}

/// The file that a program's name leads to.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn end(child: &mut Child) {
    // Each fails only when the group has ended already, which is what they are for.
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
            .unwrap_or_default();
    }
    drop(child.wait());
}

fn last_words(messages: &mut File) -> io::Result<String> {
    let length = messages.metadata()?.len();
    messages.seek(io::SeekFrom::Start(length.saturating_sub(MESSAGE_LIMIT)))?;
    let mut bytes = Vec::new();
    messages.take(MESSAGE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}
