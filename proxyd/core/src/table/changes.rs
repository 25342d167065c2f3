//! What a change made of a table. Whatever follows a change touches only what is named here, so
//! that the cost of a change does not grow with the table.

use std::collections::BTreeSet;

use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::AppName;

use super::RouteTable;

/// What became another one. The routes themselves are in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Changes {
    /// Routes that were not there before.
    pub added: Vec<RouteKey>,
    /// Routes that are no more.
    pub removed: Vec<RouteKey>,
    /// Routes that changed.
    pub updated: Vec<RouteKey>,
    /// Applications of which something changed that is kept on disk.
    pub applications: BTreeSet<AppName>,
    /// Whether this host's name or its peers changed.
    pub cluster: bool,
}

impl Changes {
    /// All of a table, for those who know nothing of it yet.
    pub fn all_of(table: &RouteTable) -> Self {
        Self {
            added: table.routes().keys().copied().collect(),
            removed: Vec::new(),
            updated: Vec::new(),
            applications: table.applications().cloned().collect(),
            cluster: true,
        }
    }

    /// Whether the table is as it was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys().next().is_none() && self.applications.is_empty() && !self.cluster
    }

    /// The routes that came, went or changed.
    pub fn keys(&self) -> impl Iterator<Item = RouteKey> {
        let keys = self.removed.iter().chain(&self.added).chain(&self.updated);
        keys.copied()
    }

    pub(crate) fn touch(&mut self, application: &AppName) {
        if !self.applications.contains(application) {
            self.applications.insert(application.clone());
        }
    }
}
