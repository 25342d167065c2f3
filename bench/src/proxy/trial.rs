//! One contender in one scene: the first process of namespaces of its own. When it ends, the
//! kernel ends everything that it started, and the namespaces with their devices are gone.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::agent::Agent;
use crate::proxy::contender::{Programs, Task, start};
use crate::proxy::control::Control;
use crate::proxy::figures::Measured;
use crate::proxy::load::{BEGIN, END, Load, Seen};
use crate::proxy::meter::{self, Reading};
use crate::proxy::network::{self, RELAY, SERVER, apart, inside};
use crate::proxy::plan::{Contender, Scene};
use crate::proxy::processors::{Processors, pinned};
use crate::proxy::record::Figures;
use crate::proxy::role::{Role, runtime, say};
use crate::proxy::serve::{COUNT, LEAVE, Manner, RETURN, Service};

/// The port of relay and server.
const PORT: u16 = 5000;
/// A directory that only this trial sees.
const PLACE: &str = "/run";
/// More descriptors than these nobody is given: some programs make room for all they may have.
const DESCRIPTORS: u64 = 65_536;

/// No step takes longer but the load itself.
const STEP: Duration = Duration::from_secs(30);
/// What a relay may hold back or give back after something happened.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the server is away.
const AWAY: Duration = Duration::from_secs(1);
/// Connections through a relay before its memory is read for the first time.
const FIRST: u32 = 200;

/// What a trial needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Who.
    pub contender: Contender,
    /// In what.
    pub scene: Scene,
    /// For how long.
    pub seconds: f64,
    /// Which processors are whose.
    pub processors: Processors,
    /// The relays.
    pub programs: Programs,
}

/// What a trial says at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was measured.
    pub figures: Figures,
    /// The first failure of a connection.
    pub failure: Option<String>,
}

/// How many descriptors everybody may have.
#[must_use]
pub fn descriptors() -> u64 {
    let highest = getrlimit(Resource::Nofile).maximum;
    highest.unwrap_or(u64::MAX).min(DESCRIPTORS)
}

/// Makes a trial, in namespaces that are its own already, and says what it came to.
///
/// # Errors
/// When there is nothing to measure. Connections that fail are no error.
pub fn run(setup: &Setup) -> anyhow::Result<()> {
    ensure!(
        std::process::id() == 1,
        "a trial needs namespaces of its own"
    );
    let options = Some(c"size=64m,mode=0755");
    mount("tmpfs", PLACE, "tmpfs", MountFlags::NOSUID, options)
        .context("a directory of its own")?;
    let many = Some(descriptors());
    let limit = Rlimit {
        current: many,
        maximum: many,
    };
    setrlimit(Resource::Nofile, limit).context("raise the limit of descriptors")?;
    network::tune(&[])?;
    let outcome = runtime()?.block_on(measure(setup))?;
    Ok(say(&serde_json::to_string(&outcome)?)?)
}

async fn measure(setup: &Setup) -> anyhow::Result<Outcome> {
    let stage = Stage::open(setup).await?;
    let (first, last, seen, bytes) = stage.play().await?;
    let measured = Measured {
        first,
        last,
        seen,
        bytes,
        relay: setup.contender != Contender::Routed,
        processors: &setup.processors,
    };
    Ok(Outcome {
        figures: measured.figures(setup.scene),
        failure: measured.seen.failure,
    })
}

/// Everything that takes part but the clients.
struct Stage<'a> {
    setup: &'a Setup,
    server: Agent,
    relay: Option<Child>,
    control: Control,
    to: SocketAddr,
    /// Keeps its namespace.
    _middle: Agent,
}

impl<'a> Stage<'a> {
    async fn open(setup: &'a Setup) -> anyhow::Result<Self> {
        let generators = &setup.processors.generators;
        let place = Path::new(PLACE);
        let service = Service {
            port: PORT,
            manner: match setup.scene {
                Scene::Bulk(_) => Manner::Swallow,
                Scene::Connections(_)
                | Scene::RoundTrips(_)
                | Scene::Idle(_)
                | Scene::Away
                | Scene::Told => Manner::Echo,
            },
        };
        let role = Role::Serve(service).command()?;
        let mut server = Agent::start("server", &pinned(generators, apart(role)))?;
        let role = Role::Middle.command()?;
        let mut middle = Agent::start("middle", &pinned(generators, apart(role)))?;
        // They are in their namespaces when they speak.
        server.hear_word("ready", STEP).await?;
        middle.hear_word("ready", STEP).await?;
        network::build(middle.pid()?, server.pid()?, place)?;
        let relay = relay(setup, middle.pid()?)?;
        let address = if relay.is_some() { RELAY } else { SERVER };
        let mut stage = Self {
            setup,
            server,
            relay,
            control: Control::new(setup.contender, PORT, place),
            to: SocketAddr::new(address.parse()?, PORT),
            _middle: middle,
        };
        stage.reach().await?;
        Ok(stage)
    }

