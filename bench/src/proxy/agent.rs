//! A process with a role, as the one that started it sees it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// An agent is ended when this is dropped.
#[derive(Debug)]
pub struct Agent {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    /// Starts one.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn start(name: &'static str, words: &[String]) -> anyhow::Result<Self> {
        let (program, arguments) = words.split_first().context("an empty command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {program} for the {name}"))?;
        let input = child.stdin.take().context("no input")?;
        let output = child.stdout.take().context("no output")?;
        Ok(Self {
            name,
            child,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    /// Its number.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let name = self.name;
        self.child
            .id()
            .with_context(|| format!("the {name} is gone"))
    }

    /// What it says next.
    ///
    /// # Errors
    /// When it says nothing in time, or ends.
    ///
    /// # Cancel safety
    /// A line that was not there yet is not lost.
    pub async fn hear(&mut self, limit: Duration) -> anyhow::Result<String> {
        let name = self.name;
        let heard = timeout(limit, self.output.next_line()).await;
        heard
            .with_context(|| format!("the {name} says nothing"))??
            .with_context(|| format!("the {name} has ended"))
    }

    /// Waits until it says a word.
    ///
    /// # Errors
    /// When it says nothing in time, or something else.
    ///
    /// # Cancel safety
    /// As [`Agent::hear`].
    pub async fn hear_word(&mut self, word: &str, limit: Duration) -> anyhow::Result<()> {
        let heard = self.hear(limit).await?;
        ensure!(
            heard == word,
            "the {} says {heard:?}, not {word}",
            self.name
        );
        Ok(())
    }

    /// A document that it says.
    ///
    /// # Errors
    /// When it says nothing in time, or something else.
    ///
    /// # Cancel safety
    /// As [`Agent::hear`].
    pub async fn hear_json<T: DeserializeOwned>(&mut self, limit: Duration) -> anyhow::Result<T> {
        let heard = self.hear(limit).await?;
        serde_json::from_str(&heard).with_context(|| format!("the {} says {heard:?}", self.name))
    }

    /// Tells it a line.
    ///
    /// # Errors
    /// When it has ended.
    ///
    /// # Cancel safety
    /// Not cancel safe: half a line may have been told.
    pub async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let told = self.input.write_all(format!("{line}\n").as_bytes()).await;
        told.with_context(|| format!("the {} does not listen", self.name))
    }
}
