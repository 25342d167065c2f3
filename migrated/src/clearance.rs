//! A host asks before it starts: what its journal says may have been overtaken while it was gone.
//!
//! After a start of the daemon, an application with volumes that does not run is started only
//! after every other host was asked which epoch it knows of it, and answered or stayed silent for
//! three seconds. After a start of the host itself the network may need longer than that, and a
//! host whose daemon refuses connections, or answers with an error, is there: they are waited for up to
//! `limits.start_alone_after`. All are asked at once, once for all applications. What the answers mean is
//! [`migrated_core::fencing`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use migrated_core::fencing::{self, Standing, Word};
use migrated_core::registry::Registry;
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::{Basis, HostReport};
use rehome_shared::ids::{AppName, HostAddr};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fence;
use crate::host::Host;

/// A host that stays silent for so long has nothing to say.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// The pause before a host that does not answer is asked again meanwhile: its daemon may be
/// starting as well.
const PAUSE: Duration = Duration::from_millis(200);

/// The pause before all are asked again about what may not be started.
const AGAIN: Duration = Duration::from_secs(5);

/// What is not cleared yet.
#[derive(Debug)]
pub struct Clearance {
    /// By application, why it is withheld after all were asked.
    pending: Mutex<BTreeMap<AppName, Option<String>>>,
    /// Whether all were asked once.
    asked: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

impl Clearance {
    /// At the start of the daemon: everything with volumes that the journal calls this host's.
    /// What becomes this host's later was granted, claimed or born after the others were asked.
    #[must_use]
    pub fn at_start(registry: &Registry) -> Self {
        let pending = registry
            .applications()
            .keys()
            .filter(|name| {
                registry
                    .owned(name)
                    .is_some_and(|owned| !owned.volumes.is_empty())
            })
            .map(|name| (name.clone(), None))
            .collect();
        Self {
            pending: Mutex::new(pending),
            asked: watch::Sender::new(false),
            changed: watch::Sender::new(0),
        }
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<AppName, Option<String>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an application may be started, as far as other hosts are concerned.
    #[must_use]
    pub fn is_clear(&self, application: &AppName) -> bool {
        !self.pending().contains_key(application)
    }

    /// Why an application may not be started although all were asked.
    #[must_use]
    pub fn withheld(&self, application: &AppName) -> Option<String> {
        self.pending().get(application).cloned().flatten()
    }

    /// Waits until an application may be started.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn of(&self, application: &AppName) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if self.is_clear(application) {
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until all were asked once.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn asked(&self) {
        let mut asked = self.asked.subscribe();
        // The sender lives as long as this does.
        drop(asked.wait_for(|asked| *asked).await);
    }

    fn clear(&self, application: &AppName) {
        self.pending().remove(application);
        self.changed.send_modify(|count| *count += 1);
    }

    fn withhold(&self, application: &AppName, reason: String) {
        let mut pending = self.pending();
        if let Some(known) = pending.get_mut(application) {
            if known.as_ref() != Some(&reason) {
                tracing::error!(%application, reason, "it is not started");
            }
            *known = Some(reason);
        }
    }
}

/// Asks, and goes on asking while anything is withheld. Ends when all is cleared.
///
/// # Cancel safety
/// Cancel safe: nothing is cleared that was not asked for.
pub async fn ask(host: Arc<Host>) {
    let stop = host.supervisor.token().clone();
    let asking = async {
        loop {
            let reports = hear(&host, Patience::at_start(&host)).await;
            let told = reports.iter().flat_map(|report| report.known.clone());
            fence::learn(&host, told.collect()).await;
            settle(&host, &reports).await;
            host.clearance.asked.send_replace(true);
            host.kick();
            if host.clearance.pending().is_empty() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let _stopped_or_done = stop.run_until_cancelled(asking).await;
}

/// What every other host says of itself; of those that do not answer in time, nothing. A newer
/// deployment that one of them follows is taken up, and the hosts that it adds are asked as well.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn hear(host: &Host, patience: Patience) -> Vec<HostReport> {
    let mut asked = BTreeSet::new();
    let mut reports: Vec<HostReport> = Vec::new();
    loop {
        let mut others = host.other_hosts();
        others.retain(|other| !asked.contains(other));
        if others.is_empty() {
            return reports;
        }
        let began = Instant::now();
        let answers = others
            .iter()
            .map(|peer| hear_one(host, peer, patience, began));
        let answers = futures_util::future::join_all(answers).await;
        reports.extend(answers.into_iter().flatten());
        asked.extend(others);
        let newest = reports.iter().max_by_key(|report| report.generation);
        if let Some(report) = newest {
            follow(host, report).await;
        }
    }
}

/// How long a host that does not answer is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// One that says nothing at all.
    silent: Duration,
    /// One that is there, and whose daemon does not say what it knows.
    refusing: Duration,
}

impl Patience {
    /// Of a host that serves.
    pub(crate) const SHORT: Self = Self {
        silent: SILENCE,
        refusing: SILENCE,
    };

