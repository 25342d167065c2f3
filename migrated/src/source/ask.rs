//! Before the way back of a migration that an earlier run of the daemon began: while this host
//! was gone an operator may have given the application to somebody else.

use std::time::Duration;

use http::Method;
use migrated_core::fencing::{Standing, Word};
use migrated_core::source::{Phase, SourceMigration};
use rehome_runtime::http_client::ClientError;
use rehome_shared::api::peer::{HandoffRef, HandoffState, HandoffView};
use tokio::time::Instant;

use super::Driver;
use crate::clearance::SILENCE;
use crate::fence;
use crate::runtime::InstanceState;

/// The pause before a destination that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

impl Driver {
    /// A copy that an earlier run began goes on only when the application is known to be still
    /// this host's to give, and what it released is asked after only when nobody is known to have
    /// it from there: an outcome that is long past must not be acted upon.
    pub(super) async fn wait_cleared(&self, migration: &SourceMigration) {
        let released = matches!(migration.phase, Phase::After(_));
        if self.run.found && (released || migration.phase.leaves_serving()) {
            self.host.clearance.asked().await;
            self.host.clearance.of(&migration.plan.application).await;
        }
    }

    /// Returns when the application may be started here again, as far as other hosts are
    /// concerned. One that runs has been running all the time.
    pub(super) async fn ask_first(&self, migration: &SourceMigration) {
        if !self.run.found {
            return;
        }
        let application = &migration.plan.application;
        let seen = self.host.observe().await.ok();
        let instance = seen.and_then(|()| self.host.instance(application));
        if instance.is_some_and(|instance| instance.state == InstanceState::Running) {
            return;
        }
        if matches!(migration.phase, Phase::Before(_)) {
            self.end_promise(migration).await;
        }
        self.host.clearance.of(application).await;
    }

    /// Has the destination give its promise up before anything starts here: afterwards nobody can
    /// grant it there. One that was granted it in the meantime says so, and then nothing starts.
    async fn end_promise(&self, migration: &SourceMigration) {
        let plan = &migration.plan;
        let path = format!("/peer/v1/handoffs/{}/abort", migration.id);
        let message = HandoffRef {
            attempt: migration.attempt(),
            epoch: plan.epoch,
        };
        let deadline = Instant::now() + SILENCE;
        loop {
            let asked = self
                .host
                .peers
                .request(&plan.to, Method::POST, &path, Some(&message));
            let answer: Result<Result<HandoffView, ClientError>, _> =
                tokio::time::timeout_at(deadline, asked).await;
            match answer {
                Ok(Ok(view)) if is_taken(view.state) => {
                    let word = Word {
                        speaker: plan.to.clone(),
                        epoch: plan.epoch.next(),
                        owner: plan.to.clone(),
                    };
                    self.give_way(migration, word).await;
                }
                Ok(Ok(_)) | Err(_) => return,
                Ok(Err(error)) if error.status().is_some() => return,
                Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Driver {
    /// Never returns: once it is durable, it ends this driver.
    async fn give_way(&self, migration: &SourceMigration, word: Word) {
        loop {
            let words = vec![word.clone()];
            let taken = fence::consider(&self.host, &migration.plan.application, words).await;
            if let Err(error) = taken {
                tracing::error!(%error, "the journal cannot be written; trying again");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Driver {
    /// A destination that knows nothing of the handoff any more may have given way to another
    /// host, or have claimed the application after it had given it back. Then this migration is over as well, and its driver with it.
    pub(super) async fn is_overtaken(&self, migration: &SourceMigration) -> bool {
        let plan = &migration.plan;
        let Ok(report) = self.host.peers.report(&plan.to).await else {
            return false;
        };
        let Some(known) = report.known_owner(&plan.application) else {
            return false;
        };
        if known.epoch <= plan.epoch.next() || known.owner == self.host.address {
            return false;
        }
        let word = Word {
            speaker: known.owner.clone(),
            epoch: known.epoch,
            owner: known.owner.clone(),
        };
        let taken = fence::consider(&self.host, &plan.application, vec![word]).await;
        taken.is_ok_and(|standing| matches!(standing, Standing::Fenced { .. }))
    }
}

fn is_taken(state: HandoffState) -> bool {
    match state {
        HandoffState::Owned | HandoffState::Serving => true,
        HandoffState::Unknown
        | HandoffState::Reserved
        | HandoffState::Verified
        | HandoffState::Returned
        | HandoffState::Dropped => false,
    }
}
