//! `rehome demo`: three applications on a lab, and the one that holds data moves to another host
//! and back while clients keep asking it.
//!
//! It uses the same commands as a person would, shows them, and checks what they did. Whatever
//! it made is removed at its end, however it ends.

mod commands;
mod files;
pub(crate) mod images;
mod load;
mod result;
mod timeline;
mod verify;

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rehome_shared::api::cluster::Migration;
use rehome_shared::ids::MigrationId;
use serde::Deserialize;
use tempfile::TempDir;

use crate::client::{Migrated, block_on};
use crate::console::Console;
use crate::demo::commands::{CommandError, Commands};
use crate::demo::files::Files;
use crate::demo::images::{Image, ImageTar};
use crate::demo::load::{Load, Targets};
use crate::demo::result::{Outcome, Times};
use crate::lab::LabName;
use crate::outcome::WrongInput;
use crate::render::count;
use crate::stop::{Stop, Waited, interruptible, wait_until};

/// Lines that the store holds before the load begins, so that there is something to move.
const ARCHIVE: u32 = 50_000;

/// How long a deployment may take: many times what it takes on a slow machine.
const DEPLOY_LIMIT: &str = "3m";

/// The arguments of `rehome demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Leave the lab there at the end
    #[arg(long)]
    keep: bool,
    /// The name of its lab
    #[arg(long, default_value = "demo")]
    name: LabName,
    /// How many hosts the lab has
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=20))]
    hosts: u8,
    /// How long the clients are watched before and after each move
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// What `lab up --json` says.
#[derive(Debug, Deserialize)]
struct Lab {
    hosts: Vec<LabHost>,
}

#[derive(Debug, Deserialize)]
struct LabHost {
    name: String,
    address: Ipv4Addr,
    pid: u32,
}

