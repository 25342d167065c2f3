use super::*;
use crate::leg::tests::{narrow_pair, stuff, to_end};

const LIMIT: Duration = Duration::from_secs(20);

/// Nobody reads, so it would take for ever.
#[tokio::test]
async fn what_is_still_to_be_sent_does_not_keep_a_cut_waiting() {
    let (leg, mut other) = narrow_pair().await;
    stuff(&leg).await;
    leg.finish_sending();
    let orders = Orders::default();
    let cut = async {
        tokio::task::yield_now().await;
        orders.give(Order::Cut);
    };
    let forever = Duration::from_hours(1);
    let legs = [&leg];
    let both = async { tokio::join!(sent(&legs, forever, &orders), cut) };
    tokio::time::timeout(LIMIT, both).await.unwrap();
    drop(leg);
    assert!(to_end(&mut other).await.is_err());
}

#[tokio::test]
async fn what_is_still_to_be_sent_is_sent_before_the_end() {
    let (leg, mut other) = narrow_pair().await;
    stuff(&leg).await;
    leg.finish_sending();
    let orders = Orders::default();
    let (heard, ()) = tokio::join!(to_end(&mut other), async {
        sent(&[&leg], LIMIT, &orders).await;
        drop(leg);
    });
    assert!(heard.is_ok());
}
