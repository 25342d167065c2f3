//! The journal where it is not as it should be: the refusal to start without the newest one, and
//! `migrated --rebuild-journal`, which makes one out of the stamps in the pool and of what the
//! other hosts say. Who owns what is decided by [`migrated_core::rebuild`].

mod ask;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use migrated_core::rebuild::{self, Evidence, Undecided, Verdict, Volume, Word};
use migrated_core::record::Record;
use migrated_core::registry::Registry;
use rehome_runtime::report::Report;
use rehome_runtime::telemetry;
use rehome_shared::api::cluster::Desired;
use rehome_shared::config::daemon::MigratedConfig;
use rehome_shared::ids::{AppName, DatasetId, HostAddr};

use crate::clock;
use crate::desired::DesiredStore;
use crate::ledger::{Ledger, LedgerError, Place, Present};
use crate::peers::Peers;
use crate::service;
use crate::storage::{Storage, StorageError};

/// Why `migrated` does not start with the journal that is there, or without one.
#[derive(Debug, thiserror::Error)]
pub enum Unbelievable {
    /// There is none, and there was one.
    #[error(
        "there is no journal in {}, but {trace}: without it migrated does not know what it may run. Bring it back, or make a new one of the stamps in the pool: {cure}",
        state.display()
    )]
    Absent {
        /// Where it should be.
        state: PathBuf,
        /// What tells that there was one.
        trace: String,
        /// The command.
        cure: String,
    },
    /// It is not the newest.
    #[error(
        "the journal in {} is older than the pool: a volume of {application} is stamped with {owner} as its owner at epoch {epoch}. Bring the newest one back, or make a new one of the stamps in the pool: {cure}",
        state.display()
    )]
    Stale {
        /// Where it is.
        state: PathBuf,
        /// Whose stamp says so.
        application: String,
        /// The owner on the stamp.
        owner: HostAddr,
        /// The epoch on the stamp.
        epoch: String,
        /// The command.
        cure: String,
    },
    /// It is damaged.
    #[error(
        "migrated does not start with a journal that it cannot believe; to make a new one of the stamps in the pool: {cure}"
    )]
    Damaged {
        /// The command.
        cure: String,
        /// The cause.
        #[source]
        source: LedgerError,
    },
    /// It cannot be used.
    #[error("the journal cannot be used")]
    Ledger(#[from] LedgerError),
    /// The pool does not say what is in it.
    #[error("the volumes cannot be listed")]
    Storage(#[from] StorageError),
}

/// Opens the journal, or begins one on a host that never had one.
///
/// # Errors
/// [`Unbelievable`]: without the newest journal nothing may be run or given away.
///
/// # Cancel safety
/// Cancel safe.
pub async fn open_ledger(
    place: Place,
    config: &MigratedConfig,
    path: &Path,
    desired: &Desired,
    storage: &dyn Storage,
) -> Result<Ledger, Unbelievable> {
    let cure = format!("migrated --rebuild-journal --config {}", path.display());
    let state = config.state.clone();
    let volumes = volumes(storage).await?;
    if matches!(place.look()?, Present::Nothing)
        && let Some(trace) = trace(desired, &volumes)
    {
        return Err(Unbelievable::Absent { state, trace, cure });
    }
    let ledger = match Ledger::open(place) {
        Err(source @ LedgerError::Corrupt { .. }) => {
            return Err(Unbelievable::Damaged { cure, source });
        }
        opened => opened?,
    };
    let unknown = ledger.read(|registry| rebuild::unknown_to(registry, &config.address, &volumes));
    match unknown {
        None => Ok(ledger),
        Some(stamp) => Err(Unbelievable::Stale {
            state,
            application: stamp.application.to_string(),
            owner: stamp.owner,
            epoch: stamp.epoch.to_string(),
            cure,
        }),
    }
}

/// What tells that there was a journal.
fn trace(desired: &Desired, volumes: &[Volume]) -> Option<String> {
    let mut of: Vec<&str> = volumes
        .iter()
        .filter_map(|volume| volume.stamp.as_ref())
        .map(|stamp| stamp.application.as_str())
        .collect();
    of.sort_unstable();
    of.dedup();
    if !of.is_empty() {
        return Some(format!("the pool holds volumes of {}", of.join(", ")));
    }
    let generation = desired.generation;
    (generation.0 > 0).then(|| format!("this host follows deployment {generation}"))
}

async fn volumes(storage: &dyn Storage) -> Result<Vec<Volume>, StorageError> {
    let known = storage.list().await?.into_iter();
    Ok(known
        .map(|info| Volume {
            dataset: info.dataset,
            stamp: info.stamp,
            live: info.live,
        })
        .collect())
}

/// What an operator says about the other hosts.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Hosts that know the deployment, where this one has lost it too.
    pub ask: Vec<HostAddr>,
    /// There is no other host.
    pub alone: bool,
    /// Hosts that are gone for good.
    pub without: Vec<HostAddr>,
    /// Applications that are left behind where they are undecided.
    pub leave: BTreeSet<AppName>,
}

