use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use proxyd_core::table::FileRoute;
use rehome_shared::api::proxy::{Announce, Content, ParkLimits, Target};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::*;
use crate::socket::{Company, listen_tcp};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port of another process, which has it open all the time.
fn open() -> (TcpListener, Spot) {
    let place = Place::Address(HERE);
    let timeouts = ProxydTimeouts::default();
    let listener = listen_tcp(place, 0, &timeouts, Company::Alone).unwrap();
    let port = listener.local_addr().unwrap().port();
    let key = format!("{port}/tcp").parse().unwrap();
    (listener, Spot { key, place })
}

#[tokio::test]
async fn what_was_inherited_in_vain_goes_when_all_is_over_and_the_rest_has_the_new_times() {
    let context = Context::of_file(|config| {
        config.listen = ListenOn::Addresses(vec![HERE]);
        config.timeouts.keepalive = Duration::from_secs(77);
    });
    let ((kept, wanted), (lost, unwanted)) = (open(), open());
    let mut table = RouteTable::default();
    let addr = kept.local_addr().unwrap();
    let limits = ParkLimits {
        park_limit: 1,
        park_timeout: Duration::from_secs(1),
    };
    let route = FileRoute {
        target: Target::Local { addr },
        limits,
        content: Content::default(),
        announce: Announce::default(),
    };
    drop(table.apply_file(&BTreeMap::from([(wanted.key, route)])));
    let all = Changes::all_of(&table);
    let copy = |listener: &TcpListener| listener.as_fd().try_clone_to_owned().unwrap();
    let inherited = Inherited {
        open: BTreeMap::from([(wanted, copy(&kept)), (unwanted, copy(&lost))]),
        missing: Vec::new(),
        kept: BTreeSet::new(),
    };
    let (supervisor, (trunk, _)) = (Supervisor::new(), open());
    let listeners = Listeners::new(context.clone(), &supervisor, trunk, inherited);
    let mut listeners = listeners.unwrap();
    context.book.publish(&table, &all);
    assert!(listeners.reconcile(&table, &all).await.is_empty());
    listeners.accept();
    let (kept_at, lost_at) = (kept.local_addr().unwrap(), lost.local_addr().unwrap());
    // The other process could still go on with it.
    let _waits = TcpStream::connect(lost_at).await.unwrap();
    let before = SockRef::from(&kept).tcp_keepalive_time().unwrap();
    assert_ne!(before, Duration::from_secs(77));

    listeners.settle(&table).await;
    let refused = TcpStream::connect(lost_at).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let _served = TcpStream::connect(kept_at).await.unwrap();
    let after = SockRef::from(&kept).tcp_keepalive_time().unwrap();
    assert_eq!(after, Duration::from_secs(77));
}
