//! An application that takes its time to accept, and answers each client with its number.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The application. Its thread waits for clients as long as the process lives.
#[derive(Debug)]
pub(super) struct Application {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Application {
    pub(super) fn start(queue: i32, pace: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 9, 1), 8080))?;
        // Again, with a queue as most applications have it.
        rustix::net::listen(&listener, queue)?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        thread::spawn(move || {
            for number in 0_u64.. {
                let Ok((client, _)) = listener.accept() else {
                    return;
                };
                count.fetch_add(1, Ordering::Relaxed);
                // Who is gone is missed by the client, if there is one.
                drop(answer(client, number));
                if !pace.is_zero() {
                    thread::park_timeout(pace);
                }
            }
        });
        Ok(Self { address, accepted })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

fn answer(mut client: TcpStream, number: u64) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.read_exact(&mut [0])?;
    client.write_all(&number.to_be_bytes())
}
