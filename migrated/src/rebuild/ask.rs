//! What the other hosts are asked before a journal is made anew. All must answer but those that
//! an operator says are gone for good.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use http::Method;
use migrated_core::rebuild::{self, Question, Volume, Word};
use rehome_runtime::http_client::ClientError;
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Desired;
use rehome_shared::api::peer::{Gossip, HandoffRef, HandoffState, HandoffView, HostReport};
use rehome_shared::config::daemon::MigratedConfig;
use rehome_shared::ids::{Attempt, DeploymentGeneration, HostAddr, MigrationId};

use super::Options;
use crate::desired::{self, DesiredStore};
use crate::peers::Peers;

/// A newer deployment may name hosts that know a newer one still.
const TURNS: usize = 4;

/// Asks every host that must be asked. A newer deployment than this host's is followed from then
/// on.
pub(super) async fn everybody(
    config: &MigratedConfig,
    peers: &Peers,
    desired: &DesiredStore,
    volumes: &[Volume],
    options: &Options,
) -> anyhow::Result<Vec<Word>> {
    for host in &options.ask {
        follow(peers, desired, host).await?;
    }
    ensure!(
        desired.get().generation.0 > 0 || options.alone,
        "the deployment is lost too, so it is not known whom to ask: name a host that knows it (--ask HOST), or say that there is no other (--alone)"
    );
    for _ in 0..TURNS {
        let hosts = hosts(config, &desired.get(), volumes, options);
        let reports = reports(peers, &config.address, &hosts).await?;
        let ours = desired.get();
        let newer = reports.iter().find(|(report, _)| {
            (report.generation, &report.desired_hash) > (ours.generation, &desired::hash(&ours))
        });
        if let Some((report, _)) = newer {
            follow(peers, desired, &report.host).await?;
            continue;
        }
        return Ok(reports
            .iter()
            .map(|(report, gossip)| Word::new(report, &gossip.adverts))
            .collect());
    }
    anyhow::bail!("the deployment changes all the time; try again when it is settled")
}

/// Asks where the handoffs that stamps leave open would have gone to.
pub(super) async fn handoffs(
    config: &MigratedConfig,
    peers: &Peers,
    volumes: &[Volume],
    options: &Options,
) -> anyhow::Result<BTreeMap<MigrationId, HandoffView>> {
    let mut handoffs = BTreeMap::new();
    for question in rebuild::questions(&config.address, volumes) {
        let view = handoff(peers, &question, options).await?;
        handoffs.insert(question.migration, view);
    }
    Ok(handoffs)
}

fn hosts(
    config: &MigratedConfig,
    desired: &Desired,
    volumes: &[Volume],
    options: &Options,
) -> BTreeSet<HostAddr> {
    let mut hosts = rebuild::must_answer(&config.address, desired, volumes);
    hosts.extend(options.ask.iter().cloned());
    hosts.remove(&config.address);
    hosts.retain(|host| !options.without.contains(host));
    hosts
}

async fn follow(peers: &Peers, desired: &DesiredStore, host: &HostAddr) -> anyhow::Result<()> {
    let theirs: Desired = peers
        .request(host, Method::GET, "/peer/v1/desired", None::<&()>)
        .await
        .with_context(|| format!("{host} does not tell the deployment"))?;
    let (ours, generation) = (desired.get(), theirs.generation);
    if (generation, desired::hash(&theirs)) > (ours.generation, desired::hash(&ours)) {
        desired
            .accept(theirs)
            .await
            .with_context(|| format!("cannot keep deployment {generation}"))?;
    }
    Ok(())
}

async fn reports(
    peers: &Peers,
    here: &HostAddr,
    hosts: &BTreeSet<HostAddr>,
) -> anyhow::Result<Vec<(HostReport, Gossip)>> {
    let asked = hosts.iter().map(|host| async move {
        let answer = report(peers, here, host).await;
        answer.map_err(|error| format!("{host} ({})", Report(&error)))
    });
    let mut reports = Vec::new();
    let mut silent = Vec::new();
    for answer in futures_util::future::join_all(asked).await {
        match answer {
            Ok(report) => reports.push(report),
            Err(host) => silent.push(host),
        }
    }
    ensure!(
        silent.is_empty(),
        "without a word of every other host nobody knows who owns what; these do not answer: {}. If one is gone for good, say so: --without HOST",
        silent.join(", ")
    );
    Ok(reports)
}

/// What a host says of itself, and of the others. Nothing is told that it could take up.
async fn report(
    peers: &Peers,
    here: &HostAddr,
    host: &HostAddr,
) -> Result<(HostReport, Gossip), ClientError> {
    let nothing = Gossip {
        host: here.clone(),
        generation: DeploymentGeneration(0),
        desired_hash: String::new(),
        adverts: Vec::new(),
        known: Vec::new(),
    };
    let report = peers.report(host).await?;
    let gossip = peers
        .request(host, Method::POST, "/peer/v1/gossip", Some(&nothing))
        .await?;
    Ok((report, gossip))
}

/// How a handoff stands at its destination. What was merely reserved is called off, so that it
/// cannot become a promise any more.
async fn handoff(
    peers: &Peers,
    question: &Question,
    options: &Options,
) -> anyhow::Result<HandoffView> {
    let Question {
        migration,
        to,
        epoch,
    } = question;
    if options.without.contains(to) {
        return Ok(HandoffView {
            migration: migration.clone(),
            attempt: Attempt(0),
            state: HandoffState::Unknown,
            phases: BTreeMap::new(),
            reason: None,
        });
    }
    let path = format!("/peer/v1/handoffs/{migration}");
    let view: HandoffView = peers
        .request(to, Method::GET, &path, None::<&()>)
        .await
        .with_context(|| format!("{to} does not say how migration {migration} stands"))?;
    if view.state != HandoffState::Reserved {
        return Ok(view);
    }
    let message = HandoffRef {
        attempt: view.attempt,
        epoch: *epoch,
    };
    peers
        .request(to, Method::POST, &format!("{path}/abort"), Some(&message))
        .await
        .with_context(|| format!("{to} does not call migration {migration} off"))
}
