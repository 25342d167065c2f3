//! What ends an effect before its own end: somebody calls the move off, a newer deployment does
//! not want it, or its time is over.

use std::sync::Arc;
use std::time::Duration;

use migrated_core::record::Plan;
use rehome_shared::api::cluster::Desired;
use tokio::sync::watch::Receiver;

/// Returns when somebody asks for it, with what was said.
pub(super) async fn requested<T: Clone>(request: &mut Receiver<Option<T>>) -> T {
    loop {
        if let Some(said) = request.borrow_and_update().clone() {
            return said;
        }
        if request.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns when a newer deployment does not want the application where it is going.
pub(super) async fn unwanted(mut desired: Receiver<Arc<Desired>>, plan: &Plan) -> String {
    loop {
        let now = Arc::clone(&desired.borrow_and_update());
        let known = now.applications.contains_key(&plan.application);
        let wanted = known && now.host_of(&plan.application) == Some(&plan.to);
        if now.generation > plan.generation && !wanted {
            return format!(
                "deployment {} does not want it on {} any more",
                now.generation, plan.to
            );
        }
        if desired.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns after `limit`, or never.
pub(super) async fn sleep_or_never(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use migrated_core::UnixMillis;
    use rehome_shared::config::model::MigrationLimits;
    use rehome_shared::ids::{DeploymentGeneration, Epoch};
    use tokio::sync::watch;

    use super::*;
    use crate::fixtures::{app, deployment, host};

    /// A move of `db` to `h2` that generation 2 asked for.
    fn plan() -> Plan {
        Plan {
            application: app("db"),
            to: host("h2"),
            epoch: Epoch(1),
            generation: DeploymentGeneration(2),
            volumes: Vec::new(),
            limits: MigrationLimits::default(),
            was_running: true,
            started_at: UnixMillis(0),
        }
    }

    async fn answers_to(desired: Desired) -> bool {
        let now = watch::Sender::new(Arc::new(desired));
        let plan = plan();
        let mut asked = std::pin::pin!(unwanted(now.subscribe(), &plan));
        poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn a_newer_deployment_that_wants_it_elsewhere_calls_it_off() {
        assert!(answers_to(deployment(3, &[("h1", &["db"]), ("h2", &[])])).await);
        assert!(
            answers_to(deployment(3, &[("h1", &[]), ("h2", &[])])).await,
            "not placed"
        );
    }

    #[tokio::test]
    async fn the_deployment_that_asked_for_it_and_one_that_still_wants_it_do_not() {
        assert!(!answers_to(deployment(2, &[("h1", &[]), ("h2", &["db"])])).await);
        assert!(!answers_to(deployment(3, &[("h1", &["web"]), ("h2", &["db"])])).await);
    }

    #[tokio::test]
    async fn a_deployment_that_comes_later_is_heard() {
        let now = watch::Sender::new(Arc::new(deployment(2, &[("h2", &["db"])])));
        let (plan, desired) = (plan(), now.subscribe());
        let (reason, ()) = tokio::join!(unwanted(desired, &plan), async {
            tokio::task::yield_now().await;
            now.send_replace(Arc::new(deployment(3, &[("h1", &["db"])])));
        });
        assert!(reason.contains("deployment 3"), "{reason}");
    }
}
