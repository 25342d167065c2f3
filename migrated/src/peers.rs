//! The other hosts: requests to them, and the gossip that keeps deployments and adverts in step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use rehome_runtime::http_client::{ClientError, HttpClient};
use rehome_runtime::report::Report;
use rehome_runtime::tls::{PeerIdentity, Tls};
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::{Gossip, HostReport};
use rehome_shared::ids::HostAddr;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::desired;
use crate::fence;
use crate::host::Host;

/// The most that a short request to another host may take.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// How often hosts tell each other when nothing changes.
const REPEAT: Duration = Duration::from_secs(3);

/// The way to other hosts.
#[derive(Debug, Clone)]
pub struct Peers {
    tls: Tls,
    port: u16,
}

impl Peers {
    /// By this host's identity.
    #[must_use]
    pub fn new(tls: Tls, port: u16) -> Self {
        Self { tls, port }
    }

    /// Whom this host's own certificate names.
    #[must_use]
    pub fn own_identity(&self) -> PeerIdentity {
        self.tls.own_identity()
    }

    /// A client of one host, which must prove that it is that host.
    #[must_use]
    pub fn client(&self, host: &HostAddr) -> HttpClient {
        HttpClient::tls(host, self.port, &self.tls).with_connect_timeout(Duration::from_secs(3))
    }

    /// A short request.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// A dropped call may have had its effect.
    pub async fn request<Req, Res>(
        &self,
        host: &HostAddr,
        method: Method,
        path: &str,
        body: Option<&Req>,
    ) -> Result<Res, ClientError>
    where
        Req: Serialize + Sync,
        Res: DeserializeOwned,
    {
        self.client(host)
            .request_json(method, path, body, DEADLINE)
            .await
    }

    /// What a host says of itself.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn report(&self, host: &HostAddr) -> Result<HostReport, ClientError> {
        self.request(host, Method::GET, "/peer/v1/host", None::<&()>)
            .await
    }

    /// The same for who gives up what an operator asked for when a host says nothing: see
    /// [`once_more`].
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn report_patiently(&self, host: &HostAddr) -> Result<HostReport, ClientError> {
        once_more(|| self.report(host)).await
    }

    /// The same, but that a host is asked only once which an operator has called fenced.
    ///
    /// # Errors
    /// [`ClientError`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn report_unless_gone(
        &self,
        host: &HostAddr,
        fenced: &BTreeSet<HostAddr>,
    ) -> Result<HostReport, ClientError> {
        if fenced.contains(host) {
            self.report(host).await
        } else {
            self.report_patiently(host).await
        }
    }
}

/// Asks what may be asked twice, and once more when nothing was heard: a machine may stand still
/// for longer than a connection or an answer is waited for.
///
/// # Errors
/// The last answer's.
///
/// # Cancel safety
/// That of what is asked.
pub async fn once_more<T, F>(ask: impl Fn() -> F + Send) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>> + Send,
{
    match ask().await {
        Err(
            ClientError::Unreachable { .. }
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. },
        ) => ask().await,
        answer => answer,
    }
}

/// Since when other hosts do not answer.
#[derive(Debug, Default)]
pub struct Silence {
    since: Mutex<BTreeMap<HostAddr, Instant>>,
}

impl Silence {
    fn since(&self) -> MutexGuard<'_, BTreeMap<HostAddr, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, peer: &HostAddr, answered: bool) {
        let mut since = self.since();
        if answered {
            since.remove(peer);
        } else {
            since.entry(peer.clone()).or_insert_with(Instant::now);
        }
    }

    /// How long a host has not answered; nothing when it did, or was not asked yet.
    #[must_use]
    pub fn of(&self, peer: &HostAddr) -> Option<Duration> {
        self.since().get(peer).map(Instant::elapsed)
    }

    /// The hosts that have not answered for at least so long.
    #[must_use]
    pub fn longer_than(&self, time: Duration) -> BTreeSet<HostAddr> {
        let since = self.since();
        let silent = since.iter().filter(|(_, since)| since.elapsed() >= time);
        silent.map(|(peer, _)| peer.clone()).collect()
    }
}

/// What this host tells others.
#[must_use]
pub fn gossip(host: &Host) -> Gossip {
    let desired = host.desired.get();
    Gossip {
        host: host.address.clone(),
        generation: desired.generation,
        desired_hash: desired::hash(&desired),
        adverts: host.routes.tell(&host.address),
        known: fence::told(host),
    }
}

