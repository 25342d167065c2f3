//! The btrfs backend on pools in image files, two of them for two hosts. Needs root.

#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

#[path = "btrfs_storage/aside.rs"]
mod aside;
#[path = "btrfs_storage/interrupted.rs"]
mod interrupted;
#[path = "btrfs_storage/pools.rs"]
mod pools;
#[path = "btrfs_storage/streams.rs"]
mod streams;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use migrated::storage::btrfs::Btrfs;
use migrated::storage::{Storage, StorageError};
use migrated_core::stamp::{Stamp, StampState};
use rehome_shared::ids::{AppName, DatasetId, Epoch, HostAddr, VolumeName};
use rehome_shared::units::Bytes;
use tokio::io::{AsyncReadExt, BufReader};

use pools::{Pools, Torn, noise, pass, whole_stream, work, write};

type Test = anyhow::Result<()>;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_volume_goes_there_and_back_and_the_way_back_is_a_delta() -> Test {
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
    write(&live, "big", &noise(1, 20 * MIB))?;

    let first = a.snapshot(&dataset, "mig-1").await?;
    assert_eq!(
        a.snapshot(&dataset, "mig-1").await?,
        first,
        "taking it again"
    );
    let (received, full) = pass(&a, &b, &dataset, &first, None).await?;
    assert_eq!(received, first);
    ensure!(full > 20 * MIB, "{full}");
    write(&live, "small", &noise(2, MIB))?;
    let second = a.snapshot(&dataset, "mig-2").await?;
    let (_, delta) = pass(&a, &b, &dataset, &second, Some("mig-1")).await?;
    ensure!((MIB..2 * MIB).contains(&delta), "{delta}");

    let before = b.inspect(&dataset).await?.context("it is on b")?;
    assert_eq!(
        (before.live, before.snapshots),
        (false, vec![first.clone(), second.clone()])
    );
    b.promote(&dataset, "mig-2", Some(Bytes(100 * MIB))).await?;
    a.retire(&dataset).await?;
    a.retire(&dataset).await?;
    assert!(!live.exists());
    a.delete_snapshot(&dataset, "mig-1").await?;
    b.delete_snapshot(&dataset, "mig-1").await?;
    b.delete_snapshot(&dataset, "mig-1").await?;

    let last = go_around(&b, &a, &dataset).await?;
    let live = last.live_path(&dataset);
    assert_eq!(fs::read(live.join("big"))?, noise(1, 20 * MIB));
    assert_eq!(fs::read(live.join("small"))?, noise(2, MIB));
    assert_eq!(fs::read(live.join("round-4"))?, noise(4, MIB));
    Ok(())
}

#[tokio::test]
async fn what_was_written_since_a_snapshot_is_known_before_it_is_sent() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 300 * MIB).await?,
        pools.open("b", 300 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let live = a.live_path(&dataset);
    write(&live, "big", &noise(1, 20 * MIB))?;
    let first = a.snapshot(&dataset, "mig-1").await?;
    assert_eq!(a.changed_since(&dataset, "mig-1").await?, Bytes(0));
    write(&live, "small", &noise(2, 3 * MIB))?;
    a.flush(&dataset).await?;
    assert_eq!(a.changed_since(&dataset, "mig-1").await?, Bytes(3 * MIB));

    // As well where the base came from another host and the live tree was made of it.
    pass(&a, &b, &dataset, &first, None).await?;
    b.promote(&dataset, "mig-1", None).await?;
    assert_eq!(b.changed_since(&dataset, "mig-1").await?, Bytes(0));
    write(&b.live_path(&dataset), "big", &noise(3, MIB))?;
    b.flush(&dataset).await?;
    assert_eq!(b.changed_since(&dataset, "mig-1").await?, Bytes(MIB));

    let missing = a.changed_since(&dataset, "mig-9").await;
    ensure!(
        matches!(missing, Err(StorageError::BaseMissing(_))),
        "{missing:?}"
    );
    Ok(())
}

