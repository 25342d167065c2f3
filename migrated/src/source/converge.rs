//! After a round: one more, the window, or the end; and holding back an application that writes
//! faster than the rounds shrink.

use migrated_core::convergence::throttle::Throttle;
use migrated_core::convergence::{self, Decision, Observed};
use migrated_core::source::{AfterRound, SourceMigration};
use rehome_runtime::report::Report;
use rehome_shared::api::cluster::Round;
use rehome_shared::config::model::OnStall;
use tokio::time::Instant;

use super::{Driver, measured};
use crate::runtime::{Cpus, InstanceState, Usage};
use crate::throttle;

/// How the application is held back.
#[derive(Debug)]
pub(super) struct Brake {
    /// How hard; `None` when it turned out that it cannot be.
    throttle: Option<Throttle>,
    /// Rounds that have arrived since.
    rounds: usize,
    /// What it uses of the processors by itself, as the last round showed in which it was free.
    own: Option<Cpus>,
    /// What it had used when this round began.
    before: Option<(Instant, Usage)>,
}

impl Default for Brake {
    fn default() -> Self {
        Self {
            throttle: Some(Throttle::FREE),
            rounds: 0,
            own: None,
            before: None,
        }
    }
}

impl Driver {
    /// Looks at what the application has used so far, while it is free and may have to be held
    /// back: what it is left with is a share of what it takes by itself.
    pub(super) async fn measure_use(&mut self, migration: &SourceMigration) {
        let limits = &migration.plan.limits;
        if limits.on_stall != OnStall::Throttle || self.track.brake.throttle != Some(Throttle::FREE)
        {
            return;
        }
        let now = Instant::now();
        let used = match self.host.runtime.usage(&migration.plan.application).await {
            Ok(used) => used,
            Err(error) => {
                tracing::warn!(error = %Report(&error), "what it uses of the processors is not known");
                return;
            }
        };
        let brake = &mut self.track.brake;
        if let Some((since, before)) = brake.before.replace((now, used)) {
            let share = used.cpu.saturating_sub(before.cpu).as_secs_f64();
            let passed = now.duration_since(since).as_secs_f64();
            brake.own = Some(Cpus(share / passed.max(0.001)));
        }
    }

    /// What follows a round that has arrived.
    pub(super) async fn after_round(
        &mut self,
        migration: &SourceMigration,
        sent: Round,
    ) -> AfterRound {
        let mut rounds = migration.rounds.clone();
        rounds.push(sent);
        // A runtime that does not answer does not mean that nothing runs.
        let running = self.host.observe().await.is_err()
            || self
                .host
                .instance(&migration.plan.application)
                .is_some_and(|instance| instance.state == InstanceState::Running);
        let fixed = self
            .host
            .ledger
            .read(|registry| measured::fixed(registry.history(), &migration.plan.application));
        self.track.brake.rounds = self.track.brake.rounds.saturating_add(1);
        let observed = Observed {
            rounds: &rounds,
            gaps: &self.track.copy.gaps,
            running,
            fixed,
            throttle: self.track.brake.throttle,
            held: self.track.brake.rounds,
        };
        match convergence::decide(&observed, &migration.plan.limits) {
            Decision::Again { predicted } => {
                self.run.predict(predicted.map(|p| p.as_secs_f64()));
                AfterRound::Again
            }
            Decision::Throttle {
                predicted,
                throttle,
            } => {
                self.run.predict(Some(predicted.as_secs_f64()));
                self.hold_back(migration, throttle).await;
                AfterRound::Again
            }
            Decision::CutOver { predicted } => {
                let predicted = predicted.as_secs_f64();
                self.run.predict(Some(predicted));
                self.run.report().predicted_window = Some(predicted);
                AfterRound::CutOver
            }
            Decision::Abort { reason } => AfterRound::Abort { reason },
        }
    }

    /// Holds the application back. What cannot be held back is said, and waited for.
    async fn hold_back(&mut self, migration: &SourceMigration, to: Throttle) {
        // The first step is measured against the round that has just ended.
        self.measure_use(migration).await;
        let application = &migration.plan.application;
        let held = match self.track.brake.own {
            Some(Cpus(own)) => {
                let left = Cpus(own * to.share());
                throttle::hold(&self.host, application, left)
                    .await
                    .map_err(|error| Report(&error).to_string())
            }
            None => Err("what it uses of the processors is not known".to_owned()),
        };
        match held {
            Ok(()) => {
                tracing::info!(percent = to.percent(), "the application is held back");
                self.track.brake.throttle = Some(to);
                self.track.brake.rounds = 0;
                self.run.report().throttled = Some(to.percent());
            }
            Err(error) => {
                tracing::warn!(
                    error,
                    "the application cannot be held back: the move waits for it"
                );
                self.track.brake.throttle = None;
                throttle::lift(&self.host, application).await;
            }
        }
    }
}
