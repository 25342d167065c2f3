//! A shell that stays open on a lab host, as a person has one by ssh: a command costs neither a
//! login nor the start of `rehome lab exec`, so the parts of a move by hand hold nothing else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::program;

/// No command takes longer.
const LIMIT: Duration = Duration::from_mins(5);

/// Ends the output of a command; its status follows.
const MARK: &str = "-- this was the end --";

/// Lines that may wait to be read. Commands say little.
const LINES: usize = 1024;

/// A shell on a host.
#[derive(Debug)]
pub struct Shell {
    host: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    doing: String,
}

impl Shell {
    /// Opens one.
    ///
    /// # Errors
    /// When the host is down.
    pub fn open(lab: &Lab, host: &Host) -> anyhow::Result<Self> {
        let mut child = Command::new(program::built("rehome")?)
            .args(["lab", "--name", lab.name(), "exec", host.name(), "--"])
            .args(["bash", "--norc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("a shell")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a shell without output")?;
        let (send, lines) = sync_channel(LINES);
        std::thread::spawn(move || {
            // Ends with the shell, or when nobody listens any more.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut shell = Self {
            host: host.name().to_owned(),
            child,
            stdin,
            lines,
            doing: String::new(),
        };
        shell.run("exec 2>&1; set -o pipefail")?;
        Ok(shell)
    }

    /// Begins a command.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn begin(&mut self, line: &str) -> anyhow::Result<()> {
        line.clone_into(&mut self.doing);
        // The command must not read what is meant for the shell.
        let text = format!("{{ {line}\n}} </dev/null; echo; echo '{MARK}' $?\n");
        let stdin = self.stdin.as_mut().context("the shell is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Waits for the end of what was begun, which must succeed, and answers what it said.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn end(&mut self) -> anyhow::Result<String> {
        let deadline = Instant::now() + LIMIT;
        let mut said = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("{} does not end on {}: {said}", self.doing, self.host);
            };
            if let Some(status) = line.strip_prefix(MARK) {
                let well = status.trim() == "0";
                ensure!(well, "{} on {}: {said}{status}", self.doing, self.host);
                return Ok(said);
            }
            said.push_str(&line);
            said.push('\n');
        }
    }

    /// Runs a command, which must succeed.
    ///
    /// # Errors
    /// As [`Shell::end`].
    pub fn run(&mut self, line: &str) -> anyhow::Result<String> {
        self.begin(line)?;
        self.end()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The end of its input ends a shell; what still runs ends with the lab.
        drop(self.stdin.take());
        // Fails only when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
