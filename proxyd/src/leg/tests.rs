use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rehome_shared::ids::HostAddr;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

use super::*;
use crate::seal::{NotTaken, Seal, take};
pub(crate) use certificates::Authority;

#[path = "../../tests/traffic/certificates.rs"]
mod certificates;

const LIMIT: Duration = Duration::from_secs(20);
const NAME: &str = "127.0.0.1";

/// What a narrow socket holds: less than a record.
const NARROW: u32 = 4 << 10;

/// Who accepted and who connected.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

/// The same, and neither holds a whole record.
async fn narrow_sockets() -> (TcpStream, TcpStream) {
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_recv_buffer_size(NARROW).unwrap();
    listener.set_send_buffer_size(NARROW).unwrap();
    listener.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = listener.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(NARROW).unwrap();
    socket.set_send_buffer_size(NARROW).unwrap();
    let connecting = socket.connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

/// Both sides of a connection, by certificates of these authorities.
async fn shake(
    (accepted, connected): (TcpStream, TcpStream),
    here: &Authority,
    there: &Authority,
) -> (io::Result<Leg>, io::Result<Leg>) {
    let seal = |authority: &Authority| Seal::load(&authority.tls(NAME).unwrap(), None).unwrap();
    let (here, there) = (seal(here), seal(there));
    let host = HostAddr::try_new(NAME).unwrap();
    let from = Ipv4Addr::LOCALHOST.into();
    let both = async {
        tokio::join!(
            take(Some(&there), accepted, from),
            here.connect(connected, &host)
        )
    };
    let (accepted, connected) = timeout(LIMIT, both).await.unwrap();
    let accepted = accepted.map(|(leg, peer)| {
        assert!(peer.unwrap().is(&host));
        leg
    });
    (accepted.map_err(io::Error::other), connected.map(Leg::from))
}

async fn sealed(sockets: (TcpStream, TcpStream)) -> (Leg, Leg) {
    let authority = Authority::new().unwrap();
    let (a, b) = shake(sockets, &authority, &authority).await;
    (a.unwrap(), b.unwrap())
}

pub(crate) async fn pair() -> (Leg, Leg) {
    sealed(sockets().await).await
}

/// Neither side's kernel takes a whole record while the other one does not read.
pub(crate) async fn narrow_pair() -> (Leg, Leg) {
    sealed(narrow_sockets().await).await
}

/// Writes until the kernel takes no more, with nobody who reads.
pub(crate) async fn stuff(leg: &Leg) {
    // It may take some more once it has found that the other side's has room.
    while timeout(Duration::from_millis(200), leg.flushed())
        .await
        .is_ok()
    {
        drop(leg.try_write(&[7; 16 << 10]));
    }
}

pub(crate) async fn to_end(leg: &mut Leg) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(LIMIT, leg.read_to_end(&mut all)).await.unwrap()?;
    Ok(all)
}

