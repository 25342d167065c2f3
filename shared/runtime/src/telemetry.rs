//! What people and Prometheus see of a daemon: logs, metrics, and whether it is alive and ready.

mod exposition;
mod logs;
mod readiness;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use logs::{LogFormat, LogHandle, TelemetryError, check_filter, init_logs};
pub use readiness::Readiness;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    program: &'static str,
    version: &'static str,
}

/// A registry whose names all begin with `rehome_`, with `rehome_build_info` in it.
///
/// Register a counter without `_total`: the encoder adds it.
#[must_use]
pub fn registry(program: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::with_prefix("rehome");
    let build = Family::<BuildLabels, Gauge>::default();
    build
        .get_or_create(&BuildLabels { program, version })
        .set(1);
    registry.register("build_info", "The program and its version; always 1", build);
    registry
}

/// The metrics as Prometheus reads them (text format 0.0.4).
///
/// # Errors
/// When a collector fails to encode itself.
pub fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode_registry(&mut text, registry)?;
    Ok(exposition::from_open_metrics(&text))
}

/// `/metrics`, `/healthz` (the process answers) and `/readyz` (503 with the reasons while it
/// cannot do its work).
pub fn router(registry: Arc<Registry>, readiness: Readiness) -> Router {
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .with_state(registry);
    let ready = Router::new()
        .route("/readyz", get(ready))
        .with_state(readiness);
    metrics
        .merge(ready)
        .route("/healthz", get(|| async { "ok\n" }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    match encode(&registry) {
        Ok(text) => ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let lines: Vec<String> = reasons
        .iter()
        .map(|(part, reason)| {
            format!(
                "{part}: {reason}
"
            )
        })
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response()
}

#[cfg(test)]
mod tests;
