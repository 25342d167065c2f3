use std::net::Ipv4Addr;

use prometheus_client::registry::Registry;
use proxyd_core::table::{Owner, Phase, Route};
use rehome_shared::api::proxy::{Content, ParkLimits, RouteKey};
use rehome_shared::ids::{Protocol, RouteVersion};
use tokio::net::TcpListener;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

/// Thousands of connections rest at the same time; what a relay holds then is itself and this
/// future.
#[tokio::test]
async fn a_relay_is_small() {
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    let key = RouteKey::new(80, Protocol::Tcp);
    let ((client, _other), (upstream, _application)) = (pair().await, pair().await);
    let address = client.local_addr().unwrap();
    let route = Route {
        owner: Owner::File,
        version: RouteVersion::default(),
        phase: Phase::Closed,
        content: Content::default(),
        limits: ParkLimits {
            park_limit: 1,
            park_timeout: Duration::from_secs(1),
        },
    };
    let by = (key, Arc::new(route));
    let connection = Connection::new(1, by, address, address, Arc::default());
    let stores = Stores::new(1 << 20, 1 << 20, &metrics);
    let times = Times {
        half_close: Duration::from_secs(30),
        idle: None,
        lifetime: None,
    };
    let mut relay = Relay::new(client, upstream);
    let run = relay.run(&connection, &stores, times);
    let size = std::mem::size_of_val(&run) + size_of::<Relay>();
    assert!(size <= 1024, "{size} bytes");
}
