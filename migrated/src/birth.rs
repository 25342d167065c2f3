//! The first owner of an application.
//!
//! Two hosts that both believed themselves first would be two owners. So an application is born
//! only when every other host of the deployment has answered, follows the very same deployment,
//! and has nothing of it; and the record is written while no newer deployment can come in
//! between, so that whoever asks later hears of it.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_runtime::http_client::ClientError;
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::HostReport;
use rehome_shared::config::model::Application;
use rehome_shared::ids::{AppName, DatasetId, Epoch, HostAddr};
use tokio::time::Instant;

use crate::desired;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::reconcile::identity;
use crate::storage::StorageError;

/// Why an application is not born yet.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// A host cannot say whether it has it.
    #[error("it is not known whether {host} has {application}: it starts here when {host} answers")]
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
    /// There are volumes of one of that name.
    #[error(
        "the pool has volume {dataset} of an application {application} that this host does not know: it is not begun anew, empty. Bring its journal back, or remove the volume"
    )]
    Leftover {
        /// The application.
        application: AppName,
        /// The volume.
        dataset: DatasetId,
    },
    /// The pool does not say what is in it.
    #[error("the volumes cannot be listed")]
    Storage(#[from] StorageError),
    /// A host remembers it.
    #[error(
        "{host} knows that {owner} owned {application} at epoch {epoch}: it is not made anew, empty. {}",
        cure(application, owner, *epoch, here)
    )]
    Known {
        /// The application.
        application: AppName,
        /// The host that remembers.
        host: HostAddr,
        /// The owner that it remembers.
        owner: HostAddr,
        /// The epoch.
        epoch: Epoch,
        /// The host where it should have been born.
        here: HostAddr,
    },
    /// A newer deployment came in between.
    #[error("a newer deployment came in between")]
    Superseded,
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// What gives an owner back to an application whose last one does not know of it.
fn cure(application: &AppName, owner: &HostAddr, epoch: Epoch, here: &HostAddr) -> String {
    let to = if owner == here { "HOST" } else { here.as_str() };
    format!(
        "If {owner} lost its journal, stop migrated there and run `migrated --rebuild-journal`; if what it had is gone for good, run `rehome failover {application} --to {to} --fenced {owner}@{epoch}`"
    )
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

/// What another host's word says against a birth under a deployment.
fn objection(
    report: &HostReport,
    desired: &Desired,
    hash: &str,
    (application, here): (&AppName, &HostAddr),
) -> Option<BirthError> {
    let host = report.host.clone();
    if report.generation != desired.generation || report.desired_hash != hash {
        return Some(BirthError::Behind(host));
    }
    let owned = report
        .owned
        .iter()
        .any(|owned| owned.application == *application);
    let held = owned || report.incoming.contains(application);
    if held {
        return Some(BirthError::Held {
            application: application.clone(),
            host,
        });
    }
    let known = report.known_owner(application);
    known.map(|known| BirthError::Known {
        application: application.clone(),
        host,
        owner: known.owner.clone(),
        epoch: known.epoch,
        here: here.clone(),
    })
}

/// Whether the journal lets an application be born here: not when it is known already, which is
/// no mistake.
///
/// # Errors
/// The owner that this host itself has heard of.
fn may_be_born(
    registry: &Registry,
    here: &HostAddr,
    name: &AppName,
) -> Result<bool, (Epoch, HostAddr)> {
    if registry.applications().contains_key(name) || registry.incoming(name).is_some() {
        return Ok(false);
    }
    match registry.known_owner(here, name) {
        None => Ok(true),
        Some(known) => Err(known),
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
        let asked = host.peers.report_unless_gone(&other, &desired.fenced);
        let report = match asked.await {
            Ok(report) => report,
            // The deployment was taken without its word, too.
            Err(_) if desired.fenced.contains(&other) => continue,
            Err(source) => {
                return Err(BirthError::Silent {
                    application: application.clone(),
                    host: other,
                    source: Box::new(source),
                });
            }
        };
        match objection(&report, desired, &hash, (application, &host.address)) {
            None => {}
            Some(BirthError::Behind(_)) if desired::hash(&host.desired.get()) != hash => {
                return Err(BirthError::Superseded);
            }
            Some(objection) => return Err(objection),
        }
    }
    let pool = host.storage.list().await?;
    let left = pool.into_iter().find(|volume| {
        let stamp = volume.stamp.as_ref();
        stamp.is_some_and(|stamp| stamp.application == *application)
    });
    if let Some(left) = left.filter(|_| !spec.volumes.is_empty()) {
        return Err(BirthError::Leftover {
            application: application.clone(),
            dataset: left.dataset,
        });
    }
    let record = Record::Born {
        application: application.clone(),
        volumes: spec.volumes.iter().map(identity).collect(),
    };
    let (name, here) = (application.clone(), host.address.clone());
    let born = host.ledger.transact(move |registry| {
        let may = may_be_born(registry, &here, &name);
        let records = if may == Ok(true) {
            vec![record]
        } else {
            Vec::new()
        };
        (records, may)
    });
    let born = host.desired.while_following(desired, born).await;
    born.ok_or(BirthError::Superseded)??
        .map_err(|(epoch, owner)| BirthError::Known {
            application: application.clone(),
            host: host.address.clone(),
            owner,
            epoch,
            here: host.address.clone(),
        })?;
    tracing::info!(%application, "an application is this host's from its beginning");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{app, deployment, host, report};

    fn against(report: &HostReport) -> Option<BirthError> {
        let desired = deployment(2, &[("h1", &["db"]), ("h2", &[])]);
        let born = (&app("db"), &host("h1"));
        objection(report, &desired, &desired::hash(&desired), born)
    }

    #[test]
    fn a_host_that_follows_and_has_nothing_of_it_does_not_object() {
        let desired = deployment(2, &[("h1", &["db"]), ("h2", &[])]);
        assert!(against(&report("h2", &desired, &[("web", 1)])).is_none());
    }

    #[test]
    fn who_owns_it_or_has_it_on_the_way_objects() {
        let desired = deployment(2, &[("h1", &["db"]), ("h2", &[])]);
        let owner = report("h2", &desired, &[("db", 4)]);
        assert!(matches!(against(&owner), Some(BirthError::Held { .. })));
        let mut taking = report("h2", &desired, &[]);
        taking.incoming.push(app("db"));
        assert!(matches!(against(&taking), Some(BirthError::Held { .. })));
    }

    #[test]
    fn who_remembers_it_objects() {
        let desired = deployment(2, &[("h1", &["db"]), ("h2", &[])]);
        let mut former = report("h2", &desired, &[]);
        former.known.push(crate::fixtures::known("db", 3, "h1"));
        let said = against(&former).map(|error| error.to_string()).unwrap();
        assert!(
            said.starts_with("h2 knows that h1 owned db at epoch 3"),
            "{said}"
        );
        // This host is the one that lost it: nobody else's journal, and no failover to itself.
        assert!(said.contains("If h1 lost its journal"), "{said}");
        assert!(said.contains("--to HOST --fenced h1@3"), "{said}");
        former.known = vec![crate::fixtures::known("db", 3, "h3")];
        let said = against(&former).map(|error| error.to_string()).unwrap();
        assert!(
            said.contains("rehome failover db --to h1 --fenced h3@3"),
            "{said}"
        );
    }

    #[test]
    fn what_this_host_itself_has_heard_of_is_not_born_here() {
        let heard = Record::Heard {
            application: app("db"),
            epoch: Epoch(3),
            owner: host("h2"),
        };
        let registry = Registry::replay([&heard]);
        let may = |name: &str| may_be_born(&registry, &host("h1"), &app(name));
        assert_eq!(may("db"), Err((Epoch(3), host("h2"))));
        assert_eq!(may("web"), Ok(true));
        let born = Record::Born {
            application: app("web"),
            volumes: Vec::new(),
        };
        let registry = Registry::replay([&heard, &born]);
        assert_eq!(may_be_born(&registry, &host("h1"), &app("web")), Ok(false));
    }

    #[test]
    fn the_word_of_a_host_that_follows_another_deployment_does_not_count() {
        let older = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
        assert!(matches!(
            against(&report("h2", &older, &[])),
            Some(BirthError::Behind(_))
        ));
        let rival = deployment(2, &[("h1", &[]), ("h2", &["db"])]);
        assert!(matches!(
            against(&report("h2", &rival, &[])),
            Some(BirthError::Behind(_))
        ));
    }
}
