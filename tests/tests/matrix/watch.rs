//! Looks for a second instance all the time, in two ways that do not ask the daemons: what runs
//! in the control groups of the hosts, and a lock that an instance holds for its life.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::lab::Lab;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Where control groups are mounted, in any of the forms of a Linux machine.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup",
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/memory",
];

/// The control groups of the applications of a lab's hosts.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// By host.
    parents: Vec<PathBuf>,
    /// The name of the instance's process.
    process: &'static str,
}

impl Groups {
    pub(crate) fn of(lab: &Lab, process: &'static str) -> anyhow::Result<Self> {
        let group = format!("rehome-lab-{}", lab.name());
        let mut bases = HIERARCHIES.iter().map(|base| Path::new(base).join(&group));
        let base = bases
            .find(|base| base.is_dir())
            .context("the lab has no control group")?;
        let parent = |host: &rehome_tests::lab::Host| base.join(host.name()).join("rehome");
        Ok(Self {
            parents: lab.hosts().iter().map(parent).collect(),
            process,
        })
    }

    /// How many instances run, by host. What ends while it is looked at does not run.
    pub(crate) fn running(&self) -> Vec<usize> {
        let count = |parent: &PathBuf| -> usize {
            let groups = fs::read_dir(parent).into_iter().flatten().flatten();
            groups
                .map(|group| self.processes(&group.path().join("cgroup.procs")))
                .sum()
        };
        self.parents.iter().map(count).collect()
    }

    fn processes(&self, list: &Path) -> usize {
        let pids = fs::read_to_string(list).unwrap_or_default();
        let is_one = |pid: &&str| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim_end() == self.process)
        };
        pids.lines().filter(is_one).count()
    }
}

/// A thread that looks until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    /// Where an instance that finds the lock taken writes that down.
    twice: PathBuf,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    looks: AtomicU64,
    /// How many instances ran on each host when there was more than one.
    two: Mutex<Option<Vec<usize>>>,
}

impl Watch {
    pub(crate) fn start(groups: Groups, twice: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let looking = Arc::clone(&shared);
        thread::spawn(move || looking.look_at(&groups));
        Self { shared, twice }
    }

    /// How often it looked.
    pub(crate) fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::Relaxed)
    }

    /// Insists that no two instances ran at any time until now.
    pub(crate) fn saw_one_at_a_time(&self) -> anyhow::Result<()> {
        let two = self
            .shared
            .two
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            two.is_none(),
            "two instances ran at a time, by host: {two:?}"
        );
        let twice = fs::read_to_string(&self.twice).unwrap_or_default();
        ensure!(
            twice.is_empty(),
            "an instance found the lock taken: {twice}"
        );
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn look_at(&self, groups: &Groups) {
        while !self.stop.load(Ordering::Relaxed) {
            self.looks.fetch_add(1, Ordering::Relaxed);
            let total = |seen: &[usize]| seen.iter().sum::<usize>();
            // The hosts are looked at one after the other: it counts when it is still so.
            if total(&groups.running()) > 1 {
                let again = groups.running();
                if total(&again) > 1 {
                    *self.two.lock().unwrap_or_else(PoisonError::into_inner) = Some(again);
                    return;
                }
            }
            thread::park_timeout(LOOK);
        }
    }
}
