//! The images that the tests use: PostgreSQL as the demonstration has it, from its cache, and
//! one that holds nothing but busybox.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use super::Lab;
use crate::page;
use crate::program;
use crate::store::POSTGRES_IMAGE;

/// Building the images downloads packages the first time.
const BUILD: Duration = Duration::from_mins(5);

pub(super) fn load_postgres(lab: &Lab) -> anyhow::Result<()> {
    let mut command = Command::new(program::built("rehome")?);
    let images = program::run(command.args(["demo-images", "--json"]), BUILD)?
        .ok()?
        .json()?;
    let all = images.as_array().context("no list of images")?;
    let image = all
        .iter()
        .find(|image| image["reference"] == POSTGRES_IMAGE);
    let image = image.with_context(|| format!("no {POSTGRES_IMAGE} in {images}"))?;
    let mut arguments = vec!["load", POSTGRES_IMAGE];
    arguments.push(image["path"].as_str().context("no path")?);
    for change in image["changes"].as_array().into_iter().flatten() {
        arguments.extend(["--change", change.as_str().context("no text")?]);
    }
    lab.command(&arguments)?.ok()?;
    Ok(())
}

pub(super) fn load_busybox(lab: &Lab) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    for name in ["bin", "run", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy(Path::new("/bin/busybox"), root.join("bin/busybox"))
        .context("busybox of this machine: `make deps-test` brings it")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    let tar = directory.path().join("busybox.tar");
    let mut command = Command::new("tar");
    command
        .arg("--create")
        .arg("--file")
        .arg(&tar)
        .arg("--directory")
        .arg(&root)
        .arg(".");
    program::run(&mut command, BUILD)?.ok()?;
    let tar = tar.to_str().context("a strange temporary directory")?;
    lab.command(&["load", page::IMAGE, tar])?.ok()?;
    Ok(())
}
