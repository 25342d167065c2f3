//! `rehome status`, `rehome migrations`, `rehome connections`, and daemons that do not answer.

use std::process::Stdio;

use anyhow::Context as _;
use rehome_runtime::tls::{Tls, TlsFiles};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::fake::{Fake, LIMIT, application, command, migration, run, status};

#[tokio::test]
async fn status_is_two_tables_or_the_document_of_the_contract() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers("GET /v1/status", status());
    let ended = fake.rehome(&["status"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("10.0.0.2  yes        0.1.0"),
        "{}",
        ended.out
    );
    assert!(ended.out.contains("15432→5432/tcp"), "{}", ended.out);

    let document = fake.rehome(&["status", "--json"]).await?.document()?;
    assert_eq!(document["generation"], 6);
    assert_eq!(document["hosts"], status()["hosts"]);
    for (key, value) in status()["applications"][0]
        .as_object()
        .context("an object")?
    {
        if key != "volumes" {
            assert_eq!(document["applications"][0][key], *value, "{key}");
        }
    }
    assert_eq!(document["applications"][0]["volumes"][0]["name"], "data");
    assert_eq!(document["applications"][0]["volumes"][0]["bytes"], 4096);
    Ok(())
}

#[tokio::test]
async fn watching_prints_at_each_change() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers("GET /v1/status", status());
    fake.answers("GET /v1/status", status());
    let mut moved = status();
    moved["applications"][0] = application("running", "10.0.0.2");
    fake.answers("GET /v1/status", moved);
    let mut child = fake
        .command(&["status", "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    for host in ["10.0.0.1", "10.0.0.2"] {
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await??
            .context("a line")?;
        let document: serde_json::Value = serde_json::from_str(&line)?;
        assert_eq!(document["applications"][0]["host"], host);
    }
    child.kill().await?;
    Ok(())
}

#[tokio::test]
async fn migrations_are_a_table_and_one_is_all_its_phases() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    fake.answers("GET /v1/migrations", json!([migration("done")]));
    fake.answers(
        "GET /v1/migrations/01jd0000000000000000000000",
        migration("done"),
    );
    let ended = fake.rehome(&["migrations"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("01jd0000000000000000000000  db"),
        "{}",
        ended.out
    );
    let ended = fake
        .rehome(&["migrations", "01jd0000000000000000000000"])
        .await?;
    assert!(
        ended.out.contains("precopy  500 ms  before the window"),
        "{}",
        ended.out
    );

    let list = fake.rehome(&["migrations", "--json"]).await?.document()?;
    for (key, value) in migration("done").as_object().context("an object")? {
        assert_eq!(list[0][key], *value, "{key}");
    }
    let one = fake
        .rehome(&["migrations", "01jd0000000000000000000000", "--json"])
        .await?
        .document()?;
    assert_eq!(one, list[0]);
    Ok(())
}

#[tokio::test]
async fn a_migration_that_is_not_known_is_wrong_input() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let ended = fake
        .rehome(&["migrations", "01jd0000000000000000000000"])
        .await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn connections_come_from_the_local_proxy() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let connection = json!({
        "id": 1, "route": "5432/tcp", "client": "10.0.0.9:40000", "state": "parked",
        "upstream": null, "age": 1.5, "bytes_in": 10, "bytes_out": 0,
    });
    fake.answers(
        "GET /v1/connections?route=5432/tcp",
        json!({"connections": [connection]}),
    );
    fake.answers("GET /v1/connections", json!({"connections": []}));
    let socket = fake.socket();
    let ask = |options: &[&str]| {
        let mut command = command(&["connections", "--socket"]);
        command.arg(&socket).args(options);
        run(command)
    };
    let ended = ask(&["--route", "5432"]).await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.out.contains("10.0.0.9:40000  parked  -"),
        "{}",
        ended.out
    );
    let document = ask(&["--route", "5432/tcp", "--json"]).await?.document()?;
    assert_eq!(document["connections"][0]["client"], "10.0.0.9:40000");
    assert_eq!(ask(&[]).await?.out, "no connections\n");
    assert_eq!(ask(&["--route", "x"]).await?.status, Some(2));
    Ok(())
}

