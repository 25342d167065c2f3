use std::os::unix::fs::PermissionsExt as _;

use rehome_runtime::tls::{Tls, TlsFiles};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::*;

fn issued(authority: &Path, host: &str) -> Tls {
    let output = authority.join(host);
    issue(authority, &host.parse().unwrap(), &output).unwrap();
    Tls::load(TlsFiles {
        ca: output.join("ca.pem"),
        certificate: output.join("host.pem"),
        key: output.join("host.key"),
    })
    .unwrap()
}

/// A whole handshake in memory.
fn shake(client: &Tls, server: &Tls, name: &'static str) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(client.client(), name)?;
    let mut server = ServerConnection::new(server.server())?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn hosts_of_one_authority_trust_each_other_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (
        directory.path().join("ours"),
        directory.path().join("theirs"),
    );
    init(&ours).unwrap();
    init(&theirs).unwrap();
    let first = issued(&ours, "10.77.0.11");
    let second = issued(&ours, "db1.example.net");
    let stranger = issued(&theirs, "db1.example.net");
    shake(&first, &second, "db1.example.net").unwrap();
    shake(&second, &first, "10.77.0.11").unwrap();
    shake(&first, &second, "db2.example.net").unwrap_err();
    shake(&first, &stranger, "db1.example.net").unwrap_err();
    shake(&stranger, &first, "10.77.0.11").unwrap_err();
}

#[test]
fn a_host_certificate_names_only_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca");
    init(&authority).unwrap();
    let long = format!("{}.example.net", "a".repeat(63));
    for (host, ip) in [
        ("10.77.0.11", true),
        ("fd00::11", true),
        (long.as_str(), false),
    ] {
        let output = authority.join(host);
        issue(&authority, &host.parse().unwrap(), &output).unwrap();
        let (_, pem) = parse_x509_pem(&std::fs::read(output.join("host.pem")).unwrap()).unwrap();
        let certificate = pem.parse_x509().unwrap();
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
    let output = authority.join("h1");
    let host: HostAddr = "h1".parse().unwrap();
    assert!(matches!(
        issue(&authority, &host, &output),
        Err(CaError::NoAuthority(_))
    ));
    init(&authority).unwrap();
    issue(&authority, &host, &output).unwrap();
    let before = paths::read(&output.join("host.key")).unwrap();
    assert!(matches!(init(&authority), Err(CaError::Exists(_))));
    assert!(matches!(
        issue(&authority, &host, &output),
        Err(CaError::Exists(_))
    ));
    assert_eq!(paths::read(&output.join("host.key")).unwrap(), before);
}
