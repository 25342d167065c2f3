use std::fs;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rehome_shared::ids::HostAddr;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// An authority for tests; what it issues lies in a directory of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "rehome test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// The files of a host that is called by these names.
    pub(crate) fn files(&self, names: &[&str]) -> TlsFiles {
        let first = names[0].replace(':', "_");
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.distinguished_name.push(DnType::CommonName, "common");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles {
            ca: self.dir.path().join("ca.pem"),
            certificate: self.dir.path().join(format!("{first}.pem")),
            key: self.dir.path().join(format!("{first}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    pub(crate) fn tls(&self, names: &[&str]) -> Tls {
        Tls::load(self.files(names)).unwrap()
    }
}

fn host(text: &str) -> HostAddr {
    HostAddr::try_new(text).unwrap()
}

#[test]
fn a_certificate_names_its_addresses_and_names() {
    let own = Authority::new()
        .tls(&["10.77.0.11", "fd00::1", "db1.example"])
        .own_identity();
    for is in [
        "10.77.0.11",
        "fd00::1",
        "fd00:0::1",
        "db1.example",
        "DB1.example",
    ] {
        assert!(own.is(&host(is)), "{is}");
    }
    for is_not in ["10.77.0.12", "fd00::2", "db2.example", "common"] {
        assert!(!own.is(&host(is_not)), "{is_not}");
    }
    assert_eq!(own.common_name(), Some("common"));
    assert_eq!(own.to_string(), "10.77.0.11");
}

#[test]
fn each_unusable_file_is_named() {
    let authority = Authority::new();
    let good = authority.files(&["10.0.0.1"]);
    let garbage = authority.dir.path().join("garbage");
    fs::write(&garbage, "not pem").unwrap();
    let missing = authority.dir.path().join("missing");
    let other_key = Authority::new().files(&["10.0.0.1"]).key;

    let load = |files: TlsFiles| Tls::load(files).unwrap_err();
    let error = load(TlsFiles {
        ca: missing.clone(),
        ..good.clone()
    });
    assert!(
        matches!(&error, TlsError::Read { path, .. } if *path == missing),
        "{error}"
    );
    let error = load(TlsFiles {
        certificate: garbage.clone(),
        ..good.clone()
    });
    assert!(
        matches!(&error, TlsError::Pem { path, .. } if *path == garbage),
        "{error}"
    );
    let error = load(TlsFiles {
        key: garbage.clone(),
        ..good.clone()
    });
    assert!(
        matches!(
            &error,
            TlsError::Pem {
                what: "private key",
                ..
            }
        ),
        "{error}"
    );
    // The authority that made `other_key` is gone with its directory: read it first.
    assert!(matches!(
        load(TlsFiles {
            key: other_key,
            ..good.clone()
        }),
        TlsError::Read { .. }
    ));
    let second = authority.files(&["10.0.0.2"]);
    let error = load(TlsFiles {
        key: second.key,
        ..good
    });
    assert!(matches!(error, TlsError::Pair { .. }), "{error}");
}

#[tokio::test]
async fn both_sides_prove_themselves() {
    let authority = Authority::new();
    let (server, client) = (authority.tls(&["10.0.0.1"]), authority.tls(&["10.0.0.2"]));
    let identity = handshake(&server, &client, "10.0.0.1").await.unwrap();
    assert!(identity.is(&host("10.0.0.2")));
}

#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    let authority = Authority::new();
    let (server, client) = (authority.tls(&["10.0.0.1"]), authority.tls(&["10.0.0.2"]));
    assert!(handshake(&server, &client, "10.0.0.3").await.is_err());
}

#[tokio::test]
async fn a_stranger_is_refused_on_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ours = ours.tls(&["10.0.0.1"]);
    let theirs = theirs.tls(&["10.0.0.1"]);
    assert!(handshake(&ours, &theirs, "10.0.0.1").await.is_err());
    assert!(handshake(&theirs, &ours, "10.0.0.1").await.is_err());
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let authority = Authority::new();
    let server = authority.tls(&["10.0.0.1"]);
    let roots = Arc::new(read_roots(&authority.dir.path().join("ca.pem")).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anonymous = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(
        shake(server.server(), Arc::new(anonymous), "10.0.0.1")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_reload_reaches_every_holder_and_a_bad_one_changes_nothing() {
    let authority = Authority::new();
    let files = authority.files(&["10.0.0.1"]);
    let tls = Tls::load(files.clone()).unwrap();
    let holder = tls.clone();
    fs::write(&files.certificate, "not pem").unwrap();
    assert!(tls.reload().is_err());
    assert!(holder.own_identity().is(&host("10.0.0.1")));
    let renewed = authority.files(&["10.0.0.1", "renewed.example"]);
    assert_eq!(renewed, files);
    tls.reload().unwrap();
    assert!(holder.own_identity().is(&host("renewed.example")));
}

/// A whole exchange over a pipe: in TLS 1.3 a refused client certificate shows only at the
/// first read.
async fn handshake(server: &Tls, client: &Tls, meant: &str) -> std::io::Result<PeerIdentity> {
    shake(server.server(), client.client(), meant).await
}

async fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    meant: &str,
) -> std::io::Result<PeerIdentity> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(meant.to_owned()).unwrap();
    let client = async {
        let mut stream = tokio_rustls::TlsConnector::from(client)
            .connect(name, near)
            .await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(|_| ())
    };
    let server = async {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(far).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(&byte).await?;
        stream.flush().await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        Ok(PeerIdentity::of_certificate(&chain[0]).unwrap())
    };
    tokio::try_join!(client, server).map(|((), identity)| identity)
}
