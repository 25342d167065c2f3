//! The routes and the connections of each application, so that what concerns one of them costs
//! nothing for the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proxyd_core::tally::Tally;
use rehome_shared::api::proxy::RouteKey;
use rehome_shared::ids::AppName;

use super::connection::Connection;

/// What belongs to one application, or to the configuration file.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) routes: BTreeSet<RouteKey>,
    /// Those that came by its routes, also when a route is another one's now.
    pub(super) connections: HashMap<u64, Arc<Connection>>,
    pub(super) tally: Tally,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.connections.is_empty()
    }
}

/// All of them. One without routes and connections is none.
#[derive(Debug, Default)]
pub(super) struct Groups {
    of: HashMap<AppName, Group>,
    of_file: Group,
}

impl Groups {
    pub(super) fn get(&self, application: &AppName) -> Option<&Group> {
        self.of.get(application)
    }

    /// What belongs to an application, or without one to the file.
    pub(super) fn find(&mut self, application: Option<&AppName>) -> Option<&mut Group> {
        match application {
            Some(application) => self.of.get_mut(application),
            None => Some(&mut self.of_file),
        }
    }

    /// A route is the application's from now on, or the file's.
    pub(super) fn give(&mut self, key: RouteKey, application: Option<&AppName>) {
        let group = match application {
            Some(application) => self.of.entry(application.clone()).or_default(),
            None => &mut self.of_file,
        };
        group.routes.insert(key);
    }

    /// A route is its owner's no longer.
    pub(super) fn take(&mut self, key: RouteKey, application: Option<&AppName>) {
        if let Some(group) = self.find(application) {
            group.routes.remove(&key);
            if group.routes.is_empty() {
                // Counts run from a prepare, and there is no gate any more.
                group.tally = Tally::default();
            }
        }
        self.tidy(application);
    }

    /// Takes a connection in that came by a route that is there.
    pub(super) fn add(&mut self, connection: &Arc<Connection>) {
        if let Some(group) = self.find(connection.application()) {
            let connections = &mut group.connections;
            connections.insert(connection.id, Arc::clone(connection));
        }
    }

    /// Takes a connection out, and notes how it ended.
    pub(super) fn remove(&mut self, connection: &Connection, note: impl FnOnce(&mut Tally)) {
        let application = connection.application();
        if let Some(group) = self.find(application) {
            group.connections.remove(&connection.id);
            note(&mut group.tally);
        }
        self.tidy(application);
    }

    /// Notes something about a connection that is here.
    pub(super) fn note(&mut self, connection: &Connection, note: impl FnOnce(&mut Tally)) {
        if let Some(group) = self.find(connection.application()) {
            note(&mut group.tally);
        }
    }

    /// Every connection, in no order.
    pub(super) fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        let groups = self.of.values().chain([&self.of_file]);
        groups.flat_map(|group| group.connections.values())
    }

    /// Whether a connection is here.
    pub(super) fn has(&self, connection: &Connection) -> bool {
        self.knows(connection.application(), connection.id)
    }

    /// Whether an application, or the file, has a connection of this number.
    pub(super) fn knows(&self, application: Option<&AppName>, id: u64) -> bool {
        let group = match application {
            Some(application) => self.of.get(application),
            None => Some(&self.of_file),
        };
        group.is_some_and(|group| group.connections.contains_key(&id))
    }

    /// Takes a connection in whose route may be gone.
    pub(super) fn adopt(&mut self, connection: &Arc<Connection>) {
        if let Some(application) = connection.application() {
            self.of.entry(application.clone()).or_default();
        }
        self.add(connection);
    }

    /// What was counted of each application.
    pub(super) fn tallies(&self) -> impl Iterator<Item = (&AppName, &Tally)> {
        self.of.iter().map(|(name, group)| (name, &group.tally))
    }

    fn tidy(&mut self, application: Option<&AppName>) {
        if let Some(application) = application
            && self.of.get(application).is_some_and(Group::is_empty)
        {
            self.of.remove(application);
        }
    }
}
