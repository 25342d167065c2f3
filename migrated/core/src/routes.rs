//! Which routes this host's `proxyd` should have.
//!
//! A route of an application that this host owns is what this host says; every other one leads
//! to the owner that the newest advert names. Of what this host says and what it hears, the
//! larger epoch wins, so that a former owner leads its stragglers on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::Advert;
use rehome_shared::api::proxy::{Announce, ParkLimits, RouteIntent, RouteKey, RouteSpec, Target};
use rehome_shared::config::model::{Application, MigrationLimits, Port};
use rehome_shared::ids::{AppName, Generation, HostAddr, Protocol, RouteVersion};

use crate::UnixMillis;

/// How an instance is reached. It is a matter of the instance that runs, which may be older than
/// what is wanted by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Where.
    pub address: IpAddr,
    /// Its ports on which it expects to be told of each client.
    pub announced: BTreeSet<u16>,
}

impl Reach {
    /// What an application is told of its clients at a port.
    fn announce(&self, port: Port) -> Announce {
        if port.protocol != Protocol::Udp && self.announced.contains(&port.internal) {
            Announce::ProxyV2
        } else {
            Announce::Nothing
        }
    }
}

/// Of an instance that expects to be told nothing.
impl From<IpAddr> for Reach {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            announced: BTreeSet::new(),
        }
    }
}

/// What the owner wants of its application's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalRoute {
    /// Lead to the instance.
    Open(Reach),
    /// Hold new connections.
    Park,
    /// Refuse new connections.
    Closed,
}

/// What this host says of the applications that it owns, with the version.
pub type Locals = BTreeMap<AppName, (RouteVersion, LocalRoute)>;

/// The newest advert of each application that this host heard.
pub type Adverts = BTreeMap<AppName, Advert>;

/// The set for `proxyd`.
#[must_use]
pub fn compute(
    desired: &Desired,
    locals: &Locals,
    adverts: &Adverts,
    trunk_port: u16,
    defaults: MigrationLimits,
) -> Vec<RouteSpec> {
    let placed = desired.placement.values().flatten();
    placed
        .filter_map(|name| desired.applications.get(name).map(|spec| (name, spec)))
        .flat_map(|(name, spec)| {
            let limits = defaults.with(&spec.migration);
            let limits = ParkLimits {
                park_limit: limits.park_limit,
                park_timeout: limits.park_timeout,
            };
            routes_of(
                name,
                spec,
                locals.get(name),
                adverts.get(name),
                trunk_port,
                limits,
            )
        })
        .collect()
}

fn routes_of(
    name: &AppName,
    spec: &Application,
    local: Option<&(RouteVersion, LocalRoute)>,
    advert: Option<&Advert>,
    trunk_port: u16,
    limits: ParkLimits,
) -> Vec<RouteSpec> {
    let local = local
        .filter(|(version, _)| advert.is_none_or(|advert| version.epoch >= advert.version.epoch));
    spec.ports
        .iter()
        .map(|port| {
            let (version, intent) = match (local, advert) {
                (Some((version, route)), _) => (*version, local_intent(route, port.internal)),
                (None, Some(advert)) => (
                    advert.version,
                    RouteIntent::Open(Target::Remote {
                        host: advert.host.clone(),
                        trunk: advert.host.with_port(trunk_port),
                    }),
                ),
                (None, None) => (RouteVersion::default(), RouteIntent::Park),
            };
            RouteSpec {
                key: RouteKey::new(port.external, port.protocol),
                application: name.clone(),
                version,
                intent,
                limits,
                content: port.protocol.into(),
                announce: match local {
                    Some((_, LocalRoute::Open(reach))) => reach.announce(*port),
                    // Only who leads to an instance has it to tell.
                    _ => Announce::Nothing,
                },
            }
        })
        .collect()
}

fn local_intent(route: &LocalRoute, internal: u16) -> RouteIntent {
    match route {
        LocalRoute::Open(reach) => RouteIntent::Open(Target::Local {
            addr: SocketAddr::new(reach.address, internal),
        }),
        LocalRoute::Park => RouteIntent::Park,
        LocalRoute::Closed => RouteIntent::Closed,
    }
}

/// The generation after `last`. It also follows the clock, so that it grows over a restart of a
/// daemon that remembers none.
#[must_use]
pub fn next_generation(last: Generation, now: UnixMillis) -> Generation {
    Generation(last.0.saturating_add(1).max(now.0))
}