/// Keeps telling every other host, at once when something changes. Runs until the stop.
///
/// # Cancel safety
/// Cancel safe: what is not told is told at the next turn.
pub async fn follow(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let mut tellers = BTreeMap::new();
    let mut desired = host.desired.watch();
    let mut routes = host.routes.changes();
    loop {
        let others = host.other_hosts();
        tellers.retain(|peer, stop: &mut tokio_util::sync::DropGuard| {
            let _: &tokio_util::sync::DropGuard = stop;
            others.contains(peer)
        });
        for peer in others {
            tellers.entry(peer.clone()).or_insert_with(|| {
                let token = stop.child_token();
                host.spawn("gossip", tell(Arc::clone(&host), peer, token.clone()));
                token.drop_guard()
            });
        }
        // Every arm waits on a level.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = desired.changed() => {}
            _ = routes.changed() => {}
        }
    }
}

/// Tells one host until it is no longer one of the others.
async fn tell(host: Arc<Host>, peer: HostAddr, stop: tokio_util::sync::CancellationToken) {
    let mut desired = host.desired.watch();
    let mut routes = host.routes.changes();
    let mut reachable = true;
    loop {
        desired.borrow_and_update();
        routes.borrow_and_update();
        let result = stop.run_until_cancelled(exchange(&host, &peer)).await;
        if let Some(result) = &result {
            let answered = result.is_ok() || result.as_ref().is_err_and(|e| e.status().is_some());
            host.silence.note(&peer, answered);
        }
        match result {
            None => return,
            Some(Ok(())) => reachable = true,
            Some(Err(error)) if reachable => {
                reachable = false;
                let error = Report(&error).to_string();
                tracing::warn!(peer.host = %peer, error, "a host of the deployment does not answer");
            }
            Some(Err(_)) => {}
        }
        // A host that does not answer is asked again at the pause, not at every change.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = desired.changed(), if reachable => {}
            _ = routes.changed(), if reachable => {}
            () = tokio::time::sleep(if reachable { REPEAT } else { Duration::from_secs(1) }) => {}
        }
    }
}

async fn exchange(host: &Host, peer: &HostAddr) -> Result<(), ClientError> {
    let ours = gossip(host);
    let theirs: Gossip = host
        .peers
        .request(peer, Method::POST, "/peer/v1/gossip", Some(&ours))
        .await?;
    hear(host, peer, &theirs).await
}

/// Takes up what another host told, and fetches its deployment when that is newer.
///
/// # Errors
/// [`ClientError`] when the deployment cannot be fetched.
///
/// # Cancel safety
/// Cancel safe: it is told again.
pub async fn hear(host: &Host, peer: &HostAddr, theirs: &Gossip) -> Result<(), ClientError> {
    host.routes.hear(&theirs.adverts);
    fence::learn(host, theirs.known.clone()).await;
    host.ledger
        .read(|registry| host.rivals.hear(registry, peer, &theirs.known));
    let ours = host.desired.get();
    let newer =
        (theirs.generation, theirs.desired_hash.clone()) > (ours.generation, desired::hash(&ours));
    if newer && theirs.generation.0 > 0 {
        let newer: Desired = host
            .peers
            .request(peer, Method::GET, "/peer/v1/desired", None::<&()>)
            .await?;
        if let Err(error) = host.desired.accept(newer).await {
            let error = Report(&error).to_string();
            tracing::warn!(error, peer.host = %peer, "a newer deployment cannot be taken up");
        }
        host.kick();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn silence() -> ClientError {
        ClientError::Timeout {
            endpoint: "h2".to_owned(),
            limit: DEADLINE,
            what: "no answer came",
        }
    }

    /// Asks a host that answers with these errors first; says how often it was asked.
    async fn asked(errors: usize, error: fn() -> ClientError) -> (bool, usize) {
        let count = AtomicUsize::new(0);
        let answer = once_more(|| async {
            if count.fetch_add(1, Ordering::Relaxed) < errors {
                Err(error())
            } else {
                Ok(())
            }
        });
        (answer.await.is_ok(), count.into_inner())
    }

    #[tokio::test]
    async fn a_host_that_was_slow_for_a_moment_is_asked_once_more() {
        assert_eq!(asked(0, silence).await, (true, 1));
        assert_eq!(asked(1, silence).await, (true, 2));
        assert_eq!(asked(2, silence).await, (false, 2));
        let unreachable = || ClientError::Unreachable {
            endpoint: "h2".to_owned(),
            source: ErrorKind::TimedOut.into(),
        };
        assert_eq!(asked(1, unreachable).await, (true, 2));
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer() {
        let refusal = || ClientError::Status {
            endpoint: "h2".to_owned(),
            status: http::StatusCode::CONFLICT,
            reply: rehome_shared::api::ErrorReply {
                error: "no".to_owned(),
                host: None,
            },
        };
        assert_eq!(asked(1, refusal).await, (false, 1));
    }
}
