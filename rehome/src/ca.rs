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
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rehome_shared::ids::HostAddr;
use serde::Serialize;

use crate::console::Console;
use crate::paths::{self, PathError};

/// The file of the authority's certificate.
pub(crate) const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";

const DAY: Duration = Duration::from_hours(24);
/// Clocks of hosts may differ by this much.
const SKEW: Duration = DAY;
const AUTHORITY_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
const HOST_LIFE: Duration = Duration::from_hours(2 * 365 * 24);

/// X.509 allows a common name this many characters; host names may have more.
const COMMON_NAME_LIMIT: usize = 64;

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
pub(crate) fn run(args: CaArgs, console: Console) -> anyhow::Result<ExitCode> {
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
    params.distinguished_name = DistinguishedName::new();
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
    params.distinguished_name = DistinguishedName::new();
    if host.as_str().len() <= COMMON_NAME_LIMIT {
        params
            .distinguished_name
            .push(DnType::CommonName, host.as_str());
    }
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
    let absent = |error: PathError| {
        if error.is_absent() {
            CaError::NoAuthority(authority.to_owned())
        } else {
            error.into()
        }
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
mod tests;
