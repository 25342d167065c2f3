//! What a process of the benchmark is for. The command runs itself again for each of them, and
//! tells its role in JSON.
//!
//! A role speaks in lines: what it has to say to standard output, what it is told comes from
//! standard input. The end of its input is the end of the role.

use std::io::{self, BufRead as _, Write as _};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{Receiver, channel};

use crate::proxy::load::{self, Load};
use crate::proxy::network;
use crate::proxy::serve::{self, Service};
use crate::proxy::trial::{self, Setup};

/// The word of the command line before a role.
pub const WORD: &str = "as";

/// Lines that may wait to be heard.
const LINES: usize = 16;

/// A role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Makes one trial, and says what it came to.
    Trial(Box<Setup>),
    /// Keeps the namespace between clients and server.
    Middle,
    /// Is the server.
    Serve(Service),
    /// Is the clients.
    Load(Load),
}

impl Role {
    /// The command that plays it.
    ///
    /// # Errors
    /// When this program does not know where it lies.
    pub fn command(&self) -> anyhow::Result<Vec<String>> {
        let program = std::env::current_exe().context("where is this program?")?;
        Ok(vec![
            program.display().to_string(),
            WORD.to_owned(),
            serde_json::to_string(self)?,
        ])
    }
}

/// Plays a role to its end.
///
/// # Errors
/// Those of the role.
pub fn play(role: &str) -> anyhow::Result<()> {
    match serde_json::from_str(role).context("this is no role")? {
        Role::Trial(setup) => trial::run(&setup),
        Role::Middle => middle(),
        Role::Serve(service) => {
            network::tune(&[])?;
            runtime()?.block_on(serve::run(service))
        }
        Role::Load(load) => runtime()?.block_on(load::run(&load)),
    }
}

fn middle() -> anyhow::Result<()> {
    network::tune(&[("ipv4/ip_forward", "1")])?;
    say("ready")?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// One thread: what is measured is the relay, and clients that take turns cost least.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Says a line.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// The lines that this process is told, until its input ends.
pub(crate) fn told() -> Receiver<String> {
    let (send, lines) = channel(LINES);
    std::thread::spawn(move || {
        // Ends with the input, or when nobody listens any more.
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
