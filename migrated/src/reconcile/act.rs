//! What an action does.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::reconcile::Action;
use migrated_core::record::Record;
use migrated_core::registry::Ownership;
use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, DatasetId};

use crate::applications::{self, LaunchError};
use crate::birth::{self, BirthError};
use crate::host::{Host, spec_of};
use crate::ledger::LedgerError;
use crate::migrations::{self, BeginError};
use crate::runtime::RuntimeError;

/// The grace of an application that the deployment no longer describes.
const UNKNOWN_GRACE: Duration = Duration::from_secs(10);

/// The pause after an action that could do nothing yet.
const TURN: Duration = Duration::from_millis(500);

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    /// It cannot be brought to serve.
    #[error("{application} cannot run on {host}")]
    Launch {
        application: AppName,
        host: String,
        #[source]
        source: Box<LaunchError>,
    },
    #[error("it cannot be stopped")]
    Runtime(#[from] RuntimeError),
    #[error("it cannot be placed here")]
    Birth(#[from] BirthError),
    #[error("it cannot be moved")]
    Begin(#[from] BeginError),
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// Performs an action.
///
/// # Cancel safety
/// May have taken effect; the next look plans again.
pub(super) async fn apply(
    host: &Arc<Host>,
    application: &AppName,
    action: Action,
) -> Result<(), ActError> {
    let desired = host.desired.get();
    let spec = spec_of(&desired, application);
    let grace = spec.as_ref().map_or(UNKNOWN_GRACE, |spec| spec.stop_grace);
    match (action, spec) {
        (Action::Birth, Some(spec)) => match birth::give(host, application, &spec).await {
            // The next look plans for the newer deployment.
            Err(BirthError::Superseded) => Ok(()),
            other => Ok(other?),
        },
        (Action::Run, Some(spec)) => run(host, application, &spec).await,
        (Action::Start { after }, Some(spec)) => {
            tokio::time::sleep(after).await;
            launched(
                host,
                application,
                applications::restart(host, application, &spec).await,
            )
        }
        (Action::Stop | Action::Evict, _) => {
            host.routes.forget(application);
            Ok(applications::remove(host, application, grace).await?)
        }
        (Action::Migrate { to }, _) => match migrations::begin(host, application, &to).await {
            // It is its turn when another has ended; until then it is not asked at every look.
            Err(BeginError::TooMany(_)) => {
                tokio::time::sleep(TURN).await;
                Ok(())
            }
            other => Ok(other?),
        },
        // The deployment changed since the plan; the next look plans by the new one.
        (Action::None | Action::Birth | Action::Run | Action::Start { .. }, _) => {
            tokio::time::sleep(TURN).await;
            Ok(())
        }
    }
}

async fn run(host: &Arc<Host>, application: &AppName, spec: &Application) -> Result<(), ActError> {
    add_volumes(host, application, spec).await?;
    let owned = host
        .ledger
        .read(|registry| registry.owned(application).cloned());
    let Some(owned) = owned else { return Ok(()) };
    launched(
        host,
        application,
        applications::launch(host, application, &owned, spec).await,
    )
}

fn launched<T>(
    host: &Host,
    application: &AppName,
    result: Result<T, LaunchError>,
) -> Result<(), ActError> {
    result.map(drop).map_err(|source| ActError::Launch {
        application: application.clone(),
        host: host.address.to_string(),
        source: Box::new(source),
    })
}

/// Announces volumes that the deployment has and the application has not.
async fn add_volumes(
    host: &Host,
    application: &AppName,
    spec: &Application,
) -> Result<(), LedgerError> {
    let wanted: Vec<VolumeIdentity> = spec.volumes.iter().map(identity).collect();
    let application = application.clone();
    host.ledger
        .transact(move |registry| {
            let missing: Vec<VolumeIdentity> = registry
                .owned(&application)
                .map(|owned| missing(owned, wanted))
                .unwrap_or_default();
            if missing.is_empty() {
                (Vec::new(), ())
            } else {
                (
                    vec![Record::VolumesAdded {
                        application,
                        volumes: missing,
                    }],
                    (),
                )
            }
        })
        .await
}

fn missing(owned: &Ownership, wanted: Vec<VolumeIdentity>) -> Vec<VolumeIdentity> {
    let has = |volume: &VolumeIdentity| owned.volumes.iter().any(|known| known.name == volume.name);
    wanted.into_iter().filter(|volume| !has(volume)).collect()
}

/// The identity of a new volume: the file's, or a new one.
pub(crate) fn identity(volume: &rehome_shared::config::model::Volume) -> VolumeIdentity {
    VolumeIdentity {
        name: volume.name.clone(),
        dataset: volume
            .dataset_id
            .clone()
            .unwrap_or_else(DatasetId::generate),
    }
}
