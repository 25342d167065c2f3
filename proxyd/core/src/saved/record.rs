//! The table as a journal of records: each says what became of some routes, so what they say
//! together is the table. A record that is read twice is read once.

use std::collections::{BTreeMap, BTreeSet};

use rehome_shared::api::proxy::{Announce, Content, ParkLimits, RouteKey};
use rehome_shared::ids::{AppName, HostAddr, RouteVersion};
use rehome_shared::journal::Kind;
use serde::{Deserialize, Serialize};

use super::SavedPhase;
use crate::table::{Changes, Owner, Route, RouteTable};

/// What the file of kept routes begins with.
pub const KIND: Kind = Kind::new(b"rehomeR\x01");

/// The most routes in a record, far from the most that a journal takes.
const AT_ONCE: usize = 1024;

/// What is kept at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// Who is who.
    Cluster {
        /// This host.
        host: Option<HostAddr>,
        /// Hosts that may send trunk connections.
        peers: BTreeSet<HostAddr>,
    },
    /// Routes that are no more.
    Gone {
        /// Which.
        routes: Vec<RouteKey>,
    },
    /// What changed of an application.
    Application {
        /// Which.
        application: AppName,
        /// Its routes that came or changed.
        routes: Vec<KeptRoute>,
        /// The version at which its last handoff ended here.
        resolved: Option<RouteVersion>,
    },
    /// A change that is kept whole or not at all.
    Together {
        /// Its parts, in their order.
        records: Vec<Record>,
    },
}

/// A route of a [`Record::Application`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptRoute {
    key: RouteKey,
    version: RouteVersion,
    phase: SavedPhase,
    limits: ParkLimits,
    /// Only written where something is known: a table without such routes is read by an older
    /// version, one with them is not.
    #[serde(default, skip_serializing_if = "Content::is_bytes")]
    content: Content,
    /// The same.
    #[serde(default, skip_serializing_if = "Announce::is_nothing")]
    announce: Announce,
}

impl RouteTable {
    /// The record of what changed, none when that is nothing that is kept.
    #[must_use]
    pub fn record_of(&self, changes: &Changes) -> Option<Record> {
        let mut records: Vec<Record> = self.parts_of(changes).collect();
        if records.len() > 1 {
            return Some(Record::Together { records });
        }
        records.pop()
    }

    fn parts_of<'a>(&'a self, changes: &'a Changes) -> impl Iterator<Item = Record> {
        let mut gone: Vec<RouteKey> = Vec::new();
        let untouched = |application| (application, Vec::new());
        let mut kept: BTreeMap<&AppName, Vec<KeptRoute>> =
            changes.applications.iter().map(untouched).collect();
        for key in changes.keys() {
            let route = self.route(key);
            match route.and_then(|route| Some((route.application()?, route))) {
                Some((application, route)) => {
                    kept.entry(application)
                        .or_default()
                        .push(KeptRoute::new(key, route));
                }
                None => gone.push(key),
            }
        }
        let gone = (!gone.is_empty()).then_some(Record::Gone { routes: gone });
        let cluster = changes.cluster.then(|| self.cluster());
        let kept = kept.into_iter();
        let kept = kept.flat_map(move |(application, routes)| self.of_one(application, routes));
        cluster.into_iter().chain(gone).chain(kept)
    }

    /// The records of the whole table.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let applications = self.applications().flat_map(move |application| {
            let routes = self.of(application);
            let routes = routes
                .map(|(key, route)| KeptRoute::new(key, route))
                .collect();
            self.of_one(application, routes)
        });
        std::iter::once(self.cluster()).chain(applications)
    }

    /// Takes over a record.
    pub fn replay(&mut self, record: Record) {
        match record {
            Record::Cluster { host, peers } => {
                self.host = host;
                self.peers = peers;
            }
            Record::Gone { routes } => {
                for key in routes {
                    self.routes.take(key);
                }
            }
            Record::Application {
                application,
                routes,
                resolved,
            } => {
                for route in routes {
                    self.routes.put(route.key, route.of(&application));
                }
                match resolved {
                    Some(version) => self.resolved.insert(application, version),
                    None => self.resolved.remove(&application),
                };
            }
            Record::Together { records } => {
                for record in records {
                    self.replay(record);
                }
            }
        }
    }

    fn cluster(&self) -> Record {
        Record::Cluster {
            host: self.host.clone(),
            peers: self.peers.clone(),
        }
    }

    /// The records of an application, one even without routes.
    fn of_one(&self, application: &AppName, mut routes: Vec<KeptRoute>) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let rest = routes.split_off(routes.len().min(AT_ONCE));
            records.push(Record::Application {
                application: application.clone(),
                routes: std::mem::replace(&mut routes, rest),
                resolved: self.resolved.get(application).copied(),
            });
            if routes.is_empty() {
                return records;
            }
        }
    }
}