/// Takes up what another host says. `true` when it was news.
pub fn merge(adverts: &mut Adverts, news: &Advert) -> bool {
    match adverts.get(&news.application) {
        Some(known) if known.version >= news.version => false,
        _ => {
            adverts.insert(news.application.clone(), news.clone());
            true
        }
    }
}

/// The adverts of the applications that `here` owns, for others.
#[must_use]
pub fn own_adverts(locals: &Locals, here: &HostAddr) -> Vec<Advert> {
    locals
        .iter()
        .map(|(application, (version, _))| Advert {
            application: application.clone(),
            version: *version,
            host: here.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::proxy::{Announce, Content};
    use rehome_shared::ids::{Epoch, Protocol};

    use super::*;
    use crate::fixtures;

    fn advert(epoch: u64, generation: u64, host: &str) -> Advert {
        Advert {
            application: AppName::try_new("db").unwrap(),
            version: RouteVersion {
                epoch: Epoch(epoch),
                generation: Generation(generation),
            },
            host: HostAddr::try_new(host).unwrap(),
        }
    }

    #[test]
    fn an_older_advert_is_no_news() {
        let mut adverts = Adverts::new();
        assert!(merge(&mut adverts, &advert(2, 5, "h2")));
        assert!(!merge(&mut adverts, &advert(2, 5, "h3")));
        assert!(!merge(&mut adverts, &advert(1, 99, "h1")));
        assert!(merge(&mut adverts, &advert(3, 0, "h1")));
        assert_eq!(adverts.values().next().unwrap().host.as_str(), "h1");
    }

    #[test]
    fn a_proxy_is_told_which_ports_carry_http_and_whose_clients_the_instance_is_told_of() {
        let mut spec = fixtures::spec();
        for (external, protocol) in [(80, Protocol::Http), (81, Protocol::Udp)] {
            let mut port = spec.ports[0];
            (port.external, port.protocol) = (external, protocol);
            if protocol == Protocol::Http {
                port.internal = 8080;
            }
            spec.ports.push(port);
        }
        let name = fixtures::application();
        let limits = ParkLimits {
            park_limit: 1,
            park_timeout: std::time::Duration::from_secs(1),
        };
        let told_of = |local: LocalRoute, spec: &Application| {
            let local = (RouteVersion::default(), local);
            routes_of(&name, spec, Some(&local), None, 7421, limits)
        };
        let address = IpAddr::from([10, 0, 0, 2]);
        let reach = |announced: &[u16]| {
            LocalRoute::Open(Reach {
                address,
                announced: announced.iter().copied().collect(),
            })
        };
        // The port of datagrams has the number of one that is announced.
        let routes = told_of(reach(&[8080, 6379]), &spec);
        let announced = |routes: &[RouteSpec]| -> Vec<Announce> {
            routes.iter().map(|route| route.announce).collect()
        };
        let (told, nothing) = (Announce::ProxyV2, Announce::Nothing);
        assert_eq!(announced(&routes), [told, told, nothing]);
        let routes = told_of(reach(&[8080]), &spec);
        assert_eq!(announced(&routes), [nothing, told, nothing]);
        // What is wanted by now is not what the instance was started for.
        let mut wanted = spec.clone();
        wanted.ports[0].send_proxy = told;
        assert_eq!(announced(&told_of(reach(&[]), &wanted)), [nothing; 3]);
        assert_eq!(announced(&told_of(LocalRoute::Park, &wanted)), [nothing; 3]);
        let told: Vec<_> = routes
            .iter()
            .map(|route| (route.key.to_string(), route.content))
            .collect();
        let expected = [
            ("6379/tcp", Content::Bytes),
            ("80/tcp", Content::Http),
            ("81/udp", Content::Bytes),
        ];
        assert_eq!(
            told,
            expected.map(|(key, content)| (key.to_owned(), content))
        );
        // An older proxy or an older word leaves it at bytes.
        let json = serde_json::to_value(&routes).unwrap();
        assert!(json[0].get("content").is_none() && json[1]["content"] == "http");
        assert!(json[0].get("announce").is_none() && json[1]["announce"] == "proxy_v2");
    }

    #[test]
    fn a_generation_grows_with_and_without_the_clock() {
        assert_eq!(next_generation(Generation(5), UnixMillis(3)), Generation(6));
        assert_eq!(next_generation(Generation(5), UnixMillis(9)), Generation(9));
    }
}
