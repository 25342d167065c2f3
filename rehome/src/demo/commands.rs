//! The demonstration's own commands: it does with `rehome` what a user would do, and shows it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::console::Console;
use crate::stop::{Stop, Waited, wait_until};

/// Longer than any of the commands takes: each has shorter limits of its own.
const LIMIT: Duration = Duration::from_mins(15);

/// How long a command that was interrupted may take to clean up.
const LAST_WORDS: Duration = Duration::from_mins(3);

/// A command that did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// It could not be run.
    #[error("cannot run `{command}`")]
    Run {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a bad status; it has said why.
    #[error("`{command}` failed ({status})")]
    Failed {
        /// The command.
        command: String,
        /// Its status.
        status: ExitStatus,
    },
    /// It did not end.
    #[error("`{command}` did not end within {} s", LIMIT.as_secs())]
    TimedOut {
        /// The command.
        command: String,
    },
    /// Its document has another form.
    #[error("cannot understand what `{command}` answered")]
    Answer {
        /// The command.
        command: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Stopped,
}

/// Where a command's standard output goes.
enum Output {
    /// Where a person sees it.
    Shown,
    /// Into a file.
    Kept(File),
}

/// Runs this program again, with other arguments.
#[derive(Debug, Clone)]
pub(super) struct Commands {
    program: PathBuf,
    console: Console,
}

impl Commands {
    /// The program that runs now.
    pub(super) fn new(console: Console) -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            console,
        })
    }

    /// Shows the command and runs it; what it says is seen too.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        words: &[S],
        stop: &Stop,
    ) -> Result<(), CommandError> {
        self.console.progress(&format!("$ {}", shown(words)));
        self.execute(words, Output::Shown, stop)
    }

    /// Runs the command with `--json` and reads the document that it prints.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        words: &[&str],
        stop: &Stop,
    ) -> Result<T, CommandError> {
        self.console.progress(&format!("$ {}", shown(words)));
        let cannot = |source| CommandError::Run {
            command: shown(words),
            source,
        };
        let mut answer = tempfile::tempfile().map_err(cannot)?;
        let output = Output::Kept(answer.try_clone().map_err(cannot)?);
        let with_json: Vec<_> = ["--json"].iter().chain(words).collect();
        self.execute(&with_json, output, stop)?;
        let mut text = String::new();
        answer
            .rewind()
            .and_then(|()| answer.read_to_string(&mut text))
            .map_err(cannot)?;
        serde_json::from_str(&text).map_err(|source| CommandError::Answer {
            command: shown(words),
            source,
        })
    }

    fn execute<S: AsRef<OsStr>>(
        &self,
        words: &[S],
        output: Output,
        stop: &Stop,
    ) -> Result<(), CommandError> {
        let cannot = |source| CommandError::Run {
            command: shown(words),
            source,
        };
        let output = match output {
            Output::Kept(file) => file.into(),
            // Standard output is for this command's own document, if there is to be one.
            Output::Shown if self.console.is_json() => io::stderr().into(),
            Output::Shown => Stdio::inherit(),
        };
        let mut child = Command::new(&self.program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .map_err(cannot)?;
        let status = match wait(&mut child, LIMIT, stop).map_err(cannot)? {
            Ended::By(status) => status,
            Ended::TimedOut => {
                end(&mut child).map_err(cannot)?;
                return Err(CommandError::TimedOut {
                    command: shown(words),
                });
            }
            Ended::Stopped => {
                end(&mut child).map_err(cannot)?;
                return Err(CommandError::Stopped);
            }
        };
        if status.success() {
            Ok(())
        } else if stop.is_set() {
            // A terminal interrupts all of its programs: this one ended before we looked.
            Err(CommandError::Stopped)
        } else {
            Err(CommandError::Failed {
                command: shown(words),
                status,
            })
        }
    }
}

enum Ended {
    By(ExitStatus),
    TimedOut,
    Stopped,
}

fn wait(child: &mut Child, limit: Duration, stop: &Stop) -> io::Result<Ended> {
    let mut ended = Ok(None);
    let waited = wait_until(limit, stop, || {
        ended = child.try_wait();
        !matches!(ended, Ok(None))
    });
    Ok(match (ended?, waited) {
        (Some(status), _) => Ended::By(status),
        (None, Waited::Stopped) => Ended::Stopped,
        (None, Waited::TimedOut | Waited::Met) => Ended::TimedOut,
    })
}

/// Asks a command to end and lets it clean up; one that does not end is killed.
fn end(child: &mut Child) -> io::Result<()> {
    // It has not been waited for, so the number is still its own.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::INT)?;
    }
    if !matches!(wait(child, LAST_WORDS, &Stop::never())?, Ended::By(_)) {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// The command as a user would type it.
fn shown<S: AsRef<OsStr>>(words: &[S]) -> String {
    let mut text = OsString::from("rehome");
    for word in words {
        text.push(" ");
        let word = word.as_ref().to_string_lossy();
        if word.contains([' ', '"', '[']) {
            text.push(format!("'{word}'"));
        } else {
            text.push(word.as_ref());
        }
    }
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        assert_eq!(shown(&["lab", "up"]), "rehome lab up");
        assert_eq!(
            shown(&["--change", r#"CMD ["/x"]"#]),
            r#"rehome --change 'CMD ["/x"]'"#
        );
    }
}
