//! A private `dockerd` for one test, gone without a trace afterwards, also after a panic.

#![expect(
    clippy::print_stderr,
    reason = "a test that skips or cannot clean up says so"
)]

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use migrated::runtime::docker::{DockerRuntime, Engine as Kind};
use rustix::process::{Pid, Signal, kill_process};

/// A busy machine takes its time.
const START: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(20);

const NEEDS: [&str; 7] = [
    "dockerd", "docker", "busybox", "unshare", "nsenter", "ip", "tar",
];

/// A `dockerd` in network and mount namespaces of its own, with its data in a temporary
/// directory and its containers in a control group of their own.
pub(crate) struct Engine {
    dir: tempfile::TempDir,
    group: String,
    daemon: Option<Child>,
    /// The daemon's mount namespaces, by which its helpers are found.
    namespaces: Vec<Namespace>,
}

/// A mount namespace, kept open: the kernel gives the number of one that is gone to the next
/// one, and then a clean-up would kill the processes of another test.
struct Namespace {
    name: PathBuf,
    _open: fs::File,
}

impl Namespace {
    /// That of a process, unless it is the one of this test.
    fn of(pid: u32) -> Option<Self> {
        let open = fs::File::open(format!("/proc/{pid}/ns/mnt")).ok()?;
        // The name of what is open, whatever the process has done since.
        let name = fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).ok()?;
        let own = fs::read_link("/proc/self/ns/mnt").ok()?;
        (name != own).then_some(Self { name, _open: open })
    }
}

impl Engine {
    /// Starts one with the image `rehome-test:1` in it; `None` where that is impossible.
    pub(crate) fn start() -> Result<Option<Self>> {
        if let Some(reason) = missing() {
            eprintln!("SKIPPED: {reason}");
            return Ok(None);
        }
        let dir = tempfile::Builder::new()
            .prefix("rehome-docker-")
            .tempdir()?;
        let group = dir
            .path()
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        let mut engine = Self {
            dir,
            group,
            daemon: None,
            namespaces: Vec::new(),
        };
        engine.run()?;
        engine.import()?;
        Ok(Some(engine))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("docker.sock")
    }

    pub(crate) fn runtime(&self) -> DockerRuntime {
        DockerRuntime::new(Kind::Docker, &self.socket())
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn run(&mut self) -> Result<()> {
        let dir = self.dir().display();
        // `exec`, so that the child is the daemon itself and can be killed by its id.
        let script = format!(
            "ip link set lo up && mount -t tmpfs tmpfs /run && exec dockerd \
             --data-root {dir}/data --exec-root {dir}/exec --pidfile {dir}/pid \
             -H unix://{dir}/docker.sock --userland-proxy=false --cgroup-parent /{group}",
            group = self.group
        );
        let log = fs::File::create(self.dir().join("log"))?;
        let daemon = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let pid = daemon.id();
        self.daemon = Some(daemon);
        let deadline = Instant::now() + START;
        while self.docker(&["version"]).is_err() {
            let ended = self
                .daemon
                .as_mut()
                .map(Child::try_wait)
                .transpose()?
                .flatten();
            self.namespaces.extend(self.new_namespace(pid));
            let log = || fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "dockerd is not up: {}",
                log()
            );
            pause();
        }
        self.namespaces.extend(self.new_namespace(pid));
        Ok(())
    }

    /// Stops the daemon as an administrator would.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        kill(daemon.id(), Signal::TERM);
        let deadline = Instant::now() + STOP;
        while daemon.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                daemon.kill()?;
                daemon.wait()?;
            }
            pause();
        }
        Ok(())
    }

    /// Runs the docker command.
    pub(crate) fn docker(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.socket().display());
        output(Command::new("docker").args(["-H", &host]).args(args))
    }

    /// Fetches a page from inside the daemon's network.
    pub(crate) fn fetch(&self, address: IpAddr, port: u16, path: &str) -> Result<String> {
        let pid = self
            .daemon
            .as_ref()
            .context("the daemon runs")?
            .id()
            .to_string();
        let script = format!(
            "printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' \
             | nsenter -t {pid} -n busybox nc -w 5 {address} {port}"
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = output(Command::new("sh").args(["-c", &script]));
            if let Ok(answer) = &answer
                && let Some((_head, body)) = answer.split_once("\r\n\r\n")
            {
                return Ok(body.to_owned());
            }
            ensure!(
                Instant::now() < deadline,
                "{address}:{port} does not serve: {answer:?}"
            );
            pause();
        }
    }

    /// How many processes this engine's containers have, as the kernel counts.
    pub(crate) fn container_processes(&self) -> Result<usize> {
        Ok(processes(|pid| self.is_contained(pid))?.len())
    }

    fn import(&self) -> Result<()> {
        let root = self.dir().join("root");
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("data"))?;
        let busybox = output(Command::new("sh").args(["-c", "command -v busybox"]))?;
        fs::copy(busybox.trim(), root.join("bin/busybox"))?;
        for name in ["sh", "sleep", "httpd", "echo", "true", "hostname", "id"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
        let tar = self.dir().join("image.tar");
        let (tar, root) = (tar.to_string_lossy(), root.to_string_lossy());
        output(Command::new("tar").args(["-C", &root, "-cf", &tar, "."]))?;
        self.docker(&["import", &tar, "rehome-test:1"])?;
        Ok(())
    }

    fn is_contained(&self, pid: u32) -> bool {
        let group = format!("/{}/", self.group);
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|table| table.contains(&group))
    }

    /// The namespace of a daemon that has just made one, unless it is known.
    fn new_namespace(&self, pid: u32) -> Option<Namespace> {
        let namespace = Namespace::of(pid)?;
        let known = self
            .namespaces
            .iter()
            .any(|known| known.name == namespace.name);
        (!known).then_some(namespace)
    }

    /// `containerd` and its shims live in the daemon's mount namespace.
    fn is_helper(&self, pid: u32) -> bool {
        let name = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        name.is_some_and(|name| self.namespaces.iter().any(|known| known.name == name))
    }

    fn clean(&mut self) -> Result<()> {
        self.stop()?;
        let deadline = Instant::now() + STOP;
        loop {
            let left = processes(|pid| self.is_helper(pid) || self.is_contained(pid))?;
            if left.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "processes {left:?} remain");
            for pid in left {
                kill(pid, Signal::KILL);
            }
            pause();
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let group = hierarchy?.path().join(&self.group);
            for nested in fs::read_dir(&group).into_iter().flatten().flatten() {
                // Only directories can be removed here; the rest is the kernel's.
                drop(fs::remove_dir(nested.path()));
            }
            drop(fs::remove_dir(group));
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("cannot clean up {}: {error:#}", self.dir().display());
        }
    }
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    let absent = |name: &&&str| {
        output(Command::new("sh").args(["-c", &format!("command -v {name}")])).is_err()
    };
    NEEDS
        .iter()
        .find(absent)
        .map(|name| format!("{name} is not installed"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended just now, which is as good.
        let _killed = kill_process(pid, signal);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "polls a condition with a deadline, outside tokio"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

fn processes(matches: impl Fn(u32) -> bool) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        pids.extend(pid.filter(|pid| matches(*pid)));
    }
    Ok(pids)
}
