//! A relay that is taken apart again and again in the middle of everything.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use prometheus_client::registry::Registry;
use proxyd_core::handover;
use proxyd_core::table::{Owner, Phase, Route};
use rehome_shared::api::proxy::{Announce, Content, ParkLimits};
use rehome_shared::ids::RouteVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::super::{Halt, Relay, Stores, Times};
use super::Apart;
use crate::book::connection::Connection;
use crate::metrics::Metrics;

const LIMIT: Duration = Duration::from_secs(30);

const TIMES: Times = Times {
    half_close: LIMIT,
    idle: None,
    lifetime: None,
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connect);
    let (near, far) = (connected.unwrap(), accepted.unwrap().0);
    for stream in [&near, &far] {
        // So that no turn carries much.
        let socket = socket2::SockRef::from(stream);
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.set_send_buffer_size(64 << 10).unwrap();
    }
    (near, far)
}

fn connection() -> Connection {
    let key = "1/tcp".parse().unwrap();
    let nobody = "127.0.0.1:1".parse().unwrap();
    let limits = ParkLimits {
        park_limit: 0,
        park_timeout: LIMIT,
    };
    let route = Arc::new(Route {
        owner: Owner::File,
        version: RouteVersion::default(),
        phase: Phase::Closed,
        limits,
        content: Content::default(),
        announce: Announce::default(),
    });
    Connection::new(1, (key, route), nobody, nobody, Arc::default())
}

fn stores(pipe_bytes: usize) -> Stores {
    let metrics = Arc::new(Metrics::new(&mut Registry::default()));
    Stores::new(usize::MAX, pipe_bytes, &metrics)
}

/// Through everything that another process would see of it.
fn over(apart: Apart, stores: &Stores) -> Apart {
    let (state, bytes) = (apart.state(), apart.bytes());
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let descriptors: Vec<OwnedFd> = apart.descriptors().into_iter().map(own).collect();
    drop(apart);
    Apart::of(&state, descriptors, &bytes, stores).unwrap()
}

/// What a side says: enough to be stopped often.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

async fn talk(mut stream: TcpStream, says: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = stream.split();
    let mut heard = Vec::new();
    let writes = async {
        write.write_all(&says).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(writes, async {
        read.read_to_end(&mut heard).await.unwrap()
    });
    heard
}

/// Runs a relay for so many turns, wherever the last one ends, and stops it there.
async fn some_turns(run: impl Future<Output = Halt>, turns: u32) -> Option<Halt> {
    let mut run = Box::pin(run);
    let mut left = turns;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        run.as_mut().poll(cx).map(Some)
    })
    .await
}

/// How many halves hold bytes that were read and not written, as the mode would have it.
fn holds(apart: &Apart, splices: bool) -> usize {
    let state = apart.state();
    let of_mode = |load: &handover::Bytes| match load {
        handover::Bytes::None => false,
        handover::Bytes::Here(_) => !splices,
        handover::Bytes::Piped(_) => splices,
    };
    let loads = [state.inward.load, state.outward.load];
    loads.iter().filter(|load| of_mode(load)).count()
}

/// Bulk both ways while the relay is taken apart `times`; `pipe_bytes` decides whether it splices.
async fn survives(times: u32, pipe_bytes: usize) {
    let (client, from_client) = pair().await;
    let (to_server, server) = pair().await;
    let stores = stores(pipe_bytes);
    let connection = connection();
    let (asked, answered) = (noise(1, 12 << 20), noise(2, 16 << 20));
    let (mut taken, mut in_between) = (0, 0);
    let relayed = async {
        let mut relay = Relay::new(from_client, to_server);
        loop {
            let turns = if taken < times {
                1 + taken % 2
            } else {
                u32::MAX
            };
            let halt = some_turns(relay.run(&connection, &stores, TIMES), turns).await;
            let halt = if let Some(halt) = halt {
                halt
            } else {
                connection.orders.leave();
                relay.run(&connection, &stores, TIMES).await
            };
            match halt {
                Halt::Ended(end) => return end,
                Halt::Leaves => {}
            }
            connection.orders.stay();
            taken += 1;
            let apart = relay.take_apart().unwrap();
            in_between += holds(&apart, pipe_bytes > 0);
            relay = over(apart, &stores).put_together().unwrap();
        }
    };
    let ends = async {
        tokio::join!(
            talk(client, asked.clone()),
            talk(server, answered.clone()),
            relayed
        )
    };
    let (heard_answers, heard_questions, end) = timeout(LIMIT, ends).await.unwrap();
    assert_eq!(end, proxyd_core::tally::End::Finished);
    assert!(heard_questions == asked, "{} bytes", heard_questions.len());
    assert!(heard_answers == answered, "{} bytes", heard_answers.len());
    assert_eq!(taken, times);
    assert!(
        in_between > 10,
        "it had read and not written {in_between} times"
    );
    let whole = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap();
    assert_eq!(connection.bytes(), (whole(&asked), whole(&answered)));
}

