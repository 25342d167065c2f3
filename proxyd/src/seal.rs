//! Whether a trunk connection is sealed: TLS, in which both hosts show who they are.
//!
//! What this host sends and what it accepts are settings of their own, so that a cluster can change
//! from one to the other host by host. What goes out is never plain because TLS failed.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rehome_runtime::tls::{self, PeerIdentity, Tls, TlsError};
use rehome_shared::config::daemon::{Accepted, Sent, TrunkTls};
use rehome_shared::ids::HostAddr;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::leg::{Leg, Sealed};
use crate::metrics::Shed;

/// How every TLS connection begins, and no header does.
const HANDSHAKE: u8 = 0x16;

/// The settings of a host that has certificates.
#[derive(Debug, Clone)]
pub(crate) struct Seal(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    tls: Tls,
    settings: TrunkTls,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// They cannot be read.
    #[error("the certificates of trunk.tls cannot be used")]
    Unreadable(#[from] TlsError),
    /// Other hosts would not believe this one.
    #[error(
        "the certificate of trunk.tls, {path}, names {named}, and this host is {host}: other hosts \
         look for that among its alternative names",
        path = .path.display()
    )]
    OtherHost {
        /// The certificate's file.
        path: PathBuf,
        /// Whom it names.
        named: String,
        /// This host.
        host: HostAddr,
    },
}

/// Why a trunk connection is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTaken {
    /// It says nothing, or too little in its time.
    #[error("it did not say what it is")]
    Silent(#[source] io::Error),
    /// Plain, where only TLS is accepted.
    #[error("it is not sealed, and this host accepts only TLS from there")]
    Plain,
    /// TLS, where there are no certificates.
    #[error("it is sealed, and trunk.tls is not set on this host")]
    Sealed,
    /// It broke off.
    #[error("it did not finish the handshake")]
    Handshake(#[source] io::Error),
    /// Both could not agree, or one did not believe the other.
    #[error("it could not show that it is of this cluster")]
    Certificate(#[source] io::Error),
}

impl NotTaken {
    pub(crate) fn shed(&self) -> Shed {
        match self {
            Self::Silent(_) => Shed::Header,
            Self::Plain => Shed::TrunkPlain,
            Self::Sealed => Shed::TrunkSealed,
            Self::Handshake(_) => Shed::TrunkHandshake,
            Self::Certificate(_) => Shed::TrunkCertificate,
        }
    }
}

impl Seal {
    /// Reads the certificates, of this host where its file names it. Blocks.
    pub(crate) fn load(
        settings: &TrunkTls,
        host: Option<&HostAddr>,
    ) -> Result<Self, CertificatesError> {
        let files = &settings.files;
        let files = tls::TlsFiles {
            ca: files.ca.clone(),
            certificate: files.certificate.clone(),
            key: files.key.clone(),
        };
        let tls = Tls::load(files)?;
        if let Some(host) = host {
            names(&settings.files.certificate, &tls.own_identity(), host)?;
        }
        let settings = settings.clone();
        Ok(Self(Arc::new(Parts { tls, settings })))
    }

    /// Whether what goes to an address is sealed.
    pub(crate) fn seals(&self, to: IpAddr) -> bool {
        self.0.settings.send == Sent::Tls && !self.trusts(to)
    }

    /// How many connections are kept ready for a host: only what is sealed is worth it.
    pub(crate) fn ready(&self) -> usize {
        match self.0.settings.send {
            Sent::Tls => usize::try_from(self.0.settings.ready).unwrap_or(usize::MAX),
            Sent::Plain => 0,
        }
    }

    fn accepts_plain(&self, from: IpAddr) -> bool {
        self.0.settings.accept == Accepted::Both || self.trusts(from)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let plain = &self.0.settings.plain;
        plain.iter().any(|network| network.contains(address))
    }

    /// Seals a connection that was made to a host.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn connect(
        &self,
        socket: TcpStream,
        host: &HostAddr,
    ) -> io::Result<Box<Sealed>> {
        let name = ServerName::try_from(host.as_str().to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Sealed::connect(socket, self.0.tls.client(), name).await
    }
}

/// Whether other hosts will find a host in its own certificate. Whoever connects looks only at the
/// alternative names.
fn names(path: &Path, own: &PeerIdentity, host: &HostAddr) -> Result<(), CertificatesError> {
    if own.is(host) && own.names().next().is_some() {
        return Ok(());
    }
    Err(CertificatesError::OtherHost {
        path: path.to_owned(),
        named: own.to_string(),
        host: host.clone(),
    })
}

/// Takes a trunk connection in the form in which it comes, if that is accepted; with whom its
/// certificate names, where it has one.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub(crate) async fn take(
    seal: Option<&Seal>,
    socket: TcpStream,
    from: IpAddr,
) -> Result<(Leg, Option<PeerIdentity>), NotTaken> {
    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(0) => return Err(NotTaken::Silent(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => {}
        Err(error) => return Err(NotTaken::Silent(error)),
    }
    match seal {
        None if first == [HANDSHAKE] => Err(NotTaken::Sealed),
        Some(seal) if first == [HANDSHAKE] => {
            let sealed = Sealed::accept(socket, seal.0.tls.server()).await;
            let sealed = sealed.map_err(|error| {
                if error.kind() == io::ErrorKind::InvalidData {
                    NotTaken::Certificate(error)
                } else {
                    NotTaken::Handshake(error)
                }
            })?;
            let peer = sealed.peer().map_err(io::Error::other);
            let peer = peer.map_err(NotTaken::Certificate)?;
            Ok((sealed.into(), Some(peer)))
        }
        Some(seal) if !seal.accepts_plain(from) => Err(NotTaken::Plain),
        Some(_) | None => Ok((socket.into(), None)),
    }
}