/// Moves a volume to and fro, three times, each time on the snapshot of the last, so that received
/// and native snapshots serve as bases on either side. Returns where it ends.
async fn go_around<'a>(
    from: &'a Btrfs,
    to: &'a Btrfs,
    dataset: &DatasetId,
) -> anyhow::Result<&'a Btrfs> {
    let (mut here, mut there) = (from, to);
    let mut base = "mig-2".to_owned();
    for round in 3..6 {
        let live = here.live_path(dataset);
        write(&live, &format!("round-{round}"), &noise(round, MIB))?;
        let next = here.snapshot(dataset, &format!("mig-{round}")).await?;
        let (_, bytes) = pass(here, there, dataset, &next, Some(&base)).await?;
        ensure!((MIB..2 * MIB).contains(&bytes), "round {round}: {bytes}");
        there.promote(dataset, &next.name, None).await?;
        here.retire(dataset).await?;
        for side in [here, there] {
            side.delete_snapshot(dataset, &base).await?;
            let info = side.inspect(dataset).await?.context("it is known")?;
            assert_eq!(info.snapshots, std::slice::from_ref(&next));
        }
        base = next.name;
        (here, there) = (there, here);
    }
    Ok(here)
}

/// Writes until the file system refuses, and returns the error number and the bytes written.
fn fill(volume: &Path) -> anyhow::Result<(Option<i32>, u64)> {
    let mut file = fs::File::create(volume.join("fill"))?;
    let chunk = noise(9, MIB);
    for written in 0..400 {
        // Synced, so that what is promised is also there.
        if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            return Ok((error.raw_os_error(), written * MIB));
        }
    }
    anyhow::bail!("nothing refused 400 MiB")
}

#[tokio::test]
async fn the_limit_is_enforced_and_kept_across_a_move() -> Test {
    const EDQUOT: Option<i32> = Some(122);
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 300 * MIB).await?,
        pools.open("b", 300 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, Some(Bytes(30 * MIB))).await?;
    let live = a.live_path(&dataset);
    let (error, written) = fill(&live)?;
    assert_eq!(error, EDQUOT);
    ensure!((15 * MIB..=30 * MIB).contains(&written), "{written}");
    fs::remove_file(live.join("fill")).context("a full volume can be tidied")?;
    write(&live, "kept", &noise(3, 20 * MIB))?;

    let snapshot = a.snapshot(&dataset, "mig-1").await?;
    pass(&a, &b, &dataset, &snapshot, None).await?;
    // The limit was raised between the rounds: what arrives must not be held to the old one.
    a.set_limit(&dataset, Some(Bytes(60 * MIB))).await?;
    write(&live, "more", &noise(4, 25 * MIB))?;
    let snapshot = a.snapshot(&dataset, "mig-2").await?;
    pass(&a, &b, &dataset, &snapshot, Some("mig-1")).await?;
    b.promote(&dataset, "mig-2", Some(Bytes(60 * MIB))).await?;
    let info = b.inspect(&dataset).await?.context("it is on b")?;
    assert_eq!(info.limit, Some(Bytes(60 * MIB)));
    ensure!(info.used.0 >= 45 * MIB, "{}", info.used);
    let (error, written) = fill(&b.live_path(&dataset))?;
    assert_eq!(error, EDQUOT);
    ensure!(written <= 15 * MIB, "{written}");
    b.set_limit(&dataset, None).await?;
    write(&b.live_path(&dataset), "beyond", &noise(5, 40 * MIB))?;
    Ok(())
}

#[tokio::test]
async fn a_torn_stream_changes_nothing() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 200 * MIB).await?,
        pools.open("b", 200 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    write(&a.live_path(&dataset), "data", &noise(1, 4 * MIB))?;
    let snapshot = a.snapshot(&dataset, "mig-1").await?;
    for left in [0, 5, 17, 1000, 2_000_000] {
        let stream = a.send(&dataset, "mig-1", None).await?;
        let mut torn = BufReader::new(Torn { stream, left });
        let refused = b
            .receive(&dataset, "mig-1", &snapshot.guid, &mut torn)
            .await;
        assert!(
            matches!(refused, Err(StorageError::Io { .. })),
            "{left}: {refused:?}"
        );
        assert_eq!(b.inspect(&dataset).await?, None, "{left}");
        assert_eq!(work(&pools.path("b"))?, Vec::<PathBuf>::new(), "{left}");
    }
    // Torn between two commands and without an error, which only the missing end mark tells.
    let bytes = whole_stream(&a, &dataset, "mig-1", None).await?;
    let end_mark = 10;
    for cut in [bytes.len() - end_mark, bytes.len() - 1, 17, 0] {
        let mut short = &bytes[..cut];
        let refused = b
            .receive(&dataset, "mig-1", &snapshot.guid, &mut short)
            .await;
        assert!(refused.is_err(), "{cut}");
        assert_eq!(b.inspect(&dataset).await?, None, "{cut}");
        assert_eq!(work(&pools.path("b"))?, Vec::<PathBuf>::new(), "{cut}");
    }
    pass(&a, &b, &dataset, &snapshot, None).await?;
    Ok(())
}

