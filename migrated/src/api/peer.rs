//! `/peer/v1/…`: what hosts say to each other. See [`rehome_shared::api::peer`].
//!
//! Over mutual TLS every request carries the identity of the host that it comes from. A request
//! without one came over the Unix socket, from root of this very host: it speaks for this host.

use axum::extract::{Extension, Path, Query, State};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::TryStreamExt;
use http::StatusCode;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_runtime::tls::PeerIdentity;
use rehome_shared::api::cluster::{
    Desired, FailoverReply, FailoverRequest, Migration, MoveRequest, Prediction,
};
use rehome_shared::api::gc::{HostGarbage, Meant};
use rehome_shared::api::peer::{
    Accepted, FailoverOffer, Gossip, HandoffRef, HandoffState, HandoffView, HostReport, KeptVolume,
    Offer, PreflightReply, Ready, Received, StreamProgress, StreamQuery, VerifyRequest,
    VolumesQuery, VolumesReply,
};
use rehome_shared::ids::{DatasetId, MigrationId, StreamId};
use serde::Deserialize;

use super::{Failed, Shared};
use crate::garbage::{self, Verb};
use crate::{destination, failover, migrations, peers, prediction, status};

pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/peer/v1/host", get(report))
        .route("/peer/v1/preflight", post(preflight))
        .route("/peer/v1/desired", get(desired).put(accept))
        .route("/peer/v1/gossip", post(gossip))
        .route("/peer/v1/predictions", post(predict))
        .route("/peer/v1/volumes", post(volumes))
        .route("/peer/v1/gc", get(list_garbage).post(collect_garbage))
        .route("/peer/v1/failovers", post(take_over))
        .route("/peer/v1/failovers/examine", post(examine))
        .route("/peer/v1/volumes/{dataset}", get(volume))
        .route("/peer/v1/migrations/{id}", get(migration))
        .route("/peer/v1/migrations/{id}/abort", post(abort_migration))
        .route("/peer/v1/handoffs/{id}", get(view))
        .route("/peer/v1/handoffs/{id}/prepare", post(prepare))
        .route("/peer/v1/handoffs/{id}/stream", put(stream).get(progress))
        .route("/peer/v1/handoffs/{id}/verify", post(verify))
        .route("/peer/v1/handoffs/{id}/start", post(start))
        .route("/peer/v1/handoffs/{id}/grant", post(grant))
        .route("/peer/v1/handoffs/{id}/abort", post(abort))
        .route("/peer/v1/handoffs/{id}/close", post(close))
}

type Peer = Option<Extension<PeerIdentity>>;

/// The host that speaks.
fn identity(peer: Peer, host: &Shared) -> PeerIdentity {
    peer.map_or_else(|| host.peers.own_identity(), |Extension(identity)| identity)
}

async fn report(State(host): State<Shared>) -> Json<HostReport> {
    Json(status::report(&host))
}

async fn preflight(
    State(host): State<Shared>,
    Json(desired): Json<Desired>,
) -> Json<PreflightReply> {
    Json(status::preflight(&host, &desired).await)
}

async fn desired(State(host): State<Shared>) -> Json<Desired> {
    Json(host.desired.get().as_ref().clone())
}

async fn accept(
    State(host): State<Shared>,
    Json(desired): Json<Desired>,
) -> Result<Json<Accepted>, Failed> {
    let generation = host.desired.accept(desired).await?;
    host.kick();
    Ok(Json(Accepted { generation }))
}

async fn gossip(
    State(host): State<Shared>,
    peer: Peer,
    Json(theirs): Json<Gossip>,
) -> Result<Json<Gossip>, Failed> {
    if !identity(peer, &host).is(&theirs.host) {
        return Err(destination::TakeError::Forbidden.into());
    }
    peers::hear(&host, &theirs.host, &theirs)
        .await
        .map_err(|error: ClientError| {
            Failed(StatusCode::BAD_GATEWAY, Report(&error).to_string())
        })?;
    Ok(Json(peers::gossip(&host)))
}

async fn predict(State(host): State<Shared>, Json(request): Json<MoveRequest>) -> Json<Prediction> {
    Json(prediction::predict(&host, &request).await)
}

async fn volumes(
    State(host): State<Shared>,
    Json(query): Json<VolumesQuery>,
) -> Result<Json<VolumesReply>, Failed> {
    let found = prediction::volumes(&host, &query).await;
    Ok(Json(found.map_err(destination::TakeError::Storage)?))
}

