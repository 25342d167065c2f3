//! The two ends of a connection: a client and an application that a test plays itself.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

/// An end comes within it. It is far below `timeouts.half_close`, so that no timer made the end.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// Where applications of the tests are.
pub(crate) const APPLICATION: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 9, 1)), 8080);

/// How a stream of bytes ends, as its reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// Connects a client.
pub(crate) fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PROMPT)?;
    tune(&stream)?;
    Ok(stream)
}

fn tune(stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PROMPT))?;
    stream.set_write_timeout(Some(PROMPT))?;
    Ok(())
}

/// The next connection that comes to an application.
pub(crate) fn accept(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    let ready = wait(listener, PollFlags::IN, PROMPT)?;
    ensure!(ready, "nobody came to the application");
    let (stream, _) = listener.accept()?;
    tune(&stream)?;
    Ok(stream)
}

/// Whether nobody comes for a moment.
pub(crate) fn nobody_comes(listener: &TcpListener) -> anyhow::Result<bool> {
    Ok(!wait(listener, PollFlags::IN, Duration::from_millis(200))?)
}

fn wait(of: &impl rustix::fd::AsFd, what: PollFlags, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(of, what)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))?;
    Ok(ready > 0)
}

/// Ends a connection with a reset.
pub(crate) fn reset(stream: TcpStream) -> anyhow::Result<()> {
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Waits for a reset without reading.
pub(crate) fn feels_reset(stream: &TcpStream) -> anyhow::Result<()> {
    ensure!(
        wait(stream, PollFlags::empty(), PROMPT)?,
        "no reset was felt"
    );
    Ok(())
}

/// Bytes that no other seed has.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Reads to the end: what came, and how it ended.
pub(crate) fn rest(stream: &TcpStream) -> anyhow::Result<(Vec<u8>, End)> {
    rest_slowly(stream, Duration::ZERO)
}

/// As [`rest`], with a pause after each piece.
pub(crate) fn rest_slowly(
    mut stream: &TcpStream,
    pause: Duration,
) -> anyhow::Result<(Vec<u8>, End)> {
    let (mut came, mut piece) = (Vec::new(), vec![0; 70_001]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok((came, End::Fin)),
            Ok(length) => came.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok((came, End::Reset));
            }
            Err(error) => bail!("after {} bytes: {error}", came.len()),
        }
        if !pause.is_zero() {
            std::thread::park_timeout(pause);
        }
    }
}

/// Insists that these bytes come, and this end.
pub(crate) fn hears(stream: &TcpStream, sent: &[u8], end: End) -> anyhow::Result<()> {
    let (came, ended) = rest(stream)?;
    same(sent, &came)?;
    ensure!(ended == end, "{ended:?} instead of {end:?}");
    Ok(())
}

/// Insists that bytes are those that were sent.
pub(crate) fn same(sent: &[u8], came: &[u8]) -> anyhow::Result<()> {
    ensure!(
        blake3::hash(sent) == blake3::hash(came),
        "{} other bytes than the {} that were sent",
        came.len(),
        sent.len()
    );
    Ok(())
}

/// Sends bytes that the other side reads, all of them.
pub(crate) fn carry(
    from: &TcpStream,
    to: &TcpStream,
    seed: u64,
    length: usize,
) -> anyhow::Result<()> {
    let sent = noise(seed, length);
    let mut came = vec![0; length];
    let (mut from, mut to) = (from, to);
    at_once(
        || from.write_all(&sent).context("sending"),
        || to.read_exact(&mut came).context("reading"),
    )?;
    same(&sent, &came)
}

/// Does both at the same time.
pub(crate) fn at_once<A: Send, B>(
    one: impl FnOnce() -> anyhow::Result<A> + Send,
    other: impl FnOnce() -> anyhow::Result<B>,
) -> anyhow::Result<(A, B)> {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        let one = one.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        Ok((one?, other?))
    })
}
