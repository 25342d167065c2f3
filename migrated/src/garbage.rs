//! `rehome gc`: finding what an accident left, and removing it. What garbage is decides
//! [`migrated_core::garbage`]; here the host is looked at in the order that makes its answer
//! true: pool and runtime first, then the other hosts, and the journal last, so that whatever
//! begins meanwhile is seen to have begun.

mod diverged;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use migrated_core::garbage::{self, Elsewhere, Findings, Garbage, Seen, VolumeSeen};
use rehome_runtime::report::Report;
use rehome_shared::api::gc::{Collected, HostGarbage, Item, Kind, Meant};
use rehome_shared::ids::{AppName, DatasetId, HostAddr};
use rehome_shared::units::Bytes;

use crate::applications;
use crate::host::Host;
use crate::runtime::RuntimeError;
use crate::status;
use crate::storage::{Partial, StorageError, VolumeInfo};

/// A host looks at its pool and asks the others in this time.
const LOOK: Duration = Duration::from_secs(30);

/// Deleting waits for commits of the file system, one after the other.
const REMOVE: Duration = Duration::from_mins(10);

/// An instance that is not this host's is asked to stop before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Whether what is found is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Only said.
    List,
    /// Removed.
    Remove,
}

/// Why something could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
enum GarbageError {
    #[error("the pool cannot be read or changed")]
    Storage(#[from] StorageError),
    #[error("the runtime cannot be asked")]
    Runtime(#[from] RuntimeError),
    #[error("it is not garbage any more")]
    NeededNow,
}

/// What was looked at, all but the journal.
#[derive(Debug)]
struct Sight {
    volumes: Vec<VolumeInfo>,
    partials: Vec<Partial>,
    instances: Vec<AppName>,
    elsewhere: Elsewhere,
}

/// What all hosts find.
///
/// # Cancel safety
/// May have had some of its effect; say it again.
pub async fn cluster(host: &Arc<Host>, verb: Verb, meant: &Meant) -> Collected {
    let mut hosts = host.other_hosts();
    hosts.insert(host.address.clone());
    let asked = hosts.into_iter().map(|peer| async move {
        if peer == host.address {
            return here(host, verb, meant).await;
        }
        let (method, limit) = match verb {
            Verb::List => (Method::GET, LOOK),
            Verb::Remove => (Method::POST, REMOVE),
        };
        let client = host.peers.client(&peer);
        let path = meant.at("/peer/v1/gc");
        let answer = client.request_json(method, &path, None::<&()>, limit);
        answer
            .await
            .unwrap_or_else(|error| unseen(peer, &Report(&error).to_string()))
    });
    Collected {
        hosts: futures_util::future::join_all(asked).await,
    }
}

fn unseen(host: HostAddr, problem: &str) -> HostGarbage {
    HostGarbage {
        host,
        problem: Some(format!(
            "it cannot be asked, and nothing of it is touched: {problem}"
        )),
        garbage: Vec::new(),
        doubts: Vec::new(),
        diverged: Vec::new(),
    }
}

/// What this host finds.
///
/// # Cancel safety
/// May have had some of its effect; say it again.
pub async fn here(host: &Arc<Host>, verb: Verb, meant: &Meant) -> HostGarbage {
    if let Some(application) = &meant.diverged {
        return diverged::of(host, verb, application).await;
    }
    let sight = match look(host).await {
        Ok(sight) => sight,
        Err(error) => return unseen(host.address.clone(), &Report(&error).to_string()),
    };
    let Findings { garbage, doubts } = judge(host, &sight);
    let sizes = sizes(host, &sight, &garbage).await;
    let mut items = Vec::new();
    for (what, why) in garbage {
        let mut item = item(&sight, &sizes, &what, why);
        if verb == Verb::Remove {
            match remove(host, &sight, &what).await {
                Ok(()) => item.removed = true,
                Err(error) => item.error = Some(Report(&error).to_string()),
            }
            note(&item);
        }
        items.push(item);
    }
    HostGarbage {
        host: host.address.clone(),
        problem: None,
        garbage: items,
        doubts,
        diverged: diverged::copies(host, &sight.volumes).await,
    }
}

fn note(item: &Item) {
    tracing::info!(
        kind = item.kind.as_str(),
        name = item.name,
        removed = item.removed,
        error = item.error.as_deref().unwrap_or_default(),
        "garbage is collected"
    );
}

async fn look(host: &Arc<Host>) -> Result<Sight, GarbageError> {
    let volumes = host.storage.list().await?;
    let partials = host.storage.partials().await?;
    let instances = host.runtime.list().await?;
    let mut elsewhere = Elsewhere::default();
    for (peer, report) in status::reports(host).await {
        match report {
            None => drop(elsewhere.silent.insert(peer)),
            Some(report) => {
                let told = report.migrations.into_iter();
                elsewhere.migrations.extend(told.map(|m| (m.id, m.state)));
            }
        }
    }
    Ok(Sight {
        volumes,
        partials,
        instances: instances.into_iter().map(|i| i.application).collect(),
        elsewhere,
    })
}

/// Judges by the journal as it is now.
fn judge(host: &Host, sight: &Sight) -> Findings {
    let volumes: Vec<VolumeSeen> = sight.volumes.iter().map(seen).collect();
    let partials: Vec<(DatasetId, String)> = sight
        .partials
        .iter()
        .map(|partial| (partial.dataset.clone(), partial.name.clone()))
        .collect();
    host.ledger.read(|registry| {
        garbage::find(&Seen {
            here: &host.address,
            registry,
            elsewhere: &sight.elsewhere,
            volumes: &volumes,
            partials: &partials,
            instances: &sight.instances,
        })
    })
}

fn seen(info: &VolumeInfo) -> VolumeSeen {
    let stamp = info.stamp.as_ref();
    VolumeSeen {
        dataset: info.dataset.clone(),
        owner: stamp.map(|stamp| stamp.owner.clone()),
        migration: stamp.and_then(|stamp| stamp.migration.clone()),
        live: info.live,
        snapshots: info.snapshots.iter().map(|s| s.name.clone()).collect(),
    }
}

/// By volume and snapshot what deleting it frees. It is for people to see: what cannot be
/// measured is nothing.
type Sizes = BTreeMap<DatasetId, BTreeMap<String, Bytes>>;

async fn sizes(host: &Host, sight: &Sight, garbage: &[(Garbage, String)]) -> Sizes {
    let mut sizes = Sizes::new();
    for volume in &sight.volumes {
        let concerned = garbage.iter().any(|(what, _)| match what {
            Garbage::Snapshot { dataset, .. } => *dataset == volume.dataset,
            Garbage::Partial { .. } | Garbage::Volume { .. } | Garbage::Instance { .. } => false,
        });
        if concerned {
            let measured = host.storage.exclusive(&volume.dataset).await;
            sizes.insert(volume.dataset.clone(), measured.unwrap_or_default());
        }
    }
    sizes
}

fn item(sight: &Sight, sizes: &Sizes, what: &Garbage, why: String) -> Item {
    let volume = |dataset: &DatasetId| sight.volumes.iter().find(|v| v.dataset == *dataset);
    let (kind, dataset, name, bytes) = match what {
        Garbage::Snapshot { dataset, name } => {
            let bytes = sizes.get(dataset).and_then(|known| known.get(name));
            (Kind::Snapshot, Some(dataset), name.clone(), bytes.copied())
        }
        Garbage::Partial { dataset, name } => {
            let mut partials = sight.partials.iter();
            let partial = partials.find(|p| p.dataset == *dataset && p.name == *name);
            let bytes = partial.map(|partial| partial.bytes);
            (Kind::Partial, Some(dataset), name.clone(), bytes)
        }
        Garbage::Volume { dataset } => {
            let bytes = volume(dataset).map(|volume| volume.used);
            (Kind::Volume, Some(dataset), dataset.to_string(), bytes)
        }
        Garbage::Instance { application } => (Kind::Instance, None, application.to_string(), None),
    };
    let stamped = dataset.and_then(volume).and_then(|v| v.stamp.as_ref());
    let application = match what {
        Garbage::Instance { application } => Some(application.clone()),
        Garbage::Snapshot { .. } | Garbage::Partial { .. } | Garbage::Volume { .. } => {
            stamped.map(|stamp| stamp.application.clone())
        }
    };
    Item {
        kind,
        application,
        dataset: dataset.cloned(),
        name,
        bytes: bytes.unwrap_or_default(),
        why,
        removed: false,
        error: None,
    }
}

/// Removes something, unless it is needed by now.
async fn remove(host: &Arc<Host>, sight: &Sight, what: &Garbage) -> Result<(), GarbageError> {
    let still = |what: &Garbage| {
        judge(host, sight)
            .garbage
            .iter()
            .any(|(now, _)| now == what)
    };
    if !still(what) {
        return Err(GarbageError::NeededNow);
    }
    match what {
        Garbage::Snapshot { dataset, name } => {
            Ok(host.storage.delete_snapshot(dataset, name).await?)
        }
        Garbage::Partial { dataset, name } => {
            Ok(host.storage.discard_partial(dataset, name).await?)
        }
        Garbage::Volume { dataset } => Ok(host.storage.destroy(dataset).await?),
        Garbage::Instance { application } => {
            let _held = host.hold(application).await;
            if !still(what) {
                return Err(GarbageError::NeededNow);
            }
            Ok(applications::remove(host, application, GRACE).await?)
        }
    }
}
