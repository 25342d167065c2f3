//! `rehome move` and `rehome abort`.

use axum::http::StatusCode;
use serde_json::json;

use crate::fake::{
    Fake, accepted, application, migration, newer, prediction, progress, status, under_way,
};

const STATUS: &str = "GET /v1/status";
const MOVES: &str = "POST /v1/moves";
const PROGRESS: &str = "GET /v1/progress";
const CURRENT: &str = "GET /v1/deployments/current";
const MIGRATION: &str = "GET /v1/migrations/01jd0000000000000000000000";
const ABORT: &str = "POST /v1/migrations/01jd0000000000000000000000/abort";
const ID: &str = "01jd0000000000000000000000";

const MOVE: [&str; 4] = ["move", "db", "--to", "10.0.0.2"];

#[tokio::test]
async fn a_move_is_followed_to_its_end() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, accepted());
    let app = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[app], &[migration("done")]));
    let ended = fake.rehome(&MOVE).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.contains("window       800 ms"), "{}", ended.out);
    assert_eq!(
        fake.asked(MOVES)[0].body,
        json!({"application": "db", "to": "10.0.0.2"})
    );
    Ok(())
}

#[tokio::test]
async fn a_move_is_judged_by_its_own_application() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, accepted());
    let mut web = application("failed", "10.0.0.1");
    web["name"] = json!("web");
    let db = application("running", "10.0.0.2");
    fake.answers(PROGRESS, progress(true, &[db, web], &[migration("done")]));
    let ended = fake.rehome(&MOVE).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    Ok(())
}

/// Somebody moves `web` meanwhile, as deployment 8: it is under way, then done.
#[tokio::test]
async fn a_move_goes_on_beside_somebody_elses() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, accepted());
    let db = application("migrating", "10.0.0.1");
    fake.answers(PROGRESS, progress(false, &[db], &[under_way("precopy", 1)]));
    let mut web = migration("done");
    web["id"] = json!("01jd0000000000000000000001");
    web["application"] = json!("web");
    web["generation"] = json!(8);
    let db = application("running", "10.0.0.2");
    for settled in [false, true] {
        let migrations = [migration("done"), web.clone()];
        let mut answer = progress(settled, std::slice::from_ref(&db), &migrations);
        answer["generation"] = json!(8);
        fake.answers(PROGRESS, answer);
    }
    fake.answers(CURRENT, newer("15", "10.0.0.2")?);
    let ended = fake
        .rehome(&["move", "db", "--to", "10.0.0.2", "--json"])
        .await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let document = ended.document()?;
    assert_eq!(document["settled"], true);
    let migrations = document["migrations"].as_array().map(Vec::as_slice);
    let own = migrations.unwrap_or_default();
    assert_eq!(own.len(), 1, "only its own: {document}");
    assert_eq!(own[0]["application"], "db");
    assert_eq!(
        fake.asked(CURRENT).len(),
        1,
        "asked once for each deployment"
    );
    Ok(())
}

#[tokio::test]
async fn a_newer_deployment_that_wants_it_elsewhere_ends_the_wait() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, accepted());
    let db = application("migrating", "10.0.0.1");
    let mut answer = progress(false, &[db], &[under_way("precopy", 1)]);
    answer["generation"] = json!(8);
    fake.answers(PROGRESS, answer);
    fake.answers(CURRENT, newer("15", "10.0.0.1")?);
    let ended = fake.rehome(&MOVE).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("another deployment"), "{}", ended.err);
    Ok(())
}

#[tokio::test]
async fn a_failed_move_says_why_and_where_the_application_is() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, accepted());
    let mut aborted = migration("aborted");
    aborted["error"] = json!("the image is not there");
    let app = application("running", "10.0.0.1");
    fake.answers(PROGRESS, progress(true, &[app], &[aborted]));
    let ended = fake.rehome(&MOVE).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("aborted: the image is not there"),
        "{}",
        ended.err
    );
    assert!(
        ended.err.ends_with("db is on 10.0.0.1, running\n"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn a_move_to_where_it_is_does_nothing() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    fake.answers(MOVES, json!({"generation": 7, "changes": []}));
    let mut app = application("running", "10.0.0.1");
    app["desired_host"] = json!("10.0.0.1");
    fake.answers(PROGRESS, progress(true, &[app], &[]));
    let ended = fake.rehome(&["move", "db", "--to", "10.0.0.1"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("nothing to do"), "{}", ended.out);
    Ok(())
}

#[tokio::test]
async fn unknown_names_are_answered_with_the_known_ones() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    for (arguments, want) in [
        (
            ["move", "web", "--to", "10.0.0.2"],
            "there is no application web; there are: db",
        ),
        (
            ["move", "db", "--to", "10.0.0.9"],
            "there is no host 10.0.0.9; there are: 10.0.0.1, 10.0.0.2",
        ),
    ] {
        let ended = fake.rehome(&arguments).await?;
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.err.contains(want), "{}", ended.err);
    }
    assert!(fake.asked(MOVES).is_empty());
    Ok(())
}

#[tokio::test]
async fn a_dry_run_predicts_and_moves_nothing() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(STATUS, status());
    let prediction = prediction();
    fake.answers("POST /v1/predictions", prediction.clone());
    let ended = fake
        .rehome(&["move", "db", "--to", "10.0.0.2", "--dry-run"])
        .await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended
            .out
            .contains("predicted window  1.50 s = platform 1.00 s + application 500 ms"),
        "{}",
        ended.out
    );
    let ended = fake
        .rehome(&["move", "db", "--to", "10.0.0.2", "--dry-run", "--json"])
        .await?;
    assert_eq!(ended.document()?, prediction);
    assert!(fake.asked(MOVES).is_empty());
    Ok(())
}

#[tokio::test]
async fn an_abort_waits_until_the_application_is_back() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(ABORT, migration("running"));
    fake.answers(MIGRATION, migration("running"));
    fake.answers(MIGRATION, migration("aborted"));
    let ended = fake.rehome(&["abort", ID]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("db 10.0.0.1 → 10.0.0.2: aborted"),
        "{}",
        ended.out
    );
    assert_eq!(fake.asked(MIGRATION).len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_abort_that_comes_too_late_fails() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers(ABORT, migration("done"));
    let ended = fake.rehome(&["abort", ID]).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("not aborted"), "{}", ended.err);

    let fake = Fake::start().await?;
    let reply = json!({"error": "the destination owns the application already"});
    fake.answers_with(ABORT, StatusCode::CONFLICT, reply);
    let ended = fake.rehome(&["abort", ID]).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("owns the application already"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn an_id_of_the_wrong_form_is_wrong_input() -> anyhow::Result<()> {
    let ended = Fake::stopped()?.rehome(&["abort", "7"]).await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.err.contains("migration id"), "{}", ended.err);
    Ok(())
}
