//! The end of a deployment or a move: tables, a summary and what went wrong, or the same as one
//! document.

use std::process::ExitCode;
use std::time::Duration;

use rehome_shared::api::cluster::{
    ApplicationStatus, Change, DeployReply, Migration, MigrationState,
};
use rehome_shared::ids::DeploymentGeneration;
use serde::Serialize;

use crate::console::Console;
use crate::progress::{End, Followed, Problem, Scope, problems};
use crate::render::{self, count, seconds};

/// What `deploy` and `move` print with `--json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    generation: DeploymentGeneration,
    changes: &'a [Change],
    /// Whether nothing was left to do when the command ended.
    settled: bool,
    applications: &'a [ApplicationStatus],
    migrations: &'a [Migration],
    failures: &'a [Problem],
}

/// Prints what was submitted, for a command that does not wait.
pub(crate) fn submitted(reply: &DeployReply, console: Console) -> anyhow::Result<ExitCode> {
    console.document(&Document {
        generation: reply.generation,
        changes: &reply.changes,
        settled: false,
        applications: &[],
        migrations: &[],
        failures: &[],
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints how it ended; the exit status says whether it is as it was asked for.
pub(crate) fn ended(
    reply: &DeployReply,
    followed: &Followed,
    scope: Scope<'_>,
    took: Duration,
    console: Console,
) -> anyhow::Result<ExitCode> {
    let (applications, migrations, problems) = match &followed.progress {
        None => (&[][..], &[][..], Vec::new()),
        Some(progress) => (
            progress.applications.as_slice(),
            progress.migrations.as_slice(),
            problems(progress, scope),
        ),
    };
    console.document(&Document {
        generation: reply.generation,
        changes: &reply.changes,
        settled: followed.end == End::Settled,
        applications,
        migrations,
        failures: &problems,
    })?;
    if !reply.changes.is_empty() {
        for migration in migrations
            .iter()
            .filter(|m| m.state != MigrationState::Running)
        {
            console.line(&render::migration::details(migration));
        }
    }
    for problem in &problems {
        console.progress(&failure(problem));
    }
    let done = problems.is_empty() && followed.end == End::Settled;
    match unfinished(followed.end, took) {
        Some(text) => console.progress(&text),
        None => console.line(&summary(reply.generation, applications, migrations, took)),
    }
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A problem on one line: host, application, reason.
fn failure(problem: &Problem) -> String {
    let who = [
        problem.host.as_ref().map(ToString::to_string),
        problem.application.as_ref().map(ToString::to_string),
    ];
    let mut parts: Vec<String> = who.into_iter().flatten().collect();
    parts.push(problem.reason.clone());
    format!("failed: {}", parts.join(": "))
}

/// Why the wait ended before the deployment did.
fn unfinished(end: End, took: Duration) -> Option<String> {
    const GOES_ON: &str = "the deployment goes on; `rehome status --watch` shows it";
    let after = seconds(took.as_secs_f64());
    match end {
        End::Settled => None,
        End::TimedOut => Some(format!("not finished after {after}: {GOES_ON}")),
        End::Interrupted => Some(format!("not waiting any more: {GOES_ON}")),
        End::Superseded => Some(
            "another deployment took the place of this one and wants something else".to_owned(),
        ),
    }
}

/// The last line.
fn summary(
    generation: DeploymentGeneration,
    applications: &[ApplicationStatus],
    migrations: &[Migration],
    took: Duration,
) -> String {
    let mut parts = Vec::new();
    for application in applications {
        let word = application.state.as_str();
        match parts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, number)) => *number += 1_u64,
            None => parts.push((word, 1)),
        }
    }
    let mut parts: Vec<String> = parts
        .into_iter()
        .map(|(word, number)| format!("{number} {word}"))
        .collect();
    let done = migrations
        .iter()
        .filter(|m| m.state == MigrationState::Done);
    let longest = done
        .clone()
        .filter_map(render::migration::window_seconds)
        .reduce(f64::max);
    let moved = done.count();
    if moved > 0 {
        let refused: u64 = migrations.iter().map(|m| m.connections.refused).sum();
        let window = longest
            .map(|window| format!(", longest window {}", seconds(window)))
            .unwrap_or_default();
        parts.push(format!("{} done{window}", count(moved, "migration")));
        parts.push(format!("{} refused", count(refused, "connection")));
    }
    let what = if parts.is_empty() {
        "no applications".to_owned()
    } else {
        parts.join(", ")
    };
    format!(
        "deployment {generation}: {what} (took {})",
        seconds(took.as_secs_f64())
    )
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::cluster::ApplicationState;

    use super::*;
    use crate::render::sample::{app, application, host, migration};

    #[test]
    fn the_summary_counts_states_and_moves() {
        let mut web = application(ApplicationState::Running);
        web.name = app("web");
        let applications = [
            application(ApplicationState::Running),
            web,
            application(ApplicationState::Failed),
        ];
        let text = summary(
            DeploymentGeneration(7),
            &applications,
            &[migration(MigrationState::Done)],
            Duration::from_millis(12_340),
        );
        assert_eq!(
            text,
            "deployment 7: 2 running, 1 failed, 1 migration done, longest window 850 ms, \
             0 connections refused (took 12.34 s)"
        );
    }

    #[test]
    fn a_failure_names_the_host_first() {
        let problem = Problem {
            host: Some(host("10.0.0.2")),
            application: Some(app("db")),
            reason: "disk full".to_owned(),
        };
        assert_eq!(failure(&problem), "failed: 10.0.0.2: db: disk full");
    }

    #[test]
    fn only_a_settled_wait_has_nothing_to_explain() {
        let second = Duration::from_secs(1);
        assert_eq!(unfinished(End::Settled, second), None);
        for end in [End::TimedOut, End::Interrupted, End::Superseded] {
            assert!(unfinished(end, second).is_some());
        }
    }
}
