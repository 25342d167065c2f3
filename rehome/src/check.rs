//! `rehome check`: what the files mean, or everything that is wrong in them. Asks no daemon and
//! changes nothing.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use rehome_shared::config::meaning::meaning;
use rehome_shared::config::model::Application;
use rehome_shared::config::{Loaded, Problem, Source, load, problem};
use serde_json::json;

use crate::console::Console;
use crate::outcome::WRONG;
use crate::render::{count, table};

/// More than a configuration may hold, so that a device or a disk image given by mistake is not
/// read to its end. What is cut off here is refused for its length.
const READ_LIMIT: u64 = 2 << 20;

/// Validate the files of an application and say what they mean
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Check this deployment too, and both files against each other
    #[arg(long, value_name = "FILE")]
    pub(crate) deployment: Option<PathBuf>,
    /// The applications: native, Fig or Compose format
    pub(crate) application: PathBuf,
}

/// Prints the meaning, or every problem with exit status 2.
///
/// # Errors
/// When the result cannot be written as JSON.
pub(crate) fn run(args: &CheckArgs, console: Console) -> anyhow::Result<ExitCode> {
    match read_files(args, console)? {
        Some(loaded) => {
            console.document(&meaning(&loaded))?;
            console.line(summary(args, &loaded).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(WRONG)),
    }
}

/// Reads the files for a command that works with them. `None` when something is wrong in them:
/// every problem has been printed, and the command ends with status 2.
///
/// # Errors
/// When the problems cannot be written as JSON.
pub(crate) fn read_files(args: &CheckArgs, console: Console) -> anyhow::Result<Option<Loaded>> {
    match check(args) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                console.progress(&warnings(&loaded.warnings));
            }
            Ok(Some(loaded))
        }
        Err(problems) => {
            console.progress(&problem::render(&problems));
            console.document(&json!({ "problems": problems }))?;
            Ok(None)
        }
    }
}

/// Reads and compares the files; an unreadable one does not hide what is wrong in the other.
fn check(args: &CheckArgs) -> Result<Loaded, Vec<Problem>> {
    let application = source(&args.application);
    let deployment = args.deployment.as_deref().map(source).transpose();
    match (application, deployment) {
        (Ok(application), Ok(deployment)) => load(&application, deployment.as_ref()),
        (Ok(application), Err(unreadable)) => {
            let mut problems = load(&application, None).err().unwrap_or_default();
            problems.push(unreadable);
            Err(problems)
        }
        (Err(unreadable), Ok(_)) => Err(vec![unreadable]),
        (Err(first), Err(second)) => Err(vec![first, second]),
    }
}

