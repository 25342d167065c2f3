//! The records of a step, made durable.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::record::{Record, SourceRecord};
use rehome_runtime::report::Report;
use rehome_shared::ids::MigrationId;

use crate::desired::DesiredStore;
use crate::ledger::{Ledger, LedgerError};
use crate::migrations::{Orders, TakeBack};

/// The pause before a journal that failed is tried again.
pub(super) const JOURNAL_PAUSE: Duration = Duration::from_millis(500);

/// What became of the records of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Durable,
    /// The migration is not open any more.
    Over,
    /// The order that they were to carry out has ended: nothing was written.
    Ended,
}

/// Where they go.
pub(super) struct Step<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) desired: &'a DesiredStore,
    pub(super) orders: &'a Orders,
    pub(super) migration: &'a MigrationId,
    pub(super) records: &'a [SourceRecord],
}

impl Step<'_> {
    /// Tries until it is durable, or the migration is not open any more: without the record
    /// nothing may be done, and the state that is left is safe.
    pub(super) async fn persist(&self) -> Written {
        if self.records.is_empty() {
            return Written::Durable;
        }
        loop {
            match self.append(|| true).await {
                Ok(written) => return written,
                Err(error) => {
                    let error = Report(&error).to_string();
                    tracing::error!(error, "the journal cannot be written; trying again");
                }
            }
            tokio::time::sleep(JOURNAL_PAUSE).await;
        }
    }

    /// Tries once, while this host follows the deployment of the order and the order stands: what
    /// an operator vouched for is true for a while only. An append that fails was taken back.
    pub(super) async fn persist_ordered(&self, order: &Arc<TakeBack>) -> Written {
        let (orders, same) = (self.orders.clone(), Arc::clone(order));
        let append = self.append(move || orders.stands(&same));
        match self.desired.while_following(&order.desired, append).await {
            None => Written::Ended,
            Some(Ok(written)) => written,
            Some(Err(error)) => {
                let error = Report(&error).to_string();
                tracing::error!(error, "the journal cannot be written; it is not taken back");
                Written::Ended
            }
        }
    }

    /// Appends the records if `wanted` says so when it is their turn.
    async fn append(
        &self,
        wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Written, LedgerError> {
        let id = self.migration.clone();
        let steps = self.records.iter().cloned();
        let records: Vec<Record> = steps
            .map(|step| Record::Source {
                migration: id.clone(),
                step,
            })
            .collect();
        self.ledger
            .transact(move |registry| {
                if !registry.sources().contains_key(&id) {
                    (Vec::new(), Written::Over)
                } else if wanted() {
                    (records, Written::Durable)
                } else {
                    (Vec::new(), Written::Ended)
                }
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use migrated_core::UnixMillis;
    use migrated_core::journal::MAX_PAYLOAD;
    use migrated_core::record::Plan;
    use migrated_core::source::Phase;
    use rehome_shared::config::model::MigrationLimits;
    use rehome_shared::ids::{Attempt, DeploymentGeneration, Epoch};
    use tempfile::TempDir;

    use super::*;
    use crate::fixtures::{app, deployment, host};
    use crate::ledger::Place;
    use crate::migrations::order;

    /// A journal in which `db` was released to `h2`, and the deployment that the orders of the
    /// tests were agreed to under.
    struct Stage {
        _dir: TempDir,
        ledger: Ledger,
        desired: DesiredStore,
        orders: Orders,
        id: MigrationId,
    }

    impl Stage {
        async fn set() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let id = MigrationId::generate();
            let ledger = Ledger::open(Place::take(dir.path()).unwrap()).unwrap();
            let plan = Plan {
                application: app("db"),
                to: host("h2"),
                epoch: Epoch(1),
                generation: DeploymentGeneration(2),
                volumes: Vec::new(),
                limits: MigrationLimits::default(),
                was_running: true,
                started_at: UnixMillis(0),
            };
            let attempt = Attempt(1);
            let steps = [
                SourceRecord::Planned(plan),
                SourceRecord::CutOver {
                    attempt,
                    deadline: UnixMillis(1),
                },
                SourceRecord::Released { attempt },
            ];
            let born = Record::Born {
                application: app("db"),
                volumes: Vec::new(),
            };
            let steps = steps.map(|step| Record::Source {
                migration: id.clone(),
                step,
            });
            let records = [born].into_iter().chain(steps).collect();
            ledger.commit(records).await.unwrap();
            let desired = DesiredStore::open(dir.path()).unwrap();
            let agreed = deployment(3, &[("h1", &["db"]), ("h2", &[])]);
            desired.accept(agreed).await.unwrap();
            Self {
                _dir: dir,
                ledger,
                desired,
                orders: Orders::default(),
                id,
            }
        }

        /// Has the driver turn round, which is one record with this reason.
        async fn turns(&self, order: &Arc<TakeBack>, reason: &str) -> Written {
            let records = [SourceRecord::Reclaimed {
                reason: reason.to_owned(),
            }];
            let step = Step {
                ledger: &self.ledger,
                desired: &self.desired,
                orders: &self.orders,
                migration: &self.id,
                records: &records,
            };
            let turned = tokio::time::timeout(Duration::from_secs(20), step.persist_ordered(order));
            turned.await.unwrap()
        }

        async fn taken(&self) -> Arc<TakeBack> {
            self.orders.next(false, &false.into()).await
        }

        fn is_released(&self) -> bool {
            self.ledger.read(|registry| {
                let open = registry.sources().get(&self.id);
                let owned = registry.owned(&app("db")).is_some();
                !owned && open.is_some_and(|open| matches!(open.phase, Phase::After(_)))
            })
        }
    }

    #[tokio::test]
    async fn an_order_that_stands_is_carried_out() {
        let stage = Stage::set().await;
        let _given = stage.orders.give(order(false, false));
        let order = stage.taken().await;
        assert!(stage.is_released());
        assert_eq!(stage.turns(&order, "told").await, Written::Durable);
        assert!(!stage.is_released());
    }

    #[tokio::test]
    async fn a_journal_that_fails_ends_the_order_and_not_the_migration() {
        let stage = Stage::set().await;
        let _given = stage.orders.give(order(false, false));
        let order = stage.taken().await;
        // The journal takes no record as long as this, and all others afterwards.
        let long = "x".repeat(MAX_PAYLOAD);
        assert_eq!(stage.turns(&order, &long).await, Written::Ended);
        assert!(stage.is_released(), "what failed was taken back");
        assert_eq!(stage.turns(&order, "again").await, Written::Durable);
    }

    #[tokio::test]
    async fn an_order_that_was_withdrawn_before_its_record_is_not_carried_out() {
        let stage = Stage::set().await;
        let given = stage.orders.give(order(false, false));
        let order = stage.taken().await;
        drop(given);
        assert_eq!(stage.turns(&order, "told").await, Written::Ended);
        assert!(stage.is_released());
    }

    #[tokio::test]
    async fn an_order_of_an_older_deployment_is_not_carried_out() {
        let stage = Stage::set().await;
        let _given = stage.orders.give(order(false, false));
        let order = stage.taken().await;
        let newer = deployment(4, &[("h1", &[]), ("h2", &["db"])]);
        stage.desired.accept(newer).await.unwrap();
        assert_eq!(stage.turns(&order, "told").await, Written::Ended);
        assert!(stage.is_released());
    }
}
