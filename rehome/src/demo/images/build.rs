//! Building an image: the closure of its packages is found by apt against an empty machine,
//! downloaded into a private directory, unpacked into another one and put into a tar archive.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ImageTar;
use super::recipes::{DOCUMENTATION, NEVER, Recipe, VERSION};
use crate::invocation::{Invocation, InvocationError, find_program};
use crate::paths::{self, PathError};
use crate::stop::Stop;

/// How long one step may take: a download over a slow line.
const LIMIT: Duration = Duration::from_mins(15);

/// Users of the images; `postgres` has the number that Debian's own container images use.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    postgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nadm:x:4:\npostgres:x:999:\nnogroup:x:65534:\n";
/// The commands of busybox that the images' scripts and a curious person use.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cp", "date", "echo", "env", "find", "grep", "head", "id", "ip",
    "kill", "ls", "mkdir", "mv", "nc", "ps", "rm", "sed", "sh", "sleep", "su", "sync", "tail",
    "test", "wget",
];

/// An image that was not built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// Programs are missing.
    #[error("images are built by {0}, which this machine lacks: a Debian or Ubuntu is needed")]
    NoTool(&'static str),
    /// The packages could not be found or downloaded.
    #[error("cannot get the packages of {reference}")]
    Packages {
        /// The image.
        reference: &'static str,
        /// Why.
        #[source]
        source: InvocationError,
    },
    /// apt answered something that names no packages.
    #[error("apt names no packages for {0}")]
    Empty(&'static str),
    /// They could not be unpacked or put together.
    #[error("cannot put {reference} together")]
    Unpack {
        /// The image.
        reference: &'static str,
        /// Why.
        #[source]
        source: InvocationError,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] PathError),
    /// A temporary directory could not be made.
    #[error("cannot work in {}", path.display())]
    Work {
        /// The cache.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The archive of an image, from the cache or newly built.
pub(super) fn ensure(recipe: &Recipe, stop: &Stop) -> Result<ImageTar, BuildError> {
    let path = archive(recipe);
    if !path.exists() {
        build(recipe, &path, stop)?;
    }
    Ok(ImageTar {
        path,
        reference: recipe.reference,
        changes: recipe.changes.to_vec(),
    })
}

/// Removes the archive of an image from the cache.
pub(super) fn forget(recipe: &Recipe) -> Result<(), BuildError> {
    Ok(paths::remove_file(&archive(recipe))?)
}

fn build(recipe: &Recipe, path: &Path, stop: &Stop) -> Result<(), BuildError> {
    for tool in ["apt-get", "dpkg-deb", "tar", "ldconfig"] {
        find_program(tool).ok_or(BuildError::NoTool(tool))?;
    }
    let cache = path.parent().unwrap_or(Path::new("/")).to_owned();
    paths::make_dir(&cache, 0o755)?;
    let work = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(&cache)
        .map_err(|source| BuildError::Work {
            path: cache,
            source,
        })?;
    let root = work.path().join("root");
    paths::make_dir(&root, 0o755)?;
    let packages = Apt::new(work.path())?
        .download(recipe, stop)
        .map_err(|source| BuildError::Packages {
            reference: recipe.reference,
            source,
        })?;
    if packages.is_empty() {
        return Err(BuildError::Empty(recipe.reference));
    }
    let unpack = |source| BuildError::Unpack {
        reference: recipe.reference,
        source,
    };
    for package in &packages {
        let words = [Path::new("--extract"), package, &root];
        Invocation::new("dpkg-deb")
            .args(words)
            .limit(LIMIT)
            .run(stop)
            .map_err(unpack)?;
    }
    furnish(recipe, &root)?;
    Invocation::new("ldconfig")
        .arg("-r")
        .arg(&root)
        .run(stop)
        .map_err(unpack)?;
    let packed = work.path().join("image.tar");
    pack(recipe, &root, &packed, stop).map_err(unpack)?;
    fs::rename(&packed, path).map_err(PathError::at("write", path))?;
    Ok(())
}

/// Puts the files into an archive, in an order and with times that do not depend on the machine.
fn pack(recipe: &Recipe, root: &Path, archive: &Path, stop: &Stop) -> Result<(), InvocationError> {
    let exclude = DOCUMENTATION
        .iter()
        .chain(recipe.exclude)
        .map(|p| format!("--exclude={p}"));
    Invocation::new("tar")
        .args([
            "--create",
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
        ])
        .arg("--numeric-owner")
        .args(exclude)
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(root)
        .arg(".")
        .limit(LIMIT)
        .run(stop)
        .map(drop)
}

/// Adds what packages' installation scripts would have made, and the image's own files.
fn furnish(recipe: &Recipe, root: &Path) -> Result<(), PathError> {
    for directory in [
        "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/run", "bin",
    ] {
        paths::make_dir(&root.join(directory), 0o755)?;
    }
    for directory in recipe.directories {
        paths::make_dir(&root.join(directory), 0o755)?;
    }
    // Releases whose packages ship only `/usr/lib` expect these links from `base-files`.
    for name in ["lib", "lib64", "sbin"] {
        let (link, target) = (root.join(name), Path::new("usr").join(name));
        if !link.exists() && root.join(&target).exists() {
            symlink(&target, &link).map_err(PathError::at("link", &link))?;
        }
    }
    for applet in APPLETS {
        let link = root.join("bin").join(applet);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", &link).map_err(PathError::at("link", &link))?;
        }
    }
    let own = recipe.files.iter().copied().chain([
        ("etc/passwd", 0o644, PASSWD),
        ("etc/group", 0o644, GROUP),
        (
            "etc/nsswitch.conf",
            0o644,
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        (
            "etc/ld.so.conf",
            0o644,
            "include /etc/ld.so.conf.d/*.conf\n",
        ),
    ]);
    for (name, mode, text) in own {
        let path = root.join(name);
        paths::make_dir(path.parent().unwrap_or(root), 0o755)?;
        paths::replace(&path, mode, text)?;
    }
    let tmp = root.join("tmp");
    let sticky = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o1777);
    fs::set_permissions(&tmp, sticky).map_err(PathError::at("open up", &tmp))
}

/// apt with the machine's sources and none of its state.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> Result<Self, PathError> {
        let directory = work.join("apt");
        for part in ["cache/archives/partial", "lists/partial", "debs"] {
            paths::make_dir(&directory.join(part), 0o755)?;
        }
        paths::replace(&directory.join("status"), 0o644, "")?;
        Ok(Self { directory })
    }

    /// Downloads what the image takes of its packages' closure. First by the package lists that
    /// the machine has; when these are absent or name files that are gone, by new ones.
    fn download(&self, recipe: &Recipe, stop: &Stop) -> Result<Vec<PathBuf>, InvocationError> {
        let machine = Path::new("/var/lib/apt/lists");
        match self.download_by(machine, recipe, stop) {
            Err(InvocationError::Failed { .. }) => {
                let private = self.directory.join("lists");
                self.run(&private, "update").run(stop)?;
                self.download_by(&private, recipe, stop)
            }
            other => other,
        }
    }

    fn download_by(
        &self,
        lists: &Path,
        recipe: &Recipe,
        stop: &Stop,
    ) -> Result<Vec<PathBuf>, InvocationError> {
        let plan = self
            .run(lists, "install")
            .args(["--yes", "--no-install-recommends", "--print-uris"])
            .args(recipe.packages)
            .run(stop)?;
        let wanted = plan.lines().filter_map(closure_member);
        let wanted: Vec<String> = wanted
            .filter(|(name, _)| recipe.takes(name))
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.run(lists, "download").args(wanted).run(stop)?;
        let mut files: Vec<PathBuf> = fs::read_dir(self.debs())
            .map(|entries| {
                entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .collect()
            })
            .unwrap_or_default();
        files.sort();
        Ok(files)
    }

    fn debs(&self) -> PathBuf {
        self.directory.join("debs")
    }

    fn run(&self, lists: &Path, verb: &str) -> Invocation {
        let option = |key: &str, value: &Path| format!("{key}={}", value.display());
        let options = [
            option("Dir::State::status", &self.directory.join("status")),
            option("Dir::State::lists", lists),
            option("Dir::Cache", &self.directory.join("cache")),
            "Debug::NoLocking=1".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Invocation::new("apt-get")
            .args(options.iter().flat_map(|option| ["-o", option.as_str()]))
            .args(["-q", verb])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .directory(self.debs())
            .limit(LIMIT)
    }
}

