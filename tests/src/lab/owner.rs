//! Whose lab is whose. A lab's name is `test-PID-START-COUNT`: the process that made it, when
//! that process began (a number is used again), and a count.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

const PREFIX: &str = "test-";

/// Where the `rehome` command keeps what it knows of labs, and their disks.
const PLACES: [&str; 2] = ["/run/rehome-lab", "/var/lib/rehome-lab"];

/// The name of a lab of this process.
pub(super) fn lab_name(count: u32) -> anyhow::Result<String> {
    let pid = std::process::id();
    let start = start_of(pid).context("this process has no start time")?;
    Ok(format!("{PREFIX}{pid}-{start}-{count}"))
}

/// Removes the labs of processes that are no more.
pub(super) fn remove_orphans() -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    for place in PLACES {
        let Ok(entries) = std::fs::read_dir(place) else {
            continue;
        };
        names.extend(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()));
    }
    for name in names.iter().filter(|name| is_orphan(name)) {
        super::command(name, &["down"])?.ok()?;
    }
    Ok(())
}

fn is_orphan(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let mut numbers = rest.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start)), Some(Ok(_)), None) = (
        numbers.next(),
        numbers.next(),
        numbers.next(),
        numbers.next(),
    ) else {
        return false;
    };
    u32::try_from(pid).ok().and_then(start_of) != Some(start)
}

/// When a process began, in the kernel's ticks; `None` when there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_of_a_living_process_is_no_orphan_and_a_foreign_name_never_is() {
        let own = lab_name(7).unwrap();
        assert!(!is_orphan(&own), "{own}");
        assert!(is_orphan("test-4194305-1-1"));
        assert!(!is_orphan("rehome"));
        assert!(!is_orphan("test-bench"));
        let reused = format!("{PREFIX}{}-1-1", std::process::id());
        assert!(is_orphan(&reused));
    }
}
