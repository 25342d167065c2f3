//! What is kept of a soak that failed: the schedule, the diary, the histories, the logs, the
//! journals and the routes of every daemon, and what each pool holds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Run;
use super::diary::Diary;
use super::schedule::Schedule;
use super::stage::Stage;
use crate::{program, project};

/// Copying takes no longer.
const LIMIT: Duration = Duration::from_mins(1);

/// The evidence.
#[derive(Debug)]
pub(super) struct Evidence {
    directory: PathBuf,
    diary: Diary,
}

impl Evidence {
    /// Begins a diary in a directory of its own.
    pub(super) fn begin(seed: u64, schedule: &Schedule) -> anyhow::Result<Self> {
        let name = format!("soak/{seed}-{}", std::process::id());
        let directory = project()?.join("target").join(name);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(
            directory.join("schedule.json"),
            serde_json::to_string_pretty(schedule)?,
        )?;
        let diary = Diary::begin(&directory.join("diary.txt"))?;
        Ok(Self { directory, diary })
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The diary.
    pub(super) fn diary(&self) -> &Diary {
        &self.diary
    }

    /// Nothing was wrong.
    pub(super) fn discard(self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.directory)
    }

    /// Keeps all there is.
    pub(super) fn keep(
        &self,
        stage: &Stage<'_>,
        runs: &[Run],
        wrong: &[String],
    ) -> anyhow::Result<()> {
        std::fs::write(self.directory.join("wrong.txt"), wrong.join("\n"))?;
        for run in runs {
            let directory = self.directory.join(run.name);
            std::fs::create_dir_all(&directory)?;
            run.history.write(&directory)?;
        }
        for host in stage.lab.hosts() {
            let directory = self.directory.join(host.name());
            std::fs::create_dir_all(&directory)?;
            for part in ["log", "rehome/migrated", "rehome/proxyd"] {
                let mut copy = Command::new("cp");
                copy.arg("-a")
                    .arg(stage.disk(host).join(part))
                    .arg(&directory);
                program::run(&mut copy, LIMIT)?.ok()?;
            }
            // A host that is down has no pool to look at.
            let pool = host.shell("find /var/lib/rehome/pool -maxdepth 3; ps -eo pid,stat,args");
            let pool = pool.unwrap_or_else(|error| error.to_string());
            std::fs::write(directory.join("pool.txt"), pool)?;
        }
        let status = stage.lab.status();
        let status = status.map_or_else(|error| error.to_string(), |status| format!("{status:#}"));
        std::fs::write(self.directory.join("status.json"), status)?;
        let migrations = stage.lab.migrations();
        std::fs::write(
            self.directory.join("migrations.txt"),
            format!("{migrations:#?}"),
        )?;
        Ok(())
    }
}

/// Daemons that panicked: nothing that happens to them may do that.
pub(super) fn panics(stage: &Stage<'_>) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for host in stage.lab.hosts() {
        for daemon in ["migrated", "proxyd"] {
            let log = stage.disk(host).join(format!("log/{daemon}.log"));
            let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
            let lines = text.lines().filter(|line| line.contains("panicked at"));
            found.extend(lines.map(|line| format!("{daemon} on {}: {line}", host.name())));
        }
    }
    Ok(found)
}
