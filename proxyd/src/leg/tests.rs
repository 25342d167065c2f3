use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::time::Duration;

use rehome_shared::ids::HostAddr;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::seal::{Seal, take};
use certificates::Authority;

#[path = "../../tests/traffic/certificates.rs"]
mod certificates;

const LIMIT: Duration = Duration::from_secs(20);
const NAME: &str = "127.0.0.1";

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

/// Both sides of a connection, by certificates of these authorities.
async fn shake(here: &Authority, there: &Authority) -> (io::Result<Leg>, io::Result<Leg>) {
    let (accepted, connected) = sockets().await;
    let seal = |authority: &Authority| Seal::load(&authority.tls(NAME).unwrap()).unwrap();
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

async fn pair() -> (Leg, Leg) {
    let authority = Authority::new().unwrap();
    let (a, b) = shake(&authority, &authority).await;
    (a.unwrap(), b.unwrap())
}

async fn to_end(leg: &mut Leg) -> io::Result<Vec<u8>> {
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

    let (a, mut b) = pair().await;
    let full = async {
        loop {
            poll_fn(|cx| a.poll_write_ready(cx)).await.unwrap();
            drop(a.try_write(&[7; 16 << 10]));
        }
    };
    // Nobody reads: the kernel takes no more in the end, and a record is stuck.
    drop(timeout(Duration::from_millis(300), full).await);
    let stuck = poll_fn(|cx| Poll::Ready(a.poll_flush(cx).is_pending())).await;
    drop(a);
    assert!(stuck && to_end(&mut b).await.is_err());
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
    let (accepted, connected) = shake(&one, &other).await;
    assert!(accepted.is_err() && connected.is_err());
}
