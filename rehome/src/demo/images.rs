//! The images of the demonstration, made from packages of this machine's Debian release: no
//! registry is asked and nothing is installed. An image is built once and kept in a cache under
//! a hash of its recipe; a build that is interrupted leaves nothing there.

mod build;
mod recipes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::console::Console;
use crate::demo::images::build::BuildError;
use crate::stop::{Stop, interruptible};

/// The arguments of `rehome demo-images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Build also what is in the cache
    #[arg(long)]
    rebuild: bool,
}

/// An image of the demonstration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// The database that holds the log: the stateful part.
    Postgres,
    /// What receives log lines on TCP 5000.
    Rsyslog,
    /// The page on port 80 that searches the log.
    Web,
}

impl Image {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Postgres, Self::Rsyslog, Self::Web];
}

/// An image as a tar archive of its file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ImageTar {
    /// The archive.
    pub(crate) path: PathBuf,
    /// The name that an application's `image` gives it.
    pub(crate) reference: &'static str,
    /// The Dockerfile instructions that it is imported with.
    pub(crate) changes: Vec<&'static str>,
}

/// The archive of an image, from the cache or newly built.
///
/// # Errors
/// [`BuildError`] when packages or tools are missing, or the user stops the build.
pub(crate) fn ensure(image: Image, stop: &Stop) -> Result<ImageTar, BuildError> {
    build::ensure(&recipes::of(image), stop)
}

/// Builds all images and prints where they are.
pub(crate) fn run(args: &ImagesArgs, console: Console) -> anyhow::Result<ExitCode> {
    let rebuild = args.rebuild;
    let made = interruptible(move |stop| -> Result<Vec<ImageTar>, BuildError> {
        let mut made = Vec::new();
        for image in Image::ALL {
            let recipe = recipes::of(image);
            if rebuild {
                build::forget(&recipe)?;
            }
            console.progress(&format!("image {}", recipe.reference));
            made.push(ensure(image, stop)?);
        }
        Ok(made)
    })??;
    for image in &made {
        console.line(&format!("{} {}", image.reference, image.path.display()));
    }
    console.document(&made)?;
    Ok(ExitCode::SUCCESS)
}