#[tokio::test]
async fn only_what_was_announced_is_taken() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 200 * MIB).await?,
        pools.open("b", 200 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let first = a.snapshot(&dataset, "mig-1").await?;
    write(&a.live_path(&dataset), "data", b"x")?;
    let second = a.snapshot(&dataset, "mig-2").await?;

    let bytes = whole_stream(&a, &dataset, "mig-1", None).await?;
    let refused = b
        .receive(&dataset, "mig-1", &second.guid, &mut bytes.as_slice())
        .await;
    assert!(
        matches!(refused, Err(StorageError::Corrupt(_))),
        "{refused:?}"
    );
    assert_eq!(b.inspect(&dataset).await?, None);

    let bytes = whole_stream(&a, &dataset, "mig-2", Some("mig-1")).await?;
    let refused = b
        .receive(&dataset, "mig-2", &second.guid, &mut bytes.as_slice())
        .await;
    assert!(
        matches!(refused, Err(StorageError::BaseMissing(_))),
        "{refused:?}"
    );
    assert_eq!(b.inspect(&dataset).await?, None);
    let refused = a.send(&dataset, "mig-2", Some("mig-0")).await.map(drop);
    assert!(
        matches!(refused, Err(StorageError::BaseMissing(_))),
        "{refused:?}"
    );
    let refused = a.send(&dataset, "mig-0", None).await.map(drop);
    assert!(
        matches!(refused, Err(StorageError::NotFound(_))),
        "{refused:?}"
    );

    pass(&a, &b, &dataset, &first, None).await?;
    pass(&a, &b, &dataset, &first, None)
        .await
        .context("receiving it again")?;
    let mut nothing = &b""[..];
    let refused = b
        .receive(&dataset, "mig-1", &second.guid, &mut nothing)
        .await;
    assert!(
        matches!(refused, Err(StorageError::Exists(_))),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_sender_that_fails_is_a_read_error() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 200 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    write(&a.live_path(&dataset), "data", &noise(1, 8 * MIB))?;
    a.snapshot(&dataset, "mig-1").await?;
    // A writable tree in the place of a snapshot is what the program refuses to send.
    let place = pools
        .path("a")
        .join("snap")
        .join(dataset.as_str())
        .join("wrong/data");
    fs::create_dir_all(place.parent().context("it has a parent")?)?;
    let made = Command::new("btrfs")
        .args(["-q", "subvolume", "create"])
        .arg(&place)
        .status()?;
    ensure!(made.success());
    let mut bytes = Vec::new();
    let error = a
        .send(&dataset, "wrong", None)
        .await?
        .read_to_end(&mut bytes)
        .await
        .unwrap_err();
    ensure!(error.to_string().contains("read-only"), "{error}");
    Ok(())
}

#[tokio::test]
async fn stores_through_mmap_are_in_the_snapshot() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 200 * MIB).await?,
        pools.open("b", 200 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let path = a.live_path(&dataset).join("mapped");
    fs::write(&path, vec![0; 1 << 20])?;
    a.flush(&dataset).await?;
    // The mapping stays in place while the snapshot is taken.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b');m=mmap.mmap(f.fileno(),0)\n\
                  m[5000:5005]=b'hello'\nprint('stored',flush=True)\nsys.stdin.read()\n";
    let mut writer = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = [0; 7];
    let heard = writer
        .stdout
        .as_mut()
        .map(|out| std::io::Read::read_exact(out, &mut said));
    let snapshot = a.snapshot(&dataset, "mig-1").await;
    drop(writer.stdin.take());
    writer.wait()?;
    heard.context("it has an output")??;
    pass(&a, &b, &dataset, &snapshot?, None).await?;
    b.promote(&dataset, "mig-1", None).await?;
    let arrived = fs::read(b.live_path(&dataset).join("mapped"))?;
    assert_eq!(&arrived[5000..5005], b"hello");
    Ok(())
}

