//! `rehome failover`.

use axum::http::StatusCode;
use serde_json::json;

use crate::fake::{Fake, application, progress};

const FAILOVERS: &str = "POST /v1/failovers";
const PROGRESS: &str = "GET /v1/progress";

const FAILOVER: [&str; 6] = [
    "failover",
    "db",
    "--to",
    "10.0.0.2",
    "--fenced",
    "10.0.0.1@3",
];

fn reply(means: &str, loss: Option<&str>) -> serde_json::Value {
    json!({"generation": 7, "epoch": 4, "means": means, "loss": loss})
}

#[tokio::test]
async fn a_failover_is_followed_until_the_application_runs() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(FAILOVERS, reply("granted", None));
    fake.answers(PROGRESS, progress(false, &[], &[]));
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[]));
    let ended = fake.rehome(&FAILOVER).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended
            .out
            .starts_with("db is 10.0.0.2's at epoch 4: all of it had come there\n"),
        "{}",
        ended.out
    );
    assert_eq!(
        fake.asked(FAILOVERS)[0].body,
        json!({
            "application": "db", "to": "10.0.0.2",
            "fenced": {"host": "10.0.0.1", "epoch": 3},
            "also_fenced": [], "accept_loss": false,
        })
    );
    Ok(())
}

#[tokio::test]
async fn what_it_costs_is_said_and_what_was_accepted_is_sent() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let loss = "the newest that it keeps of db is an hour old";
    fake.answers(FAILOVERS, reply("claimed", Some(loss)));
    let options = ["--accept-loss", "--also-fenced", "10.0.0.4", "--no-wait"];
    let words: Vec<&str> = FAILOVER.into_iter().chain(options).collect();
    let ended = fake.rehome(&words).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.contains(loss), "{}", ended.out);
    let body = &fake.asked(FAILOVERS)[0].body;
    assert_eq!(body["accept_loss"], true);
    assert_eq!(body["also_fenced"], json!(["10.0.0.4"]));
    assert!(fake.asked(PROGRESS).is_empty());

    let words: Vec<&str> = words.into_iter().chain(["--json"]).collect();
    let document = fake.rehome(&words).await?.document()?;
    assert_eq!(document, reply("claimed", Some(loss)));
    Ok(())
}

#[tokio::test]
async fn a_refusal_fails_with_the_daemons_reason() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let reason = json!({"error": "10.0.0.1 answers: it is not fenced"});
    fake.answers_with(FAILOVERS, StatusCode::CONFLICT, reason);
    let ended = fake.rehome(&FAILOVER).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("it is not fenced"), "{}", ended.err);
    assert!(fake.asked(PROGRESS).is_empty());
    Ok(())
}

#[tokio::test]
async fn one_that_took_over_and_does_not_run_is_a_failure() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(FAILOVERS, reply("granted", None));
    let mut app = application("failed", "10.0.0.2");
    app["reason"] = json!("its health check fails");
    fake.answers(PROGRESS, progress(true, &[app], &[]));
    let ended = fake.rehome(&FAILOVER).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("its health check fails"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn an_owner_without_an_epoch_is_wrong_input() -> anyhow::Result<()> {
    for owner in ["10.0.0.1", "10.0.0.1@soon", "@3"] {
        let ended = Fake::stopped()?
            .rehome(&["failover", "db", "--to", "10.0.0.2", "--fenced", owner])
            .await?;
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.err.contains("--fenced"), "{}", ended.err);
    }
    Ok(())
}
