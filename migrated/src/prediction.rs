//! What a move of an application of this host would take: the rounds and the window that follow
//! from what its volumes hold, what it writes just now, and what earlier moves took.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use migrated_core::convergence;
use migrated_core::convergence::forecast::{Forecast, Outlook, forecast};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::{Migration, MoveRequest, Prediction, Round, Window};
use rehome_shared::api::peer::{VolumeIdentity, VolumesQuery, VolumesReply};
use rehome_shared::config::model::MigrationLimits;
use rehome_shared::ids::{AppName, DatasetId, HostAddr};
use rehome_shared::units::Bytes;
use tokio::time::Instant;

use crate::host::{Host, spec_of};
use crate::runtime::InstanceState;
use crate::source;
use crate::storage::StorageError;

/// So long it is looked at what the application writes.
const SAMPLE: Duration = Duration::from_secs(1);

/// A round of fewer bytes says nothing of the way.
const TELLING: Bytes = Bytes(1 << 20);

/// What would have to be sent.
#[derive(Debug, Default)]
struct Load {
    /// In the first round.
    first: Bytes,
    /// In all.
    whole: Bytes,
    /// The common snapshot of the volumes that have one.
    base: Option<String>,
    /// What could not be found out.
    doubt: Option<String>,
}

/// What a move would take. Nothing is changed; it takes a second to look at what is written.
///
/// # Cancel safety
/// Cancel safe.
pub async fn predict(host: &Host, request: &MoveRequest) -> Prediction {
    let desired = host.desired.get();
    let limits = spec_of(&desired, &request.application)
        .map_or_else(|| host.config().migration, |spec| host.limits_of(&spec));
    let volumes = host
        .ledger
        .read(|registry| {
            registry
                .owned(&request.application)
                .map(|o| o.volumes.clone())
        })
        .unwrap_or_default();
    if volumes.is_empty() {
        return beside();
    }
    let running = host
        .instance(&request.application)
        .is_some_and(|instance| instance.state == InstanceState::Running);
    let (load, dirty) = tokio::join!(
        load(host, &request.to, &volumes),
        written(host, &request.application, running),
    );
    let (shares, wire) = host.ledger.read(|registry| {
        let history = registry.history();
        (
            source::shares(history, &request.application),
            rounds_to(history, &request.to).to_vec(),
        )
    });
    let outlook = Outlook {
        first: load.first,
        whole: load.whole,
        dirty: dirty.unwrap_or_default(),
        bandwidth: bandwidth(host, &wire, &limits),
        fixed: host
            .ledger
            .read(|registry| source::fixed(registry.history(), &request.application)),
        running,
        throttles: true,
    };
    let seen = forecast(&outlook, &limits);
    let basis = basis(
        shares.is_some(),
        !wire.is_empty(),
        dirty,
        load.doubt.as_deref(),
    );
    prediction(&outlook, &load, dirty, &seen, shares, basis)
}

/// An application without volumes starts there before it stops here: there is no window.
fn beside() -> Prediction {
    Prediction {
        bytes: Bytes(0),
        delta: false,
        base: None,
        dirty_rate: None,
        bandwidth: Bytes(0),
        rounds: 0,
        copy_seconds: 0.0,
        window_seconds: 0.0,
        window: None,
        throttled: None,
        gives_up: None,
        basis: "it has no volumes: it starts there before it stops here".to_owned(),
    }
}

fn prediction(
    outlook: &Outlook,
    load: &Load,
    dirty: Option<Bytes>,
    seen: &Forecast,
    shares: Option<Window>,
    basis: String,
) -> Prediction {
    let window = seen.window.as_secs_f64();
    let own = shares
        .unwrap_or_else(source::unmeasured_shares)
        .application
        .min(window);
    Prediction {
        bytes: load.first,
        delta: load.base.is_some(),
        base: load.base.clone(),
        dirty_rate: dirty,
        bandwidth: outlook.bandwidth,
        rounds: u32::try_from(seen.rounds.len()).unwrap_or(u32::MAX),
        copy_seconds: seen.seconds(),
        window_seconds: window,
        window: Some(Window {
            platform: window - own,
            application: own,
        }),
        throttled: Some(seen.throttle.percent()).filter(|percent| *percent > 0),
        gives_up: seen.gives_up.clone(),
        basis,
    }
}

