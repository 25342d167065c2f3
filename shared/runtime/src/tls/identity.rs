//! Whom a certificate names.

use std::net::IpAddr;

use rehome_shared::ids::HostAddr;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("there is no certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// It has neither a subject alternative name nor a common name.
    #[error("the certificate has neither a subject alternative name nor a common name")]
    Nameless,
}

/// Whom a peer's certificate names, after the certificate was checked against the authority.
/// The HTTP server gives it to handlers as a request extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    addresses: Vec<IpAddr>,
    names: Vec<String>,
    common_name: Option<String>,
}

impl PeerIdentity {
    /// Reads the names in a certificate. It does not check who signed it.
    ///
    /// # Errors
    /// [`IdentityError`] when it cannot be read or names nobody.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let malformed = |error: String| IdentityError::Malformed(error);
        let (_rest, parsed) = X509Certificate::from_der(certificate.as_ref())
            .map_err(|error| malformed(error.to_string()))?;
        let mut identity = Self {
            addresses: Vec::new(),
            names: Vec::new(),
            common_name: parsed
                .subject()
                .iter_common_name()
                .find_map(|name| name.as_str().ok().map(str::to_owned)),
        };
        let alternative = parsed
            .subject_alternative_name()
            .map_err(|error| malformed(error.to_string()))?;
        for name in alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            identity.add(name);
        }
        if identity.addresses.is_empty()
            && identity.names.is_empty()
            && identity.common_name.is_none()
        {
            return Err(IdentityError::Nameless);
        }
        Ok(identity)
    }

    /// Whether this peer may speak as `host`: one of its alternative names is the host's
    /// address or name. The common name counts only where there is no alternative name.
    #[must_use]
    pub fn is(&self, host: &HostAddr) -> bool {
        let text = host.as_str();
        if self.addresses.is_empty() && self.names.is_empty() {
            return self
                .common_name
                .as_deref()
                .is_some_and(|name| name.eq_ignore_ascii_case(text));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self
                .names
                .iter()
                .any(|name| name.eq_ignore_ascii_case(text)),
        }
    }

    /// The subject's common name, for people.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// All alternative names as text.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.addresses
            .iter()
            .map(IpAddr::to_string)
            .chain(self.names.iter().cloned())
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                if let Ok(bytes) = <[u8; 4]>::try_from(*bytes) {
                    self.addresses.push(IpAddr::from(bytes));
                } else if let Ok(bytes) = <[u8; 16]>::try_from(*bytes) {
                    self.addresses.push(IpAddr::from(bytes));
                }
            }
            // Mail addresses, URIs and the like name no host.
            _ => {}
        }
    }
}

impl std::fmt::Display for PeerIdentity {
    /// The first name, as logs need it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.names().next();
        f.write_str(first.as_deref().or(self.common_name()).unwrap_or("nobody"))
    }
}
