//! One client's datagrams and the answers to them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxyd_core::table::Route;
use proxyd_core::way::{self, Arrival, Redial, TrunkWay, Way, redial};
use rehome_shared::api::proxy::{RouteKey, Target};
use rehome_shared::ids::RouteVersion;
use rehome_shared::trunk::{Answer, Header, Refusal};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::datagram::Datagram;
use super::link::{Activity, Link, Sink, Source, pass};
use super::packet::Path;
use crate::book::news::News;
use crate::context::Context;
use crate::dial;
use crate::fair;
use crate::leg::Leg;
use crate::metrics::{RouteMeters, Shed};
use crate::ready::Hop;
use crate::serve::answer;
use crate::socket::canonical;

/// Between two tries to reach the application.
const PAUSE: Duration = Duration::from_millis(50);

/// A client of a UDP route of this host.
pub(super) struct Session {
    context: Context,
    key: RouteKey,
    path: Path,
    destination: SocketAddr,
    activity: Activity,
    meters: Arc<RouteMeters>,
}

impl Session {
    pub(super) fn new(context: Context, key: RouteKey, path: Path, socket: SocketAddr) -> Self {
        let here = path.here.unwrap_or(socket.ip()).to_canonical();
        let meters = context.book.meters(key);
        Self {
            context,
            key,
            path,
            destination: SocketAddr::new(here, key.external()),
            activity: Activity::new(),
            meters,
        }
    }

    /// Runs until the client is silent.
    pub(super) async fn run(self, socket: Arc<UdpSocket>, datagrams: mpsc::Receiver<Datagram>) {
        let idle = self.context.settings().timeouts.udp_idle;
        let mut client = Link {
            source: Source::Inbox(datagrams),
            sink: Sink::Client(socket, self.path),
        };
        // Both only wait: the session keeps nothing that a drop could lose but datagrams.
        tokio::select! {
            biased;
            () = self.follow(&mut client) => {}
            () = self.activity.silence(idle) => {}
        }
    }

    /// Goes wherever the route leads, for as long as there is a route.
    async fn follow(&self, client: &mut Link) {
        let mut news = self.context.book.news(self.key);
        loop {
            news.borrow_and_update();
            let Some(route) = self.context.book.route(self.key) else {
                return;
            };
            let upstream = match way::for_client(&route) {
                Way::Refuse => return,
                Way::Hold => None,
                Way::Go(Target::Local { addr }) => {
                    connect(&self.context, *addr).await.ok().map(Link::from)
                }
                Way::Go(Target::Remote { host, trunk }) => {
                    let hop = Hop {
                        host: host.clone(),
                        trunk: trunk.clone(),
                    };
                    // The route may lead elsewhere while the owner still thinks.
                    tokio::select! {
                        reached = self.through_trunk(hop, route.version) => reached.map(Link::from),
                        _changed = news.changed() => continue,
                    }
                }
            };
            let Some(mut upstream) = upstream else {
                // Either way it is time to look again.
                drop(timeout(PAUSE, news.changed()).await);
                continue;
            };
            let inward = pass(
                &mut client.source,
                &mut upstream.sink,
                &self.activity,
                &self.meters.bytes_in,
                &self.context,
            );
            let outward = pass(
                &mut upstream.source,
                &mut client.sink,
                &self.activity,
                &self.meters.bytes_out,
                &self.context,
            );
            // The losers are dropped with the upstream; datagrams under way may be lost.
            tokio::select! {
                ended = inward => drop(ended),
                ended = outward => drop(ended),
                () = leads_elsewhere(&self.context, self.key, &route, &mut news) => {}
            }
        }
    }

