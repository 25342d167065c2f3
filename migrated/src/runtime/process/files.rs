//! What is kept of an instance, and where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rehome_runtime::report::Report;
use rehome_runtime::store::{self, LoadError};
use rehome_shared::ids::AppName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::network::Link;
use super::pid::ProcessId;
use crate::runtime::{InstanceSpec, RuntimeError};

/// What an instance is. Written when it is made, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Unique, so that the status of an earlier instance is never taken for this one's.
    pub(super) instance: String,
    /// What was asked for.
    pub(super) spec: InstanceSpec,
    /// Which part of the subnet it has.
    pub(super) slot: u32,
    /// Its way to the host.
    pub(super) link: Link,
    /// The name of its cgroup.
    pub(super) cgroup: String,
    /// Where its status is.
    pub(super) run_dir: PathBuf,
    /// Where its output goes.
    pub(super) log: PathBuf,
}

impl Record {
    pub(super) fn new(paths: &Paths, spec: InstanceSpec, slot: u32, link: Link) -> Self {
        let instance = uuid::Uuid::new_v4().simple().to_string();
        let application = spec.application.clone();
        Self {
            cgroup: format!("{application}-{instance}"),
            run_dir: paths.run(&application),
            log: paths.log(&application),
            instance,
            spec,
            slot,
            link,
        }
    }

    pub(super) fn status_path(&self) -> PathBuf {
        self.run_dir.join("status")
    }

    /// Locked by the supervisor as long as it lives.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.run_dir.join("lock")
    }
}

/// How an instance is. Written by its supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// Whose status.
    pub(super) instance: String,
    /// Who writes it.
    pub(super) supervisor: ProcessId,
    /// How it is.
    pub(super) phase: Phase,
}

/// The phases of a started instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// The command was started, and its init has not ended as far as the supervisor knows.
    Running {
        /// Process 1 of the application.
        init: ProcessId,
        /// When, RFC 3339.
        started_at: String,
    },
    /// It has ended, and everything is cleaned up.
    Exited {
        /// Exit status.
        code: Option<i32>,
        /// Why.
        reason: Option<String>,
    },
}

/// Where the files of all instances are.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    state_dir: PathBuf,
    run_dir: PathBuf,
}

impl Paths {
    pub(super) fn new(state_dir: PathBuf, run_dir: PathBuf) -> Self {
        Self { state_dir, run_dir }
    }

    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(super) fn record(&self, application: &AppName) -> PathBuf {
        self.state_dir.join(application.as_str()).join("instance")
    }

    pub(super) fn log(&self, application: &AppName) -> PathBuf {
        self.state_dir.join(application.as_str()).join("log")
    }

    fn run(&self, application: &AppName) -> PathBuf {
        self.run_dir.join(application.as_str())
    }

    /// Every instance there is.
    pub(super) fn all_records(&self) -> Result<Vec<Record>, RuntimeError> {
        let attempt = || format!("list {}", self.state_dir.display());
        let entries = match fs::read_dir(&self.state_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failure(attempt(), &error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(|error| failure(attempt(), &error))?
                .file_name();
            let application = name.to_str().and_then(|name| AppName::try_new(name).ok());
            if let Some(application) = application {
                records.extend(load::<Record>(&self.record(&application))?);
            }
        }
        records.sort_by(|a, b| a.spec.application.cmp(&b.spec.application));
        Ok(records)
    }

    /// Removes an instance's files; gone is fine.
    pub(super) fn remove(&self, application: &AppName) -> Result<(), RuntimeError> {
        for path in [
            self.state_dir.join(application.as_str()),
            self.run(application),
        ] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failure(format!("remove {}", path.display()), &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Runs something that blocks on a thread where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failure("finish an operation".to_owned(), &error)),
    }
}

/// Reads a file, `None` when there is none. A damaged one is an error, never absence.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    match store::load_blocking(path) {
        Ok(value) => Ok(Some(value)),
        Err(LoadError::Absent { .. }) => Ok(None),
        Err(error) => Err(failure(format!("read {}", path.display()), &error)),
    }
}

/// Replaces a file, making its directory when that is absent.
pub(super) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let attempt = || format!("write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| failure(attempt(), &error))?;
    }
    store::save_blocking(path, value).map_err(|error| failure(attempt(), &error))
}

fn failure(attempt: String, error: &(dyn std::error::Error + 'static)) -> RuntimeError {
    RuntimeError::Other {
        attempt,
        reason: Report(error).to_string(),
    }
}
