//! The first owner of an application.
//!
//! Two hosts that both believed themselves first would be two owners. So an application is born
//! only when every other host of the deployment has answered, follows the very same deployment,
//! and has nothing of it; and the record is written while no newer deployment can come in
//! between, so that whoever asks later hears of it.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::record::Record;
use rehome_runtime::http_client::ClientError;
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::VolumeIdentity;
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, HostAddr};
use tokio::time::Instant;

use crate::desired;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::reconcile::identity;

/// Why an application is not born yet.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// A host cannot say whether it has it.
    #[error("it is not known whether {host} has {application}: it starts here when {host} answers, or when the deployment no longer names {host}")]
    Silent {
        /// The application.
        application: AppName,
        /// The host.
        host: HostAddr,
        /// The cause.
        #[source]
        source: Box<ClientError>,
    },
    /// A host follows another deployment yet.
    #[error("{0} does not follow this deployment yet")]
    Behind(HostAddr),
    /// A host has it.
    #[error("{host} has {application}")]
    Held {
        /// The application.
        application: AppName,
        /// The host.
        host: HostAddr,
    },
    /// A newer deployment came in between.
    #[error("a newer deployment came in between")]
    Superseded,
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// How long the other hosts may take to follow a deployment that has just come.
const SPREAD: Duration = Duration::from_secs(10);

/// The pause before they are asked again.
const SPREAD_PAUSE: Duration = Duration::from_millis(50);

/// Makes this host the first owner. Its volumes are made when it is started. A deployment that
/// is still on its way to other hosts is waited for.
///
/// # Errors
/// [`BirthError`]; nothing was born.
///
/// # Cancel safety
/// May have taken effect; the next look finds out.
pub(crate) async fn give(
    host: &Arc<Host>,
    application: &AppName,
    spec: &Application,
) -> Result<(), BirthError> {
    let desired = host.desired.get();
    let deadline = Instant::now() + SPREAD;
    loop {
        match try_give(host, &desired, application, spec).await {
            Err(BirthError::Behind(_)) if Instant::now() < deadline => {
                tokio::time::sleep(SPREAD_PAUSE).await;
            }
            given => return given,
        }
    }
}

async fn try_give(
    host: &Arc<Host>,
    desired: &Desired,
    application: &AppName,
    spec: &Application,
) -> Result<(), BirthError> {
    let hash = desired::hash(desired);
    for other in host.other_hosts() {
        let report = host.peers.report(&other).await.map_err(|source| BirthError::Silent {
            application: application.clone(),
            host: other.clone(),
            source: Box::new(source),
        })?;
        if report.generation != desired.generation || report.desired_hash != hash {
            if desired::hash(&host.desired.get()) != hash {
                return Err(BirthError::Superseded);
            }
            return Err(BirthError::Behind(other));
        }
        let owned = report.owned.iter().any(|owned| owned.application == *application);
        if owned || report.incoming.contains(application) {
            return Err(BirthError::Held { application: application.clone(), host: other });
        }
    }
    let volumes: Vec<VolumeIdentity> = spec.volumes.iter().map(identity).collect();
    let record = Record::Born { application: application.clone(), volumes };
    let name = application.clone();
    let born = host.ledger.transact(move |registry| {
        let known = registry.applications().contains_key(&name) || registry.incoming(&name).is_some();
        (if known { Vec::new() } else { vec![record] }, ())
    });
    host.desired.while_following(desired, born).await.ok_or(BirthError::Superseded)??;
    tracing::info!(%application, "an application is this host's from its beginning");
    Ok(())
}
