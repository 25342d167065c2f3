use std::slice;

use rehome_shared::config::daemon::{Sent, TrunkTls};

use super::*;
use crate::leg::tests::{Authority, pair};

const MOST: Most = Most {
    of_a_host: 1,
    in_all: 100,
    begun: 0,
};

fn hop(trunk: &str) -> Hop {
    Hop {
        host: HostAddr::try_new("127.0.0.1").unwrap(),
        trunk: trunk.to_owned(),
    }
}

/// A client has gone there; another one is wanted.
fn wanted(ready: &Ready, now: Instant) -> Wanted {
    assert!(ready.take(&hop("a:1"), now).is_none());
    ready.wanting(MOST, now).pop().unwrap()
}

async fn opened() -> (Opened, Leg) {
    let (Leg::Sealed(here), there) = pair().await else {
        panic!("it is not sealed");
    };
    (Opened::Sealed(here), there)
}

#[tokio::test]
async fn one_that_dies_is_followed_by_a_pause_that_grows_until_one_serves() {
    let (ready, mut now) = (Ready::default(), Instant::now());
    let first = wanted(&ready, now);
    assert_eq!(ready.wanting(MOST, now), [], "one at a time");
    let (here, there) = opened().await;
    ready.lay_down(&first, here, now);
    assert_eq!((ready.count(), ready.wanting(MOST, now)), (1, vec![]));
    // As an owner does that does not believe this host.
    drop(there);
    while ready.count() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        ready.sort_out(now);
    }
    for pause in [PAUSE, 2 * PAUSE, 4 * PAUSE] {
        assert_eq!(ready.wanting(MOST, now + pause / 2), []);
        now += pause;
        assert_eq!(ready.wanting(MOST, now), slice::from_ref(&first));
        ready.lay_down(&first, Opened::Failed, now);
    }
    ready.served(&first.hop);
    now += LONGEST_PAUSE;
    ready.lay_down(&first, Opened::Failed, now);
    assert_eq!(ready.wanting(MOST, now + PAUSE), [first]);
}

#[tokio::test]
async fn one_that_is_dead_when_it_is_used_speaks_for_the_others() {
    let (ready, now) = (Ready::default(), Instant::now());
    let wanted = wanted(&ready, now);
    let (here, _there) = opened().await;
    ready.lay_down(&wanted, here, now);
    ready.broke(&wanted.hop, now);
    assert_eq!((ready.count(), ready.wanting(MOST, now)), (0, vec![]));
    assert_eq!(ready.wanting(MOST, now + PAUSE), [wanted]);
}

#[tokio::test]
async fn what_was_opened_before_all_were_dropped_is_not_kept() {
    let (ready, now) = (Ready::default(), Instant::now());
    let before = wanted(&ready, now);
    ready.clear();
    let after = wanted(&ready, now);
    let (here, _there) = opened().await;
    ready.lay_down(&before, here, now);
    assert_eq!(ready.count(), 0);
    let (here, _there) = opened().await;
    ready.lay_down(&after, here, now);
    assert_eq!(ready.count(), 1);
    ready.keep_only(&BTreeSet::new());
    assert_eq!(ready.count(), 0);
}

#[tokio::test]
async fn there_are_no_more_than_there_may_be() {
    let (ready, now) = (Ready::default(), Instant::now());
    for number in 0..2 * HOSTS {
        assert!(ready.take(&hop(&format!("a:{number}")), now).is_none());
    }
    let begun = ready.wanting(Most { begun: 2, ..MOST }, now).len();
    assert_eq!(begun, OPENED_AT_ONCE - 2);
    let few = Most { in_all: 1, ..MOST };
    let wanted = ready.wanting(few, now).pop().unwrap();
    let (here, _there) = opened().await;
    ready.lay_down(&wanted, here, now);
    assert_eq!(ready.wanting(few, now), []);
    ready.sort_out(now + WANTED);
    assert_eq!((ready.count(), ready.lock().of.len()), (0, 0));
}

/// Who listens there would see connections that say nothing.
#[tokio::test]
async fn nobody_connects_ahead_where_trunks_are_plain() {
    let authority = Authority::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let hop = hop(&listener.local_addr().unwrap().to_string());
    let with = |adjust: fn(&mut TrunkTls)| {
        let mut tls = authority.tls("127.0.0.1").unwrap();
        (tls.ready, tls.plain) = (4, vec!["127.0.0.0/8".parse().unwrap()]);
        adjust(&mut tls);
        Context::of_file(|config| config.trunk.tls = Some(tls))
    };
    let context = with(|_| {});
    let settings = context.settings();
    let opened = dial::open_ahead(&context, &settings, &hop).await;
    assert!(matches!(opened, Ok(None)), "{opened:?}");
    let kind = listener.accept().unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::WouldBlock);
    assert_eq!(settings.seal.as_ref().map(Seal::ready), Some(4));
    let context = with(|tls| tls.send = Sent::Plain);
    let settings = context.settings();
    assert_eq!(settings.seal.as_ref().map(Seal::ready), Some(0));
    // It is asked about again when that may have changed.
    let (ready, now) = (Ready::default(), Instant::now());
    let wanted = wanted(&ready, now);
    ready.lay_down(&wanted, Opened::Plain, now);
    assert_eq!(ready.wanting(MOST, now + LONGEST_PAUSE / 2), []);
    assert_eq!(ready.wanting(MOST, now + LONGEST_PAUSE).len(), 1);
}
