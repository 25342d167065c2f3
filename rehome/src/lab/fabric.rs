//! The network between the hosts of a lab.
//!
//! ```text
//!  this machine            fabric namespace              hosts
//!  rh<hash> .1/24 ==veth== up0 -+- br0 -+- h1 ==veth== eth0 .11/24
//!                                       +- h2 ==veth== eth0 .12/24
//! ```
//! The bridge has a namespace of its own, so that no firewall of this machine or of a host's
//! container engine sees the traffic between hosts. Every MAC address comes from the IP address:
//! a host that was started again is reachable at once, because what its peers remember still
//! holds.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

use crate::invocation::{Invocation, InvocationError};
use crate::lab::process::Process;
use crate::lab::site::Site;
use crate::lab::state::HostRecord;
use crate::lab::subnet::Subnet;
use crate::paths::{self, PathError};
use crate::stop::Stop;

/// A network that could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FabricError {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] InvocationError),
    /// A file could not be made or removed.
    #[error(transparent)]
    File(#[from] PathError),
}

/// Makes the bridge and this machine's way to it.
pub(crate) fn build(site: &Site, subnet: Subnet, stop: &Stop) -> Result<(), FabricError> {
    paths::replace(&site.fabric(), 0o600, "")?;
    let mut keep = OsString::from("--net=");
    keep.push(site.fabric());
    Invocation::new("unshare")
        .args([keep, "true".into()])
        .run(stop)?;
    let uplink = site.uplink();
    let here = std::process::id();
    batch_in(
        &site.fabric(),
        &format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             link set br0 up\n\
             link add up0 type veth peer name {uplink} address {} netns {here}\n\
             link set up0 master br0 up\n",
            mac(subnet.gateway()),
        ),
        stop,
    )?;
    let (gateway, prefix) = (subnet.gateway(), subnet.prefix());
    let text = format!("addr add {gateway}/{prefix} dev {uplink}\nlink set {uplink} up\n");
    Invocation::new("ip")
        .args(["-batch", "-"])
        .input(text)
        .run(stop)?;
    Ok(())
}

/// Whether the bridge and this machine's way to it are there.
pub(crate) fn is_intact(site: &Site) -> Result<bool, PathError> {
    Ok(is_kept(site)? && has_uplink(site))
}

/// Gives a host its network interface and addresses.
pub(crate) fn attach(
    site: &Site,
    subnet: Subnet,
    host: &HostRecord,
    process: &Process,
    stop: &Stop,
) -> Result<(), FabricError> {
    let (name, address) = (&host.name, host.address);
    // A host that died a moment ago may still have its port. Usually there is none to remove.
    drop(batch_in(
        &site.fabric(),
        &format!("link del {name}\n"),
        stop,
    ));
    let pid = process.pid();
    batch_in(
        &site.fabric(),
        &format!(
            "link add {name} type veth peer name eth0 address {} netns {pid}\n\
             link set {name} master br0 up\n",
            mac(address),
        ),
        stop,
    )?;
    batch_in(
        Path::new(&format!("/proc/{pid}/ns/net")),
        &format!(
            "link set lo up\n\
             addr add {address}/{} dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n",
            subnet.prefix(),
            subnet.gateway(),
        ),
        stop,
    )?;
    Ok(())
}

/// Removes what there is of the network.
pub(crate) fn remove(site: &Site, stop: &Stop) -> Result<(), FabricError> {
    if has_uplink(site) {
        let removed = Invocation::new("ip")
            .args(["link", "del", "dev", &site.uplink()])
            .run(stop);
        // The kernel removes it too when the other end's namespace goes.
        if has_uplink(site) {
            removed?;
        }
    }
    while is_kept(site)? {
        unmount(site.fabric(), UnmountFlags::DETACH)
            .map_err(|e| PathError::at("unmount", &site.fabric())(e.into()))?;
    }
    Ok(paths::remove_file(&site.fabric())?)
}

fn has_uplink(site: &Site) -> bool {
    Path::new("/sys/class/net").join(site.uplink()).exists()
}

fn is_kept(site: &Site) -> Result<bool, PathError> {
    let fabric = site.fabric();
    let mounts = paths::read(Path::new("/proc/self/mountinfo"))?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).map(Path::new) == Some(&fabric)))
}

fn batch_in(namespace: &Path, text: &str, stop: &Stop) -> Result<String, InvocationError> {
    let mut net = OsString::from("--net=");
    net.push(namespace);
    let words = [net, "ip".into(), "-batch".into(), "-".into()];
    Invocation::new("nsenter").args(words).input(text).run(stop)
}

fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
