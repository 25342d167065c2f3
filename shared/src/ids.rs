//! Identities. Each role has a type of its own with a private field, so that two of them
//! cannot be swapped by accident, and a value that exists is a valid one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a valid identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {role}: {rule}")]
pub struct InvalidId {
    /// What the text was meant to be.
    pub role: &'static str,
    /// The text.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $role:literal, $rule:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a text.
            ///
            /// # Errors
            /// [`InvalidId`] when the text breaks the rule of this identity.
            pub fn try_new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let value = text.into();
                if $check(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { role: $role, value, rule: $rule })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::try_new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

text_id!(
    /// An application's name, unique in the cluster. It becomes part of container names,
    /// directories and metric labels, hence the narrow alphabet.
    AppName, "application name",
    "use 1 to 63 ASCII letters, digits, '-', '_' or '.', and begin with a letter or a digit",
    is_name
);
text_id!(
    /// A volume's name, unique within its application.
    VolumeName, "volume name",
    "use 1 to 63 ASCII letters, digits, '-', '_' or '.', and begin with a letter or a digit",
    is_name
);
text_id!(
    /// A host, named by its address in the deployment: IPv4, IPv6 or a host name.
    HostAddr, "host address",
    "use an IPv4 address, an IPv6 address or a host name",
    is_host
);
text_id!(
    /// A migration: a ULID in lower case, so that ids sort by time and fit in a snapshot name.
    MigrationId, "migration id",
    "use the 26 characters that `rehome migrations` prints",
    is_ulid
);
text_id!(
    /// A volume's identity, the same on every host that holds a copy: a UUID.
    DatasetId, "dataset id",
    "use a UUID, for example 7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11",
    is_uuid
);

text_id!(
    /// A stream of a volume between two hosts, over however many connections: a UUID.
    StreamId, "stream id",
    "use a UUID, for example 7b7a3f1e-2f6c-4a57-9d0e-0c1f6f0d3b11",
    is_uuid
);

impl StreamId {
    /// A new random identity.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}

impl MigrationId {
    /// A new id, unique and later than those made before it on this host.
    #[must_use]
    pub fn generate() -> Self {
        Self(ulid::Ulid::generate().to_string().to_ascii_lowercase())
    }
}

impl DatasetId {
    /// A new random identity.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}

impl HostAddr {
    /// `address:port` for a connect, with brackets around IPv6.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        match self.0.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            Ok(IpAddr::V4(_)) | Err(_) => format!("{}:{port}", self.0),
        }
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_host(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    // A name of digits and dots alone is a mistyped IPv4 address, not a host name.
    text.len() <= 253 && text.split('.').all(label) && text.chars().any(|c| c.is_ascii_alphabetic())
}

fn is_ulid(text: &str) -> bool {
    text.len() == 26 && text.to_ascii_lowercase() == text && ulid::Ulid::from_string(text).is_ok()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Grows by one at each change of an application's owner; the first owner has epoch 1.
    Epoch
);
counter!(
    /// Grows with each change of a route within an epoch.
    Generation
);
counter!(
    /// Grows with each deployment that the cluster accepts.
    DeploymentGeneration
);
counter!(
    /// Grows with each cut-over try of a migration; the first is 1.
    Attempt
);

/// How new a route is: a proxy accepts only a larger one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct RouteVersion {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The change within the epoch.
    pub generation: Generation,
}

impl fmt::Display for RouteVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// The transport protocol of a port, with `http` for TCP ports whose requests are told apart.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A byte stream.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
    /// A byte stream that carries HTTP/1.1.
    Http,
}

impl Protocol {
    /// The word in files, JSON and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_alphabet() {
        for good in ["db", "a", "web-1", "9lives", "a.b_c"] {
            assert!(AppName::try_new(good).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "-db", "dä", "a b", "a/b", ".hidden", long.as_str()] {
            assert!(AppName::try_new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        for good in ["10.0.0.1", "fe80::1", "db1", "db1.example.org"] {
            assert!(HostAddr::try_new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.256",
            "1.2.3",
            "a..b",
            "-a",
            "a b",
            "10.0.0.1:80",
            "[::1]",
        ] {
            assert!(HostAddr::try_new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            HostAddr::try_new("fe80::1").unwrap().with_port(1),
            "[fe80::1]:1"
        );
    }

    #[test]
    fn generated_ids_are_valid() {
        assert!(MigrationId::try_new(MigrationId::generate().as_str()).is_ok());
        assert!(DatasetId::try_new(DatasetId::generate().as_str()).is_ok());
        assert!(StreamId::try_new(StreamId::generate().as_str()).is_ok());
    }

    #[test]
    fn route_versions_order_by_epoch_first() {
        let v = |e, g| RouteVersion {
            epoch: Epoch(e),
            generation: Generation(g),
        };
        assert!(v(2, 0) > v(1, 99));
        assert!(v(1, 2) > v(1, 1));
    }
}
