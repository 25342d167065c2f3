//! What is said of hosts that do not answer, of what they leave behind, and of what nobody
//! decides.

use rehome_shared::api::cluster::{ApplicationState, ApplicationStatus, Desired, Failure};
use rehome_shared::api::peer::{HostReport, KnownOwner, LeftOpen};
use rehome_shared::ids::{AppName, HostAddr};

use super::Reports;

/// The last owner of an application, as far as the hosts that answer know: the newest, or, where
/// it was merely promised to that one, whom that one says itself. What the others told it counts
/// for nothing there, as it may be a new machine.
pub(crate) fn last_owner<'a>(reports: &'a Reports, name: &AppName) -> Option<&'a KnownOwner> {
    let told = reports.values().flatten();
    let told = told.filter_map(|report| report.known_owner(name));
    let newest = told.reduce(|one, other| if other.epoch > one.epoch { other } else { one })?;
    let itself = reports.get(&newest.owner).and_then(Option::as_ref);
    let own = itself
        .filter(|report| !report.heard.contains(name))
        .and_then(|report| report.known_owner(name));
    Some(
        own.filter(|own| own.owner != newest.owner)
            .unwrap_or(newest),
    )
}

/// That its owner does not answer.
pub(super) fn nothing(owner: &HostAddr) -> String {
    format!(
        "{owner} does not answer: nobody else may run it meanwhile, and it goes on by itself when {owner} comes back"
    )
}

/// Whether the host that had an application last, as another one knows, has lost all that it knew
/// of it. What nobody knows of was nobody's yet; what was left open says so itself.
///
/// That the deployment allows its birth says nothing: it does until the next deployment, however
/// long the application has been somebody's.
pub(super) fn is_lost(reports: &Reports, last: &HostReport, name: &AppName) -> bool {
    last_owner(reports, name).is_some_and(|known| known.owner == last.host)
        && last.is_out_of(name)
        && !last.left.iter().any(|open| open.application == *name)
}

/// That its owner has lost what it knew.
pub(super) fn another_journal(owner: &HostAddr) -> String {
    format!(
        "{owner} answers and knows nothing of it any more: bring the state directory of its migrated back, and its volumes"
    )
}

/// Tells people of the copies that were set aside, by application.
pub(super) fn add_diverged(applications: &mut [ApplicationStatus], reports: &Reports) {
    for copy in reports
        .values()
        .flatten()
        .flat_map(|report| &report.diverged)
    {
        let of = applications
            .iter_mut()
            .find(|application| application.name == copy.application);
        if let Some(application) = of {
            application.diverged.push(copy.clone());
        }
    }
}

/// Tells people of what was left open when a journal was made anew: nobody runs it, unless
/// another host is its owner.
pub(super) fn add_left(applications: &mut [ApplicationStatus], reports: &Reports) {
    for (host, report) in reports {
        for open in report.iter().flat_map(|report| &report.left) {
            let mut all = applications.iter_mut();
            let Some(of) = all.find(|of| of.name == open.application) else {
                continue;
            };
            if of.host.is_none() && of.state != ApplicationState::Migrating {
                of.state = ApplicationState::Blocked;
            }
            of.reason.get_or_insert_with(|| left_open(host, open));
        }
    }
}

/// What people are told of an application that a host left open, and when that ends by itself.
pub(super) fn left_open(host: &HostAddr, open: &LeftOpen) -> String {
    let LeftOpen {
        owner, epoch, why, ..
    } = open;
    format!(
        "{host} does not know whether it is {owner}'s at epoch {epoch} and runs nothing of it, since its journal was made anew: {why}. When that is put right, `migrated --rebuild-journal` on {host} decides; so does every change of its owner"
    )
}

/// What waits for a host that an operator fenced and that nobody else waits for, or for one that
/// has lost all it knew of it: it is said, and the deployment is settled without it.
pub(super) fn waiting(
    desired: &Desired,
    reports: &Reports,
    applications: &[ApplicationStatus],
) -> Vec<Failure> {
    let waits = applications.iter().filter(|application| {
        application.state == ApplicationState::Blocked && application.host.is_none()
    });
    waits
        .filter_map(|application| {
            let last = last_owner(reports, &application.name)
                .map(|known| &known.owner)
                .or_else(|| desired.host_of(&application.name))?;
            let reason = application.reason.clone().unwrap_or_default();
            let reason = match reports.get(last)? {
                None => desired.fenced.contains(last).then_some(reason),
                Some(report) => is_lost(reports, report, &application.name)
                    .then(|| format!("{reason}; `rehome status` names what else can be done")),
            };
            reason.map(|reason| Failure {
                host: last.clone(),
                application: Some(application.name.clone()),
                reason,
            })
        })
        .collect()
}
