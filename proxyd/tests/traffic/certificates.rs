//! An authority for tests; what it issues lies in a directory of its own.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
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
        self.issue(name, CertificateParams::new(vec![name.to_owned()])?)
    }

    fn issue(&self, name: &str, mut params: CertificateParams) -> Result<TlsFiles> {
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
        Ok(tls(self.files(name)?))
    }

    /// The same with a certificate that has the name as its common name alone.
    pub(crate) fn common(&self, name: &str) -> Result<TrunkTls> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(tls(self.issue(name, params)?))
    }
}

fn tls(files: TlsFiles) -> TrunkTls {
    TrunkTls {
        files,
        send: Sent::Tls,
        accept: Accepted::Tls,
        plain: Vec::new(),
        ready: 0,
    }
}