/// `migrated --rebuild-journal`.
#[must_use]
pub fn main(config: &Path, options: &Options) -> ExitCode {
    let loaded = match service::load(config) {
        Ok(loaded) => loaded,
        Err(error) => return service::complain(&error, ExitCode::from(2)),
    };
    // What it decides is said on stdout; the log holds what a person must know besides.
    if let Err(error) = telemetry::init_logs(telemetry::LogFormat::Text, "warn") {
        return service::complain(&error.into(), ExitCode::from(2));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let done = runtime
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(run(&loaded, options)));
    match done {
        Ok(Made::Whole) => ExitCode::SUCCESS,
        Ok(Made::But) => ExitCode::FAILURE,
        Err(error) => service::complain(&error, ExitCode::FAILURE),
    }
}

/// What the new journal says.
enum Made {
    /// Who owns what.
    Whole,
    /// The same, but for what was left undecided.
    But,
}

async fn run(config: &MigratedConfig, options: &Options) -> anyhow::Result<Made> {
    service::make_private(&config.state)?;
    let place = Place::take(&config.state).context("is migrated still running? Stop it first")?;
    let storage = service::open_storage(config).await?;
    let volumes = volumes(&storage).await.context("cannot list the volumes")?;
    let present = place.look()?;
    if let Present::Damaged(corrupt) = &present {
        ensure!(
            !corrupt.is_foreign(),
            "{corrupt}: it may be whole; start the version of migrated that wrote it"
        );
    }
    let desired =
        DesiredStore::open(&config.state).context("cannot read the deployment in force")?;
    let peers = Peers::new(service::open_tls(config)?, config.peer_port);
    let words = ask::everybody(config, &peers, &desired, &volumes, options).await?;
    let aside = aside(&present, &config.address, &volumes, &words)?;
    let handoffs = ask::handoffs(config, &peers, &volumes, options).await?;
    let desired = desired.get();
    let limits = desired.applications.iter().map(|(name, spec)| {
        let limits = config.migration.with(&spec.migration);
        (name.clone(), limits)
    });
    let evidence = Evidence {
        here: &config.address,
        desired: &desired,
        limits: &limits.collect(),
        now: clock::now(),
        volumes: &volumes,
        words: &words,
        handoffs: &handoffs,
        leave: &options.leave,
    };
    let verdicts =
        rebuild::decide(&evidence, &mut DatasetId::generate).map_err(|all| undecided(&all))?;
    let records: Vec<Record> = verdicts.iter().flat_map(|v| v.records.clone()).collect();
    if let Some(name) = aside {
        let kept = place.set_aside(&name)?;
        say(&format!(
            "the journal that was there is kept as {}",
            kept.display()
        ));
    }
    place.begin_with(&records)?;
    Ok(tell(&verdicts, &volumes))
}

/// Whether there is a journal to set aside, and under which name. The newest one is never, unless
/// it left something undecided.
fn aside(
    present: &Present,
    here: &HostAddr,
    volumes: &[Volume],
    words: &[Word],
) -> anyhow::Result<Option<String>> {
    let now = clock::compact(clock::now());
    match present {
        Present::Nothing => Ok(None),
        Present::Damaged(_) => Ok(Some(format!("journal.damaged-{now}"))),
        Present::Journal(registry) if is_newest(registry, here, volumes, words) => bail!(
            "there is a journal, it can be read, and neither the pool nor another host knows of a newer one: nothing was changed"
        ),
        Present::Journal(_) => Ok(Some(format!("journal.stale-{now}"))),
    }
}

fn is_newest(registry: &Registry, here: &HostAddr, volumes: &[Volume], words: &[Word]) -> bool {
    let begun_anew = registry.is_hearsay();
    let undecided = registry.left().next().is_some();
    !begun_anew
        && !undecided
        && rebuild::unknown_to(registry, here, volumes).is_none()
        && rebuild::forgotten(registry, here, words).is_none()
}

fn undecided(all: &[Undecided]) -> anyhow::Error {
    let lines = all.iter().map(|one| {
        let why = Report(one);
        if one.may_be_left() {
            let leave = format!("--leave {}", one.application());
            format!("{why} (to leave it as it is, and decide of it later: {leave})")
        } else {
            why.to_string()
        }
    });
    let lines: Vec<String> = lines.collect();
    anyhow::anyhow!(
        "it is not certain who owns what, and nothing was changed\n{}",
        lines.join("\n")
    )
}

fn tell(verdicts: &[Verdict], volumes: &[Volume]) -> Made {
    for verdict in verdicts {
        say(&format!("{}: {}", verdict.application, verdict.why));
    }
    for volume in volumes.iter().filter(|volume| volume.stamp.is_none()) {
        let dataset = &volume.dataset;
        say(&format!(
            "volume {dataset} has no stamp that can be read; it is left as it is"
        ));
    }
    let left = verdicts.iter().filter(|verdict| verdict.left);
    let left: Vec<&str> = left.map(|verdict| verdict.application.as_str()).collect();
    if left.is_empty() {
        say("the journal is made; start migrated");
        return Made::Whole;
    }
    say(&format!(
        "the journal is made, but for {}; start migrated, and `rehome status` names what can be done. Where the cause is put right, this command decides again",
        left.join(", ")
    ));
    Made::But
}

fn say(line: &str) {
    // Nobody is left to tell when stdout is closed; the journal is made all the same.
    drop(writeln!(std::io::stdout(), "{line}"));
}

#[cfg(test)]
mod tests;
