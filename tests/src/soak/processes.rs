//! The processes of lab hosts, as this machine numbers them: a fault that must hit a moment has no
//! time to enter a host first.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::schedule::Program;

/// Whose processes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    /// The name of the lab.
    pub(super) lab: &'a str,
    /// The name of the host.
    pub(super) host: &'a str,
    /// A word on the command line of the application.
    pub(super) application: &'a str,
}

impl Whose<'_> {
    /// Sends a signal to a program, and says whether there was one.
    pub(super) fn signal(self, program: Program, signal: Signal) -> bool {
        self.send(signal, |words| match program {
            Program::Migrated => is_daemon(words, "migrated"),
            Program::Proxyd => is_daemon(words, "proxyd"),
            Program::Application => is_server(words) && words.contains(&self.application),
        })
    }

    /// Kills the first process of the host, and so all of it.
    pub(super) fn kill_host(self) -> bool {
        self.send(Signal::KILL, |words| {
            words.get(1..3) == Some(&["lab-init", "first"])
        })
    }

    /// Lets everything go on that was stopped.
    pub(super) fn let_all_go_on(self) {
        self.send(Signal::CONT, |words| {
            is_daemon(words, "migrated") || is_daemon(words, "proxyd") || is_server(words)
        });
    }

    /// Whether the application runs there.
    pub(super) fn runs(self) -> bool {
        !self
            .find(|words| is_server(words) && words.contains(&self.application))
            .is_empty()
    }

    fn send(self, signal: Signal, is_meant: impl Fn(&[&str]) -> bool) -> bool {
        let found = self.find(is_meant);
        for pid in &found {
            // One that has just ended needs no signal.
            kill_process(*pid, signal).unwrap_or_default();
        }
        !found.is_empty()
    }

    fn find(self, is_meant: impl Fn(&[&str]) -> bool) -> Vec<Pid> {
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line);
                let words: Vec<&str> = line.split_terminator('\0').collect();
                let here = is_meant(&words) && self.holds(&entry.path());
                here.then_some(Pid::from_raw(pid)?)
            })
            .collect()
    }

    /// Whether a process is in the control group of the host.
    fn holds(self, process: &Path) -> bool {
        let group = format!("/rehome-lab-{}/{}", self.lab, self.host);
        let groups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        groups.lines().any(|line| {
            line.split_once(&group)
                .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn is_daemon(words: &[&str], name: &str) -> bool {
    is_program(words, name) && words.get(1) == Some(&"--config")
}

fn is_server(words: &[&str]) -> bool {
    is_program(words, "log-server")
}

fn is_program(words: &[&str], name: &str) -> bool {
    words
        .first()
        .is_some_and(|word| Path::new(word).ends_with(name))
}
