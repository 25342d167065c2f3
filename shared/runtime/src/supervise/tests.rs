use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_end_of_a_critical_task_stops_everything() {
    let supervisor = Supervisor::new();
    let token = supervisor.token().clone();
    supervisor.spawn("other", Criticality::Critical, async move {
        token.cancelled().await;
    });
    supervisor.spawn("listener", Criticality::Critical, async {});
    let failure = tokio::time::timeout(SOON, supervisor.wait()).await.unwrap();
    assert_eq!(failure, Some(Failure::Ended { name: "listener" }));
    assert_eq!(supervisor.stop(SOON).await, Stop::Clean);
}

#[tokio::test]
async fn a_panic_of_a_critical_task_is_reported_with_its_message() {
    let supervisor = Supervisor::new();
    supervisor.spawn("engine", Criticality::Critical, async {
        panic!("bad {}", 1)
    });
    let failure = tokio::time::timeout(SOON, supervisor.wait()).await.unwrap();
    assert_eq!(
        failure,
        Some(Failure::Panicked {
            name: "engine",
            message: "bad 1".to_owned()
        })
    );
}

#[tokio::test]
async fn a_panic_of_an_ordinary_task_harms_nobody() {
    let supervisor = Supervisor::new();
    supervisor.spawn("connection", Criticality::Ordinary, async {
        panic!("boom")
    });
    assert!(supervisor.idle(SOON).await);
    assert!(!supervisor.token().is_cancelled());
    supervisor.cancel();
    assert_eq!(supervisor.wait().await, None);
}

#[tokio::test]
async fn a_critical_task_of_a_group_may_end_when_its_group_is_stopped() {
    let supervisor = Supervisor::new();
    let group = supervisor.group();
    let token = group.token().clone();
    group.spawn("listener", Criticality::Critical, async move {
        token.cancelled().await;
    });
    assert_eq!(group.stop(SOON).await, Stop::Clean);
    assert!(!supervisor.token().is_cancelled());
    let next = supervisor.group();
    next.spawn("listener", Criticality::Critical, async {});
    let failure = tokio::time::timeout(SOON, supervisor.wait()).await.unwrap();
    assert_eq!(failure, Some(Failure::Ended { name: "listener" }));
}

#[tokio::test]
async fn a_critical_task_that_ends_after_the_stop_is_not_a_failure() {
    let supervisor = Supervisor::new();
    let token = supervisor.token().clone();
    supervisor.spawn("listener", Criticality::Critical, async move {
        token.cancelled().await;
    });
    assert_eq!(supervisor.stop(SOON).await, Stop::Clean);
    assert_eq!(supervisor.failure(), None);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ignores_the_stop_is_dropped_after_the_grace() {
    let supervisor = Supervisor::new();
    let dropped = Arc::new(AtomicUsize::new(0));
    let guard = OnDrop(Arc::clone(&dropped));
    supervisor.spawn("deaf", Criticality::Ordinary, async move {
        let _guard = guard;
        pending::<()>().await;
    });
    assert_eq!(
        supervisor.stop(Duration::from_secs(10)).await,
        Stop::Dropped(1)
    );
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert_eq!(supervisor.running(), 0);
}

#[tokio::test]
async fn a_group_stops_alone_and_with_the_whole() {
    let supervisor = Supervisor::new();
    let (first, second) = (supervisor.group(), supervisor.group());
    for group in [&first, &second] {
        let token = group.token().clone();
        group.spawn("connection", Criticality::Ordinary, async move {
            token.cancelled().await;
        });
    }
    assert_eq!(supervisor.running(), 2);
    assert_eq!(first.stop(SOON).await, Stop::Clean);
    assert!(!supervisor.token().is_cancelled());
    assert_eq!(second.running(), 1);
    assert_eq!(supervisor.stop(SOON).await, Stop::Clean);
    assert_eq!(second.running(), 0);
}

#[tokio::test]
async fn a_critical_task_of_a_group_stops_the_whole() {
    let supervisor = Supervisor::new();
    supervisor
        .group()
        .spawn("part", Criticality::Critical, async {});
    let failure = tokio::time::timeout(SOON, supervisor.wait()).await.unwrap();
    assert_eq!(failure, Some(Failure::Ended { name: "part" }));
}

#[tokio::test]
async fn thousands_of_short_tasks_are_all_waited_for() {
    let supervisor = Supervisor::new();
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..5000 {
        let done = Arc::clone(&done);
        supervisor.spawn("connection", Criticality::Ordinary, async move {
            tokio::task::yield_now().await;
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    assert!(supervisor.idle(SOON).await);
    assert_eq!(done.load(Ordering::SeqCst), 5000);
}

#[tokio::test]
async fn light_tasks_are_counted_waited_for_and_may_panic() {
    let supervisor = Supervisor::new();
    let group = supervisor.group();
    let done = Arc::new(AtomicUsize::new(0));
    for number in 0..5000 {
        let done = Arc::clone(&done);
        group.spawn_light("connection", async move {
            tokio::task::yield_now().await;
            assert!(number % 100 != 0, "boom");
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    assert!(supervisor.idle(SOON).await);
    assert_eq!(done.load(Ordering::SeqCst), 4950);
    assert_eq!((supervisor.running(), group.running()), (0, 0));
    assert!(group.shared.light.lock().unwrap().is_empty());
    assert_eq!(supervisor.failure(), None);
}

#[tokio::test(start_paused = true)]
async fn light_tasks_that_ignore_the_stop_are_dropped_with_whoever_stops() {
    let supervisor = Supervisor::new();
    let (first, second) = (supervisor.group(), supervisor.group().group());
    let dropped = Arc::new(AtomicUsize::new(0));
    for group in [&first, &second, &second] {
        let guard = OnDrop(Arc::clone(&dropped));
        group.spawn_light("deaf", async move {
            let _guard = guard;
            pending::<()>().await;
        });
    }
    assert_eq!(supervisor.running(), 3);
    assert_eq!(first.stop(SOON).await, Stop::Dropped(1));
    assert_eq!(
        (dropped.load(Ordering::SeqCst), supervisor.running()),
        (1, 2)
    );
    assert_eq!(supervisor.stop(SOON).await, Stop::Dropped(2));
    assert_eq!(
        (dropped.load(Ordering::SeqCst), supervisor.running()),
        (3, 0)
    );
    let guard = OnDrop(Arc::clone(&dropped));
    second.spawn_light("late", async move {
        let _guard = guard;
        pending::<()>().await;
    });
    assert!(supervisor.idle(SOON).await);
    assert_eq!(dropped.load(Ordering::SeqCst), 4);
}

struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