impl KeptRoute {
    fn new(key: RouteKey, route: &Route) -> Self {
        Self {
            key,
            version: route.version,
            phase: (&route.phase).into(),
            limits: route.limits,
            content: route.content,
            announce: route.announce,
        }
    }

    fn of(self, application: &AppName) -> Route {
        Route {
            owner: Owner::Application(application.clone()),
            version: self.version,
            phase: self.phase.into(),
            limits: self.limits,
            content: self.content,
            announce: self.announce,
        }
    }
}

#[cfg(test)]
mod tests {
    use rehome_shared::journal::{self, Position};

    use super::*;

    /// What was once written must always be read: the records, and the bytes of their frames.
    const GOLDEN: [(&str, &str); 6] = [
        (
            r#"{"cluster":{"host":"10.0.0.1","peers":["10.0.0.2","h3.example"]}}"#,
            "67386707104b70c6",
        ),
        (
            r#"{"application":{"application":"db","routes":[{"key":"5432/tcp","version":{"epoch":3,"generation":1},"phase":{"open":{"local":{"addr":"172.17.0.2:5432"}}},"limits":{"park_limit":10,"park_timeout":60.0}},{"key":"5433/udp","version":{"epoch":3,"generation":1},"phase":{"parked":{"before":{"remote":{"host":"10.0.0.2","trunk":"10.0.0.2:7421"}},"lease":{"secs":30,"nanos":0}}},"limits":{"park_limit":10,"park_timeout":60.0}}],"resolved":{"epoch":2,"generation":7}}}"#,
            "2a8eed9f795ad078",
        ),
        (
            r#"{"application":{"application":"web","routes":[{"key":"80/tcp","version":{"epoch":1,"generation":0},"phase":"closed","limits":{"park_limit":10,"park_timeout":60.0}}],"resolved":null}}"#,
            "9e9fa0e82b2d31ab",
        ),
        (
            r#"{"gone":{"routes":["81/tcp","53/udp"]}}"#,
            "e8da1b94cb748a9b",
        ),
        (
            r#"{"together":{"records":[{"gone":{"routes":["81/tcp"]}},{"cluster":{"host":"10.0.0.1","peers":["10.0.0.2","h3.example"]}}]}}"#,
            "7c14462eabe17bee",
        ),
        (
            r#"{"application":{"application":"web","routes":[{"key":"80/tcp","version":{"epoch":1,"generation":0},"phase":"closed","limits":{"park_limit":10,"park_timeout":60.0},"content":"http"}],"resolved":null}}"#,
            "f39c9374101ed221",
        ),
    ];

    fn hex(bytes: &[u8]) -> String {
        bytes
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    #[test]
    fn records_are_written_and_read_as_they_always_were() {
        let mut position = Position::start(KIND);
        let mut checks = Vec::new();
        for (json, _) in GOLDEN {
            let record: Record = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&record).unwrap(), json);
            let (frame, next) = journal::encode(position, &record).unwrap();
            let (rest, check) = frame.split_at(frame.len() - journal::CHECK);
            assert_eq!(rest.get(journal::HEAD..), Some(json.as_bytes()));
            checks.push(hex(check));
            position = next;
        }
        assert_eq!(checks, GOLDEN.map(|(_, check)| check));
    }

    #[test]
    fn an_application_with_many_routes_is_kept_in_parts() {
        let mut table = RouteTable::default();
        let application = AppName::try_new("db").unwrap();
        let route = |port: usize| {
            let key = format!("{port}/tcp");
            let json = GOLDEN[2].0.replace("80/tcp", &key).replace("web", "db");
            serde_json::from_str(&json).unwrap()
        };
        (1..=2 * AT_ONCE + 1).for_each(|port| table.replay(route(port)));
        let records: Vec<Record> = table.records().collect();
        assert_eq!(records.len(), 1 + 3);
        let mut again = RouteTable::default();
        for record in records {
            again.replay(record);
        }
        assert_eq!(again, table);
        assert_eq!(again.of(&application).count(), 2 * AT_ONCE + 1);
    }

    #[test]
    fn a_table_is_what_its_records_say() {
        let mut table = RouteTable::default();
        for (json, _) in &GOLDEN[..5] {
            table.replay(serde_json::from_str(json).unwrap());
        }
        assert_eq!(table.routes().len(), 3);
        let records: Vec<String> = table
            .records()
            .map(|record| serde_json::to_string(&record).unwrap())
            .collect();
        assert_eq!(
            records,
            GOLDEN[..3]
                .iter()
                .map(|(json, _)| *json)
                .collect::<Vec<_>>()
        );
    }
}
