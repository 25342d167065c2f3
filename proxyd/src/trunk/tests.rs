use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;

use rehome_shared::ids::HostAddr;

use super::*;

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
