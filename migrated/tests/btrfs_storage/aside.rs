//! Whether a live tree has changed, and what is set aside for people.

use std::fs;
use std::path::Path;

use anyhow::Context;
use migrated::storage::{Storage, StorageError};
use rehome_shared::ids::DatasetId;
use rehome_shared::units::Bytes;

use crate::pools::{Pools, noise, pass, write};
use crate::{MIB, Test};

/// What somebody does to a tree.
type Change = fn(&Path) -> anyhow::Result<()>;

#[tokio::test]
async fn a_tree_is_unchanged_until_anything_of_it_is() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 300 * MIB).await?,
        pools.open("b", 300 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, Some(Bytes(100 * MIB))).await?;
    let live = a.live_path(&dataset);
    write(&live, "kept", &noise(1, 2 * MIB))?;
    fs::create_dir(live.join("inner"))?;
    let base = a.snapshot(&dataset, "mig-1").await?;
    assert!(a.is_unchanged(&dataset, "mig-1").await?, "its own origin");
    fs::read(live.join("kept"))?;
    a.set_limit(&dataset, Some(Bytes(90 * MIB))).await?;
    assert!(a.is_unchanged(&dataset, "mig-1").await?, "read and limited");

    pass(&a, &b, &dataset, &base, None).await?;
    b.promote(&dataset, "mig-1", None).await?;
    assert!(b.is_unchanged(&dataset, "mig-1").await?, "made of it");
    let there = b.live_path(&dataset);
    let changes: [(&str, Change); 4] = [
        ("a new file", |at| write(at, "new", b"x")),
        ("a byte of an old one", |at| write(at, "kept", b"y")),
        ("one that is gone", |at| {
            Ok(fs::remove_file(at.join("kept"))?)
        }),
        ("a directory that is gone", |at| {
            Ok(fs::remove_dir(at.join("inner"))?)
        }),
    ];
    for (what, change) in changes {
        b.promote(&dataset, "mig-1", None).await?;
        assert!(b.is_unchanged(&dataset, "mig-1").await?, "before {what}");
        change(&there)?;
        assert!(!b.is_unchanged(&dataset, "mig-1").await?, "{what}");
    }
    assert!(matches!(
        b.is_unchanged(&dataset, "mig-2").await,
        Err(StorageError::NotFound(_))
    ));
    b.retire(&dataset).await?;
    assert!(matches!(
        b.is_unchanged(&dataset, "mig-1").await,
        Err(StorageError::NotFound(_))
    ));
    Ok(())
}

#[tokio::test]
async fn a_tree_that_is_set_aside_is_kept_read_only_and_outlives_its_volume() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 300 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let live = a.live_path(&dataset);
    a.snapshot(&dataset, "mig-1").await?;
    let before = std::time::SystemTime::now();
    assert!(a.taken_at(&dataset, "mig-1").await? <= before);
    write(&live, "mine", b"alone")?;
    let place = a.set_aside(&dataset, "e1-20261123T033000Z").await?;
    assert_eq!(place, a.diverged_path(&dataset, "e1-20261123T033000Z"));
    assert_eq!(
        a.set_aside(&dataset, "e1-20261123T033000Z").await?,
        place,
        "again"
    );
    assert!(!live.exists());
    assert_eq!(fs::read(place.join("mine"))?, b"alone");
    assert!(fs::write(place.join("mine"), "changed").is_err());
    assert!(
        a.set_aside(&dataset, "e2").await.is_err(),
        "nothing is live"
    );
    assert!(a.set_aside(&dataset, "../e2").await.is_err());

    // The volume goes on, and comes back, beside it.
    a.promote(&dataset, "mig-1", None).await?;
    assert!(a.is_unchanged(&dataset, "mig-1").await?);
    let info = a.inspect(&dataset).await?.context("it is known")?;
    assert_eq!(info.diverged, ["e1-20261123T033000Z"]);
    a.destroy(&dataset).await?;
    drop(a);
    let again = pools.open("a", 300 * MIB).await?;
    let all = again.list().await?;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].diverged, ["e1-20261123T033000Z"]);
    assert!(!all[0].live && all[0].snapshots.is_empty());
    assert_eq!(fs::read(place.join("mine"))?, b"alone");

    // Until somebody asks for its removal; and once more is no harm.
    let sizes = again.exclusive(&dataset).await?;
    assert!(sizes.contains_key("e1-20261123T033000Z"), "{sizes:?}");
    assert!(again.discard_diverged(&dataset, "../e1").await.is_err());
    for _ in 0..2 {
        again
            .discard_diverged(&dataset, "e1-20261123T033000Z")
            .await?;
    }
    assert!(!place.exists() && again.list().await?.is_empty());
    Ok(())
}
