//! A running proxy with clients: some talk, and some wait for an application that is not there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rehome_tests::program::built;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(5);

type Clients = Vec<BufReader<TcpStream>>;

/// The scene. Its processes end with the value.
pub(crate) struct Scene {
    program: PathBuf,
    directory: tempfile::TempDir,
    address: Ipv4Addr,
    child: Child,
    /// The process that serves, when that is not the child any more.
    successor: Option<u32>,
    port: u16,
    slow: u16,
    /// Where the application of those who wait is going to be.
    late: SocketAddr,
    pub(crate) clients: Clients,
    pub(crate) waiting: Clients,
    tasks: JoinSet<()>,
}

/// What the command says, and whether it worked.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(crate) worked: bool,
    pub(crate) said: String,
}

impl Upgraded {
    fn read(output: Output) -> anyhow::Result<Self> {
        Ok(Self {
            worked: output.status.success(),
            said: String::from_utf8([output.stdout, output.stderr].concat())?,
        })
    }

    /// The connections that had gone over and were lost.
    pub(crate) fn lost(&self) -> usize {
        number_after(&self.said, "with it ").unwrap_or(0)
    }
}

fn number_after(text: &str, words: &str) -> Option<usize> {
    let (_, rest) = text.split_once(words)?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest.get(..end)?.parse().ok()
}

impl Scene {
    /// With so many clients that talk, and so many that wait.
    pub(crate) async fn begin(clients: usize, waiting: usize) -> anyhow::Result<Self> {
        let program = built("proxyd-faulty")?;
        ensure!(
            program.is_file(),
            "{} was not built: `make test` does it",
            program.display()
        );
        let application = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let backend = application.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(echo(application));
        let directory = tempfile::tempdir()?;
        let number = std::process::id().to_le_bytes();
        let address = Ipv4Addr::new(127, 66, number[1], number[0]);
        let late = SocketAddr::from((address, free_port(address).await?));
        let (port, slow) = (free_port(address).await?, free_port(address).await?);
        let base = directory.path().display();
        let text = format!(
            "version: 1\nsocket: {base}/s\nstate: {base}/state\nmetrics: \"{address}:0\"\n\
             trunk: {{listen: \"{address}:0\"}}\nlisten: [\"{address}\"]\n\
             timeouts: {{connect: 300s}}\nroutes: [{{external: {port}, backend: \"{backend}\"}}, \
             {{external: {slow}, backend: \"{late}\"}}]\n",
        );
        fs::write(directory.path().join("proxyd.yml"), text)?;
        fs::create_dir(directory.path().join("points"))?;
        let mut scene = Self {
            child: Command::new("true").spawn()?,
            program,
            directory,
            address,
            successor: None,
            port,
            slow,
            late,
            clients: Vec::new(),
            waiting: Vec::new(),
            tasks,
        };
        scene.child = scene.command().kill_on_drop(true).spawn()?;
        let began = Instant::now();
        while refuses(address, port).await || refuses(address, slow).await {
            ensure!(began.elapsed() < LIMIT, "it does not start");
            sleep(LOOK).await;
        }
        for _ in 0..clients {
            let client = scene.newcomer().await?;
            scene.clients.push(client);
        }
        for _ in 0..waiting {
            let client = scene.connect(slow).await?;
            scene.waiting.push(client);
        }
        Ok(scene)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("proxyd.yml")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.file())
            .env("REHOME_FAILPOINTS", self.directory.path().join("points"))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Has a successor do this when it hears a message, or has done what that asks for.
    pub(crate) fn at(&self, word: &str, when: &str, what: &str) -> anyhow::Result<Point> {
        let points = self.directory.path().join("points");
        let point = Point(points.join(format!("handover__{word}__{when}")));
        fs::write(&point.0, what)?;
        Ok(point)
    }

