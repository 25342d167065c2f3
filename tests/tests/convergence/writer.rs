//! An application that overwrites its volume again and again, faster than it is copied, until it
//! is told to calm down.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::cluster::{Application, Migration};
use rehome_tests::deployment::{Deployment, changed};
use rehome_tests::lab::{Host, Lab};
use rehome_tests::page;
use rehome_tests::program::Running;
use rehome_tests::wait::{wait_for, wait_until};
use serde_json::{Value, json};

pub(crate) const NAME: &str = "writer";
pub(crate) const PORT: u16 = 7000;

/// A busy machine copies slowly.
pub(crate) const PATIENCE: Duration = Duration::from_mins(4);

/// Where the live trees of a host lie.
const LIVE: &str = "/var/lib/rehome/pool/live";

/// The writer, with these limits for its moves. Each round sends its 8 MiB, in 4 s: the window is
/// predicted as 4 s and what stopping and starting take (1.5 s until it was measured).
pub(crate) fn body(migration: &Value) -> Value {
    let script = "cd /data; busybox httpd -f -p 8080 -h /data & i=0; echo served >index.html; \
                  while :; do \
                    if [ -e calm ]; then sleep 0.1; continue; fi; \
                    dd if=/dev/urandom of=ballast bs=64k count=16 seek=$((i * 16)) conv=notrunc 2>/dev/null; \
                    i=$(((i + 1) % 8)); sleep 0.1; \
                  done";
    let mut limits = json!({
        "bandwidth_limit": "2MiB", "max_rounds": 2, "drain": "0s",
        "downtime_budget": "3s", "hard_cap": "4s",
    });
    for (key, value) in migration.as_object().into_iter().flatten() {
        limits[key] = value.clone();
    }
    json!({
        "image": "unused",
        "command": ["sh", "-c", script],
        "ports": [{"internal": 8080, "external": PORT}],
        "volume": {"mountpoint": "/data"},
        "healthcheck": {"http": "8080/", "interval": "100ms", "retries": 600},
        "stop_grace": "2s",
        "migration": limits,
    })
}

/// A move of the writer from the first host to the second.
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) before: Application,
    pub(crate) command: Running,
}

impl<'a> Stage<'a> {
    /// Deploys the writer and begins to move it when it has written all of its volume.
    pub(crate) fn begin(lab: &'a Lab, migration: &Value) -> anyhow::Result<Self> {
        lab.deploy(&Deployment::new().with(NAME, 1, &body(migration)))?
            .ok()?;
        let before = lab.wait_running(NAME, 1)?;
        let host = lab.host(1)?;
        wait_until("it has written its 8 MiB", PATIENCE, || {
            let size = host.shell(&format!("stat -c %s {LIVE}/*/ballast || echo 0"))?;
            Ok(size.trim().parse::<u64>()? >= 8 << 20)
        })?;
        let command = lab.begin_move(NAME, 2)?;
        Ok(Self {
            lab,
            before,
            command,
        })
    }

    /// The move that is under way, as soon as it is as `seen` wants it.
    pub(crate) fn wait(
        &self,
        what: &str,
        seen: impl Fn(&Migration) -> bool,
    ) -> anyhow::Result<Migration> {
        wait_for(what, PATIENCE, || {
            let last = self.lab.migrations()?.pop();
            if let Some(over) = last.as_ref().filter(|m| m.state() != "running") {
                ensure!(seen(over), "it is over: {over:?}");
            }
            Ok(last.filter(|migration| seen(migration)))
        })
    }

    /// Tells the writer to write no more.
    pub(crate) fn calm(&self) -> anyhow::Result<()> {
        self.lab
            .host(1)?
            .shell(&format!("for tree in {LIVE}/*; do touch $tree/calm; done"))?;
        Ok(())
    }

    /// Insists that the move was given up for such a reason, and that the writer never noticed.
    pub(crate) fn given_up(self, why: &str) -> anyhow::Result<Migration> {
        let outcome = self.command.wait()?.with_status(1)?;
        outcome.saying(why)?;
        let migration = self.lab.last_migration()?;
        ensure!(migration.state() == "aborted", "{migration:?}");
        ensure!(migration.error().contains(why), "{migration:?}");
        serves(self.lab, 1)?;
        let after = self.lab.wait_running(NAME, 1)?;
        ensure!(after.run() == self.before.run(), "restarted: {after:?}");
        nothing_is_held(self.lab.host(1)?)?;
        self.lab.host(2)?.has_no_live_volume()?;
        Ok(migration)
    }

    /// Insists that the writer arrived, and runs there as it likes.
    pub(crate) fn arrived(self) -> anyhow::Result<Migration> {
        self.command.wait()?.ok()?;
        let migration = self.lab.last_migration()?;
        ensure!(migration.state() == "done", "{migration:?}");
        self.lab.wait_running(NAME, 2)?;
        serves(self.lab, 2)?;
        for number in [1, 2] {
            nothing_is_held(self.lab.host(number)?)?;
        }
        self.lab.host(1)?.has_no_live_volume()?;
        let predicted = migration.0["predicted_window"].as_f64();
        predicted.with_context(|| format!("no prediction: {migration:?}"))?;
        Ok(migration)
    }
}

/// Insists that the writer answers behind every door.
pub(crate) fn serves(lab: &Lab, on: usize) -> anyhow::Result<()> {
    for door in lab.doors(PORT)? {
        let page = page::fetch(door)?;
        ensure!(page == "served\n", "on h{on}, {door} answers {page:?}");
    }
    Ok(())
}

/// What holds the applications of a host: microseconds in a stretch of time, by group. `None`
/// where groups cannot be held.
pub(crate) fn holds(host: &Host) -> anyhow::Result<Option<Vec<u64>>> {
    let script = "cd /sys/fs/cgroup; \
                  for file in cpu/rehome/*/cpu.cfs_quota_us cpu,cpuacct/rehome/*/cpu.cfs_quota_us \
                              rehome/*/cpu.max unified/rehome/*/cpu.max; do \
                    if [ -e $file ]; then cat $file; fi; \
                  done";
    let text = host.shell(script)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let first = text.lines().filter_map(|line| line.split(' ').next());
    Ok(Some(first.filter_map(|word| word.parse().ok()).collect()))
}

pub(crate) fn nothing_is_held(host: &Host) -> anyhow::Result<()> {
    let held = holds(host)?.unwrap_or_default();
    ensure!(held.is_empty(), "{} still holds {held:?}", host.name());
    Ok(())
}

/// A body with further keys.
pub(crate) fn with(body: &Value, changes: &Value) -> Value {
    changed(body, changes)
}
