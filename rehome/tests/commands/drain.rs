//! `rehome drain`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::fake::{Fake, accepted, application, migration, newer, prediction, progress, status};

const STATUS: &str = "GET /v1/status";
const DRAINS: &str = "POST /v1/drains";
const PREDICTIONS: &str = "POST /v1/predictions";
const PROGRESS: &str = "GET /v1/progress";

const DRAIN: [&str; 2] = ["drain", "10.0.0.1"];

#[tokio::test]
async fn a_drain_shows_its_plan_and_is_followed_to_its_end() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(DRAINS, accepted());
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    let ended = fake.rehome(&DRAIN).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for words in [
        "move     db from 10.0.0.1 to 10.0.0.2, with its volumes",
        "deployment 7: 1 running, 1 migration done",
    ] {
        assert!(ended.out.contains(words), "{}", ended.out);
    }
    assert_eq!(
        fake.asked(DRAINS)[0].body,
        json!({"host": "10.0.0.1", "dry_run": false})
    );
    Ok(())
}

#[tokio::test]
async fn a_drain_goes_on_while_a_newer_deployment_wants_the_same() -> anyhow::Result<()> {
    for (host, exit) in [("10.0.0.2", 0), ("10.0.0.1", 1)] {
        let fake = Fake::start().await?;
        fake.answers(STATUS, status());
        fake.answers(DRAINS, accepted());
        let app = application("running", "10.0.0.2");
        let mut answer = progress(true, &[app], &[migration("done")]);
        answer["generation"] = json!(8);
        fake.answers(PROGRESS, answer);
        fake.answers("GET /v1/deployments/current", newer("16", host)?);
        let ended = fake.rehome(&DRAIN).await?;
        assert_eq!(ended.status, Some(exit), "{host}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_drain_need_not_be_waited_for() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(DRAINS, accepted());
    let ended = fake
        .rehome(&["drain", "10.0.0.1", "--no-wait", "--json"])
        .await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert_eq!(ended.document()?["generation"], 7);
    assert!(fake.asked(PROGRESS).is_empty());
    Ok(())
}

#[tokio::test]
async fn an_application_that_stays_makes_it_fail() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(DRAINS, accepted());
    let mut aborted = migration("aborted");
    aborted["error"] = json!("no room");
    let app = application("running", "10.0.0.1");
    fake.answers(PROGRESS, progress(true, &[app], &[aborted]));
    let ended = fake.rehome(&DRAIN).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("aborted: no room"), "{}", ended.err);
    Ok(())
}

#[tokio::test]
async fn an_empty_host_is_nothing_to_do() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(DRAINS, json!({"generation": 7, "changes": []}));
    let mut app = application("running", "10.0.0.1");
    app["desired_host"] = json!("10.0.0.1");
    fake.answers(PROGRESS, progress(true, &[app], &[]));
    let ended = fake.rehome(&["drain", "10.0.0.2"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended
            .out
            .starts_with("nothing to do: nothing is placed on 10.0.0.2"),
        "{}",
        ended.out
    );
    Ok(())
}

#[tokio::test]
async fn a_dry_run_predicts_each_move_and_moves_nothing() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(DRAINS, accepted());
    fake.answers(PREDICTIONS, prediction());
    let ended = fake.rehome(&["drain", "10.0.0.1", "--dry-run"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for words in ["move     db from 10.0.0.1", "predicted window  1.50 s"] {
        assert!(ended.out.contains(words), "{}", ended.out);
    }
    assert_eq!(fake.asked(DRAINS)[0].body["dry_run"], true);
    assert_eq!(
        fake.asked(PREDICTIONS)[0].body,
        json!({"application": "db", "to": "10.0.0.2"})
    );
    let ended = fake
        .rehome(&["drain", "10.0.0.1", "--dry-run", "--json"])
        .await?;
    let document = ended.document()?;
    assert_eq!(document["changes"], accepted()["changes"]);
    let mut want = prediction();
    want["application"] = json!("db");
    want["to"] = json!("10.0.0.2");
    assert_eq!(document["predictions"], Value::Array(vec![want]));
    assert!(fake.asked(PROGRESS).is_empty());
    Ok(())
}

#[tokio::test]
async fn an_unknown_host_is_wrong_input_and_a_refusal_is_told() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    let reply = json!({"error": "there is no other host in the deployment"});
    fake.answers_with(DRAINS, StatusCode::CONFLICT, reply);
    let ended = fake.rehome(&["drain", "10.0.0.9"]).await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(
        ended
            .err
            .contains("there is no host 10.0.0.9; there are: 10.0.0.1, 10.0.0.2"),
        "{}",
        ended.err
    );
    assert!(fake.asked(DRAINS).is_empty());
    let ended = fake.rehome(&DRAIN).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("no other host"), "{}", ended.err);
    Ok(())
}
