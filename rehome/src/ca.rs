//! `rehome ca`: the certificate authority of a cluster and the certificates of its hosts.
//!
//! ```text
//! DIR/ca.pem, DIR/ca.key          the authority; the key stays on the administrator's machine
//! DIR/HOST/{ca.pem,host.pem,host.key}   what goes to /etc/rehome/tls on that host
//! ```
//! A host's certificate carries its address, as the deployment writes it, as its one subject
//! alternative name: that is the identity for which it may speak. Nothing is ever overwritten.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rehome_shared::ids::HostAddr;
use serde::Serialize;

use crate::console::Console;
use crate::paths::{self, PathError};

/// The file of the authority's certificate.
pub(crate) const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clocks of hosts may differ by this much.
const SKEW: Duration = DAY;
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const HOST_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// The arguments of `rehome ca`.
#[derive(Debug, Args)]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make an authority in a directory of its own
    Init {
        /// The directory; it is made
        directory: PathBuf,
    },
    /// Issue certificates to hosts, each in a directory of its own
    Issue {
        /// The directory of the authority
        directory: PathBuf,
        /// The hosts, by their addresses as the deployment names them
        #[arg(required = true)]
        hosts: Vec<HostAddr>,
    },
}

/// A certificate that was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    /// There is one already.
    #[error("{} is there already, and nothing is overwritten", .0.display())]
    Exists(PathBuf),
    /// There is no authority.
    #[error("{} holds no authority: `rehome ca init {}` makes one", .0.display(), .0.display())]
    NoAuthority(PathBuf),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// A key or a certificate could not be made, or the authority's files are damaged.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
}

#[derive(Serialize)]
struct Made<'a> {
    made: Vec<&'a Path>,
}

/// Runs `rehome ca …`.
pub(crate) fn run(args: CaArgs, console: &Console) -> anyhow::Result<ExitCode> {
    match args.command {
        CaCommand::Init { directory } => {
            init(&directory)?;
            console.line(&format!(
                "authority in {}; keep {KEY} secret",
                directory.display()
            ));
            console.document(&Made {
                made: vec![&directory],
            })?;
        }
        CaCommand::Issue { directory, hosts } => {
            let outputs: Vec<PathBuf> = hosts
                .iter()
                .map(|host| directory.join(host.as_str()))
                .collect();
            // All or nothing: a name that is taken is found before the first key is made.
            if let Some(taken) = outputs.iter().find(|output| output.exists()) {
                return Err(CaError::Exists(taken.clone()).into());
            }
            for (host, output) in hosts.iter().zip(&outputs) {
                issue(&directory, host, output)?;
                console.line(&format!(
                    "{}: copy to /etc/rehome/tls on {host}",
                    output.display()
                ));
            }
            console.document(&Made {
                made: outputs.iter().map(PathBuf::as_path).collect(),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes an authority.
///
/// # Errors
/// [`CaError::Exists`] when the directory holds one.
pub(crate) fn init(directory: &Path) -> Result<(), CaError> {
    let (certificate_file, key_file) = (directory.join(CERTIFICATE), directory.join(KEY));
    for file in [&certificate_file, &key_file] {
        if file.exists() {
            return Err(CaError::Exists(file.clone()));
        }
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "Rehome cluster authority");
    set_life(&mut params, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key)?;
    paths::make_dir(directory, 0o700)?;
    paths::write_new(&key_file, 0o600, &key.serialize_pem())?;
    paths::write_new(&certificate_file, 0o644, &certificate.pem())?;
    Ok(())
}

/// Issues a certificate to a host, into a directory that is made.
///
/// # Errors
/// [`CaError::Exists`] when the directory is there, [`CaError::NoAuthority`] when `authority`
/// holds none.
pub(crate) fn issue(authority: &Path, host: &HostAddr, output: &Path) -> Result<(), CaError> {
    if output.exists() {
        return Err(CaError::Exists(output.to_owned()));
    }
    let (ca_pem, issuer) = load(authority)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![match host.as_str().parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(host.as_str().try_into()?),
    }];
    params
        .distinguished_name
        .push(DnType::CommonName, host.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, HOST_LIFE);
    let certificate = params.signed_by(&key, &issuer)?;
    paths::make_dir(output, 0o700)?;
    paths::write_new(&output.join(CERTIFICATE), 0o644, &ca_pem)?;
    paths::write_new(&output.join("host.key"), 0o600, &key.serialize_pem())?;
    paths::write_new(&output.join("host.pem"), 0o644, &certificate.pem())?;
    Ok(())
}

fn load(authority: &Path) -> Result<(String, Issuer<'static, KeyPair>), CaError> {
    let absent = |error: PathError| match error.is_absent() {
        true => CaError::NoAuthority(authority.to_owned()),
        false => error.into(),
    };
    let certificate = paths::read(&authority.join(CERTIFICATE)).map_err(absent)?;
    let key = KeyPair::from_pem(&paths::read(&authority.join(KEY)).map_err(absent)?)?;
    let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
    Ok((certificate, issuer))
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + life;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use x509_parser::extensions::GeneralName;
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    #[test]
    fn a_host_certificate_is_signed_by_the_authority_and_names_only_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let authority = directory.path().join("ca");
        init(&authority).unwrap();
        for (host, ip) in [
            ("10.77.0.11", true),
            ("fd00::11", true),
            ("db1.example.net", false),
        ] {
            let output = authority.join(host);
            issue(&authority, &host.parse().unwrap(), &output).unwrap();
            let read = |name| parse_x509_pem(paths::read(&output.join(name)).unwrap().as_bytes());
            let (_, ca) = read("ca.pem").unwrap();
            let (_, pem) = read("host.pem").unwrap();
            let (ca, certificate) = (ca.parse_x509().unwrap(), pem.parse_x509().unwrap());
            certificate.verify_signature(Some(ca.public_key())).unwrap();
            assert!(certificate.validity().is_valid());
            assert!(!certificate.is_ca());
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && usage.client_auth);
            let names = certificate.subject_alternative_name().unwrap().unwrap();
            match names.value.general_names.as_slice() {
                [GeneralName::IPAddress(_)] => assert!(ip, "{host}"),
                [GeneralName::DNSName(name)] => assert_eq!((*name, ip), (host, false)),
                other => panic!("{host}: {other:?}"),
            }
        }
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let authority = directory.path().join("ca");
        init(&authority).unwrap();
        issue(&authority, &"h1".parse().unwrap(), &authority.join("h1")).unwrap();
        for key in ["ca.key", "h1/host.key"] {
            let mode = std::fs::metadata(authority.join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let authority = directory.path().join("ca");
        let host: HostAddr = "h1".parse().unwrap();
        assert!(matches!(
            issue(&authority, &host, &authority.join("h1")),
            Err(CaError::NoAuthority(_))
        ));
        init(&authority).unwrap();
        issue(&authority, &host, &authority.join("h1")).unwrap();
        let before = paths::read(&authority.join("h1/host.key")).unwrap();
        assert!(matches!(init(&authority), Err(CaError::Exists(_))));
        assert!(matches!(
            issue(&authority, &host, &authority.join("h1")),
            Err(CaError::Exists(_))
        ));
        assert_eq!(paths::read(&authority.join("h1/host.key")).unwrap(), before);
    }
}
