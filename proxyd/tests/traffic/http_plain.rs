//! What is no HTTP, or no more, on a route of HTTP: it goes through as it is.

use anyhow::{Result, ensure};
use rehome_shared::api::proxy::RouteStatus;
use tokio::time::timeout;

use crate::app::{App, raw};
use crate::host::{Host, LIMIT, ask, free_port, gate_ref, prepare_verb, read_line, tcp, version};
use crate::web::{Wire, get};

#[tokio::test]
async fn what_is_not_understood_is_passed_on_as_it_is() -> Result<()> {
    let (host, port) = (Host::start_http().await?, free_port().await?);
    let (app, key) = (App::start("line").await?, tcp(port)?);
    host.open(&[], key, version(1, 0), app.target()).await?;
    let is_plain = |route: &RouteStatus| (route.active, route.resting) == (1, 0);
    for strange in ["hello", "GET / HTTP/1.1 twice", "\u{1}\u{2}\u{3}"] {
        let mut client = host.client(port).await?;
        ensure!(ask(&mut client, strange).await? == format!("line: {strange}"));
        ensure!(ask(&mut client, "again").await? == "line: again");
        // It counts as what it is; that of the round before is gone by now.
        host.wait(key, is_plain).await?;
    }
    // Also in the middle: the first line is a head, its answer is none.
    let mut client = host.client(port).await?;
    let answer = ask(&mut client, "GET / HTTP/1.1\r\n\r").await?;
    ensure!(answer.starts_with("line: GET"), "{answer:?}");
    host.wait(key, is_plain).await?;
    // And when it comes to the gate first.
    host.proxy.prepare(prepare_verb(version(1, 1))).await?;
    let mut late = host.client(port).await?;
    late.writable().await?;
    late.try_write(b"late\n")?;
    host.wait(key, |route| route.parked >= 1).await?;
    host.proxy.rollback(gate_ref(version(1, 1))).await?;
    ensure!(read_line(&mut late).await? == "line: late");
    Ok(())
}

#[tokio::test]
async fn a_broken_chunk_goes_through_unchanged() -> Result<()> {
    let (host, port) = (Host::start_http().await?, free_port().await?);
    let (listener, target) = raw().await?;
    let key = tcp(port)?;
    host.open(&[], key, version(1, 0), target).await?;
    let mut client = Wire::new(host.client(port).await?);
    let (server, _) = timeout(LIMIT, listener.accept()).await??;
    let mut server = Wire::new(server);
    // One that is followed comes first.
    let (first, answer) = (get("/"), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    client.say(&first).await?;
    ensure!(server.exactly(first.len()).await? == first.as_bytes());
    server.say(answer).await?;
    ensure!(client.exactly(answer.len()).await? == answer.as_bytes());
    host.wait(key, |route| (route.active, route.resting) == (0, 1))
        .await?;
    let text = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\nzz\r\n";
    client.say(text).await?;
    ensure!(server.exactly(text.len()).await? == text.as_bytes());
    server.say("whatever").await?;
    ensure!(client.exactly(8).await? == b"whatever");
    // Nothing that looks like the next request is one, from here on.
    client.say(&first).await?;
    ensure!(server.exactly(first.len()).await? == first.as_bytes());
    let status = host.status(key)?;
    ensure!((status.active, status.resting) == (1, 0), "{status:?}");
    drop(server);
    ensure!(client.ends().await?);
    Ok(())
}
