//! Migrations that this host coordinates: beginning one, finding one again after a restart,
//! calling one off, and showing them to people.

mod take_back;

#[cfg(test)]
pub(crate) use take_back::tests::order;
pub use take_back::{Given, Orders, TakeBack};

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrated_core::admission::{self, CannotGive};
use migrated_core::record::{Plan, Record, SourceRecord};
use migrated_core::source::{AfterRelease, Phase, SourceMigration};
use rehome_shared::api::cluster::{Connections, Desired, Migration, MigrationNow, MigrationState};
use rehome_shared::ids::{AppName, Epoch, HostAddr, MigrationId};
use rehome_shared::units::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::host::Host;
use crate::ledger::LedgerError;
use crate::runtime::InstanceState;
use crate::source;
use crate::stream::Meter;

/// The migrations under way, as people see them.
#[derive(Debug, Default)]
pub struct Live {
    runs: Mutex<BTreeMap<MigrationId, Arc<Run>>>,
}

/// One migration under way.
#[derive(Debug)]
pub struct Run {
    report: Mutex<Migration>,
    began: Instant,
    /// Bytes on the wire of the stream under way.
    pub meter: Meter,
    /// Bytes of all streams before they were compressed.
    pub raw: Meter,
    /// When that stream began, and what [`Self::raw`] was then.
    stream_began: Mutex<(Instant, Bytes)>,
    /// Why somebody wants it called off.
    pub abort: watch::Sender<Option<String>>,
    /// What operators order.
    pub orders: Orders,
    /// Cancelled when the application was found to be another host's: the driver ends.
    pub fenced: CancellationToken,
    /// Whether an earlier run of this daemon began it.
    pub found: bool,
    /// Whether the destination may have heard that it is the owner.
    pub granted: AtomicBool,
}

impl Run {
    fn new(report: Migration, found: bool) -> Self {
        Self {
            report: Mutex::new(report),
            began: Instant::now(),
            meter: Meter::default(),
            raw: Meter::default(),
            stream_began: Mutex::new((Instant::now(), Bytes(0))),
            abort: watch::Sender::new(None),
            orders: Orders::default(),
            fenced: CancellationToken::new(),
            found,
            granted: AtomicBool::new(found),
        }
    }

    /// The report, to look or to change.
    pub fn report(&self) -> MutexGuard<'_, Migration> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream begins.
    pub fn stream_begins(&self) {
        self.meter.reset();
        *self
            .stream_began
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (Instant::now(), self.raw.bytes());
    }

    /// What has gone of the stream under way, before it was compressed, and for how long it has.
    #[must_use]
    pub fn streamed(&self) -> (Bytes, Duration) {
        let (began, before) = self.stream_began();
        let sent = self.raw.bytes().0.saturating_sub(before.0);
        (Bytes(sent), began.elapsed())
    }

    fn stream_began(&self) -> (Instant, Bytes) {
        *self
            .stream_began
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A phase begins.
    pub fn enter(&self, phase: &str, round: u32) {
        let mut report = self.report();
        let predicted_window = report.now.as_ref().and_then(|now| now.predicted_window);
        report.now = Some(MigrationNow {
            phase: phase.to_owned(),
            round,
            bytes: Bytes(0),
            rate: Bytes(0),
            predicted_window,
            elapsed: self.began.elapsed(),
            waits: None,
        });
    }

    /// It waits for its turn, for this reason.
    pub fn wait(&self, why: String) {
        self.enter("queue", 0);
        if let Some(now) = self.report().now.as_mut() {
            now.waits = Some(why);
        }
    }

    /// Why it waits, if it does.
    #[must_use]
    pub fn waits(&self) -> Option<String> {
        let now = self.report().now.clone();
        now.and_then(|now| now.waits)
    }

    /// A phase took so long; a phase that happens again adds up.
    pub fn spent(&self, phase: &str, seconds: f64) {
        *self.report().phases.entry(phase.to_owned()).or_default() += seconds;
    }

    /// The window as predicted now.
    pub fn predict(&self, window: Option<f64>) {
        if let Some(now) = self.report().now.as_mut() {
            now.predicted_window = window;
        }
    }

    /// As people see it now.
    #[must_use]
    pub fn view(&self) -> Migration {
        let mut report = self.report().clone();
        let (began, _) = self.stream_began();
        let took = began.elapsed();
        if let Some(now) = report.now.as_mut() {
            now.bytes = self.meter.bytes();
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
            now.rate = Bytes(now.bytes.0.saturating_mul(1000) / millis);
            now.elapsed = self.began.elapsed();
        }
        report
    }
}

impl Live {
    fn runs(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &MigrationId) -> Option<Arc<Run>> {
        self.runs().get(id).cloned()
    }