async fn list_garbage(State(host): State<Shared>, Query(meant): Query<Meant>) -> Json<HostGarbage> {
    Json(garbage::here(&host, Verb::List, &meant).await)
}

async fn collect_garbage(
    State(host): State<Shared>,
    Query(meant): Query<Meant>,
) -> Json<HostGarbage> {
    Json(garbage::here(&host, Verb::Remove, &meant).await)
}

/// The work goes on when the other host hangs up: it asks again, and finds it done.
async fn take_over(
    State(host): State<Shared>,
    Json(request): Json<FailoverRequest>,
) -> Result<Json<FailoverReply>, Failed> {
    let owner = host.clone();
    let work = async move { failover::carry_out(&owner, &request).await };
    Ok(Json(super::local::detached(&host, work).await??))
}

async fn examine(
    State(host): State<Shared>,
    Json(request): Json<FailoverRequest>,
) -> Json<FailoverOffer> {
    Json(failover::examine(&host, &request).await)
}

async fn volume(
    State(host): State<Shared>,
    Path(dataset): Path<DatasetId>,
) -> Result<Json<KeptVolume>, Failed> {
    let info = host.storage.inspect(&dataset).await;
    let info = info.map_err(destination::TakeError::from)?;
    let snapshots = info.map(|info| info.snapshots).unwrap_or_default();
    Ok(Json(KeptVolume {
        snapshots: snapshots.into_iter().map(|s| s.guid).collect(),
    }))
}

async fn migration(
    State(host): State<Shared>,
    Path(id): Path<MigrationId>,
) -> Result<Json<Migration>, Failed> {
    let known = migrations::all(&host)
        .into_iter()
        .find(|known| known.id == id);
    known.map(Json).ok_or_else(|| {
        Failed(
            StatusCode::NOT_FOUND,
            format!("this host coordinates no migration {id}"),
        )
    })
}

async fn abort_migration(
    State(host): State<Shared>,
    Path(id): Path<MigrationId>,
) -> Result<Json<Migration>, Failed> {
    Ok(Json(migrations::abort(
        &host,
        &id,
        "an operator called it off",
    )?))
}

#[derive(Debug, Deserialize)]
struct WaitQuery {
    seen: Option<HandoffState>,
    wait: Option<u64>,
}

/// The longest that a question is held.
const LONGEST_WAIT: u64 = 10;

async fn view(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    let wait = std::time::Duration::from_secs(query.wait.unwrap_or(0).min(LONGEST_WAIT));
    Ok(Json(
        destination::view_after(&host, &peer, &id, query.seen, wait).await?,
    ))
}

async fn prepare(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(offer): Json<Offer>,
) -> Result<Json<Ready>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::prepare(&host, &peer, &id, offer).await?))
}

/// The body is a stream of any length, read as fast as the storage takes it.
async fn stream(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Query(query): Query<StreamQuery>,
    body: axum::body::Body,
) -> Result<Json<Received>, Failed> {
    let peer = identity(peer, &host);
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let reader = tokio_util::io::StreamReader::new(bytes);
    Ok(Json(
        destination::receive(&host, &peer, &id, query, reader).await?,
    ))
}

#[derive(Debug, Deserialize)]
struct WhichStream {
    stream: StreamId,
}

async fn progress(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Query(query): Query<WhichStream>,
) -> Result<Json<StreamProgress>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::progress(
        &host,
        &peer,
        &id,
        &query.stream,
    )?))
}

async fn verify(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(request): Json<VerifyRequest>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::verify(&host, &peer, &id, request).await?))
}

async fn start(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(message): Json<HandoffRef>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::start(&host, &peer, &id, message).await?))
}

async fn grant(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(message): Json<HandoffRef>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::grant(&host, &peer, &id, message).await?))
}

async fn abort(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(_message): Json<HandoffRef>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::abort(&host, &peer, &id).await?))
}

async fn close(
    State(host): State<Shared>,
    peer: Peer,
    Path(id): Path<MigrationId>,
    Json(_message): Json<HandoffRef>,
) -> Result<Json<HandoffView>, Failed> {
    let peer = identity(peer, &host);
    Ok(Json(destination::close(&host, &peer, &id).await?))
}
