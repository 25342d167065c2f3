use std::io::Write;
use std::process::{Command, Stdio};

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;
use tower::ServiceExt;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// One metric of each kind that the daemons have.
fn sample() -> Registry {
    let mut registry = registry("proxyd", "0.1.0");
    let connections = Family::<Route, Counter>::default();
    connections
        .get_or_create(&Route {
            route: "5432/tcp \"x\\".to_owned(),
        })
        .inc_by(3);
    registry.register("proxy_connections", "Connections accepted", connections);
    let parked: Gauge = Gauge::default();
    registry.register("proxy_connections_parked", "Connections held now", parked);
    let park = Histogram::new(exponential_buckets(0.001, 4.0, 8));
    park.observe(0.2);
    registry.register_with_unit("proxy_park", "Time held", Unit::Seconds, park);
    let bytes: Counter = Counter::default();
    registry.register_with_unit("proxy", "Bytes relayed", Unit::Bytes, bytes);
    registry
}

#[test]
fn counters_carry_total_in_every_line() {
    let text = encode(&sample()).unwrap();
    for line in [
        "# TYPE rehome_build_info gauge",
        "rehome_build_info{program=\"proxyd\",version=\"0.1.0\"} 1",
        "# HELP rehome_proxy_connections_total Connections accepted.",
        "# TYPE rehome_proxy_connections_total counter",
        "rehome_proxy_connections_total{route=\"5432/tcp \\\"x\\\\\"} 3",
        "# TYPE rehome_proxy_bytes_total counter",
        "# TYPE rehome_proxy_park_seconds histogram",
        "rehome_proxy_park_seconds_count 1",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line} is missing in\n{text}"
        );
    }
    assert!(
        !text.contains("# UNIT") && !text.contains("# EOF"),
        "{text}"
    );
}

#[test]
fn promtool_accepts_the_metrics() {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        eprintln!("SKIPPED: promtool is not installed (package prometheus)");
        return;
    };
    let text = encode(&sample()).unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}\n{text}"
    );
}

#[tokio::test]
async fn the_pages_answer() {
    let readiness = Readiness::new();
    readiness.block("routes", "not told yet");
    let app = router(Arc::new(sample()), readiness.clone());
    let get = |path: &'static str| {
        let app = app.clone();
        async move {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            (
                parts.status,
                parts.headers,
                String::from_utf8(bytes.to_vec()).unwrap(),
            )
        }
    };
    let (status, headers, text) = get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        headers[CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(text.contains("rehome_build_info"));
    assert_eq!(get("/healthz").await.0, StatusCode::OK);
    let (status, _, text) = get("/readyz").await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "routes: not told yet\n")
    );
    readiness.clear("routes");
    assert_eq!(get("/readyz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn readiness_waits_for_the_last_part() {
    let readiness = Readiness::new();
    readiness.block("journal", "is read");
    readiness.block("runtime", "does not answer");
    readiness.clear("journal");
    assert!(!readiness.is_ready());
    let waiter = readiness.clone();
    let (ready, ()) = tokio::join!(
        tokio::time::timeout(std::time::Duration::from_secs(30), waiter.wait()),
        async { readiness.clear("runtime") }
    );
    assert!(ready.is_ok() && readiness.is_ready());
}

/// The subscriber belongs to the whole process, so this is one test.
#[test]
fn logs_are_set_up_once_and_their_filter_changes() {
    assert!(matches!(
        init_logs(LogFormat::Json, "a=b=c"),
        Err(TelemetryError::Filter { .. })
    ));
    let handle = init_logs(LogFormat::Json, "error").unwrap();
    assert!(!tracing::enabled!(tracing::Level::INFO));
    handle.set_filter("info").unwrap();
    assert!(tracing::enabled!(tracing::Level::INFO));
    assert!(handle.set_filter("a=b=c").is_err());
    assert!(tracing::enabled!(tracing::Level::INFO));
    assert!(matches!(
        init_logs(LogFormat::Text, "info"),
        Err(TelemetryError::Twice(_))
    ));
}
