//! A host that is driven by files: the deployment and application files that migrated.yml names,
//! applied at start and at reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rehome_runtime::report::Report;
use rehome_shared::api::cluster::DeployRequest;
use rehome_shared::config::daemon::DeploymentFiles;
use rehome_shared::config::problem::Problem;
use rehome_shared::config::{self, Source};

use crate::deploy::{self, DeployError};
use crate::host::Host;

/// Why the files were not applied. What is in force stays.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// They are wrong.
    #[error("{}", list(.0))]
    Wrong(Vec<Problem>),
    /// The cluster does not take them.
    #[error("the deployment is not taken")]
    Deploy(#[from] DeployError),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// Reads a file for the parser.
///
/// # Errors
/// [`FilesError::Read`].
pub fn source(path: &Path) -> Result<Source, FilesError> {
    let text = std::fs::read_to_string(path).map_err(|source| FilesError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Source {
        name: path.display().to_string(),
        text,
    })
}

/// Applies the files, as `rehome deploy` would.
///
/// # Errors
/// [`FilesError`]; what is in force stays.
///
/// # Cancel safety
/// As [`deploy::deploy`].
pub async fn apply(host: &Arc<Host>, files: &DeploymentFiles) -> Result<(), FilesError> {
    let application = source(&files.application)?;
    let deployment = source(&files.deployment)?;
    let loaded = config::load(&application, Some(&deployment)).map_err(FilesError::Wrong)?;
    for warning in &loaded.warnings {
        tracing::warn!(%warning, "the deployment files");
    }
    let request = DeployRequest {
        applications: loaded.applications,
        placement: loaded.placement.unwrap_or_default(),
        dry_run: false,
    };
    let reply = deploy::deploy(host, request).await?;
    tracing::info!(generation = %reply.generation, changes = reply.changes.len(), "the deployment files are applied");
    Ok(())
}

/// Applies the files again and again until it succeeds or another deployment came: at start the
/// other hosts may not be there yet.
///
/// # Cancel safety
/// Cancel safe.
pub async fn apply_at_start(host: Arc<Host>, files: DeploymentFiles) {
    let stop = host.supervisor.token().clone();
    let mut pause = rehome_runtime::backoff::Backoff::new(
        std::time::Duration::from_secs(1),
        std::time::Duration::from_secs(30),
    );
    let began = host.desired.get().generation;
    loop {
        if host.desired.get().generation != began {
            tracing::info!("the deployment files are not applied: another deployment came first");
            return;
        }
        match apply(&host, &files).await {
            Ok(()) => return,
            Err(FilesError::Deploy(error @ DeployError::Partial(_))) => {
                let error = Report(&error).to_string();
                tracing::warn!(
                    error,
                    "the deployment files are applied, and not on every host yet"
                );
                return;
            }
            Err(error @ FilesError::Deploy(_)) => {
                let error = Report(&error).to_string();
                tracing::warn!(error, "the deployment files are not applied yet");
            }
            Err(error) => {
                let error = Report(&error).to_string();
                tracing::error!(
                    error,
                    "the deployment files are wrong; what was in force stays"
                );
                return;
            }
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(pause.next_delay()))
            .await
            .is_none()
        {
            return;
        }
    }
}