#[tokio::test]
async fn a_relay_that_copies_loses_no_byte_when_taken_apart_a_hundred_times() {
    survives(100, 0).await;
}

#[tokio::test]
async fn a_relay_that_splices_loses_no_byte_when_taken_apart_a_hundred_times() {
    survives(100, 48 << 20).await;
}

#[tokio::test]
async fn a_goodbye_of_one_side_is_remembered() {
    let (mut client, from_client) = pair().await;
    let (to_server, mut server) = pair().await;
    let stores = stores(0);
    let connection = connection();
    let mut relay = Relay::new(from_client, to_server);
    client.write_all(b"bye").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let hears = server.read_to_end(&mut heard);
    tokio::select! {
        halt = relay.run(&connection, &stores, TIMES) => panic!("{halt:?}"),
        read = timeout(LIMIT, hears) => { read.unwrap().unwrap(); }
    }
    assert_eq!(heard, b"bye");
    let apart = relay.take_apart().unwrap();
    assert!(apart.state().inward.done && !apart.state().outward.done);
    let mut relay = over(apart, &stores).put_together().unwrap();
    let answers = async {
        server.write_all(b"late").await.unwrap();
        drop(server);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let run = relay.run(&connection, &stores, TIMES);
    let (heard, halt) = timeout(LIMIT, async { tokio::join!(answers, run) })
        .await
        .unwrap();
    assert_eq!(heard, b"late");
    assert_eq!(halt, Halt::Ended(proxyd_core::tally::End::Finished));
}

/// What another process does with its copy of a socket must not be undone here.
#[tokio::test]
async fn parts_that_are_dropped_say_nothing_to_either_side() {
    let (mut client, from_client) = pair().await;
    let (to_server, mut server) = pair().await;
    let stores = stores(0);
    let connection = connection();
    let apart = Relay::new(from_client, to_server).take_apart().unwrap();
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let copies: Vec<OwnedFd> = apart.descriptors().into_iter().map(own).collect();
    let state = apart.state();
    drop(apart);
    let mut relay = Apart::of(&state, copies, &[], &stores)
        .unwrap()
        .put_together()
        .unwrap();
    let talk = async {
        client.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        heard
    };
    tokio::select! {
        halt = relay.run(&connection, &stores, TIMES) => panic!("{halt:?}"),
        heard = timeout(LIMIT, talk) => assert_eq!(&heard.unwrap(), b"still here"),
    }
}

#[tokio::test]
async fn parts_that_are_not_whole_are_no_relay() {
    let stores = stores(0);
    let (client, from_client) = pair().await;
    let (to_server, server) = pair().await;
    let apart = Relay::new(from_client, to_server).take_apart().unwrap();
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let copies = || -> Vec<OwnedFd> { apart.descriptors().into_iter().map(own).collect() };
    let mut state = apart.state();
    state.inward.load = handover::Bytes::Here(4);
    assert!(Apart::of(&state, copies(), b"abc", &stores).is_err());
    state.inward.load = handover::Bytes::Piped(4);
    assert!(Apart::of(&state, copies(), b"", &stores).is_err());
    drop((client, server));
}
