//! `rehome deploy`.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use axum::http::StatusCode;
use rehome_shared::api::cluster::Change;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use crate::fake::{
    Ended, Fake, LIMIT, accepted, application, files, migration, newer, progress, under_way,
};

const DEPLOY: &str = "POST /v1/deployments";
const PROGRESS: &str = "GET /v1/progress";

async fn deploy(fake: &Fake, options: &[&str]) -> anyhow::Result<Ended> {
    let files = files(fake)?;
    let mut arguments = vec!["deploy", &files[0], &files[1]];
    arguments.extend(options);
    fake.rehome(&arguments).await
}

/// A daemon on which the move goes through three phases and ends well.
async fn moving() -> anyhow::Result<Fake> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    for (phase, round) in [("prepare", 0), ("precopy", 1), ("stop", 0)] {
        let app = application("migrating", "10.0.0.1");
        fake.answers(
            PROGRESS,
            progress(false, &[app], &[under_way(phase, round)]),
        );
    }
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    Ok(fake)
}

#[tokio::test]
async fn it_shows_the_plan_then_each_phase_then_the_window() -> anyhow::Result<()> {
    let fake = moving().await?;
    let ended = deploy(&fake, &[]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("move     db from 10.0.0.1 to 10.0.0.2"),
        "{}",
        ended.out
    );
    assert_eq!(
        ended.err,
        "db 10.0.0.1 → 10.0.0.2: prepare, 1.00 MiB, 2.00 MiB/s, predicted window 750 ms\n\
         db 10.0.0.1 → 10.0.0.2: precopy, round 1, 1.00 MiB, 2.00 MiB/s, predicted window 750 ms\n\
         db 10.0.0.1 → 10.0.0.2: stop, 1.00 MiB, 2.00 MiB/s, predicted window 750 ms\n\
         db: running on 10.0.0.2\n\
         db 10.0.0.1 → 10.0.0.2: done, window 800 ms\n"
    );
    for part in [
        "stop     400 ms  application",
        "start    300 ms  platform",
        "800 ms = platform 300 ms + application 500 ms",
        "5 drained, 12 parked, 0 refused",
        "deployment 7: 1 running, 1 migration done, longest window 800 ms",
    ] {
        assert!(ended.out.contains(part), "{part:?} is not in {}", ended.out);
    }
    Ok(())
}

#[tokio::test]
async fn it_sends_what_the_files_mean() -> anyhow::Result<()> {
    let fake = moving().await?;
    deploy(&fake, &[]).await?;
    let asked = fake.asked(DEPLOY);
    assert_eq!(asked.len(), 1);
    let body = &asked[0].body;
    assert_eq!(
        body["placement"],
        json!({"10.0.0.1": [], "10.0.0.2": ["db"]})
    );
    assert_eq!(body["applications"]["db"]["image"]["tag"], "15");
    assert_eq!(body["dry_run"], false);
    Ok(())
}

#[tokio::test]
async fn the_files_of_the_readme_are_accepted() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/lab");
    let file = |name: &str| directory.join(name).display().to_string();
    let (deployment, application) = (file("deployment.yml"), file("application.yml"));
    let ended = fake
        .rehome(&["deploy", &deployment, &application, "--dry-run"])
        .await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.err, "", "a warning");
    Ok(())
}