#[tokio::test]
async fn a_promotion_replaces_what_was_live() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 200 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let live = a.live_path(&dataset);
    write(&live, "data", b"before")?;
    a.snapshot(&dataset, "point").await?;
    write(&live, "data", b"after")?;
    write(&live, "new", b"new")?;
    a.promote(&dataset, "point", None).await?;
    assert_eq!(fs::read(live.join("data"))?, b"before");
    assert!(!live.join("new").exists());
    write(&live, "data", b"writable")?;
    assert_eq!(work(&pools.path("a"))?, Vec::<PathBuf>::new());
    let refused = a.promote(&dataset, "absent", None).await;
    assert!(
        matches!(refused, Err(StorageError::NotFound(_))),
        "{refused:?}"
    );
    assert_eq!(fs::read(live.join("data"))?, b"writable");
    Ok(())
}

#[tokio::test]
async fn a_receiver_without_space_keeps_nothing() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 500 * MIB).await?,
        pools.open("b", 120 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    write(&a.live_path(&dataset), "data", &noise(1, 150 * MIB))?;
    let snapshot = a.snapshot(&dataset, "mig-1").await?;
    let before = b.available().await?;
    ensure!(before.0 < 120 * MIB, "{before}");
    let mut stream = BufReader::new(a.send(&dataset, "mig-1", None).await?);
    let refused = b
        .receive(&dataset, "mig-1", &snapshot.guid, &mut stream)
        .await;
    let Err(StorageError::NoSpace { needed, .. }) = refused else {
        anyhow::bail!("{refused:?}");
    };
    ensure!(needed.0 > MIB, "{needed}");
    assert_eq!(b.inspect(&dataset).await?, None);
    assert_eq!(work(&pools.path("b"))?, Vec::<PathBuf>::new());
    // The room is free again for something that fits.
    let small = DatasetId::generate();
    a.create(&small, None).await?;
    write(&a.live_path(&small), "data", &noise(2, 5 * MIB))?;
    let snapshot = a.snapshot(&small, "mig-1").await?;
    pass(&a, &b, &small, &snapshot, None).await?;
    Ok(())
}

#[tokio::test]
async fn a_pool_that_was_unmounted_is_found_again() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 200 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, Some(Bytes(40 * MIB))).await?;
    write(&a.live_path(&dataset), "data", b"kept")?;
    a.snapshot(&dataset, "point").await?;
    let stamp = Stamp {
        application: AppName::try_new("db")?,
        volume: VolumeName::try_new("data")?,
        owner: HostAddr::try_new("10.0.0.1")?,
        epoch: Epoch(3),
        migration: None,
        state: Some(StampState::Held),
        volumes: Vec::new(),
    };
    a.stamp(&dataset, &stamp).await?;
    let known = a.list().await?;
    assert_eq!(known[0].stamp.as_ref(), Some(&stamp));
    drop(a);
    // What a crash in the middle of a receive leaves.
    let left = pools
        .path("a")
        .join("recv")
        .join(dataset.as_str())
        .join("half");
    fs::create_dir_all(&left)?;
    let half = Command::new("btrfs")
        .args(["-q", "subvolume", "create"])
        .arg(left.join("data"))
        .status()?;
    ensure!(half.success());
    fs::write(pools.path("a").join("live/notes.txt"), "an operator's")?;
    ensure!(pools.unmount("a"));

    let a = pools.open("a", 200 * MIB).await?;
    assert_eq!(a.list().await?, known);
    assert_eq!(fs::read(a.live_path(&dataset).join("data"))?, b"kept");
    assert!(!left.exists());
    let refused = a.create(&dataset, None).await;
    assert!(
        matches!(refused, Err(StorageError::Exists(_))),
        "{refused:?}"
    );
    // Opened again while it is mounted.
    assert_eq!(pools.open("a", 200 * MIB).await?.list().await?, known);
    Ok(())
}

#[tokio::test]
async fn a_volume_is_born_once_and_destroyed_on_command() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let a = pools.open("a", 200 * MIB).await?;
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let refused = a.create(&dataset, None).await;
    assert!(
        matches!(refused, Err(StorageError::Exists(_))),
        "{refused:?}"
    );
    a.snapshot(&dataset, "point").await?;
    a.retire(&dataset).await?;
    let refused = a.create(&dataset, None).await;
    assert!(
        matches!(refused, Err(StorageError::Exists(_))),
        "with a snapshot: {refused:?}"
    );
    let refused = a.flush(&dataset).await;
    assert!(
        matches!(refused, Err(StorageError::NotFound(_))),
        "{refused:?}"
    );
    a.destroy(&dataset).await?;
    a.destroy(&dataset).await?;
    assert_eq!(a.inspect(&dataset).await?, None);
    assert_eq!(a.list().await?, []);
    a.create(&dataset, None).await?;
    Ok(())
}