    /// After a start of the daemon.
    fn at_start(host: &Host) -> Self {
        let alone = host.config().limits.start_alone_after.max(SILENCE);
        let host_restarted = host.memory().host_restarted;
        Self {
            silent: if host_restarted { alone } else { SILENCE },
            refusing: alone,
        }
    }
}

async fn hear_one(
    host: &Host,
    peer: &HostAddr,
    patience: Patience,
    began: Instant,
) -> Option<HostReport> {
    loop {
        // Nobody waits for a host that an operator called fenced.
        let fenced = host.desired.get().fenced.contains(peer);
        let answer = tokio::time::timeout(SILENCE, host.peers.report(peer)).await;
        let limit = match answer {
            Ok(Ok(report)) => return Some(report),
            _ if fenced => SILENCE,
            Ok(Err(error)) if is_there(&error) => patience.refusing,
            Ok(Err(_)) | Err(_) => patience.silent,
        };
        if began.elapsed() >= limit {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a host that did not say what it knows is there all the same, as one is whose daemon is
/// starting or whose certificate is not accepted.
fn is_there(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
        ),
        ClientError::Broken { .. }
        | ClientError::Status { .. }
        | ClientError::BadAnswer { .. }
        | ClientError::TooLong { .. } => true,
        ClientError::Timeout { .. }
        | ClientError::Source { .. }
        | ClientError::Encode(_)
        | ClientError::Request(_) => false,
    }
}

/// Follows a host's deployment when it is newer than this host's.
async fn follow(host: &Host, report: &HostReport) {
    if report.generation <= host.desired.get().generation {
        return;
    }
    let newer: Result<Desired, ClientError> = host
        .peers
        .request(&report.host, Method::GET, "/peer/v1/desired", None::<&()>)
        .await;
    // What cannot be taken up now comes by gossip.
    if let Ok(newer) = newer
        && let Err(error) = host.desired.accept(newer).await
    {
        let error = Report(&error).to_string();
        tracing::warn!(error, "a newer deployment cannot be taken up");
    }
}

/// What reports say of an application, as far as it means anything for this host.
pub(crate) fn words(host: &Host, reports: &[HostReport], application: &AppName) -> Vec<Word> {
    host.ledger
        .read(|registry| said(registry, &host.address, reports, application))
        .into_iter()
        .map(|(word, _)| word)
        .collect()
}

/// What reports say of an application, and how their hosts know it. That one says of itself that
/// it may be the owner is no claim beside an owner of the same epoch, who knows it.
fn said(
    registry: &Registry,
    here: &HostAddr,
    reports: &[HostReport],
    application: &AppName,
) -> Vec<(Word, Basis)> {
    let owned = registry.owned(application).map(|owned| owned.epoch);
    let others = reports.iter().filter(|report| report.host != *here);
    let known = others.filter_map(|report| Some((report, report.known_owner(application)?)));
    known
        .filter(|(_, known)| known.basis != Basis::Open || owned != Some(known.epoch))
        .map(|(report, known)| {
            let word = Word {
                speaker: report.host.clone(),
                epoch: known.epoch,
                owner: known.owner.clone(),
            };
            (word, known.basis)
        })
        .collect()
}

/// What counts of it before anything starts here.
fn words_before_start(
    registry: &Registry,
    here: &HostAddr,
    reports: &[HostReport],
    application: &AppName,
) -> Vec<Word> {
    let said = said(registry, here, reports, application);
    let by_journal = said.iter().filter(|(_, basis)| *basis == Basis::Journal);
    let first_hand: Vec<Word> = by_journal.map(|(word, _)| word.clone()).collect();
    let told = said.into_iter().map(|(word, _)| word).collect();
    fencing::before_start(registry, here, application, told, &first_hand)
}

async fn settle(host: &Arc<Host>, reports: &[HostReport]) {
    let known: Vec<AppName> = host.ledger.read(fence::concerned);
    for application in known {
        let words = host
            .ledger
            .read(|registry| words_before_start(registry, &host.address, reports, &application));
        match fence::consider(host, &application, words).await {
            Ok(Standing::Clear | Standing::Fenced { .. }) => host.clearance.clear(&application),
            Ok(Standing::Outdated { epoch, speaker }) => host.clearance.withhold(
                &application,
                format!(
                    "{speaker} knows it as this host's at epoch {epoch}, which is newer than this host's journal: stop migrated and bring the newest journal back, or run `migrated --rebuild-journal`, which keeps this one beside the new one"
                ),
            ),
            Ok(Standing::Contested { epoch, owner }) => host.clearance.withhold(
                &application,
                fence::cure(&host.address, &application, epoch, &owner),
            ),
            // Asked again in a moment.
            Err(error) => tracing::error!(%application, %error, "what other hosts say of an application cannot be taken down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use migrated_core::record::Record;
    use rehome_shared::api::peer::VolumeIdentity;
    use rehome_shared::ids::{DatasetId, Epoch, VolumeName};

    use super::*;
    use crate::fixtures::{app, deployment, host, report};

    fn born(name: &str, volumes: &[&str]) -> Record {
        let identity = |name: &&str| VolumeIdentity {
            name: VolumeName::try_new(*name).unwrap(),
            dataset: DatasetId::generate(),
        };
        Record::Born {
            application: app(name),
            volumes: volumes.iter().map(identity).collect(),
        }
    }

    #[tokio::test]
    async fn only_what_has_volumes_and_is_this_hosts_waits_to_be_cleared() {
        let fenced = Record::Fenced {
            application: app("gone"),
            epoch: Epoch(2),
            owner: host("h2"),
            report: None,
        };
        let registry = Registry::replay(&[
            born("db", &["data"]),
            born("web", &[]),
            born("gone", &["data"]),
            fenced,
        ]);
        let clearance = Clearance::at_start(&registry);
        assert!(!clearance.is_clear(&app("db")));
        for free in ["web", "gone", "never heard of"] {
            if let Ok(name) = AppName::try_new(free) {
                assert!(clearance.is_clear(&name), "{free}");
                clearance.of(&name).await;
            }
        }
        let name = app("db");
        let mut waiting = std::pin::pin!(clearance.of(&name));
        let early = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(early.is_err(), "before anybody was asked");
        clearance.withhold(&app("db"), "because".to_owned());
        assert_eq!(clearance.withheld(&app("db")), Some("because".to_owned()));
        clearance.clear(&app("db"));
        waiting.await;
        assert!(clearance.withheld(&app("db")).is_none());
    }

    #[test]
    fn a_host_that_refuses_or_answers_with_an_error_is_not_silent() {
        let unreachable = |kind: io::ErrorKind| ClientError::Unreachable {
            endpoint: "h2".to_owned(),
            source: kind.into(),
        };
        let starting = ClientError::Status {
            endpoint: "h2".to_owned(),
            status: http::StatusCode::SERVICE_UNAVAILABLE,
            reply: rehome_shared::api::ErrorReply {
                error: "starting".to_owned(),
                host: None,
            },
        };
        assert!(is_there(&starting));
        assert!(is_there(&unreachable(io::ErrorKind::ConnectionRefused)));
        assert!(
            is_there(&unreachable(io::ErrorKind::InvalidData)),
            "a certificate"
        );
        for silence in [io::ErrorKind::HostUnreachable, io::ErrorKind::TimedOut] {
            assert!(!is_there(&unreachable(silence)), "{silence}");
        }
    }

    #[test]
    fn a_host_that_says_nothing_of_an_application_has_no_word() {
        let now = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
        let reports = [
            report("h1", &now, &[("db", 7)]),
            report("h2", &now, &[("db", 3)]),
            report("h3", &now, &[("web", 1)]),
        ];
        let words = said(&Registry::default(), &host("h1"), &reports, &app("db"));
        assert_eq!(
            words.len(),
            1,
            "neither its own nor a stranger's: {words:?}"
        );
        let (word, _) = &words[0];
        assert_eq!((word.epoch, &word.owner), (Epoch(3), &host("h2")));
    }

    #[test]
    fn a_host_that_left_it_open_whether_it_is_the_owner_contests_nothing() {
        let now = deployment(1, &[("h1", &["db"]), ("h2", &[])]);
        let registry = Registry::replay(&[born("db", &["data"])]);
        let standing = |epoch: u64, basis: Basis| {
            let mut other = report("h2", &now, &[]);
            let mut known = crate::fixtures::known("db", epoch, "h2");
            known.basis = basis;
            other.known.push(known);
            let words = words_before_start(&registry, &host("h1"), &[other], &app("db"));
            let fenced = BTreeSet::new();
            fencing::stand(&registry, &host("h1"), &app("db"), &words, &fenced)
        };
        assert_eq!(standing(1, Basis::Open), Standing::Clear);
        let contested = Standing::Contested {
            epoch: Epoch(1),
            owner: host("h2"),
        };
        assert_eq!(standing(1, Basis::Journal), contested);
        let newer = Standing::Fenced {
            epoch: Epoch(2),
            owner: host("h2"),
        };
        assert_eq!(standing(2, Basis::Open), newer, "it may own it since");
    }

    /// `h1` gave way to this host, which claimed it without `h2`, that had given it back to `h1`.
    #[test]
    fn a_host_that_gave_way_to_this_one_is_not_made_the_owner_by_another_ones_word() {
        let now = deployment(1, &[("h1", &[]), ("h2", &[]), ("h3", &["db"])]);
        let claimed = Record::Claimed {
            application: app("db"),
            epoch: Epoch(2),
            volumes: Vec::new(),
            fenced: host("h1"),
        };
        let registry = Registry::replay(&[claimed]);
        let words = |basis: Basis| {
            let mut gave_back = report("h2", &now, &[]);
            gave_back.known.push(crate::fixtures::known("db", 3, "h1"));
            let mut gave_way = report("h1", &now, &[]);
            gave_way.known.push(crate::fixtures::known("db", 2, "h3"));
            gave_way.known[0].basis = basis;
            let reports = [gave_back, gave_way];
            let words = words_before_start(&registry, &host("h3"), &reports, &app("db"));
            words.iter().map(|word| word.epoch.0).collect::<Vec<_>>()
        };
        assert_eq!(words(Basis::Journal), [2]);
        assert_eq!(words(Basis::Heard), [3, 2]);
    }
}
