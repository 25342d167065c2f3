//! Whether a daemon can do its work, and if not, why.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The parts that are not ready, each with its reason; ready when there are none. Clones share.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Ready at once; block the parts that are not.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    /// A part is not ready, for this reason.
    pub fn block(&self, part: &'static str, reason: impl Into<String>) {
        let reason = reason.into();
        self.0.send_if_modified(|parts| {
            let changed = parts.get(part) != Some(&reason);
            parts.insert(part, reason);
            changed
        });
    }

    /// A part is ready.
    pub fn clear(&self, part: &'static str) {
        self.0
            .send_if_modified(|parts| parts.remove(part).is_some());
    }

    /// Whether every part is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The parts that are not, with their reasons.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        self.0.borrow().clone()
    }

    /// Waits until every part is ready.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives in `self`, so the channel cannot be closed here.
        let _ready = changes.wait_for(BTreeMap::is_empty).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
