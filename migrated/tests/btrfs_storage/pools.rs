//! Pools in image files, and what passes between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::Context;
use migrated::storage::btrfs::{Btrfs, PoolConfig, PoolImage};
use migrated::storage::{Snapshot, Storage};
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader, ReadBuf};

/// A directory whose pools are unmounted, and their loop devices freed, when it is dropped.
pub(crate) struct Pools {
    directory: tempfile::TempDir,
}

impl Pools {
    /// `None`, loudly, where the tests cannot run.
    pub(crate) fn new() -> anyhow::Result<Option<Self>> {
        let found = |program: &str| {
            let mut help = Command::new(program);
            help.arg("--help")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            help.status().is_ok()
        };
        if !rustix::process::geteuid().is_root() || !found("btrfs") || !found("mkfs.btrfs") {
            eprintln!("SKIPPED: btrfs pools need root and btrfs-progs");
            return Ok(None);
        }
        Ok(Some(Self {
            directory: tempfile::tempdir()?,
        }))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn open(&self, name: &str, size: u64) -> anyhow::Result<Btrfs> {
        let image = PoolImage {
            path: self.path(&format!("{name}.img")),
            size: Bytes(size),
        };
        Ok(Btrfs::open(PoolConfig {
            path: self.path(name),
            image: Some(image),
        })
        .await?)
    }

    /// Unmounts a pool, waiting for programs that were killed a moment ago.
    pub(crate) fn unmount(&self, name: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        let path = self.path(name);
        let mounted = || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            mounts
                .lines()
                .any(|line| line.split(' ').nth(1) == path.to_str())
        };
        while mounted() && Instant::now() < deadline {
            let tried = Command::new("umount")
                .arg(&path)
                .stderr(Stdio::null())
                .status();
            if !tried.is_ok_and(|status| status.success()) {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        !mounted()
    }
}

impl Drop for Pools {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.directory.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.path().is_dir() {
                self.unmount(&entry.file_name().to_string_lossy());
            }
        }
        // The devices free themselves at the unmount; one that does not is freed by its file.
        for entry in fs::read_dir(self.directory.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let devices = Command::new("losetup").arg("-j").arg(entry.path()).output();
            let devices = devices.map(|output| output.stdout).unwrap_or_default();
            for line in String::from_utf8_lossy(&devices).lines() {
                let device = line.split(':').next().unwrap_or_default();
                let freed = Command::new("losetup").arg("-d").arg(device).status();
                eprintln!("freed {device}, which its mount had left: {freed:?}");
            }
        }
    }
}

/// Bytes that no compression or reflink makes smaller.
pub(crate) fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words
        .take(usize::try_from(length / 8).unwrap_or(0))
        .flatten()
        .collect()
}

pub(crate) fn write(volume: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    fs::write(volume.join(name), content).with_context(|| format!("write {name}"))
}

/// Sends a snapshot from one pool to another and returns it with the stream's length.
pub(crate) async fn pass(
    from: &Btrfs,
    to: &Btrfs,
    dataset: &DatasetId,
    snapshot: &Snapshot,
    base: Option<&str>,
) -> anyhow::Result<(Snapshot, u64)> {
    let stream = from.send(dataset, &snapshot.name, base).await?;
    let mut counted = BufReader::new(Counted { stream, bytes: 0 });
    let received = to
        .receive(dataset, &snapshot.name, &snapshot.guid, &mut counted)
        .await?;
    Ok((received, counted.get_ref().bytes))
}

pub(crate) struct Counted<S> {
    pub(crate) stream: S,
    pub(crate) bytes: u64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.bytes += u64::try_from(buf.filled().len() - before).unwrap_or(0);
        polled
    }
}

/// A stream that breaks after some bytes.
pub(crate) struct Torn<S> {
    pub(crate) stream: S,
    pub(crate) left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Torn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let mut part = vec![0; self.left.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut part);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        self.left -= part.filled().len();
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

pub(crate) async fn whole_stream(
    from: &Btrfs,
    dataset: &DatasetId,
    name: &str,
    base: Option<&str>,
) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.send(dataset, name, base)
        .await?
        .read_to_end(&mut bytes)
        .await?;
    Ok(bytes)
}

/// What lies in the work directory of a pool.
pub(crate) fn work(pool: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dataset in fs::read_dir(pool.join("recv"))? {
        for entry in fs::read_dir(dataset?.path())? {
            found.push(entry?.path());
        }
    }
    Ok(found)
}