/// What it rests on, for people.
fn basis(moved: bool, measured: bool, dirty: Option<Bytes>, doubt: Option<&str>) -> String {
    let mut parts = vec![if moved {
        "stop, start and the handoff as in its last move from here"
    } else {
        "it was never moved from here: stop and start are taken for ordinary ones"
    }];
    parts.push(if measured {
        "the way as the last move to that host found it"
    } else {
        "no move to that host was measured: a slow way is assumed"
    });
    parts.push(match dirty {
        Some(_) => "what it writes as in the last second",
        None => "what it writes is not known and taken for nothing",
    });
    parts.extend(doubt);
    parts.join("; ")
}

/// The rounds of the last move from here to a host that say something of the way.
fn rounds_to<'a>(history: &'a [Migration], to: &HostAddr) -> &'a [Round] {
    history
        .iter()
        .rev()
        .filter(|past| past.to == *to)
        .map(|past| past.rounds.as_slice())
        .find(|rounds| rounds.iter().any(|round| round.bytes >= TELLING))
        .unwrap_or_default()
}

fn bandwidth(host: &Host, rounds: &[Round], limits: &MigrationLimits) -> Bytes {
    let way = convergence::bandwidth(rounds, limits);
    let most = [limits.bandwidth_limit, host.config().limits.bandwidth];
    most.into_iter().flatten().fold(way, Bytes::min)
}

/// Bytes per second that the application writes now; `None` when nobody can tell.
async fn written(host: &Host, application: &AppName, running: bool) -> Option<Bytes> {
    if !running {
        return Some(Bytes(0));
    }
    let began = Instant::now();
    let before = host.runtime.usage(application).await.ok()?;
    tokio::time::sleep(SAMPLE).await;
    let after = host.runtime.usage(application).await.ok()?;
    let bytes = u128::from(after.written.0.saturating_sub(before.written.0));
    let millis = began.elapsed().as_millis().max(1);
    let rate = bytes * 1000 / millis;
    Some(Bytes(u64::try_from(rate).unwrap_or(u64::MAX)))
}

/// What the first round would send.
async fn load(host: &Host, to: &HostAddr, volumes: &[VolumeIdentity]) -> Load {
    let mut load = Load::default();
    let theirs = match there(host, to, volumes).await {
        Ok(theirs) => theirs,
        Err(reason) => {
            load.doubt = Some(format!("{to} cannot say what it has: {reason}"));
            BTreeMap::new()
        }
    };
    for volume in volumes {
        let guids = theirs.get(&volume.dataset).map(Vec::as_slice);
        match add(host, volume, guids.unwrap_or_default(), &mut load).await {
            Ok(()) => {}
            Err(error) => {
                let error = Report(&error).to_string();
                load.doubt = Some(format!(
                    "volume {} cannot be measured: {error}",
                    volume.name
                ));
            }
        }
    }
    load
}

async fn there(
    host: &Host,
    to: &HostAddr,
    volumes: &[VolumeIdentity],
) -> Result<BTreeMap<DatasetId, Vec<String>>, String> {
    let query = VolumesQuery {
        datasets: volumes
            .iter()
            .map(|volume| volume.dataset.clone())
            .collect(),
    };
    let answer: Result<VolumesReply, _> = host
        .peers
        .request(to, Method::POST, "/peer/v1/volumes", Some(&query))
        .await;
    answer
        .map(|reply| reply.snapshots)
        .map_err(|error| Report(&error).to_string())
}

