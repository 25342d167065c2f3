use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;

use rehome_shared::ids::{HostAddr, RouteVersion};
use rehome_shared::trunk::Header;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::leg::tests::Authority;

/// A handover counts the connections when nobody is accepted any more: whose task has not run
/// yet would get a number that the successor gives too.
#[tokio::test]
async fn a_sender_is_waited_for_from_its_accept_and_not_from_when_its_task_runs() {
    let context = Context::of_file(|_| {});
    let peer = HostAddr::try_new("127.0.0.1").unwrap();
    context.peers.set(&BTreeSet::from([peer]));
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let to = listener.local_addr().unwrap();
    let mut running = Box::pin(run(context.clone(), listener, CancellationToken::new()));
    let sender = TcpStream::connect(to).await.unwrap();
    while context.connections.running() == 0 {
        tokio::task::yield_now().await;
        poll_fn(|cx| {
            assert!(running.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    // Its task waits for this thread.
    assert_eq!(context.handover.arrivals(), 1);
    drop(sender);
    while context.connections.running() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(context.handover.arrivals(), 0);
}

/// Another host keeps more here than there are places for.
#[tokio::test]
async fn without_a_place_a_header_has_the_time_of_any_other() {
    let authority = Authority::new().unwrap();
    let name = "127.0.0.1";
    let context = Context::of_file(|config| config.trunk.tls = authority.tls(name).ok());
    let host = HostAddr::try_new(name).unwrap();
    context.peers.set(&BTreeSet::from([host.clone()]));
    let settings = context.settings();
    let hears = async |places: &Places, permits: &Arc<Semaphore>, says: Option<&Header>| {
        let listener = TcpListener::bind((name, 0)).await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = tokio::join!(listener.accept(), connecting);
        let (stream, from) = accepted.unwrap();
        let permit = Arc::clone(permits).acquire_owned().await.unwrap();
        let hears = greeting::hear(&context, (stream, from.ip()), permit, places);
        let sends = async {
            let seal = settings.seal.as_ref().unwrap();
            let sealed = seal.connect(connected.unwrap(), &host).await.unwrap();
            let mut leg = Leg::from(sealed);
            if let Some(header) = says {
                leg.write_all(&header.encode()).await.unwrap();
            }
            // Kept until the other side has made up its mind.
            leg
        };
        let (heard, _leg) = tokio::join!(hears, sends);
        heard.map(|(_, header)| header)
    };
    let address = "192.0.2.1:1".parse().unwrap();
    let header = Header {
        client: address,
        destination: address,
        route: "1/tcp".parse().unwrap(),
        application: "db".parse().unwrap(),
        hops: 0,
        sender: host.clone(),
        version: RouteVersion::default(),
    };
    let permits = Arc::new(Semaphore::new(1));
    let (none, some) = (Places::new(0), Places::new(1));
    for places in [&none, &some] {
        let heard = hears(places, &permits, Some(&header)).await;
        assert_eq!(heard.as_ref(), Some(&header));
        assert_eq!(permits.available_permits(), 1);
    }
    // Its place is free again: it is not that of what follows the header.
    assert!(some.take([127, 0, 0, 1].into()).is_some());
    assert_eq!(hears(&none, &permits, None).await, None);
    assert_eq!(permits.available_permits(), 1);
}
