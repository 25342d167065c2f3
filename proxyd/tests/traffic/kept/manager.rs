//! What a service manager does for a proxy, and where that proxy is.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{fs, iter};

use anyhow::{Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};

use crate::binary::{PROGRAM, Running, config, wait_for};
use crate::host::{LIMIT, free_port, unused_address};

type Stored = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// What it keeps, by name, and who hears that it is told so.
pub(super) struct Manager {
    directory: TempDir,
    stored: Stored,
    _hears: JoinSet<Result<()>>,
}

impl Manager {
    pub(super) fn start() -> Result<Self> {
        Self::start_keeping(|_| true)
    }

    /// One that has no room for letters.
    pub(super) fn without_letters() -> Result<Self> {
        Self::start_keeping(|name| !name.starts_with("letter"))
    }

    fn start_keeping(keeps: fn(&str) -> bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let words = UnixDatagram::bind(directory.path().join("notify"))?;
        let stored = Stored::default();
        let mut hears = JoinSet::new();
        hears.spawn(hear(words, Arc::clone(&stored), keeps));
        Ok(Self {
            directory,
            stored,
            _hears: hears,
        })
    }

    /// What it keeps now: what hung up it drops, as systemd does.
    pub(super) fn names(&self) -> Vec<String> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.retain(|_, descriptor| !has_hung_up(descriptor));
        stored.keys().cloned().collect()
    }

    /// Waits until it keeps exactly these.
    pub(super) async fn keeps(&self, mut wanted: Vec<String>) -> Result<()> {
        let began = Instant::now();
        wanted.sort();
        while self.names() != wanted {
            ensure!(began.elapsed() < LIMIT, "{:?} is kept", self.names());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops a proxy, as a restart begins.
    pub(super) async fn stop(&self, running: &mut Running) -> Result<()> {
        running.signal(Signal::TERM)?;
        ensure!(running.exit().await?.success());
        Ok(())
    }

    /// Starts a proxy with all that is kept.
    pub(super) fn run(&self, file: &PathBuf) -> Result<Running> {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: io::Result<Vec<_>> = stored.values().map(OwnedFd::try_clone).collect();
        let mappings = iter::zip(kept?, 3..).map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        // With fewer descriptors to begin with than it needs later.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "ulimit -Sn 64 && exec \"$0\" \"$@\"", PROGRAM])
            .arg("--config")
            .arg(file)
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("LISTEN_FDS", stored.len().to_string())
            .stderr(Stdio::null())
            .fd_mappings(mappings.collect())?;
        Ok(Running(command.spawn()?))
    }
}

async fn hear(words: UnixDatagram, stored: Stored, keeps: fn(&str) -> bool) -> Result<()> {
    loop {
        let (word, descriptor) = words
            .async_io(Interest::READABLE, || receive(&words))
            .await?;
        let name = word.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        match (name, descriptor) {
            (Some(name), Some(descriptor)) if keeps(name) => {
                drop(stored.insert(name.to_owned(), descriptor));
            }
            (Some(name), None) if word.contains("FDSTOREREMOVE=1") => drop(stored.remove(name)),
            // What comes with another word is closed.
            _ => {}
        }
    }
}

fn has_hung_up(descriptor: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(descriptor, PollFlags::empty())];
    let polled = poll(&mut asked, Some(&Timespec::default()));
    polled.is_err() || asked.iter().any(|one| !one.revents().is_empty())
}

fn receive(words: &UnixDatagram) -> io::Result<(String, Option<OwnedFd>)> {
    let mut word = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut word)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let length = recvmsg(words, &mut into, &mut control, flags)?.bytes;
    let mut descriptors = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptor = descriptors.next().and_then(|mut rights| rights.next());
    let word = word.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(word).into_owned(), descriptor))
}

/// A proxy's file, and where it is reached.
pub(super) struct Place {
    directory: TempDir,
    pub(super) address: Ipv4Addr,
    pub(super) page: SocketAddr,
    pub(super) trunk: u16,
}

impl Place {
    pub(super) async fn new() -> Result<Self> {
        let address = unused_address();
        Ok(Self {
            directory: tempfile::tempdir()?,
            address,
            page: SocketAddr::from((address, free_port().await?)),
            trunk: free_port().await?,
        })
    }

    pub(super) fn text(&self, routes: &str) -> String {
        let base = self.directory.path();
        config(base, self.address, self.page, self.trunk, routes)
    }

    pub(super) fn write(&self, text: &str) -> Result<PathBuf> {
        let file = self.directory.path().join("proxyd.yml");
        fs::write(&file, text)?;
        Ok(file)
    }

    /// What is kept of it, with these ports.
    pub(super) fn kept(&self, ports: &[u16]) -> Vec<String> {
        let name = |port: &u16| format!("{port}@{}", self.address);
        let trunk = iter::once("trunk".to_owned());
        ports.iter().map(name).chain(trunk).collect()
    }

    pub(super) async fn runs(&self) -> Result<()> {
        wait_for(self.page, "/healthz", "ok").await
    }

    /// Waits until the file was read again, so often by now.
    pub(super) async fn reloaded(&self, running: &Running, times: u32) -> Result<()> {
        running.signal(Signal::HUP)?;
        let text = format!("reloads_total{{result=\"applied\"}} {times}");
        wait_for(self.page, "/metrics", &text).await
    }

    pub(super) async fn refuses(&self, port: u16) -> Result<()> {
        let refused = TcpStream::connect((self.address, port)).await.err();
        let kind = refused.map(|error| error.kind());
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{kind:?}");
        Ok(())
    }
}
