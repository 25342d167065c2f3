//! The control socket and the pages for Prometheus.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use rehome_runtime::http_client::HttpClient;
use rehome_shared::api::proxy::{
    Announce, CheckPorts, CheckPortsReply, ConnectionsReply, Content, GateCounts, RouteIntent,
    RouteSpec, RoutesReply, SetRoutes,
};

use crate::app::App;
use crate::host::{Host, LIMIT, ask, free_port, get, park_limits, prepare_verb, tcp, version};

#[tokio::test]
async fn the_api_is_spoken_on_a_socket_for_root_alone() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    let mode = std::fs::metadata(&host.config.socket)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let http = HttpClient::unix(&host.config.socket);
    let none: Option<&()> = None;
    let routes: RoutesReply = http
        .request_json(Method::GET, "/v1/routes", none, LIMIT)
        .await?;
    ensure!(routes.routes.len() == 1);
    let mut client = host.client(port).await?;
    ask(&mut client, "x").await?;
    let path = format!("/v1/connections?route={port}/tcp");
    let connections: ConnectionsReply = http.request_json(Method::GET, &path, none, LIMIT).await?;
    ensure!(connections.connections.len() == 1);

    let verb = prepare_verb(version(1, 1));
    let counts: GateCounts = http
        .request_json(Method::POST, "/v1/gates/prepare", Some(&verb), LIMIT)
        .await?;
    ensure!(counts.active == 1);
    let stale = prepare_verb(version(0, 9));
    let refused = http
        .request_json::<_, GateCounts>(Method::POST, "/v1/gates/prepare", Some(&stale), LIMIT)
        .await
        .err()
        .context("a stale verb was carried out")?;
    ensure!(
        refused.status() == Some(StatusCode::CONFLICT),
        "{refused:?}"
    );
    let text = format!("{:#}", anyhow::Error::from(refused));
    ensure!(text.contains("the gate of db is parked at 1.1"), "{text}");

    let empty = SetRoutes {
        host: host.name()?,
        peers: vec![],
        routes: vec![],
    };
    let routes: RoutesReply = http
        .request_json(Method::PUT, "/v1/routes", Some(&empty), LIMIT)
        .await?;
    ensure!(routes.routes.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_set_of_very_many_routes_fits_in_a_request() -> Result<()> {
    let host = Host::start().await?;
    let spec = |port| -> Result<RouteSpec> {
        Ok(RouteSpec {
            content: Content::default(),
            announce: Announce::default(),
            key: tcp(port)?,
            application: format!("application-with-a-long-name-{port}").parse()?,
            version: version(1, 0),
            intent: RouteIntent::Closed,
            limits: park_limits(),
        })
    };
    let desired = SetRoutes {
        host: host.name()?,
        peers: vec![],
        routes: (1..=20_000).map(spec).collect::<Result<_>>()?,
    };
    let http = HttpClient::unix(&host.config.socket);
    let routes: RoutesReply = http
        .request_json(Method::PUT, "/v1/routes", Some(&desired), LIMIT)
        .await?;
    ensure!(routes.routes.len() == 20_000);
    Ok(())
}

#[tokio::test]
async fn ports_that_are_taken_are_named_before_they_are_needed() -> Result<()> {
    let (app, host, port) = (
        App::start("a").await?,
        Host::start().await?,
        free_port().await?,
    );
    host.open(&[], tcp(port)?, version(1, 0), app.target())
        .await?;
    let http = HttpClient::unix(&host.config.socket);
    let taken = std::net::TcpListener::bind((host.address, 0))?;
    let keys = vec![
        tcp(port)?,
        tcp(free_port().await?)?,
        tcp(taken.local_addr()?.port())?,
    ];
    let body = CheckPorts { keys: keys.clone() };
    let reply: CheckPortsReply = http
        .request_json(Method::POST, "/v1/ports/check", Some(&body), LIMIT)
        .await?;
    ensure!(
        reply.problems.len() == 1 && reply.problems[0].key == keys[2],
        "{reply:?}"
    );

    Ok(())
}

#[tokio::test]
async fn metrics_have_the_promised_names_and_pass_promtool() -> Result<()> {
    let (here, owner) = (Host::start().await?, Host::start().await?);
    let (app, port) = (App::start("a").await?, free_port().await?);
    owner
        .open(&[&here], tcp(port)?, version(1, 0), app.target())
        .await?;
    here.open(&[], tcp(port)?, version(1, 0), owner.as_target()?)
        .await?;
    let mut client = here.client(port).await?;
    ask(&mut client, "x").await?;
    drop(client);
    here.wait(tcp(port)?, |status| status.active == 0).await?;
    let text = here.metrics().await?;
    let label = format!("route=\"{port}/tcp\"");
    for wanted in [
        format!("rehome_proxy_connections_total{{{label},result=\"finished\"}} 1"),
        format!("rehome_proxy_connections_active{{{label}}} 0"),
        format!("rehome_proxy_connections_parked{{{label}}} 0"),
        "rehome_proxy_park_seconds_bucket".to_owned(),
        "rehome_proxy_connect_seconds_bucket".to_owned(),
        format!("rehome_proxy_bytes_total{{{label},direction=\"in\"}} 2"),
        format!(
            "rehome_route_info{{{label},host=\"{}\",gate=\"open\",epoch=\"1\"}} 1",
            owner.address
        ),
        "rehome_config_reloads_total{result=\"rejected\"} 0".to_owned(),
        "rehome_build_info{program=\"proxyd\"".to_owned(),
    ] {
        ensure!(text.contains(&wanted), "{wanted} is missing in\n{text}");
    }
    lint(&text)?;
    let address = here.proxy.metrics_addr().context("no metrics")?;
    ensure!(get(address, "/healthz").await?.contains("ok"));
    ensure!(get(address, "/readyz").await?.contains("ready"));
    Ok(())
}

/// `promtool check metrics`, where it is installed.
fn lint(text: &str) -> Result<()> {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        return Ok(());
    };
    promtool
        .stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.trim().is_empty(), "{said}");
    Ok(())
}