    /// All of them, as people see them.
    #[must_use]
    pub fn views(&self) -> Vec<Migration> {
        self.runs().values().map(|run| run.view()).collect()
    }

    /// It is over; the journal has its report.
    pub fn remove(&self, id: &MigrationId) {
        self.runs().remove(id);
    }
}

/// All migrations that this host coordinates or coordinated, oldest first.
#[must_use]
pub fn all(host: &Host) -> Vec<Migration> {
    let mut all = host.ledger.read(|registry| registry.history().to_vec());
    for view in host.live.views() {
        if !all.iter().any(|known| known.id == view.id) {
            all.push(view);
        }
    }
    all
}

/// Why a migration cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The deployment does not describe it.
    #[error("the deployment does not describe {0}")]
    Unknown(AppName),
    /// It may not be given away now.
    #[error("it may not be given away now")]
    CannotGive(#[from] CannotGive),
    /// As many as the host's limit are under way.
    #[error("{0} migrations are under way already, as many as this host may send at a time")]
    TooMany(u32),
    /// The journal failed.
    #[error("the journal cannot take it down")]
    Ledger(#[from] LedgerError),
}

/// Begins to move an application: writes the plan down and starts its driver.
///
/// # Errors
/// [`BeginError`]; nothing has begun.
///
/// # Cancel safety
/// A dropped call may leave a plan in the journal without a driver until the next start.
pub async fn begin(
    host: &Arc<Host>,
    application: &AppName,
    to: &HostAddr,
) -> Result<(), BeginError> {
    let desired = host.desired.get();
    let Some(spec) = desired.applications.get(application) else {
        return Err(BeginError::Unknown(application.clone()));
    };
    let most = host.config().limits.concurrent_migrations;
    let limits = host.limits_of(spec);
    let was_running = host
        .instance(application)
        .is_some_and(|instance| instance.state == InstanceState::Running);
    let id = MigrationId::generate();
    let started_at = clock::now();
    let decided = {
        let (application, to, here) = (application.clone(), to.clone(), host.address.clone());
        let generation = desired.generation;
        host.ledger
            .transact(move |registry| {
                let under_way = u32::try_from(registry.sources().len()).unwrap_or(u32::MAX);
                if under_way >= most {
                    return (Vec::new(), Err(BeginError::TooMany(under_way)));
                }
                let Some(owned) = registry.owned(&application) else {
                    return (Vec::new(), Err(CannotGive::NotOwner.into()));
                };
                let plan = Plan {
                    application,
                    to,
                    epoch: owned.epoch,
                    generation,
                    volumes: owned.volumes.clone(),
                    limits,
                    was_running,
                    started_at,
                };
                if let Err(cannot) = admission::may_give(registry, &here, &id, &plan) {
                    return (Vec::new(), Err(cannot.into()));
                }
                let record = Record::Source {
                    migration: id.clone(),
                    step: SourceRecord::Planned(plan.clone()),
                };
                (vec![record], Ok(SourceMigration::begin(id, plan)))
            })
            .await?
    };
    start(host, decided?, false);
    Ok(())
}

/// Takes up the migrations that the journal knows: after a restart.
pub fn recover(host: &Arc<Host>) {
    let open: Vec<SourceMigration> = host
        .ledger
        .read(|registry| registry.sources().values().cloned().collect());
    for migration in open {
        tracing::info!(
            migration.id = %migration.id,
            application = %migration.plan.application,
            phase = migration.phase.name(),
            "takes up a migration that was under way"
        );
        start(host, migration, true);
    }
}

fn start(host: &Arc<Host>, migration: SourceMigration, found: bool) {
    let run = Arc::new(Run::new(report(host, &migration), found));
    host.live
        .runs()
        .insert(migration.id.clone(), Arc::clone(&run));
    host.spawn("migration", source::drive(Arc::clone(host), migration, run));
}

/// What is known of a migration by the journal alone.
pub(crate) fn report(host: &Host, migration: &SourceMigration) -> Migration {
    let plan = &migration.plan;
    Migration {
        id: migration.id.clone(),
        application: plan.application.clone(),
        from: host.address.clone(),
        to: plan.to.clone(),
        state: MigrationState::Running,
        epoch: match &migration.phase {
            Phase::Before(_) | Phase::Ended(_) => plan.epoch,
            Phase::After(_) => plan.epoch.next(),
        },
        generation: plan.generation,
        started_at: clock::rfc3339(plan.started_at),
        rounds: migration.rounds.clone(),
        phases: BTreeMap::new(),
        window_seconds: None,
        predicted_window: None,
        throttled: None,
        bytes: Bytes(migration.rounds.iter().map(|round| round.bytes.0).sum()),
        connections: Connections::default(),
        error: None,
        now: None,
    }
}

/// Why a migration cannot be called off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AbortError {
    /// Nobody knows it here.
    #[error("this host coordinates no migration {0}")]
    Unknown(MigrationId),
    /// It is over.
    #[error("migration {id} is {state} already")]
    Over {
        /// Which.
        id: MigrationId,
        /// How it ended.
        state: &'static str,
    },
    /// The host that coordinates it refuses or does not answer.
    #[error("{host} cannot call it off: {reason}")]
    Coordinator {
        /// That host.
        host: HostAddr,
        /// Why.
        reason: String,
    },
    /// C1 is past.
    #[error(
        "migration {id} is past the point of no return: {application} is {owner}'s, at epoch {epoch}; `rehome status` shows how it stands, and `rehome move {application} --to {from}` brings it back"
    )]
    TooLate {
        /// Which.
        id: MigrationId,
        /// What moved.
        application: AppName,
        /// Who owns it now.
        owner: HostAddr,
        /// At which epoch.
        epoch: Epoch,
        /// Where it was before.
        from: HostAddr,
    },
}