#[tokio::test]
async fn json_is_one_document_with_everything() -> anyhow::Result<()> {
    let fake = moving().await?;
    let ended = deploy(&fake, &["--json"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let document = ended.document()?;
    assert_eq!(
        keys(&document),
        [
            "applications",
            "changes",
            "failures",
            "generation",
            "migrations",
            "settled"
        ]
    );
    assert_eq!(document["generation"], 7);
    assert_eq!(document["settled"], true);
    assert_eq!(document["failures"], json!([]));
    assert_eq!(document["applications"][0]["state"], "running");
    assert_eq!(document["migrations"][0]["window_seconds"]["platform"], 0.3);
    let changes: Vec<Change> = serde_json::from_value(document["changes"].clone())?;
    assert_eq!(changes.len(), 1);
    Ok(())
}

fn keys(document: &Value) -> Vec<&str> {
    document
        .as_object()
        .map(|map| map.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

#[tokio::test]
async fn nothing_to_do_is_said_and_is_success() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, json!({"generation": 7, "changes": []}));
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    let ended = deploy(&fake, &[]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.contains("nothing to do"), "{}", ended.out);
    assert!(
        !ended.out.contains("PHASE"),
        "an earlier migration is shown: {}",
        ended.out
    );
    Ok(())
}

#[tokio::test]
async fn a_failure_names_host_application_and_reason() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let mut returned = migration("returned");
    returned["window_seconds"] = Value::Null;
    returned["error"] = json!("the application was not healthy");
    let app = application("running", "10.0.0.1");
    fake.answers(PROGRESS, progress(true, &[app], &[returned]));
    for options in [&[][..], &["--json"]] {
        let ended = deploy(&fake, options).await?;
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let want = "failed: 10.0.0.1: db: the migration to 10.0.0.2 was returned: the application \
                    was not healthy";
        assert!(ended.err.contains(want), "{}", ended.err);
        if !options.is_empty() {
            assert_eq!(ended.document()?["failures"][0]["application"], "db");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_failure_that_a_host_reports_is_a_failure() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let mut answer = progress(true, &[application("running", "10.0.0.2")], &[]);
    answer["failures"] =
        json!([{"host": "10.0.0.2", "application": null, "reason": "the disk is full"}]);
    fake.answers(PROGRESS, answer);
    let ended = deploy(&fake, &[]).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("failed: 10.0.0.2: the disk is full"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn wrong_files_are_found_before_any_daemon_is_asked() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let [deployment, _] = files(&fake)?;
    let application = fake.file("wrong.yml", "version: 1\napplications:\n  db: {}\n")?;
    let application = application.to_str().unwrap_or_default();
    for options in [&[][..], &["--json"]] {
        let mut arguments = vec!["deploy", &deployment, application];
        arguments.extend(options);
        let ended = fake.rehome(&arguments).await?;
        assert_eq!(ended.status, Some(2), "{ended:?}");
        let said = format!("{}{}", ended.out, ended.err);
        assert!(
            said.contains("wrong.yml") && said.contains("image"),
            "{said}"
        );
    }
    assert_eq!(fake.asked_in_all(), 0);
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_there_is_wrong_input() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let ended = fake
        .rehome(&["deploy", "/nonexistent/d.yml", "/nonexistent/a.yml"])
        .await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(
        ended
            .err
            .contains("/nonexistent/a.yml:1: the file cannot be read"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn without_waiting_it_asks_for_no_progress() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let ended = deploy(&fake, &["--no-wait", "--json"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.document()?["settled"], false);
    let ended = deploy(&fake, &["--dry-run"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("  move     db"), "{}", ended.out);
    let asked = fake.asked(DEPLOY);
    assert_eq!(
        [&asked[0].body["dry_run"], &asked[1].body["dry_run"]],
        [false, true]
    );
    assert!(fake.asked(PROGRESS).is_empty());
    Ok(())
}

#[tokio::test]
async fn when_the_time_is_up_it_says_that_the_work_goes_on() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let app = application("migrating", "10.0.0.1");
    fake.answers(
        PROGRESS,
        progress(false, &[app], &[under_way("precopy", 1)]),
    );
    let ended = deploy(&fake, &["--timeout", "600ms", "--json"]).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("the deployment goes on"),
        "{}",
        ended.err
    );
    assert_eq!(ended.document()?["settled"], false);
    Ok(())
}

/// A deployment that never ends, and the lines that the command says meanwhile.
fn waiting(fake: &Fake) -> anyhow::Result<(Child, Lines<BufReader<ChildStderr>>)> {
    fake.answers(DEPLOY, accepted());
    let app = application("migrating", "10.0.0.1");
    fake.answers(
        PROGRESS,
        progress(false, &[app], &[under_way("precopy", 1)]),
    );
    let files = files(fake)?;
    let mut command = fake.command(&["deploy", &files[0], &files[1]]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(child.stderr.take().context("a pipe")?).lines();
    Ok((child, said))
}

/// Reads until a line with a text comes.
async fn said(lines: &mut Lines<BufReader<ChildStderr>>, text: &str) -> anyhow::Result<()> {
    let read = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(text) {
                return Ok(());
            }
        }
        bail!("{text:?} was never said")
    };
    timeout(LIMIT, read).await?
}

#[tokio::test]
async fn a_daemon_may_restart_while_it_is_waited_for() -> anyhow::Result<()> {
    let mut fake = Fake::start().await?;
    let (mut child, mut lines) = waiting(&fake)?;
    said(&mut lines, "precopy").await?;
    fake.stop().await?;
    said(&mut lines, "no answer, trying again").await?;
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    fake.restart().await?;
    said(&mut lines, "done, window 800 ms").await?;
    assert_eq!(timeout(LIMIT, child.wait()).await??.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_the_wait_and_not_the_deployment() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let (mut child, mut lines) = waiting(&fake)?;
    said(&mut lines, "precopy").await?;
    let id = child
        .id()
        .and_then(|id| Pid::from_raw(id.try_into().ok()?))
        .context("a process")?;
    kill_process(id, Signal::INT)?;
    said(&mut lines, "the deployment goes on").await?;
    assert_eq!(timeout(LIMIT, child.wait()).await??.code(), Some(1));
    Ok(())
}

/// A document with another value in a field.
fn with(mut document: Value, field: &str, value: Value) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
    document
}

/// How a deployment of `db` on 10.0.0.2 ends when this one has followed and is settled.
async fn followed_by(newer: Value) -> anyhow::Result<Ended> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let other = with(application("failed", "10.0.0.1"), "name", json!("web"));
    let db = application("running", "10.0.0.2");
    let answer = progress(true, &[db, other], &[migration("done")]);
    fake.answers(PROGRESS, with(answer, "generation", json!(8)));
    fake.answers("GET /v1/deployments/current", newer);
    deploy(&fake, &[]).await
}

#[tokio::test]
async fn a_later_deployment_that_wants_something_else_ends_the_wait() -> anyhow::Result<()> {
    for other in [newer("15", "10.0.0.1")?, newer("16", "10.0.0.2")?] {
        let ended = followed_by(other).await?;
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.err.contains("another deployment"), "{}", ended.err);
    }
    Ok(())
}

#[tokio::test]
async fn a_later_deployment_that_leaves_it_as_it_is_does_not() -> anyhow::Result<()> {
    let ended = followed_by(newer("15", "10.0.0.2")?).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.contains("1 migration done"), "{}", ended.out);
    Ok(())
}

#[tokio::test]
async fn an_answer_from_before_the_deployment_does_not_count() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(DEPLOY, accepted());
    let mut older = progress(true, &[application("running", "10.0.0.1")], &[]);
    older["generation"] = json!(6);
    fake.answers(PROGRESS, older);
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    let ended = deploy(&fake, &[]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(fake.asked(PROGRESS).len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_refusal_is_wrong_input_or_failure_by_its_status() -> anyhow::Result<()> {
    for (status, exit) in [
        (StatusCode::UNPROCESSABLE_ENTITY, 2),
        (StatusCode::CONFLICT, 1),
    ] {
        let fake = Fake::start().await?;
        let reply = json!({"error": "10.0.0.2 does not answer", "host": "10.0.0.1"});
        fake.answers_with(DEPLOY, status, reply);
        let ended = deploy(&fake, &[]).await?;
        assert_eq!(ended.status, Some(exit), "{ended:?}");
        assert!(
            ended.err.contains("10.0.0.1: 10.0.0.2 does not answer"),
            "{}",
            ended.err
        );
        assert_eq!(ended.out, "");
    }
    Ok(())
}
