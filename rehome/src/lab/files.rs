//! The disk of a host: a directory of this machine with what the host keeps in `/var/lib/rehome`,
//! `/var/lib/docker`, `/etc/rehome` and `/etc/docker`, and its logs. What is there already stays
//! as it is, so that a host that is started again finds its data and a changed configuration.

use std::path::Path;

use rehome_shared::ids::{HostAddr, InvalidId};

use crate::ca::{self, CaError};
use crate::lab::site::Site;
use crate::lab::state::{HostRecord, LabState, Settings};
use crate::lab::subnet::DOCKER_BRIDGE;
use crate::lab::{Backend, Runtime};
use crate::paths::{self, PathError};

/// What a host sees elsewhere than this machine does: a directory of its disk, and where.
pub(crate) const BINDS: &[(&str, &str)] = &[
    ("rehome", "/var/lib/rehome"),
    ("docker", "/var/lib/docker"),
    ("etc", "/etc/rehome"),
    ("etc-docker", "/etc/docker"),
];

/// The directory of a host's logs on its disk.
pub(crate) const LOGS: &str = "log";

/// A disk that could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] PathError),
    /// No certificate could be issued.
    #[error("cannot make the certificates of the lab")]
    Certificates(#[from] CaError),
    /// The address of a host is none.
    #[error(transparent)]
    Address(#[from] InvalidId),
}

/// Makes the lab's certificate authority, unless it is there.
pub(crate) fn make_authority(site: &Site) -> Result<(), DiskError> {
    let directory = site.authority();
    if !directory.join(ca::CERTIFICATE).exists() {
        paths::remove_tree(&directory)?;
        ca::init(&directory)?;
    }
    Ok(())
}

/// Makes what is missing of a host's disk.
pub(crate) fn make_disk(site: &Site, state: &LabState, host: &HostRecord) -> Result<(), DiskError> {
    let disk = site.host_disk(&host.name);
    for (directory, _) in BINDS {
        paths::make_dir(&disk.join(directory), 0o755)?;
    }
    paths::make_dir(&disk.join(LOGS), 0o755)?;
    let tls = disk.join("etc/tls");
    if !tls.join("host.pem").exists() {
        paths::remove_tree(&tls)?;
        ca::issue(
            &site.authority(),
            &HostAddr::try_new(host.address.to_string())?,
            &tls,
        )?;
    }
    keep(
        &disk.join("etc/migrated.yml"),
        &migrated(host, &state.settings),
    )?;
    keep(&disk.join("etc/proxyd.yml"), &proxyd(host))?;
    keep(&disk.join("etc-docker/daemon.json"), &engine())?;
    Ok(())
}

fn keep(path: &Path, text: &str) -> Result<(), PathError> {
    if path.exists() {
        Ok(())
    } else {
        paths::replace(path, 0o644, text)
    }
}

fn migrated(host: &HostRecord, settings: &Settings) -> String {
    let backend = match settings.backend {
        Backend::Btrfs => "btrfs",
        Backend::Zfs => "zfs",
        Backend::Directory => "directory",
    };
    let runtime = match settings.runtime {
        Runtime::Docker => "docker",
        Runtime::Process => "process",
    };
    format!(
        "# Written by `rehome lab up`; changes stay.\n\
         version: 1\n\
         address: {}\n\
         tls:\n  \
           ca: /etc/rehome/tls/ca.pem\n  \
           certificate: /etc/rehome/tls/host.pem\n  \
           key: /etc/rehome/tls/host.key\n\
         storage:\n  \
           backend: {backend}\n  \
           path: /var/lib/rehome/pool\n  \
           image: {{path: /var/lib/rehome/pool.img, size: {}K}}\n\
         runtime:\n  \
           kind: {runtime}\n",
        host.address,
        settings.pool_size.0 / 1024,
    )
}

fn proxyd(host: &HostRecord) -> String {
    format!(
        "# Written by `rehome lab up`; changes stay.\n\
         version: 1\n\
         host: {}\n\
         trunk:\n  \
           tls:\n    \
             ca: /etc/rehome/tls/ca.pem\n    \
             certificate: /etc/rehome/tls/host.pem\n    \
             key: /etc/rehome/tls/host.key\n",
        host.address
    )
}

/// The engine's own address range is the same in every host, as it is on real ones. `cgroupfs`
/// because no systemd runs in the host.
fn engine() -> String {
    let bridge = DOCKER_BRIDGE.gateway();
    let settings = serde_json::json!({
        "bip": format!("{bridge}/{}", DOCKER_BRIDGE.prefix()),
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "log-level": "warn",
        "userland-proxy": false,
    });
    format!("{settings:#}\n")
}

/// The last lines of a log, or why there are none.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    match paths::read(log) {
        Ok(text) => {
            let all: Vec<&str> = text.lines().collect();
            all.get(all.len().saturating_sub(lines)..)
                .unwrap_or_default()
                .join("\n")
        }
        Err(error) => error.to_string(),
    }
}
