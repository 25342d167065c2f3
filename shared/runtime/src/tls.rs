//! Certificates of hosts: loaded from PEM files, reloaded without a restart, mutual TLS 1.3.
//!
//! Every connection between hosts is checked on both sides: the client checks that the server's
//! certificate names the host it means, the server requires a certificate of the same authority
//! and hands the names in it to the handlers as a [`PeerIdentity`]. A certificate names its
//! host as a subject alternative name (IP address or DNS name); where it restricts its use, it
//! must allow both server and client authentication.

mod identity;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use identity::{IdentityError, PeerIdentity};

/// Where the PEM files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signs all hosts; may hold several during a rotation.
    pub ca: PathBuf,
    /// This host's certificate, with intermediate ones after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why certificates could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM of the right kind.
    #[error("{path} holds no usable {what}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The cause.
        #[source]
        source: pem::Error,
    },
    /// A certificate of the authority is not usable.
    #[error("{path} is not usable as an authority", path = .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificate and key do not fit together, or are of an unknown kind.
    #[error("{certificate} and {key} cannot be used together", certificate = .certificate.display(), key = .key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// This host's own certificate names nobody.
    #[error("{path} does not say whose certificate it is", path = .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: IdentityError,
    },
}

/// The certificates in use. Clones share them, so that a reload reaches every holder.
#[derive(Debug, Clone)]
pub struct Tls {
    current: Arc<ArcSwap<Configs>>,
    files: Arc<TlsFiles>,
}

#[derive(Debug)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: PeerIdentity,
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let configs = read(&files)?;
        Ok(Self {
            current: Arc::new(ArcSwap::from_pointee(configs)),
            files: Arc::new(files),
        })
    }

    /// Reads the same files again; connections made from now on use them. Blocks.
    ///
    /// # Errors
    /// [`TlsError`]; what was in use stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(read(&self.files)?));
        Ok(())
    }

    /// For accepting: a certificate of the authority is required of the client.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// For connecting: the server's certificate must name the host that is meant.
    #[must_use]
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.load().client)
    }

    /// Whom this host's own certificate names.
    #[must_use]
    pub fn own_identity(&self) -> PeerIdentity {
        self.current.load().own.clone()
    }
}

fn read(files: &TlsFiles) -> Result<Configs, TlsError> {
    let roots = Arc::new(read_roots(&files.ca)?);
    let chain = read_certificates(&files.certificate)?;
    let own = chain
        .first()
        .ok_or(IdentityError::NoCertificate)
        .and_then(PeerIdentity::of_certificate)
        .map_err(|source| TlsError::Identity {
            path: files.certificate.clone(),
            source,
        })?;
    let key = read_key(&files.key)?;
    let pair = |source| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error: VerifierBuilderError| TlsError::Authority {
                path: files.ca.clone(),
                source: error.into(),
            })?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(pair)?;
    // A resumed session would skip the check of the certificate, also after a reload.
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(pair)?;
    Ok(Configs {
        server: Arc::new(server),
        client: Arc::new(client),
        own,
    })
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Authority {
                path: path.to_owned(),
                source: error.into(),
            })?;
    }
    Ok(roots)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let text = read_file(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if certificates.is_empty() {
        return Err(wrong(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_file(path)?).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        what: "private key",
        source,
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
pub(crate) mod tests;