async fn add(
    host: &Host,
    volume: &VolumeIdentity,
    theirs: &[String],
    load: &mut Load,
) -> Result<(), StorageError> {
    // The storage counts what has reached it.
    host.storage.flush(&volume.dataset).await?;
    let Some(info) = host.storage.inspect(&volume.dataset).await? else {
        return Ok(());
    };
    load.whole = load.whole.saturating_add(info.used);
    let base = info
        .snapshots
        .iter()
        .rev()
        .find(|s| theirs.contains(&s.guid));
    let bytes = match base {
        None => info.used,
        Some(base) => {
            load.base = Some(base.name.clone());
            host.storage
                .changed_since(&volume.dataset, &base.name)
                .await?
        }
    };
    load.first = load.first.saturating_add(bytes);
    Ok(())
}

/// What this host has of volumes that another one asks for.
///
/// # Errors
/// The storage's.
///
/// # Cancel safety
/// Cancel safe.
pub async fn volumes(host: &Host, query: &VolumesQuery) -> Result<VolumesReply, StorageError> {
    let mut snapshots = BTreeMap::new();
    for dataset in &query.datasets {
        if let Some(info) = host.storage.inspect(dataset).await? {
            let guids = info.snapshots.into_iter().map(|snapshot| snapshot.guid);
            snapshots.insert(dataset.clone(), guids.collect());
        }
    }
    Ok(VolumesReply { snapshots })
}

#[cfg(test)]
mod tests {
    use rehome_shared::api::cluster::MigrationState;

    use super::*;
    use crate::fixtures::{host, migration};

    fn moved(to: &str, bytes: &[u64]) -> Migration {
        let rounds = bytes.iter().map(|bytes| Round {
            bytes: Bytes(*bytes),
            seconds: 1.0,
        });
        Migration {
            to: host(to),
            rounds: rounds.collect(),
            ..migration("db", MigrationState::Done)
        }
    }

    #[test]
    fn the_way_is_as_the_last_move_that_sent_something_found_it() {
        let history = [
            moved("h2", &[64 << 20, 10]),
            moved("h2", &[100, 10]),
            moved("h3", &[1 << 30]),
        ];
        let bytes = |to: &str| -> Vec<u64> {
            let rounds = rounds_to(&history, &host(to)).iter();
            rounds.map(|round| round.bytes.0).collect()
        };
        assert_eq!(bytes("h2"), [64 << 20, 10]);
        assert_eq!(bytes("h3"), [1 << 30]);
        assert_eq!(bytes("h4"), Vec::<u64>::new());
    }

    #[test]
    fn the_shares_of_a_predicted_window_sum_up_to_it() {
        let outlook = Outlook {
            first: Bytes(100 << 20),
            whole: Bytes(100 << 20),
            dirty: Bytes(4 << 20),
            bandwidth: Bytes(8 << 20),
            fixed: Duration::from_millis(2500),
            running: true,
            throttles: true,
        };
        let load = Load {
            first: outlook.first,
            base: Some("mig-1-final-1".to_owned()),
            ..Load::default()
        };
        let limits = MigrationLimits::default();
        let seen = forecast(&outlook, &limits);
        for shares in [
            None,
            Some(Window {
                platform: 0.5,
                application: 2.0,
            }),
            Some(Window {
                platform: 0.0,
                application: 1e6,
            }),
        ] {
            let told = prediction(
                &outlook,
                &load,
                Some(outlook.dirty),
                &seen,
                shares,
                String::new(),
            );
            let window = told.window.unwrap();
            let sum = window.platform + window.application;
            assert!((sum - told.window_seconds).abs() < 1e-9, "{told:?}");
            assert!(window.platform >= 0.0 && window.application > 0.0);
            assert!(told.delta && told.rounds > 1 && told.copy_seconds > 12.0);
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let told = basis(false, false, None, Some("h2 cannot say what it has"));
        for part in ["never moved", "slow way", "not known", "h2 cannot say"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!basis(true, true, Some(Bytes(1)), None).contains("not"));
        assert!(beside().basis.contains("no volumes"));
    }
}