#[tokio::test]
async fn connections_can_be_followed() -> anyhow::Result<()> {
    let fake = Fake::start().await?;
    let connection = |state: &str| {
        json!({
            "id": 1, "route": "5432/tcp", "client": "10.0.0.9:40000", "state": state,
            "upstream": null, "age": 1.5, "bytes_in": 10, "bytes_out": 0,
        })
    };
    let path = "GET /v1/connections?route=5432/tcp";
    let states = ["parked", "relaying"];
    for state in states {
        fake.answers(
            path,
            json!({"connections": [connection(state)], "total": 7}),
        );
    }
    let mut child = command(&["connections", "--follow", "--route", "5432", "--json"])
        .arg("--socket")
        .arg(fake.socket())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    for state in states {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await??;
        let document: serde_json::Value = serde_json::from_str(&line.context("a line")?)?;
        assert_eq!(document["connections"][0]["state"], state);
        assert_eq!(document["total"], 7);
    }
    child.kill().await?;
    assert!(fake.asked(path).len() >= 2);

    let nobody = Fake::stopped()?;
    let mut asks = command(&["connections", "--follow", "--socket"]);
    asks.arg(nobody.socket());
    let ended = run(asks).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("systemctl start proxyd"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn connections_of_another_host_are_refused() -> anyhow::Result<()> {
    let ended = run(command(&["--host", "10.0.0.2", "connections"])).await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(
        ended.err.contains("run `rehome connections` on 10.0.0.2"),
        "{}",
        ended.err
    );
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_does_not_run_names_the_cure() -> anyhow::Result<()> {
    let fake = Fake::stopped()?;
    for arguments in [&["status"][..], &["status", "--watch"], &["migrations"]] {
        let ended = fake.rehome(arguments).await?;
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(
            ended.err.contains("systemctl start migrated"),
            "{}",
            ended.err
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_host_needs_a_certificate() -> anyhow::Result<()> {
    let empty = tempfile::tempdir()?;
    let mut wrong = command(&["--host", "http://10.0.0.1", "status"]);
    wrong.env("REHOME_TLS_DIR", empty.path());
    let ended = run(wrong).await?;
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.err.contains("is not a host"), "{}", ended.err);

    std::fs::write(empty.path().join("host.pem"), "not PEM")?;
    let mut damaged = command(&["--host", "10.0.0.1", "status"]);
    damaged.env("REHOME_TLS_DIR", empty.path());
    let ended = run(damaged).await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("ca.pem"), "{}", ended.err);
    Ok(())
}

#[tokio::test]
async fn another_host_is_asked_over_mutual_tls() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let authority = directory.path().join("ca");
    let (mut init, mut issue) = (command(&["ca", "init"]), command(&["ca", "issue"]));
    init.arg(&authority);
    issue.arg(&authority).args(["127.0.0.1", "laptop"]);
    for step in [init, issue] {
        let ended = run(step).await?;
        assert_eq!(ended.status, Some(0), "{ended:?}");
    }
    let files = authority.join("127.0.0.1");
    let tls = Tls::load(TlsFiles {
        ca: files.join("ca.pem"),
        certificate: files.join("host.pem"),
        key: files.join("host.key"),
    })?;
    let fake = Fake::start().await?;
    fake.answers("GET /v1/status", status());
    let port = fake.listen_with(tls).await?;

    let ask = |address: &str| {
        let mut command = command(&["status", "--host", &format!("{address}:{port}")]);
        command.env("REHOME_TLS_DIR", authority.join("laptop"));
        run(command)
    };
    let ended = ask("127.0.0.1").await?;
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.out.contains("10.0.0.2  yes"), "{}", ended.out);

    // The same daemon under a name that its certificate does not carry is somebody else.
    let ended = ask("localhost").await?;
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("does its certificate name that host"),
        "{}",
        ended.err
    );
    assert_eq!(fake.asked("GET /v1/status").len(), 1);
    Ok(())
}
