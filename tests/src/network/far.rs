//! Another host: a network of its own, with a cable to that of the test.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::Context as _;

use super::{LIMIT, own};
use crate::program;

type Task = Box<dyn FnOnce() + Send>;

/// Another host. It ends with the value, but for threads and sockets that it has left behind.
#[derive(Debug)]
pub struct Far {
    tasks: Sender<Task>,
    /// Its number as a thread, by which the kernel knows its network.
    thread: i32,
    address: Ipv4Addr,
    near: Ipv4Addr,
}

impl Far {
    /// Makes the host 10.1.N.2; the network of the calling thread is 10.1.N.1 for it, and whatever it
    /// sends goes there.
    ///
    /// # Errors
    /// Without root.
    pub fn start(number: u8) -> anyhow::Result<Self> {
        let (tasks, work) = channel();
        let (told, thread) = channel();
        thread::spawn(move || live(&told, &work));
        let far = Self {
            tasks,
            thread: thread.recv()??,
            address: Ipv4Addr::new(10, 1, number, 2),
            near: Ipv4Addr::new(10, 1, number, 1),
        };
        far.plug(number)?;
        Ok(far)
    }

    fn plug(&self, number: u8) -> anyhow::Result<()> {
        let (cable, thread) = (format!("far{number}"), self.thread);
        ip(&format!(
            "link add {cable} type veth peer name near netns {thread}"
        ))?;
        ip(&format!("addr add {}/24 dev {cable}", self.near))?;
        ip(&format!("link set {cable} up"))?;
        let (address, near) = (self.address, self.near);
        let (address6, near6) = (self.address6(), self.near6());
        ip(&format!("addr add {near6}/64 dev {cable} nodad"))?;
        self.run(move || {
            ip(&format!("addr add {address}/24 dev near"))?;
            ip("link set near up")?;
            ip(&format!("route add default via {near}"))?;
            ip(&format!("addr add {address6}/64 dev near nodad"))?;
            ip(&format!("route add default via {near6}"))
        })?
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The address of the calling thread's network that is nearest to it.
    #[must_use]
    pub fn near(&self) -> Ipv4Addr {
        self.near
    }

    /// As [`Self::address`], of IPv6.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        let [_, _, number, _] = self.address.octets();
        Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 2)
    }

    /// As [`Self::near`], of IPv6.
    #[must_use]
    pub fn near6(&self) -> Ipv6Addr {
        let [_, _, number, _] = self.address.octets();
        Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 1)
    }

    /// Does something there, on its one thread; threads that this starts are there too.
    ///
    /// # Errors
    /// When it has ended.
    pub fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (told, done) = channel();
        let task = move || drop(told.send(task()));
        let sent = self.tasks.send(Box::new(task));
        sent.ok().context("the host has ended")?;
        done.recv().context("the host has panicked")
    }
}

fn live(told: &Sender<anyhow::Result<i32>>, work: &Receiver<Task>) {
    let born = own().map(|()| rustix::thread::gettid().as_raw_pid());
    if told.send(born).is_ok() {
        for task in work {
            task();
        }
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip");
    program::run(ip.args(words.split_whitespace()), LIMIT)?.ok()?;
    Ok(())
}
