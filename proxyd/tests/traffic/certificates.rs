//! An authority for tests; what it issues lies in a directory of its own.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rehome_shared::config::daemon::{Accepted, Sent, TlsFiles, TrunkTls};
use tempfile::TempDir;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, directory })
    }

    /// The certificate of the authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The files of the host of a name, made anew.
    pub(crate) fn files(&self, name: &str) -> Result<TlsFiles> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let at = |end: &str| self.directory.path().join(format!("{name}.{end}"));
        let files = TlsFiles {
            ca: self.ca(),
            certificate: at("pem"),
            key: at("key"),
        };
        fs::write(&files.certificate, certificate.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }

    /// What such a host's file says.
    pub(crate) fn tls(&self, name: &str) -> Result<TrunkTls> {
        Ok(TrunkTls {
            files: self.files(name)?,
            send: Sent::Tls,
            accept: Accepted::Tls,
            plain: Vec::new(),
            ready: 0,
        })
    }
}
