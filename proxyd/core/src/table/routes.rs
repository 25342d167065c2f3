//! The routes by their keys, and the keys of each application.
//!
//! Invariant: an application has exactly the keys of the routes that it owns, and is absent when
//! it has none. Both maps are private here and change together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::AppName;

use super::Route;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Routes {
    by_key: BTreeMap<RouteKey, Arc<Route>>,
    by_application: BTreeMap<AppName, BTreeSet<RouteKey>>,
}

impl Routes {
    pub(crate) fn by_key(&self) -> &BTreeMap<RouteKey, Arc<Route>> {
        &self.by_key
    }

    pub(crate) fn get(&self, key: RouteKey) -> Option<&Arc<Route>> {
        self.by_key.get(&key)
    }

    /// The routes of an application, by their keys.
    pub(crate) fn of(
        &self,
        application: &AppName,
    ) -> impl Iterator<Item = (RouteKey, &Arc<Route>)> {
        let keys = self.by_application.get(application).into_iter().flatten();
        keys.filter_map(move |key| Some((*key, self.by_key.get(key)?)))
    }

    pub(crate) fn applications(&self) -> impl Iterator<Item = &AppName> {
        self.by_application.keys()
    }

    pub(crate) fn has(&self, application: &AppName) -> bool {
        self.by_application.contains_key(application)
    }

    /// Puts a route in place and returns the one that was there.
    pub(crate) fn put(&mut self, key: RouteKey, route: Route) -> Option<Arc<Route>> {
        let route = Arc::new(route);
        let before = self.by_key.insert(key, Arc::clone(&route));
        let owner_before = before.as_ref().and_then(|route| route.application());
        if owner_before != route.application() {
            self.leave(owner_before, key);
            if let Some(application) = route.application() {
                let keys = self.by_application.entry(application.clone());
                keys.or_default().insert(key);
            }
        }
        before
    }

    /// Takes a route out.
    pub(crate) fn take(&mut self, key: RouteKey) -> Option<Arc<Route>> {
        let route = self.by_key.remove(&key)?;
        self.leave(route.application(), key);
        Some(route)
    }

    fn leave(&mut self, application: Option<&AppName>, key: RouteKey) {
        let Some(application) = application else {
            return;
        };
        if let Some(keys) = self.by_application.get_mut(application) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_application.remove(application);
            }
        }
    }
}
