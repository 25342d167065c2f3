//! What the relay and the machine have used so far, as the kernel counts it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rehome_tests::wait::wait_until;
use rustix::param::clock_ticks_per_second;

use crate::stats::figure;

/// One look at the counters.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// When.
    pub at: Instant,
    /// Processor time in seconds of the relay's processes.
    pub own: f64,
    /// That of all processes that this one sees: those of the trial, which sees no others.
    pub all: f64,
    /// Each processor's time.
    pub processors: Vec<Spent>,
    /// Bytes of memory that the relay's processes hold.
    pub resident: f64,
    /// Bytes of the kernel's own structures.
    pub slab: f64,
}

/// What a processor has spent, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// Doing something.
    pub busy: f64,
    /// In all.
    pub all: f64,
}

/// A process, as `/proc/PID/stat` shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    pid: u32,
    parent: u32,
    ticks: u64,
}

/// Looks, at a relay that began with this process; `None` where there is no relay.
///
/// # Errors
/// When the relay is gone, or the kernel does not say.
pub fn read(relay: Option<u32>) -> anyhow::Result<Reading> {
    let tick = 1.0 / figure(clock_ticks_per_second());
    let at = Instant::now();
    let processors = processors(&fs::read_to_string("/proc/stat")?, tick);
    ensure!(
        !processors.is_empty(),
        "the kernel counts no processor time"
    );
    let entries = entries()?;
    let family = match relay {
        None => Vec::new(),
        Some(first) => family(&entries, first),
    };
    ensure!(relay.is_none() || !family.is_empty(), "the relay is gone");
    let mut resident = 0.0;
    for process in &family {
        let path = format!("/proc/{}/smaps_rollup", process.pid);
        resident += kibibytes(&fs::read_to_string(&path)?, "Rss:").with_context(|| path)?;
    }
    let memory = fs::read_to_string("/proc/meminfo")?;
    let seconds = |some: &[Entry]| figure(some.iter().map(|process| process.ticks).sum()) * tick;
    Ok(Reading {
        at,
        own: seconds(&family),
        all: seconds(&entries),
        processors,
        resident: resident * 1024.0,
        slab: kibibytes(&memory, "Slab:").context("the kernel hides its slabs")? * 1024.0,
    })
}

/// What share of the machine is busy, over a while.
///
/// # Errors
/// When the kernel does not say.
pub fn busy(over: Duration) -> anyhow::Result<f64> {
    let spent = || -> anyhow::Result<Spent> {
        let all = processors(&fs::read_to_string("/proc/stat")?, 1.0);
        Ok(all.iter().fold(Spent::default(), |sum, one| Spent {
            busy: sum.busy + one.busy,
            all: sum.all + one.all,
        }))
    };
    let before = spent()?;
    let begin = Instant::now();
    wait_until("a while has passed", over * 2, || {
        Ok(begin.elapsed() >= over)
    })?;
    let after = spent()?;
    let all = after.all - before.all;
    ensure!(all > 0.0, "the kernel counts no processor time");
    Ok((after.busy - before.busy) / all)
}

fn entries() -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in fs::read_dir("/proc")? {
        let name = found?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may have ended since.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        entries.extend(entry(pid, &stat));
    }
    Ok(entries)
}

/// The second field is a name in brackets that may hold anything; behind it are the state, the
/// parent and, as the 12th and 13th, the time in user space and in the kernel.
fn entry(pid: u32, stat: &str) -> Option<Entry> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(1);
    let parent = fields.next()?.parse().ok()?;
    let mut times = fields.skip(9).map_while(|field| field.parse::<u64>().ok());
    Some(Entry {
        pid,
        parent,
        ticks: times.next()?.saturating_add(times.next()?),
    })
}

/// A process and all that came from it.
fn family(all: &[Entry], first: u32) -> Vec<Entry> {
    let mut pids = BTreeSet::from([first]);
    // A child may have a smaller number than its parent: look until nothing is new.
    loop {
        let before = pids.len();
        let children = all.iter().filter(|entry| pids.contains(&entry.parent));
        let children: Vec<u32> = children.map(|entry| entry.pid).collect();
        pids.extend(children);
        if pids.len() == before {
            break;
        }
    }
    let members = all.iter().filter(|entry| pids.contains(&entry.pid));
    members.copied().collect()
}

/// The lines `cpuN user nice system idle iowait irq softirq steal …`.
fn processors(stat: &str, tick: f64) -> Vec<Spent> {
    let of_one = |line: &str| {
        let (name, times) = line.split_once(' ')?;
        name.strip_prefix("cpu")?.parse::<usize>().ok()?;
        let times = times.split(' ').take(8);
        let times: Vec<f64> = times.map_while(|time| time.parse().ok()).collect();
        let [user, nice, system, idle, wait, interrupt, soft, steal] = times.try_into().ok()?;
        let busy = user + nice + system + interrupt + soft;
        Some(Spent {
            busy: busy * tick,
            all: (busy + idle + wait + steal) * tick,
        })
    };
    stat.lines().filter_map(of_one).collect()
}

/// The value of a line `Name:   value kB`.
fn kibibytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read_too() {
        let stat = "7 (a) S 9) S 3 7 7 0 -1 4194560 100 0 0 0 25 17 0 0 20 0 1 0 5 1 1\n";
        let found = entry(7, stat).unwrap();
        assert_eq!((found.parent, found.ticks), (3, 42));
        assert_eq!(entry(7, ""), None);
    }

    #[test]
    fn a_family_is_all_that_came_from_its_first_process() {
        let of = |pid, parent| Entry {
            pid,
            parent,
            ticks: 1,
        };
        let all = [of(2, 9), of(5, 1), of(9, 5), of(10, 1), of(11, 2)];
        let pids: Vec<u32> = family(&all, 5).iter().map(|entry| entry.pid).collect();
        assert_eq!(pids, [2, 5, 9, 11]);
        assert!(family(&all, 77).is_empty());
    }

    #[test]
    fn waiting_is_not_work() {
        let stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 50 700 30 4 6 100 0 0\nintr 5\n";
        let [only] = processors(stat, 0.01).try_into().unwrap();
        let Spent { busy, all } = only;
        assert!(
            (busy - 1.7).abs() < 1e-9 && (all - 10.0).abs() < 1e-9,
            "{only:?}"
        );
    }

    #[test]
    fn a_line_of_memory_is_found_by_its_whole_name() {
        let text = "SlabX: 1 kB\nSlab:   2048 kB\n";
        assert_eq!(kibibytes(text, "Slab:"), Some(2048.0));
        assert_eq!(kibibytes(text, "Rss:"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let reading = read(Some(std::process::id())).unwrap();
        assert!(reading.resident > 0.0 && reading.slab > 0.0);
        assert!(reading.all >= reading.own);
        let all: f64 = reading.processors.iter().map(|spent| spent.all).sum();
        assert!(all > 0.0);
    }

    #[test]
    fn a_machine_is_busy_between_not_at_all_and_wholly() {
        let busy = busy(Duration::from_millis(100)).unwrap();
        assert!((0.0..=1.0).contains(&busy), "{busy}");
    }
}
