//! The environment of an application: link variables, exactly as Docker links named them, and
//! the user's own variables, which win.
//!
//! Link variables name the linking application's *own* host: the proxy there knows where the
//! target runs, so the target can move without its clients noticing.

use std::collections::BTreeMap;

use super::model::{Application, Link};
use crate::ids::HostAddr;

/// What the names of a link's variables begin with: `ALIAS_PORT_<local>_TCP`.
#[must_use]
pub fn variable_prefix(link: &Link) -> String {
    let alias = link.alias.to_ascii_uppercase().replace('-', "_");
    format!("{alias}_PORT_{}_TCP", link.local_port)
}

/// The variables of links for an application that runs on `own_host`.
#[must_use]
pub fn link_variables(own_host: &HostAddr, links: &[Link]) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for link in links {
        let prefix = variable_prefix(link);
        let port = link.remote_port;
        variables.insert(format!("{prefix}_PROTO"), "tcp".to_owned());
        variables.insert(format!("{prefix}_ADDR"), own_host.to_string());
        variables.insert(format!("{prefix}_PORT"), port.to_string());
        variables.insert(prefix, format!("tcp://{}", own_host.with_port(port)));
    }
    variables
}

/// The whole environment that the files give an application on `own_host`.
#[must_use]
pub fn environment(own_host: &HostAddr, application: &Application) -> BTreeMap<String, String> {
    let mut variables = link_variables(own_host, &application.links);
    variables.extend(application.environment.clone());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Image, ImageVersion};

    fn link(alias: &str) -> Link {
        Link {
            local_port: 9200,
            remote_port: 19200,
            alias: alias.to_owned(),
        }
    }

    fn host(text: &str) -> HostAddr {
        HostAddr::try_new(text).unwrap()
    }

    #[test]
    fn link_variables_name_the_own_host() {
        let want = [
            ("ES_MAIN_PORT_9200_TCP", "tcp://10.0.0.1:19200"),
            ("ES_MAIN_PORT_9200_TCP_ADDR", "10.0.0.1"),
            ("ES_MAIN_PORT_9200_TCP_PORT", "19200"),
            ("ES_MAIN_PORT_9200_TCP_PROTO", "tcp"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let got = link_variables(&host("10.0.0.1"), &[link("es-Main")]);
        assert_eq!(got, BTreeMap::from(want));
    }

    #[test]
    fn an_ipv6_host_has_brackets_in_the_url_only() {
        let got = link_variables(&host("fd00::1"), &[link("es")]);
        assert_eq!(got["ES_PORT_9200_TCP"], "tcp://[fd00::1]:19200");
        assert_eq!(got["ES_PORT_9200_TCP_ADDR"], "fd00::1");
    }

    #[test]
    fn the_users_variables_win() {
        let version = ImageVersion::Tag("latest".to_owned());
        let mut application = Application::new(Image {
            repository: "x".to_owned(),
            version,
        });
        application.links = vec![link("es")];
        application.environment = BTreeMap::from([
            ("ES_PORT_9200_TCP_ADDR".to_owned(), "example.org".to_owned()),
            ("OTHER".to_owned(), "1".to_owned()),
        ]);
        let got = environment(&host("10.0.0.1"), &application);
        assert_eq!(got["ES_PORT_9200_TCP_ADDR"], "example.org");
        assert_eq!(got["ES_PORT_9200_TCP_PORT"], "19200");
        assert_eq!((got["OTHER"].as_str(), got.len()), ("1", 5));
    }
}
