//! A network of a test's own: addresses, ports, limits and counters that are nobody else's.

mod far;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_sys::namespace::{Namespace, unshare};

use crate::program;
pub use far::Far;

const LIMIT: Duration = Duration::from_secs(20);
/// What it takes to fill a table.
const FILL: Duration = Duration::from_mins(1);

/// Moves the calling thread, and what it starts from now on, into a new network that has nothing
/// but the loopback device.
///
/// # Errors
/// Without root.
pub fn own() -> anyhow::Result<()> {
    unshare(&[Namespace::Network]).context("a network of its own takes root")?;
    let mut up = Command::new("ip");
    program::run(up.args(["link", "set", "lo", "up"]), LIMIT)?.ok()?;
    Ok(())
}

/// Sets a limit of the calling thread's network, `ipv4/ip_local_port_range` for example.
///
/// # Errors
/// When the kernel has no such limit.
pub fn set(limit: &str, value: &str) -> anyhow::Result<()> {
    let file = Path::new("/proc/sys/net").join(limit);
    fs::write(&file, value).with_context(|| format!("{} = {value}", file.display()))
}

/// A counter of the calling thread's network, as `TcpExt: ListenOverflows`.
///
/// # Errors
/// When the kernel has no such counter.
pub fn counter(group: &str, name: &str) -> anyhow::Result<u64> {
    let mut all = fs::read_to_string("/proc/thread-self/net/netstat")?;
    all.push_str(&fs::read_to_string("/proc/thread-self/net/snmp")?);
    let mut lines = all.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).with_context(|| group.to_owned())?;
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let value = both.find(|(other, _)| *other == name);
    let (_, value) = value.with_context(|| format!("{group} {name}"))?;
    Ok(value.parse()?)
}

/// How many connections the kernel tracks in the calling thread's network; none where it tracks
/// nothing at all.
///
/// # Errors
/// When the count is no number.
pub fn tracked() -> anyhow::Result<u64> {
    match fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count") {
        Ok(count) => Ok(count.trim().parse()?),
        Err(_) => Ok(0),
    }
}

/// Has the kernel track the connections of the calling thread's network; how many there may be,
/// where it can.
///
/// # Errors
/// When `nft` fails.
pub fn track() -> anyhow::Result<Option<u64>> {
    let Ok(most) = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max") else {
        return Ok(None);
    };
    let rules = "add table ip t; add chain ip t c { type filter hook output priority 0; }; \
                 add rule ip t c ct state new accept";
    program::run(Command::new("nft").arg(rules), LIMIT)?.ok()?;
    Ok(Some(most.trim().parse()?))
}

/// Fills the tracking table of the calling thread's network, which holds so many, with connections
/// that the kernel does not drop for others.
///
/// # Errors
/// When it is not full then.
pub fn fill_tracking_table(most: u64) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    let mut text = String::new();
    for number in 0..most {
        let (host, port) = (number / 50_000 + 1, number % 50_000 + 1024);
        writeln!(
            text,
            "-A -s 10.0.0.{host} -d 10.9.9.9 -p udp --sport {port} --dport 53 -t 120 \
             -u SEEN_REPLY,ASSURED"
        )?;
    }
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    // The last ones find no room: that is what it is for.
    let mut fill = Command::new("conntrack");
    program::run(fill.arg("-R").arg(file.path()), FILL)?;
    let tracked = tracked()?;
    ensure!(
        tracked >= most,
        "{tracked} of {most} connections are tracked"
    );
    Ok(())
}

/// Forgets all connections of the calling thread's network.
///
/// # Errors
/// When `conntrack` fails.
pub fn clear_tracking_table() -> anyhow::Result<()> {
    program::run(Command::new("conntrack").arg("-F"), LIMIT)?.ok()?;
    Ok(())
}
