//! Whether this host passes packets on.

use std::fs;
use std::net::SocketAddr;

/// The families of which this host passes packets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forwards {
    v4: bool,
    v6: bool,
}

impl Forwards {
    pub(super) fn has(self, target: SocketAddr) -> bool {
        if target.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Asks the kernel; what it does not say is a no. These files are memory: reading them is no wait.
pub(super) fn forwards() -> Forwards {
    let is_on = |file: &str| fs::read_to_string(file).is_ok_and(|text| text.trim() != "0");
    Forwards {
        v4: is_on("/proc/sys/net/ipv4/ip_forward"),
        v6: is_on("/proc/sys/net/ipv6/conf/all/forwarding"),
    }
}
