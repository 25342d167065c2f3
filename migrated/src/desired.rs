//! The deployment that this host follows: on disk, and to watch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rehome_runtime::store::{self, LoadError, SaveError};
use rehome_shared::api::cluster::Desired;
use rehome_shared::ids::{AppName, DeploymentGeneration};
use tokio::sync::{Mutex, watch};

/// Why a deployment was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// This host follows a newer one, or another one of the same generation.
    #[error(
        "this host follows generation {known} already: another deployment came first; run it again"
    )]
    Older {
        /// The generation that it follows.
        known: DeploymentGeneration,
    },
    /// It cannot be kept.
    #[error("cannot keep the deployment")]
    Save(#[source] SaveError),
}

/// The store.
#[derive(Debug)]
pub struct DesiredStore {
    path: PathBuf,
    current: watch::Sender<Arc<Desired>>,
    /// Held while a new one is written, so that two cannot pass each other.
    writing: Mutex<()>,
    /// Held by who makes a new one of the one in force, so that none is lost to another.
    pub making: Mutex<()>,
}

impl DesiredStore {
    /// Reads what this host followed last; nothing is generation 0.
    ///
    /// # Errors
    /// [`LoadError`] when there is one that cannot be read or believed.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("desired.json");
        let desired = match store::load_blocking(&path) {
            Ok(desired) => desired,
            Err(LoadError::Absent { .. }) => Desired::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            current: watch::Sender::new(Arc::new(desired)),
            writing: Mutex::new(()),
            making: Mutex::new(()),
        })
    }

    /// The deployment in force.
    #[must_use]
    pub fn get(&self) -> Arc<Desired> {
        Arc::clone(&self.current.borrow())
    }

    /// The same, to wait on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Desired>> {
        self.current.subscribe()
    }

    /// Follows a deployment from now on, durably: the larger generation wins, and of two of one
    /// generation the larger hash. The one in force again is success.
    ///
    /// # Errors
    /// [`AcceptError`]; the one in force stays.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the file newer than what is followed; the next start, or
    /// the next call, takes it up.
    pub async fn accept(&self, desired: Desired) -> Result<DeploymentGeneration, AcceptError> {
        let _writing = self.writing.lock().await;
        let known = self.get();
        let (ours, theirs) = (rank(&known), rank(&desired));
        if theirs < ours {
            return Err(AcceptError::Older {
                known: known.generation,
            });
        }
        let generation = desired.generation;
        if theirs > ours {
            self.follow(desired).await?;
        }
        Ok(generation)
    }

    /// Follows a deployment that this host made itself, of the one that it follows: another one
    /// of the same generation came first, whatever its hash.
    ///
    /// # Errors
    /// [`AcceptError`]; the one in force stays.
    ///
    /// # Cancel safety
    /// As [`accept`](Self::accept).
    pub async fn accept_own(&self, desired: Desired) -> Result<(), AcceptError> {
        let _writing = self.writing.lock().await;
        let known = self.get().generation;
        if desired.generation <= known {
            return Err(AcceptError::Older { known });
        }
        self.follow(desired).await
    }

    async fn follow(&self, desired: Desired) -> Result<(), AcceptError> {
        store::save(&self.path, &desired)
            .await
            .map_err(AcceptError::Save)?;
        self.current.send_replace(Arc::new(desired));
        Ok(())
    }

    /// Does something while no other deployment can be accepted; `None` when another one is
    /// followed already.
    ///
    /// # Cancel safety
    /// That of `work`.
    pub async fn while_following<T>(
        &self,
        desired: &Desired,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let _writing = self.writing.lock().await;
        if rank(&self.get()) == rank(desired) {
            Some(work.await)
        } else {
            None
        }
    }
}

/// The generation that asks for each application of a deployment that follows on `current`: its
/// own for those that it describes or places otherwise and those that it names again, and for
/// all others the one that asked before.
#[must_use]
pub fn asked(
    current: &Desired,
    next: &Desired,
    again: &BTreeSet<AppName>,
) -> BTreeMap<AppName, DeploymentGeneration> {
    next.applications
        .iter()
        .map(|(name, spec)| {
            let same = current.applications.get(name) == Some(spec)
                && current.host_of(name) == next.host_of(name)
                && !again.contains(name);
            let since = if same {
                current.asked(name)
            } else {
                next.generation
            };
            (name.clone(), since)
        })
        .collect()
}

/// What decides between two deployments.
fn rank(desired: &Desired) -> (DeploymentGeneration, String) {
    (desired.generation, hash(desired))
}

/// A hash of a deployment's content.
#[must_use]
pub fn hash(desired: &Desired) -> String {
    let json = serde_json::to_vec(desired).unwrap_or_default();
    blake3::hash(&json)
        .to_hex()
        .as_str()
        .chars()
        .take(16)
        .collect()
}

#[cfg(test)]
mod tests;
