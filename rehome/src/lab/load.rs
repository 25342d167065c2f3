//! `rehome lab load`: gives an image to the container engine of every host that is up.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::invocation::{Invocation, InvocationError};
use crate::lab::process::Process;
use crate::lab::site::Site;
use crate::lab::state::{LabState, StateError};
use crate::lab::tools::{self, ToolsError};
use crate::lab::{LoadArgs, Runtime};
use crate::stop::Stop;

/// How long an engine may take for one image.
const LIMIT: Duration = Duration::from_mins(10);

/// An image that was not loaded everywhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The user is not root.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// There is no such lab.
    #[error(transparent)]
    State(#[from] StateError),
    /// The hosts have no container engine.
    #[error("this lab has the process runtime, which has no images")]
    NoEngine,
    /// A host is down.
    #[error("host {0} is down: `rehome lab start {0}` starts it")]
    Down(String),
    /// The archive is of no use.
    #[error("cannot read the archive")]
    Archive(#[source] InvocationError),
    /// `--change` was given for an image that `docker save` made.
    #[error("--change is for the tar of a file system; this is an archive of `docker save`")]
    Changes,
    /// Some engines did not take it.
    #[error("not every host has the image:\n{0}")]
    Hosts(String),
}

/// What a tar archive holds.
#[derive(Debug, Clone, Copy)]
enum Archive {
    /// The file system of an image.
    FileSystem,
    /// Images with their metadata.
    Images,
}

/// Loads the image into every host.
pub(crate) fn run(site: &Site, args: &LoadArgs, stop: &Stop) -> Result<(), LoadError> {
    tools::require_root()?;
    let state = LabState::require(site)?;
    if state.settings.runtime == Runtime::Process {
        return Err(LoadError::NoEngine);
    }
    let mut engines = Vec::new();
    for host in &state.hosts {
        let process = host
            .alive()
            .ok_or_else(|| LoadError::Down(host.name.clone()))?;
        engines.push((host.name.as_str(), process));
    }
    let archive = inspect(&args.tar, stop)?;
    if matches!(archive, Archive::Images) && !args.changes.is_empty() {
        return Err(LoadError::Changes);
    }
    let problems: Vec<String> = thread::scope(|scope| {
        let load = |(name, process): (&str, &Process)| {
            load(process, archive, args, stop).map_err(|error| format!("{name}: {error}"))
        };
        let loads: Vec<_> = engines
            .into_iter()
            .map(|engine| scope.spawn(move || load(engine)))
            .collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, Result<(), String>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a loading thread failed".to_owned()))
                .err()
        };
        loads.into_iter().filter_map(ended).collect()
    });
    if problems.is_empty() {
        Ok(())
    } else {
        Err(LoadError::Hosts(problems.join("\n")))
    }
}

/// An archive of `docker save` names its images in `manifest.json`.
fn inspect(tar: &Path, stop: &Stop) -> Result<Archive, LoadError> {
    let list = Invocation::new("tar")
        .arg("--list")
        .arg("--file")
        .arg(tar)
        .limit(LIMIT);
    let names = list.run(stop).map_err(LoadError::Archive)?;
    let manifest = names
        .lines()
        .any(|name| name.trim_start_matches("./") == "manifest.json");
    Ok(if manifest {
        Archive::Images
    } else {
        Archive::FileSystem
    })
}

fn load(
    process: &Process,
    archive: Archive,
    args: &LoadArgs,
    stop: &Stop,
) -> Result<(), InvocationError> {
    let socket = format!("unix:///proc/{}/root/run/docker.sock", process.pid());
    let docker = || {
        Invocation::new("docker")
            .args(["--host", &socket])
            .limit(LIMIT)
    };
    match archive {
        Archive::FileSystem => {
            let changes = args.changes.iter().flat_map(|change| ["--change", change]);
            docker()
                .arg("import")
                .args(changes)
                .arg(&args.tar)
                .arg(&args.image)
                .run(stop)?;
        }
        Archive::Images => {
            let told = docker()
                .arg("load")
                .arg("--input")
                .arg(&args.tar)
                .run(stop)?;
            let name = told
                .lines()
                .find_map(|line| line.strip_prefix("Loaded image: "));
            let id = told
                .lines()
                .find_map(|line| line.strip_prefix("Loaded image ID: "));
            if let Some(loaded) = name.or(id)
                && loaded != args.image
            {
                docker().args(["tag", loaded, &args.image]).run(stop)?;
            }
        }
    }
    Ok(())
}
