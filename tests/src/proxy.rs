//! Proxies of a test's own, as programs, in the network of the calling thread: what they are told
//! goes over their control sockets, and what is left of them is looked up in `/proc`.
//!
//! Proxy 1 is the host 127.0.1.1 with the ports of a real one, proxy 2 is 127.0.2.1, and so on. So
//! the calling thread must have a network of its own ([`crate::network::own`]).

mod process;
pub mod soak;
mod told;
mod used;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rehome_sys::child::kill_with_parent;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::program;
use crate::wait::{wait_for, wait_until};

use process::Process;
pub use told::{Version, local, park_limits, remote, route};
pub use used::Used;

/// What is waited for comes within it, also on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The port of `/metrics`.
const METRICS: u16 = 9421;
/// The port of the trunk.
const TRUNK: u16 = 7421;

/// The address of a host, counted from 1.
#[must_use]
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, number, 1)
}

/// How a proxy is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub program: &'static str,
    /// A command that starts it, in its own process: with other limits, say.
    pub through: Vec<String>,
    /// The user that it runs as; root unless it is another one.
    pub user: Option<u32>,
    /// Its address, where that is not the one of its number.
    pub address: Option<Ipv4Addr>,
    /// More of its file.
    pub lines: String,
    /// What seals its trunks.
    pub seal: Option<Arc<Seal>>,
}

/// Certificates of some hosts, which go with the value.
#[derive(Debug)]
pub struct Seal(TempDir);

impl Seal {
    /// Makes an authority, and what it issues for the hosts of these numbers.
    ///
    /// # Errors
    /// When `rehome ca` cannot.
    pub fn of(numbers: &[u8]) -> anyhow::Result<Arc<Self>> {
        let directory = tempfile::tempdir()?;
        let at = directory.path().join("ca");
        let hosts = numbers.iter().map(|number| address(*number).to_string());
        for (verb, hosts) in [("init", Vec::new()), ("issue", hosts.collect())] {
            let mut command = Command::new(program::built("rehome")?);
            command.args(["ca", verb]).arg(&at).args(hosts);
            let output = command.output()?;
            if !output.status.success() {
                bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(Arc::new(Self(directory)))
    }

    /// What the file of a host says of it.
    fn lines(&self, number: u8) -> String {
        let files = self.0.path().join("ca").join(address(number).to_string());
        let files = files.display();
        format!(
            ", tls: {{ca: {files}/ca.pem, certificate: {files}/host.pem, key: {files}/host.key, ready: 0}}"
        )
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            program: "proxyd",
            through: Vec::new(),
            user: None,
            address: None,
            lines: String::new(),
            seal: None,
        }
    }
}

impl Setup {
    /// With these lines in its file.
    #[must_use]
    pub fn with(lines: &str) -> Self {
        Self {
            lines: lines.to_owned(),
            ..Self::default()
        }
    }

    /// With sealed trunks.
    #[must_use]
    pub fn sealed(mut self, seal: &Arc<Seal>) -> Self {
        self.seal = Some(Arc::clone(seal));
        self
    }