/// Reads a line of `--print-uris`, `'URI' NAME_VERSION_ARCH.deb SIZE HASH`: the package's name
/// and version.
fn closure_member(line: &str) -> Option<(&str, String)> {
    let file = line
        .strip_prefix('\'')?
        .split_whitespace()
        .nth(1)?
        .strip_suffix(".deb")?;
    let mut parts = file.split('_');
    Some((parts.next()?, parts.next()?.replace("%3a", ":")))
}

fn archive(recipe: &Recipe) -> PathBuf {
    let name = recipe.reference.replace('/', "-");
    cache().join(format!("{name}-{:016x}.tar", key(recipe)))
}

/// What an image is made of, as a number that changes when any of it does.
fn key(recipe: &Recipe) -> u64 {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let release = release
        .lines()
        .find(|line| line.starts_with("VERSION_CODENAME="));
    let text =
        format!("{VERSION} {release:?} {recipe:?} {NEVER:?} {DOCUMENTATION:?} {PASSWD}{GROUP}");
    crate::hash::fnv1a(text.as_bytes())
}

fn cache() -> PathBuf {
    let directory = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    directory("REHOME_CACHE")
        .or_else(|| directory("XDG_CACHE_HOME").map(|cache| cache.join("rehome")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/rehome"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_in_a_version_is_decoded() {
        let line = "'http://deb.debian.org/x/zlib1g_1.2.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:1";
        assert_eq!(
            closure_member(line),
            Some(("zlib1g", "1:1.2.13.dfsg-1".to_owned()))
        );
        assert_eq!(closure_member("Reading package lists..."), None);
    }

    #[test]
    fn a_changed_recipe_has_another_archive() {
        let recipe = super::super::recipes::of(super::super::Image::Web);
        let changed = Recipe {
            changes: &["CMD []"],
            ..recipe.clone()
        };
        assert_ne!(archive(&recipe), archive(&changed));
        assert_eq!(archive(&recipe), archive(&recipe.clone()));
    }
}
