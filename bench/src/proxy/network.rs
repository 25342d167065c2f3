//! The network of a trial: three namespaces in a row.
//!
//! ```text
//!  clients                 relay                    server
//!  c0 198.18.0.2 ==veth== r0 198.18.0.1
//!                         r1 198.18.1.1 ==veth== s0 198.18.1.2
//! ```
//! The addresses are those that are set aside for benchmarks (RFC 2544). The namespaces have no
//! names: each lives as long as the process that was started in it, and its devices with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rehome_tests::program;

/// Where a relay listens.
pub const RELAY: &str = "198.18.0.1";
/// The server.
pub const SERVER: &str = "198.18.1.2";

const CLIENTS: &str = "198.18.0.2";
const RELAY_TO_SERVER: &str = "198.18.1.1";

/// No command takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// What a busy relay of connections is given everywhere: ports enough, and those back soon that
/// wait for stray packets. Ports below are the services'.
const SETTINGS: [(&str, &str); 2] = [
    ("ipv4/ip_local_port_range", "10000 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
];

/// Sets the kernel's parameters of the namespace that this process is in.
///
/// # Errors
/// Those of the kernel.
pub fn tune(more: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, value) in SETTINGS.iter().chain(more) {
        let path = Path::new("/proc/sys/net").join(name);
        std::fs::write(&path, value).with_context(|| format!("set {}", path.display()))?;
    }
    Ok(())
}

/// Connects the namespace of this process with those of two others. The directory is for a file
/// that `ip` reads.
///
/// # Errors
/// Those of `ip`.
pub fn build(relay: u32, server: u32, directory: &Path) -> anyhow::Result<()> {
    let steps = [
        (None, clients(relay)),
        (Some(relay), middle(server)),
        (Some(server), end()),
    ];
    for (process, lines) in steps {
        ip(process, &lines, directory)?;
    }
    Ok(())
}

fn clients(relay: u32) -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        format!("link add c0 type veth peer name r0 netns {relay}"),
        format!("addr add {CLIENTS}/24 dev c0"),
        "link set c0 up".to_owned(),
        format!("route add default via {RELAY}"),
    ]
}

fn middle(server: u32) -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        format!("addr add {RELAY}/24 dev r0"),
        "link set r0 up".to_owned(),
        format!("link add r1 type veth peer name s0 netns {server}"),
        format!("addr add {RELAY_TO_SERVER}/24 dev r1"),
        "link set r1 up".to_owned(),
    ]
}

fn end() -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        format!("addr add {SERVER}/24 dev s0"),
        "link set s0 up".to_owned(),
        format!("route add default via {RELAY_TO_SERVER}"),
    ]
}

/// Runs lines of `ip` in the namespace of a process, or in this one.
fn ip(process: Option<u32>, lines: &[String], directory: &Path) -> anyhow::Result<()> {
    let file = directory.join("ip");
    std::fs::write(&file, lines.join("\n") + "\n")?;
    let command = [
        "ip".to_owned(),
        "-batch".to_owned(),
        file.display().to_string(),
    ];
    let words = match process {
        Some(pid) => inside(pid, command),
        None => command.to_vec(),
    };
    let (name, arguments) = words.split_first().context("an empty command")?;
    program::run(Command::new(name).args(arguments), LIMIT)?.ok()?;
    Ok(())
}

/// A command in the namespace of a process.
#[must_use]
pub fn inside(process: u32, command: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut words = vec![
        "nsenter".to_owned(),
        format!("--net=/proc/{process}/ns/net"),
        "--".to_owned(),
    ];
    words.extend(command);
    words
}

/// A command in a new namespace.
#[must_use]
pub fn apart(command: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut words = vec!["unshare".to_owned(), "--net".to_owned(), "--".to_owned()];
    words.extend(command);
    words
}
