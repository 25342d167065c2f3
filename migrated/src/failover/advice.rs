//! What an operator can do about an application whose owner does not answer: the exact command,
//! and what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rehome_shared::api::cluster::{
    ApplicationState, ApplicationStatus, FailoverMeans, FailoverRequest, FencedOwner,
    MigrationState,
};
use rehome_shared::api::peer::{FailoverOffer, HostReport, KnownOwner};
use rehome_shared::ids::{AppName, HostAddr};

use super::{QUESTION, ask, examine};
use crate::host::Host;
use crate::status::{Reports, last_owner};

/// A host that has been silent for less may just be restarting.
const SILENCE: Duration = Duration::from_secs(10);

/// The command that has `to` take over. Other hosts that have been silent for long are named in
/// it, as it is refused otherwise.
#[must_use]
pub(crate) fn command(
    host: &Host,
    application: &AppName,
    to: &HostAddr,
    fenced: &FencedOwner,
    loss: bool,
) -> String {
    let known = host.desired.get().fenced.clone();
    let mut also = host.silence.longer_than(SILENCE);
    also.retain(|other| *other != fenced.host && *other != *to && !known.contains(other));
    written(application, to, fenced, &also, loss)
}

fn written(
    application: &AppName,
    to: &HostAddr,
    fenced: &FencedOwner,
    also: &BTreeSet<HostAddr>,
    loss: bool,
) -> String {
    let mut command = format!("rehome failover {application} --to {to} --fenced {fenced}");
    for other in also {
        command = format!("{command} --also-fenced {other}");
    }
    if loss {
        command.push_str(" --accept-loss");
    }
    command
}

/// The sentence around the command.
#[must_use]
pub(crate) fn instead(gone: &HostAddr, command: &str) -> String {
    format!("if {gone} is gone for good, make certain that it is off and run: {command}")
}

/// The sentence around a command to a host that answers and has no part in it any more: nobody need
/// be switched off.
fn without(gone: &HostAddr, to: &HostAddr, command: &str) -> String {
    if to == gone {
        return format!("to go on with what {gone} has of it, run: {command}");
    }
    given_up(gone, command)
}

fn given_up(gone: &HostAddr, command: &str) -> String {
    format!("if what {gone} had of it is lost for good, give that up and run: {command}")
}

/// Adds to every application whose owner has been silent for long what can be done about it.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn advise(
    host: &Arc<Host>,
    applications: &mut [ApplicationStatus],
    reports: &Reports,
) {
    let answered: BTreeMap<HostAddr, HostReport> = reports
        .iter()
        .filter_map(|(peer, report)| Some((peer.clone(), report.clone()?)))
        .collect();
    let blocked = applications.iter_mut().filter(|application| {
        application.state == ApplicationState::Blocked
            && application.host.is_none()
            && !is_moving(&answered, &application.name)
    });
    let advised = blocked.map(|application| {
        let answered = &answered;
        async move {
            let Some(KnownOwner { epoch, owner, .. }) = last_owner(reports, &application.name)
            else {
                return;
            };
            let out = match answered.get(owner) {
                Some(report) if report.is_out_of(&application.name) => true,
                None if is_long_silent(host, owner) => false,
                Some(_) | None => return,
            };
            let fenced = FencedOwner {
                host: owner.clone(),
                epoch: *epoch,
            };
            let advice = advice(host, application, &fenced, answered, out).await;
            let reason = application.reason.take().unwrap_or_default();
            application.reason = Some(format!("{reason}; {advice}"));
        }
    });
    futures_util::future::join_all(advised).await;
}

/// Its source tells what can be done about it.
fn is_moving(reports: &BTreeMap<HostAddr, HostReport>, application: &AppName) -> bool {
    reports
        .values()
        .flat_map(|report| &report.migrations)
        .any(|migration| {
            migration.application == *application
                && matches!(
                    migration.state,
                    MigrationState::Running | MigrationState::Blocked
                )
        })
}

/// One that an operator fenced will not come back by itself.
fn is_long_silent(host: &Host, owner: &HostAddr) -> bool {
    host.silence.of(owner).is_some_and(|time| time >= SILENCE)
        || host.desired.get().fenced.contains(owner)
}

