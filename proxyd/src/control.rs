//! The control API on the Unix socket: `rehome_shared::api::proxy` as HTTP.

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use rehome_runtime::http_server::ErrorResponse;
use rehome_shared::api::proxy::{
    CheckPorts, CheckPortsReply, Commit, ConnectionsReply, Drain, GateCounts, GateRef, MAX_BODY,
    Prepare, ReloadReply, RouteKey, RoutesReply, SetRoutes, Upgrade, UpgradeReply,
};
use serde::Deserialize;

use crate::{GiveError, Proxyd, VerbError};

type Answer<T> = Result<Json<T>, ErrorResponse>;

/// The routes of the API.
pub(crate) fn router(proxy: Proxyd) -> Router {
    Router::new()
        .route("/v1/routes", put(set_routes).get(routes))
        .route("/v1/gates/prepare", post(prepare))
        .route("/v1/gates/drain", post(drain))
        .route("/v1/gates/freeze", post(freeze))
        .route("/v1/gates/commit", post(commit))
        .route("/v1/gates/rollback", post(rollback))
        .route("/v1/connections", get(connections))
        .route("/v1/ports/check", post(check_ports))
        .route("/v1/reload", post(reload))
        .route("/v1/upgrade", post(upgrade))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(proxy)
}

async fn set_routes(
    State(proxy): State<Proxyd>,
    Json(body): Json<SetRoutes>,
) -> Answer<RoutesReply> {
    Ok(Json(proxy.set_routes(body).await?))
}

async fn routes(State(proxy): State<Proxyd>) -> Json<RoutesReply> {
    Json(proxy.routes())
}

async fn prepare(State(proxy): State<Proxyd>, Json(body): Json<Prepare>) -> Answer<GateCounts> {
    Ok(Json(proxy.prepare(body).await?))
}

async fn drain(State(proxy): State<Proxyd>, Json(body): Json<Drain>) -> Answer<GateCounts> {
    Ok(Json(proxy.drain(body).await?))
}

async fn freeze(State(proxy): State<Proxyd>, Json(body): Json<GateRef>) -> Answer<GateCounts> {
    Ok(Json(proxy.freeze(body).await?))
}

async fn commit(State(proxy): State<Proxyd>, Json(body): Json<Commit>) -> Answer<GateCounts> {
    Ok(Json(proxy.commit(body).await?))
}

async fn rollback(State(proxy): State<Proxyd>, Json(body): Json<GateRef>) -> Answer<GateCounts> {
    Ok(Json(proxy.rollback(body).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    route: Option<RouteKey>,
}

async fn connections(
    State(proxy): State<Proxyd>,
    Query(filter): Query<Filter>,
) -> Json<ConnectionsReply> {
    Json(proxy.connections(filter.route))
}

async fn check_ports(
    State(proxy): State<Proxyd>,
    Json(body): Json<CheckPorts>,
) -> Answer<CheckPortsReply> {
    Ok(Json(proxy.check_ports(body).await?))
}

async fn reload(State(proxy): State<Proxyd>) -> Answer<ReloadReply> {
    Ok(Json(proxy.reload().await?))
}

async fn upgrade(State(proxy): State<Proxyd>, Json(body): Json<Upgrade>) -> Answer<UpgradeReply> {
    let reply = proxy.upgrade(body).await.map_err(|error| {
        let status = match &error {
            GiveError::UnderWay => StatusCode::CONFLICT,
            GiveError::Stopping(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        ErrorResponse::of(status, &error)
    })?;
    Ok(Json(reply))
}

impl From<VerbError> for ErrorResponse {
    fn from(error: VerbError) -> Self {
        let status = match &error {
            VerbError::Stopping(_) | VerbError::Kernel(_) => StatusCode::SERVICE_UNAVAILABLE,
            VerbError::Gate(gate) if gate.is_conflict() => StatusCode::CONFLICT,
            VerbError::Gate(proxyd_core::gate::GateError::Unknown(_)) => StatusCode::NOT_FOUND,
            VerbError::Gate(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::of(status, &error)
    }
}
