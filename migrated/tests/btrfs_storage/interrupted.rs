//! Calls that are dropped in the middle, as when the connection of a stream breaks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use migrated::storage::Storage;
use rehome_shared::ids::DatasetId;
use tokio::io::AsyncWriteExt;

use crate::pools::{Pools, noise, whole_stream, work, write};
use crate::{MIB, Test};

/// Where the connection of a stream breaks while an older round is being deleted.
#[tokio::test]
async fn a_snapshot_is_there_or_gone_wherever_its_deletion_is_interrupted() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 300 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let directory = pools.path("a").join("snap").join(dataset.as_str());
    for steps in 0..40 {
        a.snapshot(&dataset, "mig-1-1").await?;
        {
            let mut deleting = std::pin::pin!(a.delete_snapshot(&dataset, "mig-1-1"));
            for _ in 0..steps {
                // A look at what it has done so far.
                let patience = Duration::from_micros(500);
                if tokio::time::timeout(patience, &mut deleting).await.is_ok() {
                    break;
                }
            }
        }
        // What a thread had begun goes on when its caller is dropped.
        let settled = async {
            loop {
                let info = a.inspect(&dataset).await?.context("a volume")?;
                let same = fs::read_dir(&directory)?.count() == info.snapshots.len();
                if same && a.delete_snapshot(&dataset, "mig-1-1").await.is_ok() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(30), settled).await;
        settled.with_context(|| format!("something is left after {steps} steps"))??;
        assert_eq!(fs::read_dir(&directory)?.count(), 0, "after {steps} steps");
    }
    assert_eq!(work(&pools.path("a"))?, Vec::<PathBuf>::new());
    Ok(())
}

/// Where a move is called off in the middle of a round.
#[tokio::test]
async fn a_snapshot_is_there_or_not_wherever_its_making_is_interrupted() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 300 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let directory = pools.path("a").join("snap").join(dataset.as_str());
    for steps in 0..40 {
        {
            let mut making = std::pin::pin!(a.snapshot(&dataset, "mig-1-1"));
            for _ in 0..steps {
                let patience = Duration::from_micros(500);
                if tokio::time::timeout(patience, &mut making).await.is_ok() {
                    break;
                }
            }
        }
        // What a thread or a program had begun goes on when its caller is dropped.
        let settled = async {
            loop {
                let dropped = a.discard_partial(&dataset, "mig-1-").await.is_ok();
                let info = a.inspect(&dataset).await?.context("a volume")?;
                let there = fs::read_dir(&directory).map_or(0, Iterator::count);
                if dropped && there == info.snapshots.len() && work(&pools.path("a"))?.is_empty() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(30), settled).await;
        settled.with_context(|| format!("something is left after {steps} steps"))??;
        a.delete_snapshot(&dataset, "mig-1-1").await?;
    }
    a.snapshot(&dataset, "mig-1-1").await?;
    assert_eq!(
        a.inspect(&dataset)
            .await?
            .context("a volume")?
            .snapshots
            .len(),
        1
    );
    assert_eq!(work(&pools.path("a"))?, Vec::<PathBuf>::new());
    Ok(())
}

/// Waits until there is something in the work directory of a pool.
async fn something_in(pool: &Path) -> Test {
    let begun = async {
        while work(pool)?.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), begun).await?
}

/// As when the connection of a stream breaks: its handler is dropped in the middle.
#[tokio::test]
async fn what_a_receive_that_was_dropped_leaves_can_be_discarded() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 300 * MIB).await?,
        pools.open("b", 300 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    write(&a.live_path(&dataset), "data", &noise(1, 8 * MIB))?;
    let snapshot = a.snapshot(&dataset, "mig-1-1").await?;
    let bytes = whole_stream(&a, &dataset, "mig-1-1", None).await?;
    let half = bytes.get(..bytes.len() / 2).context("a stream")?;
    // The second half never comes.
    let (mut sender, stream) = tokio::io::duplex(bytes.len());
    let mut stream = tokio::io::BufReader::new(stream);
    sender.write_all(half).await?;
    let receiving = b.receive(&dataset, "mig-1-1", &snapshot.guid, &mut stream);
    let pool = pools.path("b");
    tokio::select! {
        received = receiving => anyhow::bail!("it ended: {received:?}"),
        begun = something_in(&pool) => begun?,
    }

    b.discard_partial(&dataset, "mig-2-").await?;
    ensure!(
        !work(&pools.path("b"))?.is_empty(),
        "another one's was dropped"
    );
    b.discard_partial(&dataset, "mig-1-").await?;
    assert_eq!(work(&pools.path("b"))?, Vec::<PathBuf>::new());
    assert_eq!(b.inspect(&dataset).await?, None);
    // Nothing to drop is fine.
    b.discard_partial(&dataset, "mig-1-")
        .await
        .map_err(Into::into)
}
