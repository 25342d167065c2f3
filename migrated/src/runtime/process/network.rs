//! The network of an application: a veth pair between it and the host, on four addresses.
//!
//! The host's end has the first usable address and is the application's default route, so that
//! every address of the host is reachable from inside: links name the host's own address. Nothing
//! is forwarded beyond the host.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use rehome_runtime::command::{CommandError, ExternalCommand};
use serde::{Deserialize, Serialize};

/// How long a change of the network may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The device inside.
const INSIDE: &str = "eth0";

/// Addresses of one application: a network of four.
const EACH: u32 = 4;

/// A range of addresses for applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// A text that is not a subnet for applications.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a subnet for applications: write for example 100.64.96.0/20, at most /30")]
pub struct InvalidSubnet(String);

impl Default for Subnet {
    /// `100.64.96.0/20`, 1024 applications.
    fn default() -> Self {
        Self {
            base: Ipv4Addr::new(100, 64, 96, 0).to_bits(),
            prefix: 20,
        }
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let parse = || {
            let (base, prefix) = text.split_once('/')?;
            let base = base.parse::<Ipv4Addr>().ok()?.to_bits();
            let prefix = prefix
                .parse::<u8>()
                .ok()
                .filter(|prefix| (8..=30).contains(prefix))?;
            let inside = u32::MAX >> prefix;
            (base & inside == 0).then_some(Self { base, prefix })
        };
        parse().ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

impl Subnet {
    /// How many applications fit.
    pub(super) fn slots(self) -> u32 {
        (u32::MAX >> self.prefix) / EACH + 1
    }

    /// The addresses of a slot.
    pub(super) fn link(self, slot: u32) -> Option<Link> {
        if slot >= self.slots() {
            return None;
        }
        let first = self.base.checked_add(slot.checked_mul(EACH)?)?;
        let inside = first.checked_add(2)?;
        Some(Link {
            // The address makes the name unique on the host; 10 of the 15 characters.
            device: format!("rh{inside:08x}"),
            host: Ipv4Addr::from_bits(first.checked_add(1)?),
            inside: Ipv4Addr::from_bits(inside),
        })
    }
}

/// The two ends of an application's way to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    /// The device on the host's side.
    pub(super) device: String,
    /// The host's address on it.
    pub(super) host: Ipv4Addr,
    /// The application's address.
    pub(super) inside: Ipv4Addr,
}

/// Makes the pair, its inner end in the network namespace of a process. Run on the host's side.
pub(super) async fn connect(link: &Link, process: u32) -> Result<(), CommandError> {
    disconnect(link).await;
    let Link { device, host, .. } = link;
    batch(format!(
        "link add {device} type veth peer name {INSIDE} netns {process}\n\
         address add {host}/30 dev {device}\n\
         link set {device} up\n"
    ))
    .await
}

/// Gives the inner end its address and route. Run inside.
pub(super) async fn settle_inside(link: &Link) -> Result<(), CommandError> {
    let Link { host, inside, .. } = link;
    batch(format!(
        "link set lo up\n\
         address add {inside}/30 dev {INSIDE}\n\
         link set {INSIDE} up\n\
         route add default via {host}\n"
    ))
    .await
}

/// Removes the pair. The kernel does the same some time after the last process inside is gone,
/// so that a failure here means that it was faster.
pub(super) async fn disconnect(link: &Link) {
    let command = ExternalCommand::new("ip").args(["link", "delete", &link.device]);
    let _gone = command.run(PATIENCE).await;
}

async fn batch(commands: String) -> Result<(), CommandError> {
    ExternalCommand::new("ip")
        .args(["-batch", "-"])
        .input(commands)
        .run(PATIENCE)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_end_with_the_subnet() {
        let subnet: Subnet = "100.64.96.0/28".parse().unwrap();
        assert_eq!(subnet.slots(), 4);
        let last = subnet.link(3).unwrap();
        assert_eq!(
            (last.host, last.inside),
            ([100, 64, 96, 13].into(), [100, 64, 96, 14].into())
        );
        assert_eq!(last.device, "rh6440600e");
        assert_eq!(subnet.link(4), None);
        assert_eq!(Subnet::default().slots(), 1024);
    }

    #[test]
    fn a_subnet_has_a_base_and_room() {
        for bad in [
            "",
            "100.64.96.0",
            "100.64.96.1/20",
            "100.64.96.0/31",
            "::/64",
            "1.2.3.0/x",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let subnet: Subnet = "100.64.96.0/20".parse().unwrap();
        assert_eq!(
            (subnet, subnet.to_string().as_str()),
            (Subnet::default(), "100.64.96.0/20")
        );
    }
}