    async fn through_trunk(&self, mut hop: Hop, mut version: RouteVersion) -> Option<Leg> {
        let application = self.context.book.route(self.key)?.application()?.clone();
        let sender = self.context.host()?;
        for hops in 0_u8.. {
            let header = Header {
                client: canonical(self.path.client),
                destination: self.destination,
                route: self.key,
                application: application.clone(),
                hops,
                sender: sender.clone(),
                version,
            };
            let settings = self.context.settings();
            let dialled = dial::trunk(&self.context, &settings, &hop, &header).await;
            let mut stream = dialled
                .inspect_err(|error| dial::note(&self.context, error))
                .ok()?;
            match dial::answer(&mut stream, &hop.host).await.ok()? {
                Answer::Connected => return Some(stream),
                Answer::Moved {
                    host,
                    trunk,
                    version: newer,
                } if redial(version, newer, hops) == Redial::Follow => {
                    (hop, version) = (Hop { host, trunk }, newer);
                }
                Answer::Moved { .. } | Answer::Refused(_) => return None,
            }
        }
        None
    }
}

/// A session that another host sends here: its datagrams come over the trunk connection, which
/// ends when the route leads elsewhere or is parked.
pub(crate) async fn from_trunk(
    context: &Context,
    mut stream: Leg,
    header: &Header,
    arrival: &Arrival,
) {
    let Some(place) = context.udp_room.take(context) else {
        let _sent = answer(&mut stream, &Answer::Refused(Refusal::Full)).await;
        return;
    };
    let mut news = context.book.news(header.route);
    let deadline = Instant::now() + context.settings().unknown_route;
    let (route, addr) = loop {
        news.borrow_and_update();
        let route = context.book.route(header.route);
        let refusal = match way::for_trunk(route.as_deref(), arrival) {
            TrunkWay::Go(addr) => match route {
                Some(route) => break (route, addr),
                None => Answer::Refused(Refusal::UnknownRoute),
            },
            TrunkWay::Hold => {
                let left = deadline.saturating_duration_since(Instant::now());
                match fair::within(left, news.changed()).await {
                    Some(Ok(())) => continue,
                    Some(Err(_)) | None => Answer::Refused(Refusal::ParkTimeout),
                }
            }
            TrunkWay::Moved {
                host,
                trunk,
                version,
            } => Answer::Moved {
                host,
                trunk,
                version,
            },
            TrunkWay::Refuse(refusal) => Answer::Refused(refusal),
        };
        let _sent = answer(&mut stream, &refusal).await;
        return;
    };
    let Ok(socket) = connect(context, addr).await else {
        sleep(PAUSE).await;
        let _sent = answer(&mut stream, &Answer::Refused(Refusal::Full)).await;
        return;
    };
    if !answer(&mut stream, &Answer::Connected).await {
        return;
    }
    let session = (Link::from(stream), Link::from(socket));
    exchange(context, session, (header.route, &route), &mut news).await;
    drop(place);
}

/// Passes datagrams on between another host and the application, until the sender is silent or the
/// route leads elsewhere.
async fn exchange(
    context: &Context,
    (mut sender, mut application): (Link, Link),
    (key, route): (RouteKey, &Route),
    news: &mut News,
) {
    let (activity, meters) = (Activity::new(), context.book.meters(key));
    let inward = pass(
        &mut sender.source,
        &mut application.sink,
        &activity,
        &meters.bytes_in,
        context,
    );
    let outward = pass(
        &mut application.source,
        &mut sender.sink,
        &activity,
        &meters.bytes_out,
        context,
    );
    let idle = context.settings().timeouts.udp_idle;
    // The losers are dropped with both ends; datagrams under way may be lost.
    tokio::select! {
        biased;
        ended = inward => drop(ended),
        ended = outward => drop(ended),
        () = activity.silence(idle) => {}
        () = leads_elsewhere(context, key, route, news) => {}
    }
}

async fn leads_elsewhere(context: &Context, key: RouteKey, route: &Route, news: &mut News) {
    loop {
        if context
            .book
            .route(key)
            .is_none_or(|now| now.phase != route.phase)
        {
            return;
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

/// A socket that is connected to the application. A want of this machine is counted.
async fn connect(context: &Context, to: SocketAddr) -> io::Result<UdpSocket> {
    let connected = connected(to).await;
    if let Some(shortage) = connected.as_ref().err().and_then(Shed::shortage) {
        context.book.metrics.shed(shortage);
    }
    connected
}

async fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let from: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    Ok(socket)
}