    /// Begins an upgrade.
    pub(crate) fn begin_upgrade(&self) -> anyhow::Result<Child> {
        let mut command = self.command();
        command
            .arg("--upgrade")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command.spawn()?)
    }

    /// Waits for the end of one; what serves then is its successor, if it worked.
    pub(crate) async fn end_upgrade(&mut self, upgrade: Child) -> anyhow::Result<Upgraded> {
        let output = timeout(2 * LIMIT, upgrade.wait_with_output()).await??;
        let upgraded = Upgraded::read(output)?;
        if upgraded.worked {
            let pid = number_after(&upgraded.said, "(pid ").context("no pid")?;
            self.successor = Some(u32::try_from(pid)?);
        }
        Ok(upgraded)
    }

    pub(crate) async fn upgrade(&mut self) -> anyhow::Result<Upgraded> {
        let upgrade = self.begin_upgrade()?;
        self.end_upgrade(upgrade).await
    }

    /// The successor that is being made; it serves from now on, as far as the end of this value
    /// is concerned.
    pub(crate) fn take_successor(&mut self) -> anyhow::Result<u32> {
        let file = self.file().into_os_string();
        let file = file.to_str().context("no text")?;
        let mut found = None;
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            // One that ends meanwhile is none.
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&str> = line.split_terminator('\0').collect();
            if words.contains(&file) && words.ends_with(&["--succeed", "run"]) {
                found = found.or(pid);
            }
        }
        let pid = found.context("there is no successor")?;
        self.successor = Some(pid);
        Ok(pid)
    }

    /// Kills the first process.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Waits until the first process is no more.
    pub(crate) async fn first_ends(&mut self) -> anyhow::Result<()> {
        timeout(LIMIT, self.child.wait()).await??;
        Ok(())
    }

    /// Takes all room for descriptors from the first process, or gives it back.
    pub(crate) fn set_room(&self, descriptors: u64) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id().context("it has ended")?)?;
        let limit = Rlimit {
            current: Some(descriptors),
            maximum: Some(4096),
        };
        prlimit(Pid::from_raw(pid), Resource::Nofile, limit)?;
        Ok(())
    }

    async fn connect(&self, port: u16) -> anyhow::Result<BufReader<TcpStream>> {
        let stream = timeout(LIMIT, TcpStream::connect((self.address, port))).await??;
        Ok(BufReader::new(stream))
    }

    /// A client that comes now and is served.
    pub(crate) async fn newcomer(&self) -> anyhow::Result<BufReader<TcpStream>> {
        let mut client = self.connect(self.port).await?;
        ask(&mut client, "hello").await?;
        Ok(client)
    }

    /// Whether clients are refused.
    pub(crate) async fn is_closed(&self) -> bool {
        refuses(self.address, self.port).await
    }

    /// Puts new clients in the place of those that are gone, and says how many that are. So many must
    /// be: a process that dies takes its time to close all that it has.
    pub(crate) async fn replace_gone(&mut self, least: usize) -> anyhow::Result<usize> {
        let (mut gone, began) = (0, Instant::now());
        for mut client in std::mem::take(&mut self.clients) {
            if ask(&mut client, "there?").await.is_err() {
                gone += 1;
                client = self.newcomer().await?;
            }
            self.clients.push(client);
        }
        loop {
            for mut client in std::mem::take(&mut self.waiting) {
                if is_gone(&client).await? {
                    gone += 1;
                    client = self.connect(self.slow).await?;
                }
                self.waiting.push(client);
            }
            if gone >= least || began.elapsed() > LIMIT {
                return Ok(gone);
            }
            sleep(LOOK).await;
        }
    }

    /// The application that was waited for begins: everyone is served.
    pub(crate) async fn end_well(mut self) -> anyhow::Result<()> {
        self.tasks.spawn(echo(TcpListener::bind(self.late).await?));
        for client in self.clients.iter_mut().chain(&mut self.waiting) {
            ask(client, "at last").await?;
        }
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let pid = self.successor.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended already.
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

/// A fail point.
pub(crate) struct Point(PathBuf);

impl Point {
    /// Whether it was reached, which is said by a file beside its own.
    pub(crate) fn was_hit(&self) -> bool {
        let mut name = self.0.file_name().unwrap_or_default().to_owned();
        name.push(".hit");
        fs::remove_file(self.0.with_file_name(name)).is_ok()
    }

    pub(crate) async fn hit(&self) -> anyhow::Result<()> {
        until(&format!("{} is reached", self.0.display()), || {
            Ok(self.was_hit())
        })
        .await
    }

    /// Lets go on who is held there.
    pub(crate) fn let_go(self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.0)?)
    }
}

/// Whether a process runs; one that waits to be collected does not.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let state = stat.ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.chars().next()
    });
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Waits until something is so.
pub(crate) async fn until(
    what: &str,
    is_so: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < LIMIT, "not so: {what}");
        sleep(LOOK).await;
    }
    Ok(())
}

async fn refuses(address: Ipv4Addr, port: u16) -> bool {
    let connected = TcpStream::connect((address, port)).await;
    connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

async fn ask(client: &mut BufReader<TcpStream>, line: &str) -> anyhow::Result<()> {
    timeout(LIMIT, async {
        client.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        client.read_line(&mut answer).await?;
        ensure!(answer == format!("{line}\n"), "{answer:?}");
        Ok(())
    })
    .await?
}

async fn echo(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        connections.spawn(async move {
            let (mut read, mut write) = stream.split();
            // What goes wrong, the client sees.
            drop(tokio::io::copy(&mut read, &mut write).await);
        });
    }
}

/// A port that nobody has at this address, and that the kernel does not give out.
async fn free_port(address: Ipv4Addr) -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(port < 30_000, "every port was tried");
        if TcpListener::bind((address, port)).await.is_ok() {
            return Ok(port);
        }
    }
}

/// Whether a client that waits was let down. It has said nothing and is told nothing.
async fn is_gone(client: &BufReader<TcpStream>) -> anyhow::Result<bool> {
    let peeked = timeout(Duration::from_millis(50), client.get_ref().peek(&mut [0])).await;
    match peeked {
        Err(_) => Ok(false),
        Ok(Ok(0) | Err(_)) => Ok(true),
        Ok(Ok(_)) => anyhow::bail!("a byte came from nowhere"),
    }
}
