//! Running programs: those of this project, as they were built with the tests, and others.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::wait::pause;

/// A program of this project, from the directory that the test, or this program, was built into.
///
/// # Errors
/// When it was not built.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test?")?;
    let mut directories = test.ancestors().skip(1);
    // Tests lie one directory below the programs.
    let directory = directories
        .find(|directory| !directory.ends_with("deps"))
        .context("this test lies in no target directory")?;
    for program in ["rehome", "migrated", "proxyd"] {
        ensure!(
            directory.join(program).is_file(),
            "{program} is not in {}: `cargo build --workspace` puts it there",
            directory.display()
        );
    }
    Ok(directory.join(name))
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The program and its arguments.
    pub command: String,
    /// Its exit status; 128 and the signal when one ended it.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            status,
            stdout,
            stderr,
        } = self;
        write!(
            f,
            "`{command}` ended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

impl Outcome {
    /// Insists on success.
    ///
    /// # Errors
    /// When it failed.
    pub fn ok(self) -> anyhow::Result<Self> {
        self.with_status(0)
    }

    /// Insists on an exit status.
    ///
    /// # Errors
    /// When it had another one.
    pub fn with_status(self, status: i32) -> anyhow::Result<Self> {
        ensure!(self.status == status, "{self}\n--- expected {status}");
        Ok(self)
    }

    /// Insists that it says something, on either stream.
    ///
    /// # Errors
    /// When it does not.
    pub fn saying(self, words: &str) -> anyhow::Result<Self> {
        let said = self.stdout.contains(words) || self.stderr.contains(words);
        ensure!(said, "{self}\n--- does not say {words:?}");
        Ok(self)
    }

    /// Its standard output, which must be one JSON document.
    ///
    /// # Errors
    /// When it is something else.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self}"))
    }
}

/// A program that is running.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
    deadline: Instant,
}

/// Starts a program that has `limit` to finish.
///
/// # Errors
/// When it cannot be started.
pub fn start(command: &mut Command, limit: Duration) -> anyhow::Result<Running> {
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let name = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    Ok(Running {
        name,
        child,
        stdout,
        stderr,
        deadline: Instant::now() + limit,
    })
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run(command: &mut Command, limit: Duration) -> anyhow::Result<Outcome> {
    start(command, limit)?.wait()
}

impl Running {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// What it has written to standard output so far.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn said(&self) -> anyhow::Result<String> {
        Ok(self.output()?.stdout)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub fn wait(mut self) -> anyhow::Result<Outcome> {
        use std::os::unix::process::ExitStatusExt as _;
        while !self.has_ended()? {
            if Instant::now() > self.deadline {
                self.child.kill()?;
                self.child.wait()?;
                let said = self.output()?;
                bail!("it did not end in time and was killed: {said}");
            }
            pause();
        }
        let status = self.child.wait()?;
        let signal = status.signal().map(|signal| 128 + signal);
        let mut outcome = self.output()?;
        outcome.status = status.code().or(signal).unwrap_or(-1);
        Ok(outcome)
    }

    fn output(&self) -> anyhow::Result<Outcome> {
        Ok(Outcome {
            command: self.name.clone(),
            status: -1,
            stdout: whole(&self.stdout)?,
            stderr: whole(&self.stderr)?,
        })
    }
}

/// What is in a file. Its position stays as it is: the program that writes shares it.
fn whole(file: &File) -> io::Result<String> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Running {
    fn drop(&mut self) {
        // Each fails only when the program has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