fn source(path: &Path) -> Result<Source, Problem> {
    let name = path.display().to_string();
    match read(path) {
        Ok(text) => Ok(Source::new(name, text)),
        Err(error) => Err(Problem {
            file: name,
            line: 1,
            path: String::new(),
            message: format!("the file cannot be read: {error}"),
            cure: "give the path of a readable file in UTF-8".to_owned(),
        }),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(READ_LIMIT)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn warnings(warnings: &[Problem]) -> String {
    let lines: Vec<String> = warnings.iter().map(|w| format!("warning: {w}")).collect();
    lines.join("\n")
}

fn summary(args: &CheckArgs, loaded: &Loaded) -> String {
    let mut text = format!(
        "{}: {} format, {}\n",
        args.application.display(),
        loaded.format.as_str(),
        count(loaded.applications.len(), "application"),
    );
    let host = |name: &str| {
        let hosts = loaded.placement.as_ref()?;
        hosts
            .iter()
            .find(|(_, names)| names.iter().any(|n| n.as_str() == name))
            .map(|(h, _)| h)
    };
    let rows: Vec<Vec<String>> = loaded
        .applications
        .iter()
        .map(|(name, application)| {
            let mut row = row(name.as_str(), application);
            if loaded.placement.is_some() {
                row.push(host(name.as_str()).map_or_else(|| "-".to_owned(), ToString::to_string));
            }
            row
        })
        .collect();
    let header: &[&str] = match loaded.placement {
        Some(_) => &["APPLICATION", "IMAGE", "PORTS", "LINKS", "VOLUMES", "HOST"],
        None => &["APPLICATION", "IMAGE", "PORTS", "LINKS", "VOLUMES"],
    };
    if !rows.is_empty() {
        text.push_str(&table(header, &rows));
    }
    if let Some(placement) = &loaded.placement {
        let idle: Vec<&str> = placement
            .iter()
            .filter(|(_, names)| names.is_empty())
            .map(|(h, _)| h.as_str())
            .collect();
        if !idle.is_empty() {
            // Writing to a text cannot fail.
            let _infallible = writeln!(text, "hosts that run nothing: {}", idle.join(", "));
        }
    }
    text
}

fn row(name: &str, application: &Application) -> Vec<String> {
    let list = |items: Vec<String>| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(" ")
        }
    };
    let ports = application
        .ports
        .iter()
        .map(|p| format!("{}→{}/{}", p.external, p.internal, p.protocol));
    let links = application
        .links
        .iter()
        .map(|l| format!("{}:{}→{}", l.alias, l.local_port, l.remote_port));
    let volumes = application.volumes.iter().map(|v| match v.maximum_size {
        Some(size) => format!("{} (at most {size})", v.mountpoint),
        None => v.mountpoint.clone(),
    });
    vec![
        name.to_owned(),
        application.image.to_string(),
        list(ports.collect()),
        list(links.collect()),
        list(volumes.collect()),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const APPLICATION: &str = "version: 1\napplications:\n  db:\n    image: acme/db:1\n\
        \x20   ports: [{internal: 5432, external: 15432}]\n\
        \x20   volume: {mountpoint: /d, maximum_size: 1G}\n  web: {image: acme/web}\n";

    /// Writes the files to a folder of their own and checks them.
    fn checked(
        application: &str,
        deployment: Option<&str>,
    ) -> (CheckArgs, Result<Loaded, Vec<Problem>>) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let args = CheckArgs {
            application: write("application.yml", application),
            deployment: deployment.map(|text| write("deployment.yml", text)),
        };
        let result = check(&args);
        (args, result)
    }

    #[test]
    fn the_summary_says_what_runs_where() {
        let deployment = "version: 1\nnodes: {h1: [db], h2: []}\n";
        let (args, loaded) = checked(APPLICATION, Some(deployment));
        let text = summary(&args, &loaded.unwrap());
        let mut lines = text.lines();
        assert!(
            lines
                .next()
                .unwrap()
                .ends_with("application.yml: native format, 2 applications")
        );
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "APPLICATION  IMAGE            PORTS           LINKS  VOLUMES                HOST",
                "db           acme/db:1        15432→5432/tcp  -      /d (at most 1.00 GiB)  h1",
                "web          acme/web:latest  -               -      -                      -",
                "hosts that run nothing: h2",
            ]
        );
    }

    #[test]
    fn problems_of_both_files_come_together() {
        let (_, result) = checked("version: 1\napplications: {db: {}}\n", Some("version: 1\n"));
        let problems = result.unwrap_err();
        let found: Vec<_> = problems
            .iter()
            .map(|p| (p.line, p.message.as_str()))
            .collect();
        assert_eq!(
            found,
            [(2, "missing key 'image'"), (1, "missing key 'nodes'")]
        );
    }

    #[test]
    fn an_unreadable_file_is_a_problem_that_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let application = folder.path().join("application.yml");
        fs::write(&application, "version: 2\napplications: {}\n").unwrap();
        let nowhere = folder.path().join("nowhere.yml");
        let both = CheckArgs {
            application,
            deployment: Some(nowhere.clone()),
        };
        let problems = check(&both).unwrap_err();
        assert_eq!(problems.len(), 2);
        assert!(
            problems[1].message.contains("No such file"),
            "{}",
            problems[1]
        );
        let directory = CheckArgs {
            application: folder.path().to_owned(),
            deployment: Some(nowhere),
        };
        assert_eq!(check(&directory).unwrap_err().len(), 2);
        fs::write(folder.path().join("binary"), [0xff, 0xfe, 0x00]).unwrap();
        let binary = CheckArgs {
            application: folder.path().join("binary"),
            deployment: None,
        };
        assert!(check(&binary).unwrap_err()[0].message.contains("UTF-8"));
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let args = CheckArgs {
            application: "/dev/zero".into(),
            deployment: None,
        };
        assert!(check(&args).unwrap_err()[0].message.contains("bytes"));
    }
}
