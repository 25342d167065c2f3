//! Which daemon `--host` means, and with which certificate it is asked.

use std::path::{Path, PathBuf};

use rehome_runtime::tls::TlsFiles;
use rehome_shared::ids::HostAddr;

use crate::outcome::WrongInput;

/// Where `migrated` listens on every host.
const PORT: u16 = 7420;

/// Where certificates lie, in words for an error.
const PLACES: &str = "$REHOME_TLS_DIR, ~/.config/rehome and /etc/rehome/tls";

/// A daemon's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// This host.
    Here,
    /// A Unix socket.
    Socket(PathBuf),
    /// A host, over mutual TLS.
    Host {
        /// Its address.
        host: HostAddr,
        /// Its port.
        port: u16,
    },
}

/// Reads `--host`: `ADDR`, `ADDR:PORT`, `[IPV6]:PORT` or `unix:/path`.
pub(super) fn parse(text: Option<&str>) -> Result<Target, WrongInput> {
    let Some(text) = text else {
        return Ok(Target::Here);
    };
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err(WrongInput(
                "--host unix: needs the path of a socket".to_owned(),
            ));
        }
        return Ok(Target::Socket(path.into()));
    }
    if let Ok(host) = HostAddr::try_new(bare(text)) {
        return Ok(Target::Host { host, port: PORT });
    }
    let with_port = text.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some(Target::Host {
            host: HostAddr::try_new(bare(host)).ok()?,
            port,
        })
    });
    with_port.ok_or_else(|| {
        WrongInput(format!(
            "--host {text:?} is not a host: write ADDR, ADDR:PORT or unix:/path"
        ))
    })
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

/// The certificate that this user speaks with.
pub(super) fn certificate_files() -> Result<TlsFiles, WrongInput> {
    let directories = [
        std::env::var_os("REHOME_TLS_DIR").map(PathBuf::from),
        std::env::home_dir().map(|home| home.join(".config/rehome")),
        Some(PathBuf::from("/etc/rehome/tls")),
    ];
    directories
        .into_iter()
        .flatten()
        .find_map(|directory| files_in(&directory))
        .ok_or_else(|| {
            WrongInput(format!(
                "--host needs a certificate, and there is none in {PLACES}: make one with \
             `rehome ca issue`"
            ))
        })
}

/// The files of a directory, as `rehome ca issue` makes them.
fn files_in(directory: &Path) -> Option<TlsFiles> {
    let files = TlsFiles {
        ca: directory.join("ca.pem"),
        certificate: directory.join("host.pem"),
        key: directory.join("host.key"),
    };
    files.certificate.is_file().then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Target {
        Target::Host {
            host: HostAddr::try_new(host).unwrap(),
            port,
        }
    }

    #[test]
    fn a_host_has_a_default_port() {
        assert_eq!(parse(None).unwrap(), Target::Here);
        assert_eq!(
            parse(Some("unix:/run/x.sock")).unwrap(),
            Target::Socket("/run/x.sock".into())
        );
        assert_eq!(parse(Some("10.0.0.1")).unwrap(), at("10.0.0.1", 7420));
        assert_eq!(
            parse(Some("db1.example.org:99")).unwrap(),
            at("db1.example.org", 99)
        );
        assert_eq!(parse(Some("fd00::1")).unwrap(), at("fd00::1", 7420));
        assert_eq!(parse(Some("[fd00::1]:99")).unwrap(), at("fd00::1", 99));
    }

    #[test]
    fn what_is_not_a_host_is_wrong() {
        for bad in [
            "",
            "unix:",
            "a b",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:99999",
            "http://a",
        ] {
            assert!(parse(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_counts_when_it_holds_a_certificate() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(files_in(directory.path()), None);
        std::fs::write(directory.path().join("host.pem"), "").unwrap();
        let files = files_in(directory.path()).unwrap();
        assert_eq!(files.key, directory.path().join("host.key"));
    }
}
