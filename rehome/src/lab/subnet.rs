//! The network of a lab: its addresses, and whether this machine has room for it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invocation::{Invocation, InvocationError};
use crate::stop::Stop;

/// The network that Docker's own bridge has in every host.
pub(crate) const DOCKER_BRIDGE: Subnet = Subnet {
    base: Ipv4Addr::new(172, 17, 0, 0),
    prefix: 16,
};

/// An IPv4 network: no host bits set, between `/8` and `/25`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

/// A text that cannot be the network of a lab.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use an IPv4 network such as 10.77.0.0/24, from /8 to /25, that leaves 172.17.0.0/16 alone"
)]
pub(crate) struct InvalidSubnet;

/// Why a network could not be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChooseError {
    /// The routes of this machine could not be read.
    #[error("cannot read this machine's routes")]
    Routes(#[from] InvocationError),
    /// `ip` answered something else than routes.
    #[error("cannot understand this machine's routes")]
    Format(#[from] serde_json::Error),
    /// The network asked for is in use.
    #[error(
        "the network {wanted} overlaps {taken}, which this machine uses already: choose another \
         one, or leave --subnet out"
    )]
    Taken {
        /// The network asked for.
        wanted: Subnet,
        /// The one that is there.
        taken: String,
    },
    /// Every network that would be chosen is in use.
    #[error("all networks from 10.77.0.0/24 to 10.77.255.0/24 are in use: choose one by --subnet")]
    NoneFree,
}

#[derive(Deserialize)]
struct Route {
    dst: String,
}

impl Subnet {
    /// The address of this machine in the network: the first one.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The address of a host, counted from 1: `.11`, `.12`, …
    pub(crate) fn host(self, number: u8) -> Ipv4Addr {
        self.at(u32::from(number) + 10)
    }

    /// The number of bits that name the network.
    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(offset))
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.base.to_bits() & mask == other.base.to_bits() & mask
    }

    /// Reads a destination of `ip route`: a network or a single address.
    fn from_route(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/').unwrap_or((text, "32"));
        Some(Self {
            base: base.parse().ok()?,
            prefix: prefix.parse().ok().filter(|p| *p <= 32)?,
        })
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let subnet = Self::from_route(text).ok_or(InvalidSubnet)?;
        let whole = subnet.base.to_bits() & !subnet.mask() == 0;
        let usable = (8..=25).contains(&subnet.prefix) && !subnet.overlaps(DOCKER_BRIDGE);
        if whole && usable {
            Ok(subnet)
        } else {
            Err(InvalidSubnet)
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// The network of a new lab: the one that was asked for if it is free, or else the first free
/// one. `reserved` are those of the labs that are there.
pub(crate) fn choose(
    wanted: Option<Subnet>,
    reserved: &[Subnet],
    stop: &Stop,
) -> Result<Subnet, ChooseError> {
    let routes = Invocation::new("ip")
        .args(["-json", "-4", "route", "show"])
        .run(stop)?;
    let routes: Vec<Route> = serde_json::from_str(&routes)?;
    let mut taken: Vec<Subnet> = routes
        .iter()
        .filter_map(|r| Subnet::from_route(&r.dst))
        .collect();
    taken.extend(reserved);
    pick(wanted, &taken)
}

fn pick(wanted: Option<Subnet>, taken: &[Subnet]) -> Result<Subnet, ChooseError> {
    let conflict = |subnet: Subnet| taken.iter().find(|other| subnet.overlaps(**other));
    match wanted {
        Some(wanted) => match conflict(wanted) {
            Some(taken) => Err(ChooseError::Taken {
                wanted,
                taken: taken.to_string(),
            }),
            None => Ok(wanted),
        },
        None => (0..=255)
            .map(|third| Subnet {
                base: Ipv4Addr::new(10, 77, third, 0),
                prefix: 24,
            })
            .find(|subnet| conflict(*subnet).is_none())
            .ok_or(ChooseError::NoneFree),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_begin_at_eleven() {
        assert_eq!(subnet("10.77.0.0/24").host(1).to_string(), "10.77.0.11");
        assert_eq!(subnet("10.77.0.0/24").gateway().to_string(), "10.77.0.1");
        assert_eq!(
            subnet("192.168.4.128/25").host(100).to_string(),
            "192.168.4.238"
        );
    }

    #[test]
    fn a_text_that_is_no_usable_network_is_refused() {
        for bad in [
            "",
            "10.77.0.0",
            "10.77.0.1/24",
            "10.77.0.0/26",
            "172.17.3.0/24",
            "::/64",
        ] {
            assert_eq!(bad.parse::<Subnet>(), Err(InvalidSubnet), "{bad}");
        }
    }

    #[test]
    fn the_next_free_network_is_chosen_and_an_explicit_one_must_be_free() {
        let taken = [
            subnet("10.77.0.0/24"),
            Subnet::from_route("10.77.1.7").unwrap(),
        ];
        assert_eq!(pick(None, &taken).unwrap(), subnet("10.77.2.0/24"));
        assert!(matches!(
            pick(Some(subnet("10.76.0.0/14")), &taken),
            Err(ChooseError::Taken { .. })
        ));
        assert_eq!(
            pick(Some(subnet("10.78.0.0/24")), &taken).unwrap(),
            subnet("10.78.0.0/24")
        );
    }
}