/// Runs `rehome demo`.
pub(crate) fn run(args: &DemoArgs, console: Console) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the demonstration makes hosts out of namespaces, which needs root: sudo rehome demo"
        );
    }
    let args = args.clone();
    let outcome = interruptible(move |stop| Demo::new(args, console)?.show(stop))??;
    console.line(&format!("\n{}", outcome.text()));
    console.document(&outcome)?;
    Ok(if outcome.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A demonstration.
#[derive(Debug)]
struct Demo {
    args: DemoArgs,
    console: Console,
    commands: Commands,
    /// The directory of the files that are deployed.
    directory: TempDir,
    began: Instant,
    times: Times,
    /// Held so that no other demonstration takes the same lab; the kernel frees it.
    _only: UnixListener,
}

impl Demo {
    fn new(args: DemoArgs, console: Console) -> anyhow::Result<Self> {
        let only = SocketAddr::from_abstract_name(format!("rehome-demo-{}", args.name))?;
        let only = UnixListener::bind_addr(&only).map_err(|_| {
            WrongInput(format!(
                "another demonstration runs on the lab {}: choose another one with --name",
                args.name
            ))
        })?;
        if crate::lab::exists(&args.name) {
            bail!(WrongInput(format!(
                "lab {0} is there already: `rehome lab down --name {0}` removes it, and --name \
                 chooses another one",
                args.name
            )));
        }
        Ok(Self {
            commands: Commands::new(console)?,
            directory: tempfile::Builder::new().prefix("rehome-demo-").tempdir()?,
            began: Instant::now(),
            times: Times::default(),
            args,
            console,
            _only: only,
        })
    }

    /// Shows all of it and removes what was made.
    fn show(mut self, stop: &Stop) -> anyhow::Result<Outcome> {
        let images = self.images(stop)?;
        let lab = self.lab_up(stop)?;
        let told = self.on_lab(&lab, &images, stop);
        if self.args.keep {
            self.tell_how_to_go_on(&lab);
            self.directory.disable_cleanup(true);
            return told;
        }
        self.step("Removing the lab");
        let removed = self.commands.run(&self.lab(&["down"]), &Stop::never());
        // What went wrong first is told first.
        let outcome = told?;
        removed?;
        Ok(outcome)
    }

    fn images(&mut self, stop: &Stop) -> anyhow::Result<Vec<ImageTar>> {
        self.step("Images, made from Debian packages and kept for the next time");
        let begin = Instant::now();
        let made: Vec<_> = thread::scope(|scope| {
            let builds: Vec<_> = Image::ALL
                .into_iter()
                .map(|image| scope.spawn(move || images::ensure(image, stop)))
                .collect();
            builds
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect()
        });
        let mut images = Vec::new();
        for image in made {
            let image = image.map_err(|_| anyhow::anyhow!("building an image failed"))?;
            images.push(image?);
        }
        self.times.images = since(begin);
        Ok(images)
    }

    fn lab_up(&mut self, stop: &Stop) -> anyhow::Result<Lab> {
        self.step(&format!(
            "A lab of {}, each with its own network, processes, disk, Docker Engine, proxyd and migrated",
            count(self.args.hosts, "host")
        ));
        let begin = Instant::now();
        let hosts = self.args.hosts.to_string();
        let words = self.lab(&["up", "--hosts", &hosts]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let lab = self.commands.ask(&words, stop)?;
        self.times.lab_up = since(begin);
        Ok(lab)
    }

    fn on_lab(&mut self, lab: &Lab, images: &[ImageTar], stop: &Stop) -> anyhow::Result<Outcome> {
        self.step("The images go to every host's Docker Engine");
        let begin = Instant::now();
        for image in images {
            self.load_image(image, stop)?;
        }
        self.times.image_load = since(begin);
        let addresses: Vec<_> = lab.hosts.iter().map(|host| host.address).collect();
        let files = Files::write(self.directory.path(), &addresses)?;
        self.step("The applications: a store, a receiver of log lines, a page that searches them");
        let begin = Instant::now();
        self.deploy(lab, &files, &files.deployment, stop)?;
        self.times.deploy = since(begin);
        self.under_load(lab, &files, stop)
    }

    fn under_load(&mut self, lab: &Lab, files: &Files, stop: &Stop) -> anyhow::Result<Outcome> {
        let addresses: Vec<_> = lab.hosts.iter().map(|host| host.address).collect();
        let targets = Targets::new(addresses.clone());
        self.step(&format!(
            "Clients begin, a new connection for each request. Log lines enter through {}, which \
             runs none of the applications",
            addresses.last().context("the lab has no hosts")?
        ));
        let begin = Instant::now();
        let load = Load::start(targets.clone(), ARCHIVE)?;
        self.watch(stop)?;
        self.step("The store moves: deployment-moved.yml has it on the second host");
        let known = migrations(lab)?;
        self.deploy(lab, files, &files.moved, stop)?;
        self.watch(stop)?;
        self.step("And back: the first host still has the volume as it was");
        self.deploy(lab, files, &files.deployment, stop)?;
        self.watch(stop)?;
        let record = load.stop();
        let moves = newer(migrations(lab)?, &known);
        self.times.moves = since(begin);
        self.step(&format!(
            "Looking for {} that were acknowledged",
            count(record.acknowledged.len(), "line")
        ));
        let begin = Instant::now();
        let verdict = verify::check(&record, &targets, stop)?;
        self.times.check = since(begin);
        if stop.is_set() {
            bail!(CommandError::Stopped);
        }
        self.times.total = since(self.began);
        let name = self.args.name.to_string();
        Ok(Outcome::new(
            name, addresses, &record, verdict, moves, self.times,
        ))
    }

    fn load_image(&self, image: &ImageTar, stop: &Stop) -> Result<(), CommandError> {
        let path = image.path.display().to_string();
        let mut words = self.lab(&["load", image.reference, &path]);
        for change in &image.changes {
            words.extend(["--change".to_owned(), (*change).to_owned()]);
        }
        self.commands.run(&words, stop)
    }

    /// Deploys from inside the last host; any other would do.
    fn deploy(
        &self,
        lab: &Lab,
        files: &Files,
        deployment: &std::path::Path,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let host = lab.hosts.last().context("the lab has no hosts")?;
        let deployment = deployment.display().to_string();
        let application = files.application.display().to_string();
        let words = [
            "exec",
            &host.name,
            "--",
            "rehome",
            "deploy",
            "--timeout",
            DEPLOY_LIMIT,
            &deployment,
            &application,
        ];
        Ok(self.commands.run(&self.lab(&words), stop)?)
    }

    /// The words of a `lab` command.
    fn lab(&self, words: &[&str]) -> Vec<String> {
        let name = self.args.name.to_string();
        let begin = ["lab", "--name", &name];
        begin
            .iter()
            .chain(words)
            .map(|&word| word.to_owned())
            .collect()
    }

    /// Lets the clients work for a while.
    fn watch(&self, stop: &Stop) -> Result<(), CommandError> {
        match wait_until(Duration::from_secs(self.args.seconds), stop, || false) {
            Waited::Stopped => Err(CommandError::Stopped),
            Waited::TimedOut | Waited::Met => Ok(()),
        }
    }

    fn step(&self, what: &str) {
        let elapsed = self.began.elapsed().as_secs();
        self.console.progress(&format!("\n[{elapsed} s] {what}"));
    }

    fn tell_how_to_go_on(&self, lab: &Lab) {
        let name = &self.args.name;
        let files = self.directory.path().display();
        let page = lab
            .hosts
            .last()
            .map_or(Ipv4Addr::LOCALHOST, |host| host.address);
        self.console.progress(&format!(
            "\nThe lab stays. Look around, for example:\n\
             \x20 curl http://{page}/count\n\
             \x20 rehome lab --name {name} exec h1 -- rehome status\n\
             \x20 rehome lab --name {name} exec h1 -- rehome migrations\n\
             The files that were deployed are in {files}. Remove everything:\n\
             \x20 rehome lab --name {name} down && rm -r {files}"
        ));
    }
}

fn since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64()
}

/// The history of moves, from the first host's daemon: any of them answers for all.
fn migrations(lab: &Lab) -> anyhow::Result<Vec<Migration>> {
    let host = lab.hosts.first().context("the lab has no hosts")?;
    let socket = format!("unix:/proc/{}/root/run/rehome/migrated.sock", host.pid);
    let daemon = Migrated::at(Some(&socket))?;
    block_on(async { Ok(daemon.migrations().await?) })
}

/// Those that were not known before.
fn newer(all: Vec<Migration>, known: &[Migration]) -> Vec<Migration> {
    let is_known = |id: &MigrationId| known.iter().any(|migration| migration.id == *id);
    all.into_iter()
        .filter(|migration| !is_known(&migration.id))
        .collect()
}
