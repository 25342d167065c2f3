//! Where a run was made.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rehome_tests::program;
use serde::{Deserialize, Serialize};

/// No program takes longer to say its version.
const LIMIT: Duration = Duration::from_secs(20);

/// A program that takes part, and how it is asked for its version.
pub type Program<'a> = (&'a str, &'a [&'a str]);

/// A machine, and what ran on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The name of its processor.
    pub processor: String,
    /// How many of them.
    pub cores: usize,
    /// Its memory in MiB.
    pub memory: u64,
    /// Its kernel.
    pub kernel: String,
    /// The file system that the pools' files are on; empty where a run has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub disk: String,
    /// How busy it was when the run began: processes that run or wait, of the last minute.
    pub load: String,
    /// When the run began.
    pub date: String,
    /// How Rehome was built: `debug` or `release`.
    pub build: String,
    /// What the programs say of themselves.
    pub versions: Vec<String>,
}

impl Machine {
    /// This one, now. What cannot be found out is called unknown; of programs that say nothing,
    /// nothing is told.
    #[must_use]
    pub fn here(programs: &[Program<'_>]) -> Self {
        let cpu = read("/proc/cpuinfo");
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kibibytes = memory.split(' ').next().and_then(|word| word.parse().ok());
        let build = program::built("rehome").ok();
        let build = build
            .as_deref()
            .and_then(Path::parent)
            .and_then(Path::file_name);
        Self {
            processor: field(&cpu, "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kibibytes.unwrap_or(0_u64) / 1024,
            kernel: said("uname", &["-sr"]),
            disk: String::new(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            build: build.map_or_else(unknown, |name| name.to_string_lossy().into_owned()),
            versions: programs
                .iter()
                .map(|(name, words)| said(name, words))
                .filter(|version| *version != unknown())
                .collect(),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of a line `name : value`.
fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.trim_start().strip_prefix(':'));
    value.map_or_else(unknown, |value| value.trim().to_owned())
}

/// The first line that a program says, to either stream; unknown when it says none.
#[must_use]
pub fn said(name: &str, words: &[&str]) -> String {
    let outcome = program::run(Command::new(name).args(words), LIMIT);
    let line = outcome.ok().and_then(|outcome| {
        let mut lines = outcome.stdout.lines().chain(outcome.stderr.lines());
        let line = lines.find(|line| !line.trim().is_empty())?;
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    line.unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_the_text_behind_its_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(field(text, "model name"), "Some CPU @ 2 GHz");
        assert_eq!(field(text, "flags"), "unknown");
        assert_eq!(field("MemTotal:       24684 kB\n", "MemTotal"), "24684 kB");
    }
}
