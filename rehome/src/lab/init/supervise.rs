//! What PID 1 of a host does for its life: it starts the host's daemons, starts again what ends,
//! reaps the orphans of the whole host, and at SIGTERM stops the daemons in reverse order.
//!
//! Like systemd's `Restart=always`, with two differences: a daemon that keeps ending is started
//! for ever, after a pause of at most two seconds; and `/run/rehome/hold/NAME` keeps the daemon
//! of that name down from its next end until the file is gone. As under systemd, a daemon may say
//! by `MAINPID=` on its notify socket that another process is the daemon from then on, and give
//! descriptors to be kept for its next start; one that is held down is not expected back for them.
//!
//! It has one thread: a PID namespace has no room for surprises in its first process.

use std::fs::{self, File};
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, test_kill_process, wait,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::kept::{self, Kept, Word};
use super::{DaemonPlan, Plan};
use crate::lab::files::LOGS;

/// The pause before a daemon that ended is started again: the first one and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A daemon that ran this long has recovered.
const RECOVERED: Duration = Duration::from_secs(5);
/// How long a daemon has to stop before it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// How often a daemon that is down is looked at.
const TICK: Duration = Duration::from_millis(50);

const RUN: &str = "/run/rehome";

struct Daemon {
    plan: DaemonPlan,
    log: PathBuf,
    /// Where it says who it is.
    words: UnixDatagram,
    kept: Kept,
    pause: Duration,
    state: State,
}

enum State {
    Running { pid: Pid, since: Instant },
    Down { until: Instant },
}

/// Supervises until SIGTERM.
pub(super) fn run(plan: &Plan) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(supervise(plan))
}

async fn supervise(plan: &Plan) -> anyhow::Result<()> {
    let mut child = signal(SignalKind::child()).context("listen to SIGCHLD")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let logs = plan.disk.join(LOGS);
    let mut daemons: Vec<Daemon> = plan
        .daemons
        .iter()
        .map(|daemon| Daemon::new(daemon.clone(), &logs))
        .collect::<io::Result<_>>()
        .context("listen to the daemons")?;
    note(&format!("{} begins", plan.host));
    loop {
        reap(&mut daemons);
        let mut all_run = true;
        for daemon in &mut daemons {
            daemon.start_if_due(&plan.path);
            all_run &= matches!(daemon.state, State::Running { .. });
        }
        // Cancel safety: signal streams and timers lose nothing when dropped.
        tokio::select! {
            _ = child.recv() => {}
            () = any_speaks(&daemons) => {}
            _ = terminate.recv() => break,
            () = sleep(TICK), if !all_run => {}
        }
    }
    for name in daemons
        .iter()
        .rev()
        .map(|d| d.plan.name.clone())
        .collect::<Vec<_>>()
    {
        stop(&mut daemons, &name).await;
    }
    note(&format!("{} ends", plan.host));
    Ok(())
}

/// Stops a daemon: asks, waits, kills.
async fn stop(daemons: &mut [Daemon], name: &str) {
    let begun = Instant::now();
    let mut signal = Some(Signal::TERM);
    loop {
        reap(daemons);
        let running = daemons.iter().find_map(|daemon| match daemon.state {
            State::Running { pid, .. } if daemon.plan.name == name => Some(pid),
            State::Running { .. } | State::Down { .. } => None,
        });
        let Some(pid) = running else { break };
        if begun.elapsed() > GRACE {
            signal = Some(Signal::KILL);
        }
        if let Some(signal) = signal.take() {
            note(&format!("{name} gets {signal:?}"));
            // It fails only when the process has ended, which the next look finds out.
            kill_process(pid, signal).unwrap_or_default();
        }
        sleep(TICK).await;
    }
}

/// Reaps every child that has ended: daemons and orphans. What a daemon said before its end counts:
/// that of one that named another process is not the daemon's.
fn reap(daemons: &mut [Daemon]) {
    let mut ended = Vec::new();
    while let Ok(Some(one)) = wait(WaitOptions::NOHANG) {
        ended.push(one);
    }
    for daemon in daemons {
        daemon.hear();
        for (pid, status) in &ended {
            daemon.ended(*pid, *status);
        }
    }
}