async fn advice(
    host: &Arc<Host>,
    application: &ApplicationStatus,
    fenced: &FencedOwner,
    reports: &BTreeMap<HostAddr, HostReport>,
    out: bool,
) -> String {
    let name = &application.name;
    let offers = reports.keys().map(|to| async move {
        let request = FailoverRequest {
            application: name.clone(),
            to: to.clone(),
            fenced: fenced.clone(),
            also_fenced: BTreeSet::new(),
            accept_loss: false,
        };
        if *to == host.address {
            return Some((to, examine(host, &request).await));
        }
        let answer = tokio::time::timeout(QUESTION, ask(host, to, &request)).await;
        Some((to, answer.ok()?.ok()?))
    });
    let offers: Vec<_> = futures_util::future::join_all(offers)
        .await
        .into_iter()
        .flatten()
        .collect();
    let wanted = application.desired_host.as_ref();
    let said = |(to, offer): (&HostAddr, &FailoverOffer)| {
        let command = command(host, name, to, fenced, offer.loss.is_some());
        let sentence = if out {
            without(&fenced.host, to, &command)
        } else {
            instead(&fenced.host, &command)
        };
        let loss = offer.loss.as_ref();
        let loss = loss.map(|loss| format!(" ({to}: {loss})"));
        format!("{sentence}{}", loss.unwrap_or_default())
    };
    let Some(first) = best(&offers, wanted) else {
        return format!("no host that answers keeps anything of {name} to go on from");
    };
    // Which is newer, what stands there or a copy, nobody can tell but who knows what happened.
    let copies = offers
        .iter()
        .filter(|(_, offer)| first.1.live && !offer.live);
    let copies: Vec<_> = copies.cloned().collect();
    match best(&copies, wanted) {
        None => said(first),
        Some(copy) => format!("{}; or {}", said(first), said(copy)),
    }
}

/// The host to take over: the best means, then the newest data, then where it should be. The
/// volumes as they are where they were left open hold whatever was written last there.
fn best<'a>(
    offers: &'a [(&'a HostAddr, FailoverOffer)],
    desired: Option<&HostAddr>,
) -> Option<(&'a HostAddr, &'a FailoverOffer)> {
    let rank = |to: &HostAddr, offer: &FailoverOffer, means: FailoverMeans| {
        (
            std::cmp::Reverse(means),
            offer.loss.is_none(),
            offer.live,
            offer.newest.clone(),
            desired == Some(to),
            std::cmp::Reverse(to.clone()),
        )
    };
    offers
        .iter()
        .filter_map(|(to, offer)| {
            offer
                .means
                .map(|means| (rank(to, offer, means), (*to, offer)))
        })
        .max_by(|(one, _), (other, _)| one.cmp(other))
        .map(|(_, chosen)| chosen)
}

#[cfg(test)]
mod tests {
    use rehome_shared::ids::Epoch;

    use super::*;
    use crate::fixtures::{app, host};

    fn offer(means: Option<FailoverMeans>, newest: Option<&str>) -> FailoverOffer {
        FailoverOffer {
            means,
            loss: newest.map(|time| format!("older than {time}")),
            newest: newest.map(str::to_owned),
            live: false,
            refusal: None,
        }
    }

    #[test]
    fn the_command_can_be_run_as_it_is_printed() {
        let fenced = FencedOwner {
            host: host("h1"),
            epoch: Epoch(3),
        };
        let silent = BTreeSet::from([host("h4")]);
        assert_eq!(
            written(&app("db"), &host("h2"), &fenced, &BTreeSet::new(), false),
            "rehome failover db --to h2 --fenced h1@3"
        );
        assert_eq!(
            written(&app("db"), &host("h2"), &fenced, &silent, true),
            "rehome failover db --to h2 --fenced h1@3 --also-fenced h4 --accept-loss"
        );
    }

    #[test]
    fn what_loses_nothing_comes_first_and_then_the_newest() {
        let (h2, h3, h4) = (host("h2"), host("h3"), host("h4"));
        let claim = |time| offer(Some(FailoverMeans::Claimed), Some(time));
        let chosen = |offers: &[(&HostAddr, FailoverOffer)], desired: &HostAddr| {
            best(offers, Some(desired)).map(|(to, _)| to.clone())
        };
        let granted = offer(Some(FailoverMeans::Granted), None);
        let offers = [
            (&h2, claim("2026-01-03")),
            (&h3, granted),
            (&h4, offer(None, None)),
        ];
        assert_eq!(chosen(&offers, &h2), Some(h3.clone()));
        let offers = [(&h2, claim("2026-01-02")), (&h3, claim("2026-01-03"))];
        assert_eq!(chosen(&offers, &h2), Some(h3.clone()));
        let empty = || offer(Some(FailoverMeans::Claimed), None);
        let offers = [(&h2, empty()), (&h3, empty())];
        assert_eq!(chosen(&offers, &h3), Some(h3.clone()), "where it should be");
        assert_eq!(chosen(&offers, &h4), Some(h2.clone()), "or the first");
        assert_eq!(chosen(&[(&h4, offer(None, None))], &h4), None);
        let mut live = claim("2026-01-01");
        (live.live, live.newest) = (true, None);
        let offers = [(&h2, claim("2026-01-03")), (&h3, live)];
        assert_eq!(chosen(&offers, &h2), Some(h3), "what was left as it was");
    }
}
