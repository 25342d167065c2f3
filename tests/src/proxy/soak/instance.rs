//! An instance of an application: it sends back what it hears, and is there or not.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where an instance of an application is, on a host; both from 0.
pub(super) fn address(host: usize, application: usize) -> SocketAddr {
    let octet = |number: usize| u8::try_from(number + 1).unwrap_or(u8::MAX);
    let ip = Ipv4Addr::new(127, 0, octet(host + 20), octet(application));
    SocketAddr::new(ip.into(), 8080)
}

/// An instance.
#[derive(Debug)]
pub(super) struct Instance {
    stop: Arc<AtomicBool>,
    live: Arc<Mutex<Vec<TcpStream>>>,
    thread: JoinHandle<()>,
}

impl Instance {
    pub(super) fn start(host: usize, application: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address(host, application))?;
        let stop = Arc::new(AtomicBool::new(false));
        let live = Arc::new(Mutex::new(Vec::new()));
        let (stopping, streams) = (Arc::clone(&stop), Arc::clone(&live));
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                if !is_ready(&listener) {
                    continue;
                }
                let Ok((client, _)) = listener.accept() else {
                    continue;
                };
                let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                streams.retain(|stream: &TcpStream| stream.peer_addr().is_ok());
                streams.extend(client.try_clone());
                thread::spawn(move || echo(client));
            }
        });
        Ok(Self { stop, live, thread })
    }

    /// Ends it as an application ends: nothing of it is left when this returns.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow::anyhow!("an instance panicked"))?;
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in live.iter() {
            // Most have ended.
            drop(stream.shutdown(Shutdown::Both));
        }
        Ok(())
    }
}

fn is_ready(listener: &TcpListener) -> bool {
    const LOOK: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut polled, Some(&LOOK)).is_ok_and(|ready| ready > 0)
}

fn echo(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = client.read(&mut piece)?;
        if length == 0 {
            return client.shutdown(Shutdown::Write);
        }
        client.write_all(&piece[..length])?;
    }
}
