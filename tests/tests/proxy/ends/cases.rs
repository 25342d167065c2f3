//! The ends that a connection can have.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::way::Stage;
use crate::peer::{
    End, accept, at_once, carry, feels_reset, hears, nobody_comes, noise, reset, rest, rest_slowly,
    same,
};

/// More than all buffers between two sides, so that writers have to wait.
const BULK: usize = 24 << 20;

/// A row of the matrix.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) play: fn(&Stage) -> anyhow::Result<()>,
    /// How every proxy on the way calls the ends, one for each connection of the case.
    pub(crate) ends: &'static [&'static str],
}

pub(crate) const CASES: [Case; 11] = [
    Case {
        name: "the client finishes first",
        play: client_first,
        ends: &["finished"],
    },
    Case {
        name: "the server finishes first",
        play: server_first,
        ends: &["finished"],
    },
    Case {
        name: "a goodbye with data while parked",
        play: goodbye_while_parked,
        ends: &["finished", "finished"],
    },
    Case {
        name: "the client resets",
        play: client_resets,
        ends: &["client_reset"],
    },
    Case {
        name: "the server resets",
        play: server_resets,
        ends: &["upstream_reset"],
    },
    Case {
        name: "the client resets after its goodbye",
        play: reset_after_goodbye,
        ends: &["client_reset"],
    },
    Case {
        name: "a reset while parked",
        play: reset_while_parked,
        ends: &["client_gone", "client_gone", "finished"],
    },
    Case {
        name: "a client that reads slowly",
        play: slow_client,
        ends: &["finished"],
    },
    Case {
        name: "a server that reads slowly",
        play: slow_server,
        ends: &["finished"],
    },
    Case {
        name: "bulk both ways at once",
        play: bulk,
        ends: &["finished"],
    },
    Case {
        name: "one byte at a time",
        play: single_bytes,
        ends: &["finished"],
    },
];

fn client_first(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    finishes_first(client, server)
}

fn server_first(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    finishes_first(server, client)
}

/// One side says goodbye, hears all of the answer, and then the other one's goodbye.
fn finishes_first(mut first: TcpStream, mut second: TcpStream) -> anyhow::Result<()> {
    first.write_all(b"bye")?;
    first.shutdown(Shutdown::Write)?;
    hears(&second, b"bye", End::Fin).context("the goodbye")?;
    carry(&second, &first, 4, 100_000).context("after the goodbye")?;
    second.write_all(b"late")?;
    drop(second);
    hears(&first, b"late", End::Fin).context("the answer")
}

/// Once with little, all of which is there before the gate opens, and once with more than a socket
/// holds.
fn goodbye_while_parked(stage: &Stage) -> anyhow::Result<()> {
    for length in [1000, BULK] {
        let opens = stage.park()?;
        let client = stage.client()?;
        let (question, answer) = (noise(5, length), noise(6, length));
        let says = || {
            (&client).write_all(&question)?;
            Ok(client.shutdown(Shutdown::Write)?)
        };
        let hears_all = || {
            stage.wait_for_parked(1)?;
            ensure!(nobody_comes(stage.application())?, "the gate is open");
            stage.release(opens)?;
            let server = accept(stage.application())?;
            hears(&server, &question, End::Fin).context("the question")?;
            Ok(server)
        };
        let ((), mut server) = at_once(says, hears_all)?;
        at_once(
            || {
                server.write_all(&answer)?;
                drop(server);
                Ok(())
            },
            || hears(&client, &answer, End::Fin).context("the answer"),
        )?;
    }
    Ok(())
}

fn client_resets(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    reset(client)?;
    hears(&server, b"", End::Reset)
}

fn server_resets(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    reset(server)?;
    hears(&client, b"", End::Reset)
}

/// Nobody reads from the client any more then.
fn reset_after_goodbye(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    client.shutdown(Shutdown::Write)?;
    hears(&server, b"", End::Fin)?;
    reset(client)?;
    feels_reset(&server)
}

/// With and without data; the application never hears of them.
fn reset_while_parked(stage: &Stage) -> anyhow::Result<()> {
    let opens = stage.park()?;
    let (silent, mut asked, mut stays) = (stage.client()?, stage.client()?, stage.client()?);
    asked.write_all(b"lost")?;
    stage.wait_for_parked(3)?;
    reset(silent)?;
    stage.wait_for_parked(2)?;
    reset(asked)?;
    stage.wait_for_parked(1)?;
    stage.release(opens)?;
    let server = accept(stage.application())?;
    stays.write_all(b"here")?;
    stays.shutdown(Shutdown::Write)?;
    hears(&server, b"here", End::Fin)?;
    drop(server);
    hears(&stays, b"", End::Fin)?;
    ensure!(
        nobody_comes(stage.application())?,
        "a client that is gone came"
    );
    Ok(())
}

fn slow_client(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    reads_slowly(client, server)
}

fn slow_server(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    reads_slowly(server, client)
}

/// The other side has said everything, goodbye included, long before all of it is read.
fn reads_slowly(reader: TcpStream, mut writer: TcpStream) -> anyhow::Result<()> {
    let sent = noise(7, BULK);
    let ((), (came, end)) = at_once(
        || {
            writer.write_all(&sent)?;
            Ok(writer.shutdown(Shutdown::Write)?)
        },
        || rest_slowly(&reader, Duration::from_millis(1)),
    )?;
    same(&sent, &came)?;
    ensure!(end == End::Fin, "{end:?}");
    drop(reader);
    hears(&writer, b"", End::Fin)
}

fn bulk(stage: &Stage) -> anyhow::Result<()> {
    let (client, server) = stage.connect()?;
    let (there, back) = (noise(8, BULK), noise(9, BULK));
    let speaks = |mut stream: &TcpStream, bytes: &[u8]| {
        stream.write_all(bytes)?;
        anyhow::Ok(stream.shutdown(Shutdown::Write)?)
    };
    let one = || at_once(|| speaks(&client, &there), || rest(&client));
    let other = || at_once(|| speaks(&server, &back), || rest(&server));
    let (((), at_client), ((), at_server)) = at_once(one, other)?;
    for ((came, end), sent) in [(at_server, there), (at_client, back)] {
        same(&sent, &came)?;
        ensure!(end == End::Fin, "{end:?}");
    }
    Ok(())
}

fn single_bytes(stage: &Stage) -> anyhow::Result<()> {
    let (mut client, mut server) = stage.connect()?;
    let mut byte = [0];
    for (there, back) in noise(10, 500).iter().zip(noise(11, 500)) {
        client.write_all(&[*there])?;
        server.read_exact(&mut byte)?;
        ensure!(byte == [*there], "there");
        server.write_all(&[back])?;
        client.read_exact(&mut byte)?;
        ensure!(byte == [back], "back");
    }
    drop(client);
    hears(&server, b"", End::Fin)
}