/// Waits until a daemon says something.
async fn any_speaks(daemons: &[Daemon]) {
    poll_fn(|cx| {
        let speaks = |daemon: &Daemon| daemon.words.poll_recv_ready(cx).is_ready();
        // Each is asked, so that each wakes this task.
        if daemons.iter().map(speaks).fold(false, |any, one| any | one) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

impl Daemon {
    fn new(plan: DaemonPlan, logs: &Path) -> io::Result<Self> {
        let log = logs.join(format!("{}.log", plan.name));
        Ok(Self {
            words: UnixDatagram::bind(words_of(&plan.name))?,
            plan,
            log,
            kept: Kept::default(),
            pause: PAUSE.0,
            state: State::Down {
                until: Instant::now(),
            },
        })
    }

    /// Takes up what it has said.
    fn hear(&mut self) {
        while let Ok(word) = self.next_word() {
            if let Some(pid) = main_process(&word.text) {
                self.succeed(pid);
            }
            self.kept.hear(word);
        }
    }

    fn next_word(&self) -> io::Result<Word> {
        let receive = || kept::receive(&self.words);
        self.words.try_io(Interest::READABLE, receive)
    }

    /// Another process is the daemon from now on.
    fn succeed(&mut self, pid: Pid) {
        if matches!(self.state, State::Down { .. }) {
            return;
        }
        note(&format!("{} goes on with PID {pid}", self.plan.name));
        if test_kill_process(pid).is_err() {
            // It ended before it was heard of.
            note(&format!("{} ended with PID {pid}", self.plan.name));
            drop(fs::remove_file(self.pid_file()));
            return self.back_off();
        }
        self.state = State::Running {
            pid,
            since: Instant::now(),
        };
        if let Err(error) = fs::write(self.pid_file(), format!("{pid}\n")) {
            note(&format!(
                "the PID of {} is not known: {error}",
                self.plan.name
            ));
        }
    }

    fn start_if_due(&mut self, path: &Path) {
        let State::Down { until } = self.state else {
            return;
        };
        if Path::new(RUN).join("hold").join(&self.plan.name).exists() {
            return self.kept.close();
        }
        if Instant::now() < until {
            return;
        }
        match self.spawn(path) {
            Ok(pid) => {
                note(&format!("{} runs with PID {pid}", self.plan.name));
                self.state = State::Running {
                    pid,
                    since: Instant::now(),
                };
            }
            Err(error) => {
                note(&format!("{} cannot be started: {error}", self.plan.name));
                self.back_off();
            }
        }
    }

    fn spawn(&mut self, path: &Path) -> io::Result<Pid> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let (program, arguments) = self
            .plan
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| is_kept(&name.to_string_lossy())))
            .env("PATH", path)
            .env("HOME", "/root")
            .env("NOTIFY_SOCKET", words_of(&self.plan.name))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if let Err(error) = self.kept.give(&mut command) {
            note(&format!(
                "{} starts without what was kept: {error}",
                self.plan.name
            ));
            self.kept.close();
        }
        let child = command.spawn()?;
        fs::write(self.pid_file(), format!("{}\n", child.id()))?;
        // The handle is dropped, not waited for: `reap` collects every child of PID 1.
        i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::Other.into())
    }

    fn ended(&mut self, ended: Pid, status: WaitStatus) {
        let State::Running { pid, since } = self.state else {
            return;
        };
        if pid != ended {
            return;
        }
        note(&format!("{} ended: {}", self.plan.name, describe(status)));
        if since.elapsed() > RECOVERED {
            self.pause = PAUSE.0;
        }
        self.back_off();
        // A file that stays only names a process that is no more; the next start replaces it.
        drop(fs::remove_file(self.pid_file()));
    }

    fn back_off(&mut self) {
        self.state = State::Down {
            until: Instant::now() + self.pause,
        };
        self.pause = (self.pause * 2).min(PAUSE.1);
    }

    fn pid_file(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.pid", self.plan.name))
    }
}

/// The notify socket of a daemon.
fn words_of(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.notify"))
}

/// The process that a word names as the main one.
fn main_process(said: &str) -> Option<Pid> {
    let pid = said
        .lines()
        .find_map(|line| line.strip_prefix("MAINPID="))?;
    Pid::from_raw(pid.parse().ok()?)
}

/// Variables that reach the daemons: those that a person sets to look into them.
fn is_kept(name: &str) -> bool {
    name.starts_with("REHOME_") || name.starts_with("RUST_") || name == "LANG"
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("{status:?}"),
    }
}

/// Standard error is the host's `init.log`. A log that cannot be written must not end the host.
fn note(text: &str) {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    drop(writeln!(io::stderr(), "{now} {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_for_it_names_another_process() {
        let named = |said: &str| main_process(said).map(Pid::as_raw_pid);
        assert_eq!(named("MAINPID=77\nWATCHDOG=1\n"), Some(77));
        assert_eq!(named("READY=1\n"), None);
        assert_eq!(named("MAINPID=\n"), None);
        assert_eq!(named("STATUS=MAINPID=7\n"), None);
    }
}