    /// Tells the relay what it is to know, and waits until a byte passes through it.
    async fn reach(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STEP;
        loop {
            let first = async {
                self.control.begin().await?;
                Ok::<_, anyhow::Error>(self.touch().await?)
            };
            let error = match timeout(Duration::from_secs(2), first).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "no answer".to_owned(),
            };
            let ended = match &mut self.relay {
                Some(relay) => relay.try_wait()?,
                None => None,
            };
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "nothing passes the relay: {error}; {}",
                log_of_relay()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Passes a byte, there and where there is an answer back.
    async fn touch(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(self.to).await?;
        stream.write_all(&[1]).await?;
        match self.setup.scene {
            Scene::Bulk(_) => stream.shutdown().await,
            Scene::Connections(_)
            | Scene::RoundTrips(_)
            | Scene::Idle(_)
            | Scene::Away
            | Scene::Told => stream.read_exact(&mut [0]).await.map(drop),
        }
    }

    fn read(&self) -> anyhow::Result<Reading> {
        let pid = self.relay.as_ref().and_then(Child::id);
        ensure!(
            self.relay.is_some() == pid.is_some(),
            "the relay has ended: {}",
            log_of_relay()
        );
        meter::read(pid).with_context(|| format!("the relay has ended? {}", log_of_relay()))
    }

    /// Lets the clients in and measures; also answers how many bytes arrived meanwhile.
    async fn play(mut self) -> anyhow::Result<(Reading, Reading, Seen, f64)> {
        let idle = matches!(self.setup.scene, Scene::Idle(_));
        let mut first = None;
        if idle {
            for _ in 0..FIRST {
                timeout(STEP, self.touch()).await??;
            }
            sleep(SETTLE).await;
            first = Some(self.read()?);
        }
        let mut clients = self.clients()?;
        clients.hear_word(BEGIN, 4 * STEP).await?;
        let first = match first {
            Some(first) => first,
            None => self.read()?,
        };
        let seconds = Duration::try_from_secs_f64(self.setup.seconds)?;
        let bytes = self.meanwhile(seconds).await?;
        let is_away = matches!(self.setup.scene, Scene::Away | Scene::Told);
        let (last, seen) = if matches!(self.setup.scene, Scene::Bulk(_)) || idle {
            let last = self.read()?;
            clients.tell(END).await?;
            (last, clients.hear_json(4 * STEP).await?)
        } else {
            let mut seen: Seen = clients.hear_json(seconds + 4 * STEP).await?;
            match self.read() {
                Ok(last) => (last, seen),
                // That is a result too.
                Err(error) if is_away => {
                    seen.failure = Some(format!("{error:#}"));
                    (first.clone(), seen)
                }
                Err(error) => return Err(error),
            }
        };
        Ok((first, last, seen, bytes))
    }

    /// What happens while the clients are there; answers how many bytes arrived in that time.
    async fn meanwhile(&mut self, seconds: Duration) -> anyhow::Result<f64> {
        match self.setup.scene {
            Scene::Bulk(_) => {
                let before = self.count().await?;
                sleep(seconds).await;
                return Ok(self.count().await? - before);
            }
            Scene::Idle(_) => sleep(SETTLE).await,
            Scene::Away => {
                sleep(AWAY).await;
                self.order(LEAVE).await?;
                sleep(AWAY).await;
                self.order(RETURN).await?;
            }
            Scene::Told => {
                sleep(AWAY).await;
                self.control.hold().await?;
                self.order(LEAVE).await?;
                sleep(AWAY).await;
                self.order(RETURN).await?;
                self.control.release().await?;
            }
            Scene::Connections(_) | Scene::RoundTrips(_) => {}
        }
        Ok(0.0)
    }

    fn clients(&self) -> anyhow::Result<Agent> {
        let load = Load {
            scene: self.setup.scene,
            to: self.to,
            seconds: match self.setup.scene {
                // Before, while and after the server is away.
                Scene::Away | Scene::Told => (4 * AWAY).as_secs_f64(),
                Scene::Bulk(_) | Scene::Connections(_) | Scene::RoundTrips(_) | Scene::Idle(_) => {
                    self.setup.seconds
                }
            },
        };
        let role = Role::Load(load).command()?;
        Agent::start("clients", &pinned(&self.setup.processors.generators, role))
    }

    async fn count(&mut self) -> anyhow::Result<f64> {
        self.server.tell(COUNT).await?;
        Ok(self.server.hear(STEP).await?.parse()?)
    }

    async fn order(&mut self, word: &str) -> anyhow::Result<()> {
        self.server.tell(word).await?;
        self.server.hear_word(word, STEP).await
    }
}

/// Starts the relay in the namespace between clients and server.
fn relay(setup: &Setup, middle: u32) -> anyhow::Result<Option<Child>> {
    let task = Task {
        programs: &setup.programs,
        port: PORT,
        directory: Path::new(PLACE),
        descriptors: descriptors(),
        workers: setup.processors.relay.len(),
    };
    let Some(start) = start(setup.contender, &task) else {
        return Ok(None);
    };
    if let Some((path, text)) = &start.file {
        std::fs::write(path, text).context("the relay's configuration")?;
    }
    let words = pinned(&setup.processors.relay, inside(middle, start.command));
    let (program, arguments) = words.split_first().context("an empty command")?;
    let log = File::create(task.directory.join("relay.log"))?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn();
    Ok(Some(child.context("start the relay")?))
}

/// The last that the relay said.
fn log_of_relay() -> String {
    let text = std::fs::read_to_string(Path::new(PLACE).join("relay.log"));
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(10)..);
    last.unwrap_or_default().join("\n")
}
