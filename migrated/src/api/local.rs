//! `/v1/…`: what `rehome` asks. See [`rehome_shared::api::cluster`].

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use rehome_shared::api::cluster::{
    DeployReply, DeployRequest, Desired, DrainRequest, FailoverReply, FailoverRequest, Migration,
    MoveRequest, Prediction, Progress, Status,
};
use rehome_shared::api::gc::{Collected, Meant};
use rehome_shared::ids::MigrationId;

use super::{Failed, Shared};
use crate::garbage::{self, Verb};
use crate::{deploy, failover, status};

pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/status", get(show_status))
        .route("/v1/deployments", post(take_deployment))
        .route("/v1/deployments/current", get(show_deployment))
        .route("/v1/progress", get(show_progress))
        .route("/v1/moves", post(take_move))
        .route("/v1/drains", post(take_drain))
        .route("/v1/predictions", post(predict))
        .route("/v1/failovers", post(take_failover))
        .route("/v1/migrations", get(list_migrations))
        .route("/v1/migrations/{id}", get(show_migration))
        .route("/v1/migrations/{id}/abort", post(abort_migration))
        .route("/v1/gc", get(list_garbage).post(collect_garbage))
}

async fn show_status(State(host): State<Shared>) -> Json<Status> {
    Json(status::cluster(&host).await)
}

async fn show_progress(State(host): State<Shared>) -> Json<Progress> {
    Json(status::progress(&host).await)
}

async fn show_deployment(State(host): State<Shared>) -> Json<Desired> {
    Json(host.desired.get().as_ref().clone())
}

/// The work goes on when the client hangs up: it is a task of the host.
async fn take_deployment(
    State(host): State<Shared>,
    Json(request): Json<DeployRequest>,
) -> Result<Json<DeployReply>, Failed> {
    let owner = host.clone();
    Ok(Json(
        detached(&host, async move { deploy::deploy(&owner, request).await }).await??,
    ))
}

async fn take_move(
    State(host): State<Shared>,
    Json(request): Json<MoveRequest>,
) -> Result<Json<DeployReply>, Failed> {
    let owner = host.clone();
    Ok(Json(
        detached(
            &host,
            async move { deploy::relocate(&owner, request).await },
        )
        .await??,
    ))
}

async fn take_drain(
    State(host): State<Shared>,
    Json(request): Json<DrainRequest>,
) -> Result<Json<DeployReply>, Failed> {
    let owner = host.clone();
    Ok(Json(
        detached(&host, async move { deploy::drain(&owner, request).await }).await??,
    ))
}

async fn take_failover(
    State(host): State<Shared>,
    Json(request): Json<FailoverRequest>,
) -> Result<Json<FailoverReply>, Failed> {
    let owner = host.clone();
    Ok(Json(
        detached(&host, async move { failover::run(&owner, &request).await }).await??,
    ))
}

pub(super) async fn detached<T: Send + 'static>(
    host: &Shared,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Failed> {
    let (answer, done) = tokio::sync::oneshot::channel();
    host.spawn("request", async move {
        // The client may have gone; the work is done all the same.
        drop(answer.send(work.await));
    });
    done.await.map_err(|_| {
        Failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "migrated is stopping".to_owned(),
        )
    })
}

async fn predict(
    State(host): State<Shared>,
    Json(request): Json<MoveRequest>,
) -> Result<Json<Prediction>, Failed> {
    Ok(Json(deploy::predict(&host, &request).await?))
}

async fn list_migrations(State(host): State<Shared>) -> Json<Vec<Migration>> {
    Json(status::all_migrations(&host).await)
}

async fn show_migration(
    State(host): State<Shared>,
    Path(id): Path<MigrationId>,
) -> Result<Json<Migration>, Failed> {
    let all = status::all_migrations(&host).await;
    all.into_iter()
        .find(|known| known.id == id)
        .map(Json)
        .ok_or_else(|| {
            Failed(
                StatusCode::NOT_FOUND,
                format!("no host that answers knows migration {id}"),
            )
        })
}

async fn abort_migration(
    State(host): State<Shared>,
    Path(id): Path<MigrationId>,
) -> Result<Json<Migration>, Failed> {
    Ok(Json(status::abort(&host, &id).await?))
}

async fn list_garbage(State(host): State<Shared>, Query(meant): Query<Meant>) -> Json<Collected> {
    Json(garbage::cluster(&host, Verb::List, &meant).await)
}

/// What was begun is finished when the client hangs up.
async fn collect_garbage(
    State(host): State<Shared>,
    Query(meant): Query<Meant>,
) -> Result<Json<Collected>, Failed> {
    let owner = host.clone();
    let collected = async move { garbage::cluster(&owner, Verb::Remove, &meant).await };
    Ok(Json(detached(&host, collected).await?))
}