    /// Started through a command.
    #[must_use]
    pub fn through(mut self, command: &[&str]) -> Self {
        self.through = command.iter().map(ToString::to_string).collect();
        self
    }
}

/// A proxy. It ends with the value.
#[derive(Debug)]
pub struct Proxy {
    number: u8,
    setup: Setup,
    directory: TempDir,
    process: Mutex<Option<Process>>,
    /// Processes that have handed over and still pass something on.
    remainders: Mutex<Vec<Process>>,
}

impl Proxy {
    /// Starts one. When this returns it answers on its control socket.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(number: u8, setup: Setup) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut proxy = Self {
            number,
            setup,
            directory,
            process: Mutex::default(),
            remainders: Mutex::default(),
        };
        proxy.write_file()?;
        if let Some(user) = proxy.setup.user {
            std::os::unix::fs::chown(proxy.directory(), Some(user), Some(user))?;
        }
        proxy.start_again()?;
        Ok(proxy)
    }

    /// The program. Another user may not come to where it was built, and gets a copy.
    fn program(&self) -> anyhow::Result<PathBuf> {
        let built = program::built(self.setup.program)?;
        if self.setup.user.is_none() {
            return Ok(built);
        }
        let copy = self.directory.path().join(self.setup.program);
        if !copy.exists() {
            fs::copy(built, &copy)?;
        }
        Ok(copy)
    }

    /// What starts it.
    fn command(&self) -> anyhow::Result<Command> {
        let mut words = self.setup.through.clone();
        if let Some(user) = self.setup.user {
            let user = [format!("--reuid={user}"), format!("--regid={user}")];
            words.push("setpriv".to_owned());
            words.extend(user);
            words.push("--clear-groups".to_owned());
        }
        words.push(self.program()?.to_string_lossy().into_owned());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        Ok(command)
    }

    fn write_file(&self) -> anyhow::Result<()> {
        let (base, address) = (self.directory.path().display(), self.address());
        let lines = &self.setup.lines;
        let seal = self.setup.seal.as_ref();
        let seal = seal.map_or_else(String::new, |seal| seal.lines(self.number));
        // One that is not on loopback is reached by IPv6, too.
        let own = self.setup.address;
        let more = own.map_or("", |_| ", \"::\"");
        let text = format!(
            "version: 1\nhost: \"{address}\"\nsocket: {base}/socket\nstate: {base}/state\n\
             metrics: \"{address}:{METRICS}\"\ntrunk: {{listen: \"{address}:{TRUNK}\"{seal}}}\n\
             listen: [\"{address}\"{more}]\n{lines}\n"
        );
        Ok(fs::write(self.file(), text)?)
    }

    /// Has other lines in the file from now on; they take effect at a reload or a restart.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn rewrite(&mut self, lines: &str) -> anyhow::Result<()> {
        lines.clone_into(&mut self.setup.lines);
        self.write_file()
    }

    /// Is started through this command from now on.
    pub fn start_through(&mut self, command: &[&str]) {
        self.setup = self.setup.clone().through(command);
    }

    /// Starts the program where it has ended.
    ///
    /// # Errors
    /// When it does not answer on its control socket in time.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        wait_for("proxyd answers", PATIENCE, || {
            if let Some(ended) = self.ended()? {
                bail!("proxyd has ended: {ended}\n{}", self.log()?);
            }
            let answer = self.send(("GET", "/v1/routes"), None);
            Ok(answer
                .is_ok_and(|answer| answer.status == 200)
                .then_some(()))
        })
    }

    /// Starts the program and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let mut command = self.command()?;
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.directory.path().join("log"))?;
        command
            .arg("--config")
            .arg(self.file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        kill_with_parent(&mut command);
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot run {command:?}"))?;
        *self.process() = Some(Process::of(&child)?);
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with its process.
    fn with<T>(&self, what: impl FnOnce(&mut Process) -> anyhow::Result<T>) -> anyhow::Result<T> {
        what(self.process().as_mut().context("it does not run")?)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("proxyd.yml")
    }

    /// What it writes into is there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its host.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        let own = self.setup.address;
        own.unwrap_or_else(|| address(self.number))
    }

    /// Its number, by which other hosts lead to it.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where clients of an external port come.
    #[must_use]
    pub fn door(&self, port: u16) -> SocketAddr {
        (self.address(), port).into()
    }

    /// Its process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.with(|process| Ok(process.pid()))
    }

    /// Its status, once it has ended.
    ///
    /// # Errors
    /// When it was not started.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.with(Process::ended)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.with(|process| process.signal(signal))
    }

    /// Ends it as a crash does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_for_end().map(drop)
    }

    /// Ends it as `systemctl stop` does.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait_for_end()?;
        anyhow::ensure!(status.success(), "{status}\n{}", self.log()?);
        Ok(())
    }

    /// Waits for an end that something else brings about.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait_for_end(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.with(Process::wait)?;
        *self.process() = None;
        Ok(status)
    }

    /// Has it hand over to another process of its program; what that said. The process before ends
    /// by itself, at once when it has passed everything on.
    ///
    /// # Errors
    /// When it does not.
    pub fn upgrade(&self) -> anyhow::Result<Value> {
        process::adopt()?;
        let body = json!({
            "executable": self.program()?,
            "arguments": ["--config", self.file()],
        });
        let reply = self.send(("POST", "/v1/upgrade"), Some(&body))?.ok()?;
        let pid = reply["pid"].as_u64().context("no process")?;
        let successor = Process::numbered(u32::try_from(pid)?)?;
        let old = self.process().replace(successor);
        let mut old = old.context("it did not run")?;
        let mut remainders = self.remainders();
        if reply["stayed"] == 0 {
            let status = old.wait()?;
            anyhow::ensure!(status.success(), "{status}\n{}", self.log()?);
        } else {
            remainders.push(old);
        }
        // Those that have ended by now.
        let all = std::mem::take(&mut *remainders);
        for mut old in all {
            if old.ended()?.is_none() {
                remainders.push(old);
            }
        }
        Ok(reply)
    }

    fn remainders(&self) -> MutexGuard<'_, Vec<Process>> {
        self.remainders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request over the control socket.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn send(&self, request: (&str, &str), body: Option<&Value>) -> anyhow::Result<Answer> {
        http::request(
            &self.directory.path().join("socket"),
            request,
            body,
            PATIENCE,
        )
    }

    /// What it has logged since it was first started.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        let bytes = fs::read(self.directory.path().join("log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The page of metrics.
    ///
    /// # Errors
    /// When there is none.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let at = SocketAddr::new(IpAddr::V4(self.address()), METRICS);
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// The sum of a metric over all labels that have these texts in them.
    ///
    /// # Errors
    /// When there is no page, or a value is no number.
    pub fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<u64> {
        sum(&self.metrics()?, name, labels)
    }

    /// Waits until it says so.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait(
        &self,
        what: &str,
        is: impl Fn(&str) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let waited = wait_until(what, PATIENCE, || is(&self.metrics()?));
        waited.with_context(|| {
            let page = self.metrics().unwrap_or_default();
            let lines = page.lines().filter(|line| line.starts_with("rehome_proxy"));
            lines
                .filter(|line| !line.contains("bucket"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    }
}

/// The sum of a metric on a page.
///
/// # Errors
/// When a value is no whole number.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> anyhow::Result<u64> {
    let mut total = 0;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let (of, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ").context("no value")?,
            None if rest.starts_with(' ') => ("", rest.trim()),
            None => continue,
        };
        if labels.iter().all(|label| of.contains(label)) {
            let value: f64 = value.trim().parse()?;
            total += format!("{value:.0}").parse::<u64>()?;
        }
    }
    Ok(total)
}