/// Asks for the way back.
///
/// # Errors
/// [`AbortError`].
pub fn abort(host: &Host, id: &MigrationId, reason: &str) -> Result<Migration, AbortError> {
    let open = host
        .ledger
        .read(|registry| registry.sources().get(id).cloned());
    match open.as_ref().map(|migration| &migration.phase) {
        Some(Phase::Before(_)) => {
            let run = host
                .live
                .get(id)
                .ok_or_else(|| AbortError::Unknown(id.clone()))?;
            run.abort.send_replace(Some(reason.to_owned()));
            Ok(run.view())
        }
        Some(Phase::After(_)) => Err(too_late(host, id, open.as_ref())),
        Some(Phase::Ended(_)) | None => {
            let known = all(host).into_iter().find(|known| known.id == *id);
            Err(match known {
                Some(known) => AbortError::Over {
                    id: id.clone(),
                    state: known.state.as_str(),
                },
                None => AbortError::Unknown(id.clone()),
            })
        }
    }
}

fn too_late(host: &Host, id: &MigrationId, open: Option<&SourceMigration>) -> AbortError {
    let Some(migration) = open else {
        return AbortError::Unknown(id.clone());
    };
    let plan = &migration.plan;
    let (owner, epoch) = match &migration.phase {
        Phase::After(AfterRelease::Reclaiming { .. }) => (&host.address, plan.epoch.next().next()),
        Phase::Before(_) | Phase::After(_) | Phase::Ended(_) => (&plan.to, plan.epoch.next()),
    };
    AbortError::TooLate {
        id: id.clone(),
        application: plan.application.clone(),
        owner: owner.clone(),
        epoch,
        from: host.address.clone(),
    }
}

/// The last move of an application, when it ended badly and nobody has asked for the application
/// since: it is not tried again by itself, whatever is deployed beside it.
#[must_use]
pub fn failed<'a>(
    history: &'a [Migration],
    desired: &Desired,
    application: &AppName,
) -> Option<&'a Migration> {
    history
        .iter()
        .rev()
        .find(|past| past.application == *application)
        .filter(|past| {
            past.generation >= desired.asked(application) && past.state != MigrationState::Done
        })
}

#[cfg(test)]
mod tests;
