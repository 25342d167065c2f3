//! Who may depend on whom, and what a core may do. A rule that only a document states is broken
//! within a year; these fail instead.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rehome_tests::project;
use serde_json::Value;

/// What a core and the vocabulary may use: values in, values out.
const PURE: [&str; 11] = [
    "blake3",
    "bytes",
    "httparse",
    "humantime",
    "rehome-shared",
    "saphyr-parser",
    "serde",
    "serde_json",
    "thiserror",
    "ulid",
    "uuid",
];

/// Texts that a core has no business with: clock, files, environment, processes, threads.
const IMPURE: [&str; 9] = [
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "TcpStream",
    "tokio",
];

const CORES: [&str; 2] = ["migrated-core", "proxyd-core"];

/// The packages of the workspace.
struct Packages(BTreeMap<String, Package>);

struct Package {
    /// What it needs to be built, not what only its tests need.
    dependencies: BTreeSet<String>,
    /// What its tests need besides.
    of_tests: BTreeSet<String>,
    /// The features that it asks of what it needs, as `PACKAGE/FEATURE`.
    features: BTreeSet<String>,
    /// The root files of its library and programs.
    roots: Vec<PathBuf>,
}

impl Packages {
    fn read() -> anyhow::Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
            .current_dir(project()?)
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let packages = list(metadata.get("packages").context("no packages")?)
            .map(|package| Ok((text(&package["name"])?, Package::read(package)?)))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        ensure!(
            packages.len() >= 9,
            "only {} packages were found",
            packages.len()
        );
        Ok(Self(packages))
    }

    fn get(&self, name: &str) -> anyhow::Result<&Package> {
        self.0
            .get(name)
            .with_context(|| format!("there is no package {name}"))
    }

    /// Everything in the workspace that a package needs, directly or not, its tests included.
    fn needs(&self, name: &str) -> anyhow::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let package = self.get(name)?;
        let mut next: Vec<&String> = package.dependencies.union(&package.of_tests).collect();
        while let Some(name) = next.pop() {
            if let Some(package) = self.0.get(name)
                && found.insert(name.clone())
            {
                next.extend(&package.dependencies);
            }
        }
        Ok(found)
    }
}

impl Package {
    fn read(package: &Value) -> anyhow::Result<Self> {
        let mut dependencies = BTreeSet::new();
        let mut of_tests = BTreeSet::new();
        let mut features = BTreeSet::new();
        for dependency in list(&package["dependencies"]) {
            let name = text(&dependency["name"])?;
            for feature in list(&dependency["features"]) {
                features.insert(format!("{name}/{}", text(feature)?));
            }
            let kind = if dependency["kind"] == "dev" {
                &mut of_tests
            } else {
                &mut dependencies
            };
            kind.insert(name);
        }
        let roots = list(&package["targets"])
            .filter(|target| list(&target["kind"]).any(|kind| kind == "lib" || kind == "bin"))
            .map(|target| Ok(PathBuf::from(text(&target["src_path"])?)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            dependencies,
            of_tests,
            features,
            roots,
        })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().context("not a text")?.to_owned())
}

#[test]
fn the_programs_know_each_other_only_over_sockets() -> anyhow::Result<()> {
    let packages = Packages::read()?;
    for (program, strangers) in [
        ("proxyd", ["migrated", "migrated-core", "rehome"]),
        ("migrated", ["proxyd", "proxyd-core", "rehome"]),
    ] {
        let needs = packages.needs(program)?;
        ensure!(
            needs.contains("rehome-shared"),
            "{program} does not even need the vocabulary"
        );
        for stranger in strangers {
            ensure!(!needs.contains(stranger), "{program} depends on {stranger}");
        }
    }
    let needs = packages.needs("rehome")?;
    for daemon in ["proxyd", "proxyd-core", "migrated", "migrated-core"] {
        ensure!(!needs.contains(daemon), "rehome depends on {daemon}");
    }
    Ok(())
}

#[test]
fn cores_and_vocabulary_depend_on_pure_crates_only() -> anyhow::Result<()> {
    let packages = Packages::read()?;
    for name in CORES.into_iter().chain(["rehome-shared"]) {
        for dependency in &packages.get(name)?.dependencies {
            ensure!(
                PURE.contains(&dependency.as_str()),
                "{name} depends on {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_shared_depends_on_no_program() -> anyhow::Result<()> {
    let packages = Packages::read()?;
    for shared in ["rehome-shared", "rehome-runtime", "rehome-sys"] {
        let needs = packages.needs(shared)?;
        let above = [
            "proxyd",
            "proxyd-core",
            "migrated",
            "migrated-core",
            "rehome",
        ];
        for program in above {
            ensure!(!needs.contains(program), "{shared} depends on {program}");
        }
    }
    Ok(())
}

/// A daemon writes no file through memory: a disk that is full would kill it.
#[test]
fn only_the_tests_map_files() -> anyhow::Result<()> {
    for (name, package) in Packages::read()?.0 {
        let maps = package.features.contains("rehome-sys/mapping");
        ensure!(
            maps == (name == "rehome-tests"),
            "{name} asks for mappings: {maps}"
        );
        let itself = package.dependencies.contains("memmap2");
        ensure!(itself == (name == "rehome-sys"), "{name} uses memmap2");
    }
    Ok(())
}

#[test]
fn unsafe_code_is_forbidden_in_every_crate_but_one() -> anyhow::Result<()> {
    const FORBID: &str = "#![forbid(unsafe_code)]";
    for (name, package) in Packages::read()?.0 {
        ensure!(
            !package.roots.is_empty(),
            "{name} has neither a library nor a program"
        );
        for root in &package.roots {
            let forbids = std::fs::read_to_string(root)?
                .lines()
                .any(|line| line == FORBID);
            ensure!(
                forbids == (name != "rehome-sys"),
                "{}: {FORBID} must {}stand there",
                root.display(),
                if forbids { "not " } else { "" }
            );
        }
    }
    Ok(())
}

#[test]
fn a_core_reads_no_clock_and_touches_nothing() -> anyhow::Result<()> {
    for core in ["migrated/core/src", "proxyd/core/src"] {
        let files = sources(&project()?.join(core))?;
        ensure!(!files.is_empty(), "{core} has no files");
        for file in files {
            let text = std::fs::read_to_string(&file)?;
            for (number, line) in code(&text) {
                for word in IMPURE {
                    let found = line.contains(word);
                    ensure!(!found, "{}:{number}: a core uses {word}", file.display());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn impure_code_is_found_and_tests_and_comments_are_not() {
    let text = "//! std::fs\nlet a = 1;\nlet b = std::fs::read;\n#[cfg(test)]\nmod tests { use std::fs; }\n";
    let found: Vec<_> = code(text)
        .filter(|(_, line)| line.contains("std::fs"))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(found, [3]);
}

/// The numbered lines of a file that are code, without comments and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.starts_with("//"))
}

/// The source files below a directory but the ones that hold only tests.
fn sources(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut next = vec![directory.to_path_buf()];
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_name().is_some_and(|name| name != "tests.rs")
            {
                files.push(path);
            }
        }
    }
    Ok(files)
}
