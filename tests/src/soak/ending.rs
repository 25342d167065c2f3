//! How a soak must end: faults healed, the cluster comes by itself, in bounded time, to one
//! serving owner of each application, and the next move works and leaves nothing over.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::clients::Clients;
use super::history::Log;
use super::schedule::HOSTS;
use super::stage::{Application, Stage};
use crate::clock;
use crate::lab::Host;
use crate::log::client::Connection;
use crate::wait::{wait_for, wait_until};

/// Every fault is over: by then everybody serves. Longer than the longest pause between two tries
/// of the daemons (a minute), and than the longest wait of a parked connection.
const BOUND: Duration = Duration::from_mins(2);

/// Waits until every client has answers again and the cluster says that all is well.
pub(super) fn come_to_rest(
    stage: &Stage<'_>,
    application: &Application,
    clients: &Clients,
) -> anyhow::Result<()> {
    let healed = clock::now();
    let name = application.name;
    wait_until(&format!("every client of {name} is served"), BOUND, || {
        Ok(clients.answered_since(healed) == clients.count())
    })
    .with_context(|| last_status(stage))?;
    wait_until(&format!("{name} runs and nothing moves"), BOUND, || {
        // A host that was started a moment ago may not answer yet.
        let (Ok(seen), Ok(all)) = (stage.lab.application(name), stage.lab.migrations()) else {
            return Ok(false);
        };
        let open = |state: &str| matches!(state, "running" | "blocked");
        let moves = all.iter().any(|migration| open(migration.state()));
        Ok(seen.state == "running" && !moves)
    })
    .with_context(|| last_status(stage))?;
    runs_once(stage, application)
}

fn last_status(stage: &Stage<'_>) -> String {
    let status = stage.lab.status();
    let migrations = stage.lab.migrations();
    let last = migrations.map(|all| all.into_iter().rev().take(3).collect::<Vec<_>>());
    format!("status: {status:?}; last migrations: {last:?}")
}

fn runs_once(stage: &Stage<'_>, application: &Application) -> anyhow::Result<()> {
    let hosts = stage.lab.hosts().iter();
    let runs: Vec<&str> = hosts
        .filter(|host| stage.whose(host, application).runs())
        .map(Host::name)
        .collect();
    let name = application.name;
    ensure!(runs.len() == 1, "{name} runs on {runs:?}");
    Ok(())
}

/// The next move goes well, and when it is over nothing is left of the ones before.
pub(super) fn move_once_more(stage: &Stage<'_>, application: &Application) -> anyhow::Result<()> {
    let name = application.name;
    let to = stage.owner(application)? % HOSTS + 1;
    application.goes_to(to);
    stage
        .lab
        .move_to(name, to)?
        .ok()
        .context("a move when all is well")?;
    let seen = stage.lab.wait_running(name, to)?;
    let host = stage.lab.host(to)?.address();
    ensure!(seen.desired_host.as_deref() == Some(host), "{seen:?}");
    runs_once(stage, application)
}

/// Insists that of all moves only common bases are left: at most one snapshot of each volume on a
/// host, nothing received by halves, and no live tree beside the owner's.
pub(super) fn nothing_is_left(stage: &Stage<'_>) -> anyhow::Result<()> {
    let bases = stage.applications.len();
    for host in stage.lab.hosts() {
        let listing = "cd /var/lib/rehome/pool; find snap recv -mindepth 2 -maxdepth 2";
        wait_for(
            &format!("nothing is left on {}", host.name()),
            BOUND,
            || {
                let left = host.shell(listing)?;
                let mut volumes: Vec<_> = left
                    .lines()
                    .filter_map(|line| line.rsplit_once('/'))
                    .collect();
                volumes.sort_unstable();
                volumes.dedup_by_key(|(volume, _)| *volume);
                let once = volumes.len() == left.lines().count() && volumes.len() <= bases;
                Ok((once && !left.contains("recv/")).then_some(()))
            },
        )
        .with_context(|| host.shell(listing).unwrap_or_default())?;
    }
    let mut live = Vec::new();
    wait_until("each volume has one live tree", BOUND, || {
        live.clear();
        for host in stage.lab.hosts() {
            let names = host.shell("ls /var/lib/rehome/pool/live")?;
            live.extend(names.split_whitespace().map(str::to_owned));
        }
        Ok(live.len() == bases)
    })
    .with_context(|| format!("live trees: {live:?}"))
}

/// The whole log behind every door.
pub(super) fn read_all(stage: &Stage<'_>, application: &Application) -> anyhow::Result<Vec<Log>> {
    let doors = application.doors(stage.lab)?.into_iter();
    doors
        .map(|door| {
            let records = Connection::open(door, BOUND)?
                .dump()
                .with_context(|| format!("the log behind {door}"))?;
            let door = door.to_string();
            Ok(Log { door, records })
        })
        .collect()
}
