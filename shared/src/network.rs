//! Networks as people write them: `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    first: IpAddr,
    prefix: u32,
}

/// Not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// Not an address, or not with such a prefix.
    #[error("{0:?} is not a network")]
    Text(String),
    /// An address in the network, where its first one is meant.
    #[error("{0:?} has bits behind its prefix; its network is {1}")]
    Inside(String, Network),
    /// IPv4 in the clothes of IPv6: no connection shows such an address.
    #[error("{0:?} is an IPv4 network: write it as one")]
    Mapped(String),
}

impl Network {
    /// Whether an address is in it. An IPv4 address is one also where it is written as IPv6.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && first(address, self.prefix) == self.first
    }

    /// Whether every address of its family is in it.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }
}

/// How many bits an address of this family has.
fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first address with the same prefix.
fn first(address: IpAddr, prefix: u32) -> IpAddr {
    // A shift by all bits leaves none.
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(prefix))
                .unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(prefix))
                .unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork::Text(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        if address.to_canonical() != address {
            return Err(InvalidNetwork::Mapped(text.to_owned()));
        }
        let most = bits(address);
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
        };
        if prefix > most {
            return Err(invalid());
        }
        let network = Self {
            first: first(address, prefix),
            prefix,
        };
        if network.first == address {
            Ok(network)
        } else {
            Err(InvalidNetwork::Inside(text.to_owned(), network))
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_the_addresses_with_its_prefix() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::a00:1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
        ] {
            let network = network(text);
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text}");
        }
        assert_eq!(network("192.0.2.7").to_string(), "192.0.2.7/32");
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_would_be_one() {
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10/8",
            "h1",
            "10.0.0.0:80",
            "10.0.0.0/99999999999",
        ] {
            let refused = text.parse::<Network>();
            assert_eq!(refused, Err(InvalidNetwork::Text(text.to_owned())));
        }
        let inside = "10.0.0.1/8".parse::<Network>().unwrap_err();
        assert!(inside.to_string().ends_with("its network is 10.0.0.0/8"));
        let mapped = "::ffff:10.0.0.0/104".parse::<Network>().unwrap_err();
        assert!(matches!(mapped, InvalidNetwork::Mapped(_)));
    }
}
