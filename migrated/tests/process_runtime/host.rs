//! A runtime for one test, and ways to see what became of its applications.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use migrated::runtime::process::{ProcessConfig, ProcessRuntime};
use migrated::runtime::{Instance, InstanceSpec, InstanceState, Runtime, RuntimeError};
use rehome_shared::config::model::{Image, ImageVersion};
use rehome_shared::ids::{AppName, Epoch};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// A runtime on directories of its own. Stops everything it started when it is dropped.
pub(crate) struct Host {
    pub(crate) runtime: ProcessRuntime,
    pub(crate) config: ProcessConfig,
    pub(crate) directory: tempfile::TempDir,
    tokio: tokio::runtime::Runtime,
}

impl Host {
    /// `None`, loudly, where the test cannot run. The third byte of the subnet keeps tests that
    /// run at the same time apart.
    pub(crate) fn new(third: u8) -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: the process runtime needs root");
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        let second = 64 + u8::try_from(std::process::id() % 64)?;
        let config = ProcessConfig {
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
            subnet: format!("100.{second}.{third}.0/24").parse()?,
            shim_program: PathBuf::from(env!("CARGO_BIN_EXE_migrated")),
        };
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        Ok(Some(Self {
            runtime: ProcessRuntime::new(config.clone()),
            config,
            directory,
            tokio,
        }))
    }

    pub(crate) fn run<T>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        self.tokio.block_on(work)
    }

    pub(crate) fn launch(&self, spec: &InstanceSpec) -> Result<Instance, RuntimeError> {
        self.run(self.runtime.create(spec))?;
        self.run(self.runtime.start(&spec.application))
    }

    pub(crate) fn state(&self, name: &AppName) -> anyhow::Result<InstanceState> {
        let all = self.run(self.runtime.list())?;
        let found = all
            .into_iter()
            .find(|instance| instance.application == *name);
        Ok(found
            .with_context(|| format!("{name} is not listed"))?
            .state)
    }

    pub(crate) fn ended(&self, name: &AppName) -> anyhow::Result<(Option<i32>, Option<String>)> {
        until("its end", || {
            Ok(match self.state(name)? {
                InstanceState::Exited { code, reason } => Some((code, reason)),
                InstanceState::Created | InstanceState::Running => None,
            })
        })
    }

    pub(crate) fn volume(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for instance in self.run(self.runtime.list()).unwrap_or_default() {
            let stopped = self.run(self.runtime.stop(&instance.application, Duration::ZERO));
            assert!(stopped.is_ok() || std::thread::panicking(), "{stopped:?}");
        }
    }
}

pub(crate) fn spec(name: &str, command: &[&str]) -> anyhow::Result<InstanceSpec> {
    let version = ImageVersion::Tag("latest".to_owned());
    Ok(InstanceSpec {
        application: AppName::try_new(name)?,
        epoch: Epoch(1),
        config_hash: "hash-1".to_owned(),
        image: Image {
            repository: "none".to_owned(),
            version,
        },
        command: Some(command.iter().map(ToString::to_string).collect()),
        entrypoint: None,
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        mem_limit: None,
        cpu_shares: None,
        user: None,
        working_dir: None,
        hostname: None,
        stop_signal: None,
        announced: BTreeSet::new(),
    })
}

pub(crate) fn shell(name: &str, script: &str) -> anyhow::Result<InstanceSpec> {
    spec(name, &["/bin/sh", "-c", script])
}

pub(crate) fn redis(name: &str) -> anyhow::Result<InstanceSpec> {
    let command = "redis-server --port 6379 --protected-mode no --bind 0.0.0.0 --save";
    let mut command: Vec<_> = command.split(' ').collect();
    command.push("");
    spec(name, &command)
}

/// Looks again and again until it is so.
pub(crate) fn until<T>(
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what} does not come to be");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The content of a file once its last line is there.
pub(crate) fn report(path: &Path, last: &str) -> anyhow::Result<String> {
    until(&format!("{last:?} in {}", path.display()), || {
        Ok(std::fs::read_to_string(path)
            .ok()
            .filter(|text| text.ends_with(last)))
    })
}

pub(crate) fn ask_redis(instance: &Instance, request: &str) -> anyhow::Result<String> {
    let address = SocketAddr::new(instance.address.context("it has no address")?, 6379);
    until("redis", || {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("{request}\r\nQUIT\r\n").as_bytes())?;
        let mut answer = String::new();
        Ok(stream.read_to_string(&mut answer).ok().map(|_| answer))
    })
}

/// Whether some process of this machine has this text as an argument.
pub(crate) fn runs_with_argument(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut lines =
        processes.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
    lines.any(|line| {
        line.split(|byte| *byte == 0)
            .any(|argument| argument == text.as_bytes())
    })
}

/// A number of seconds that no other process sleeps.
pub(crate) fn mark(number: u32) -> String {
    format!("600.{number}{}", std::process::id())
}