#[tokio::test]
async fn bytes_go_both_ways_and_an_end_of_one_way_leaves_the_other() {
    let (mut a, mut b) = pair().await;
    let many: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let says = async {
        a.write_all(&many).await.unwrap();
        // More than sockets hold was taken by the kernel, and the end is behind it.
        a.shutdown().await.unwrap();
    };
    let (heard, ()) = tokio::join!(to_end(&mut b), says);
    assert_eq!(heard.unwrap(), many);
    assert!(!timeout(LIMIT, b.has_byte()).await.unwrap().unwrap());
    b.write_all(b"answer").await.unwrap();
    b.flush().await.unwrap();
    assert!(timeout(LIMIT, a.has_byte()).await.unwrap().unwrap());
    b.finish_sending();
    assert_eq!(to_end(&mut a).await.unwrap(), b"answer");
    let error = a.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_drop_is_an_end_unless_something_is_not_sent() {
    let (a, mut b) = pair().await;
    assert_eq!(a.try_write(b"bye").unwrap(), 3);
    drop(a);
    assert_eq!(to_end(&mut b).await.unwrap(), b"bye");

    let (a, mut b) = narrow_pair().await;
    stuff(&a).await;
    drop(a);
    assert!(to_end(&mut b).await.is_err());
}

/// Its own record is stuck, so the reset is the first that a write hears.
#[tokio::test]
async fn what_came_before_a_reset_is_read() {
    let (mut a, b) = narrow_pair().await;
    stuff(&a).await;
    assert_eq!(b.try_write(b"answer").unwrap(), 6);
    b.reset_on_drop();
    drop(b);
    timeout(LIMIT, a.breaks()).await.unwrap();
    let mut heard = [0; 6];
    timeout(LIMIT, a.read_exact(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&heard, b"answer");
    assert!(to_end(&mut a).await.is_err());
}

/// The same where a record follows that is none.
#[tokio::test]
async fn what_came_before_nonsense_is_read() {
    let (mut a, b) = pair().await;
    assert_eq!(b.try_write(b"answer").unwrap(), 6);
    let nonsense = [0x17, 3, 3, 0, 32].into_iter().chain([0; 32]);
    let nonsense: Vec<u8> = nonsense.collect();
    assert_eq!(b.socket().try_write(&nonsense).unwrap(), nonsense.len());
    let mut heard = [0; 6];
    timeout(LIMIT, a.read_exact(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&heard, b"answer");
    let kind = to_end(&mut a).await.unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_reset_is_one_and_so_is_a_socket_that_ends_without_a_word() {
    let (a, mut b) = pair().await;
    a.reset_on_drop();
    drop(a);
    timeout(LIMIT, b.breaks()).await.unwrap();
    assert!(to_end(&mut b).await.is_err());

    let (a, mut b) = pair().await;
    a.try_write(b"cut").unwrap();
    SockRef::from(a.socket())
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    let mut heard = [0; 3];
    b.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"cut");
    let kind = to_end(&mut b).await.unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
    assert!(b.has_byte().await.is_err());
}

#[tokio::test]
async fn one_that_is_ready_is_quiet_until_something_comes() {
    let (a, b) = pair().await;
    let (Leg::Sealed(a), Leg::Sealed(b)) = (a, b) else {
        panic!("not sealed");
    };
    assert!(a.is_quiet() && b.is_quiet() && b.is_quiet());
    drop(a);
    let gone = async {
        while b.is_quiet() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, gone).await.unwrap();
}

#[tokio::test]
async fn hosts_of_other_authorities_do_not_believe_each_other() {
    let (one, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (accepted, connected) = shake(sockets().await, &one, &other).await;
    assert!(accepted.is_err() && connected.is_err());
}

/// It has finished its handshake when it hears of that: the first read says why.
#[tokio::test]
async fn who_shows_no_certificate_is_refused_and_hears_why() {
    let authority = Authority::new().unwrap();
    let seal = Seal::load(&authority.tls(NAME).unwrap(), None).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(authority.ca()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (accepted, connected) = sockets().await;
    let name = NAME.try_into().unwrap();
    let (taken, sealed) = tokio::join!(
        take(Some(&seal), accepted, Ipv4Addr::LOCALHOST.into()),
        Sealed::connect(connected, Arc::new(config), name)
    );
    assert!(matches!(taken, Err(NotTaken::Certificate(_))), "{taken:?}");
    let mut leg = Leg::from(sealed.unwrap());
    let error = to_end(&mut leg).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

/// Other hosts look for it there before they say who they are.
#[tokio::test]
async fn a_host_is_one_of_the_alternative_names_of_its_own_certificate() {
    let authority = Authority::new().unwrap();
    let tls = authority.tls("10.0.0.1").unwrap();
    let host = |name: &str| HostAddr::try_new(name).unwrap();
    assert!(Seal::load(&tls, Some(&host("10.0.0.1"))).is_ok());
    let error = Seal::load(&tls, Some(&host("10.0.0.2"))).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("10.0.0.1.pem") && said.contains("this host is 10.0.0.2"),
        "{said}"
    );
    let common = authority.common("10.0.0.2").unwrap();
    assert!(Seal::load(&common, Some(&host("10.0.0.2"))).is_err());
    assert!(Seal::load(&common, None).is_ok());
}
