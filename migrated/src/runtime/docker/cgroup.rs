//! A container's control groups: the kernel's own list of what belongs to it.
//!
//! The engine's word is not the last one: a helper it lost track of would still write to the
//! volume. Where control groups cannot be read (another process namespace, an unusual mount)
//! there are no places, and the engine's word has to do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::quota::{self, QuotaError};
use crate::runtime::{Cpus, Usage, usage};

/// Where control groups are mounted, everywhere.
const ROOT: &str = "/sys/fs/cgroup";

/// Nested groups deeper than this are not looked into; engines nest two or three.
const DEPTH: usize = 8;

/// The directory of one control group.
pub(super) type Place = PathBuf;

/// The places of the container that `pid` runs in, in every hierarchy that knows it by its id.
pub(super) async fn of_process(pid: Option<i64>, container: &str) -> Vec<Place> {
    let Some(pid) = pid.filter(|pid| *pid > 0) else {
        return Vec::new();
    };
    let container = container.to_owned();
    blocking(move || {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        places(&table, &container, Path::new(ROOT))
    })
    .await
}

/// The processes in these places, nested groups included.
pub(super) async fn processes(places: &[Place]) -> Vec<u32> {
    let places = places.to_vec();
    blocking(move || {
        let mut pids = Vec::new();
        for place in &places {
            collect(place, DEPTH, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    })
    .await
}

/// What the processes in these places have used; of process `pid` alone where there are none.
pub(super) async fn usage(pid: u32, places: &[Place]) -> Usage {
    let mut processes = processes(places).await;
    if processes.is_empty() {
        processes.push(pid);
    }
    blocking(move || usage::of(processes)).await
}

/// Holds these places to so much of the processors, or lets them run free.
pub(super) async fn throttle(places: &[Place], cpus: Option<Cpus>) -> Result<(), QuotaError> {
    let places = places.to_vec();
    blocking(move || Some(quota::set(&places, cpus)))
        .await
        .unwrap_or(Ok(()))
}

async fn blocking<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // The closures above do not panic, and the runtime's end is the end of the question.
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Reads `/proc/PID/cgroup`: lines `N:CONTROLLERS:PATH`, without controllers in version 2.
fn places(table: &str, container: &str, root: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        // The host's own groups hold the host's own processes.
        let Some(own) = own_group(path, container) else {
            continue;
        };
        let hierarchies = match controllers {
            "" => vec![root.to_owned(), root.join("unified")],
            named => vec![root.join(named.strip_prefix("name=").unwrap_or(named))],
        };
        let found = hierarchies
            .into_iter()
            .map(|base| base.join(own))
            .find(|p| p.is_dir());
        places.extend(found);
    }
    places
}

/// The part of a path up to the group that is the container's: its process may be in a nested
/// one.
fn own_group<'a>(path: &'a str, container: &str) -> Option<&'a str> {
    if container.is_empty() {
        return None;
    }
    let start = path.find(container)?;
    let rest = path.get(start..)?;
    let end = rest.find('/').map_or(path.len(), |length| start + length);
    path.get(..end).map(|own| own.trim_start_matches('/'))
}

fn collect(place: &Path, depth: usize, pids: &mut Vec<u32>) {
    let read = fs::read_to_string(place.join("cgroup.procs"));
    match read {
        Ok(list) => pids.extend(list.lines().filter_map(|line| line.parse::<u32>().ok())),
        // The group went away with its last process.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::debug!(%error, place = %place.display(), "a control group cannot be read");
        }
    }
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    let nested = fs::read_dir(place).into_iter().flatten().flatten();
    for entry in nested.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), depth, pids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, procs: &str) {
        let group = root.join(path);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), procs).unwrap();
    }

    #[test]
    fn only_groups_of_the_container_count() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "memory/docker/c1",
            "systemd/docker/c1",
            "docker/c1",
            "docker/c2",
        ] {
            group(root.path(), path, "");
        }
        let table = "5:memory:/docker/c1\n4:hugetlb:/\n1:name=systemd:/docker/c1/nested\n0::/docker/c1\nbad\n";
        let want: Vec<_> = ["memory/docker/c1", "systemd/docker/c1", "docker/c1"]
            .map(|path| root.path().join(path))
            .into();
        assert_eq!(places(table, "c1", root.path()), want);
        assert_eq!(places(table, "", root.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_scope_of_systemd_is_found_whole() {
        assert_eq!(
            own_group("/system.slice/docker-c1.scope/init", "c1"),
            Some("system.slice/docker-c1.scope")
        );
        assert_eq!(own_group("/user.slice", "c1"), None);
    }

    #[tokio::test]
    async fn processes_of_nested_groups_count_and_a_missing_group_is_empty() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "c1", "12\n");
        group(root.path(), "c1/payload", "");
        group(root.path(), "c1/payload/deep", "7\n12\n");
        let places = [root.path().join("c1"), root.path().join("gone")];
        assert_eq!(processes(&places).await, [7, 12]);
    }

    #[tokio::test]
    async fn a_process_that_is_gone_has_no_places() {
        assert_eq!(of_process(Some(0), "c1").await, Vec::<PathBuf>::new());
        assert_eq!(of_process(None, "c1").await, Vec::<PathBuf>::new());
    }
}
