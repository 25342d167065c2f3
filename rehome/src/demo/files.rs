//! The files of the demonstration: the applications, where they run, and where they run after
//! the move.
//!
//! The last host runs none of them at any time: it is where log lines enter. The receiver is on
//! the second host and stays there; the store moves from the first host to the second one.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::paths::{self, PathError};

const APPLICATION: &str = include_str!("files/application.yml");

/// What moves.
pub(super) const STORE: &str = "store";

/// The host with this place runs the store before the move.
pub(super) const FROM: usize = 0;

/// The host with this place runs it afterwards.
pub(super) const TO: usize = 1;

/// The files, written.
#[derive(Debug)]
pub(super) struct Files {
    /// The applications.
    pub(super) application: PathBuf,
    /// Where they run at first.
    pub(super) deployment: PathBuf,
    /// Where they run after the move.
    pub(super) moved: PathBuf,
}

impl Files {
    /// Writes them into a directory.
    pub(super) fn write(directory: &Path, hosts: &[Ipv4Addr]) -> Result<Self, PathError> {
        let files = Self {
            application: directory.join("application.yml"),
            deployment: directory.join("deployment.yml"),
            moved: directory.join("deployment-moved.yml"),
        };
        paths::replace(&files.application, 0o644, APPLICATION)?;
        paths::replace(&files.deployment, 0o644, &deployment(hosts, FROM))?;
        paths::replace(&files.moved, 0o644, &deployment(hosts, TO))?;
        Ok(files)
    }
}

/// Where everything runs when the store runs on the host with the place `store`.
fn deployment(hosts: &[Ipv4Addr], store: usize) -> String {
    let others = hosts.len().saturating_sub(1).max(1);
    let (logs, web) = (1 % others, 2 % others);
    let node = |(place, address): (usize, &Ipv4Addr)| {
        let applications = [(store, STORE), (logs, "logs"), (web, "web")];
        let here = applications.into_iter().filter(|(host, _)| *host == place);
        let here: Vec<_> = here.map(|(_, name)| name).collect();
        format!("  {address}: [{}]\n", here.join(", "))
    };
    let nodes: String = hosts.iter().enumerate().map(node).collect();
    format!("version: 1\nnodes:\n{nodes}")
}

#[cfg(test)]
mod tests {
    use rehome_shared::config::{Source, load};

    use super::*;

    fn hosts(number: u8) -> Vec<Ipv4Addr> {
        (11..)
            .take(number.into())
            .map(|last| Ipv4Addr::new(10, 77, 0, last))
            .collect()
    }

    #[test]
    fn the_files_are_accepted_with_three_hosts_and_with_more() {
        for number in 3..7 {
            for store in [FROM, TO] {
                let deployment = deployment(&hosts(number), store);
                let loaded = load(
                    &Source::new("application.yml", APPLICATION),
                    Some(&Source::new("deployment.yml", deployment.as_str())),
                )
                .unwrap();
                assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
                assert_eq!(loaded.applications.len(), 3);
                let placement = loaded.placement.unwrap();
                assert_eq!(placement.values().map(Vec::len).sum::<usize>(), 3);
            }
        }
    }

    #[test]
    fn only_the_store_moves_and_the_last_host_runs_nothing() {
        assert_eq!(
            deployment(&hosts(3), FROM),
            "version: 1\nnodes:\n  10.77.0.11: [store, web]\n  10.77.0.12: [logs]\n  10.77.0.13: []\n"
        );
        assert_eq!(
            deployment(&hosts(3), TO),
            "version: 1\nnodes:\n  10.77.0.11: [web]\n  10.77.0.12: [store, logs]\n  10.77.0.13: []\n"
        );
    }
}
