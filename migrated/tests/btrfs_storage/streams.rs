//! Streams between two pools over connections that break.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use migrated::storage::{SendStream, Storage};
use migrated::stream::{FeedError, Intake, Meter, Outgoing};
use migrated_core::stream::Compression;
use rehome_shared::ids::DatasetId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{MIB, Test};
use crate::pools::{Pools, noise, work, write};

/// Feeds a stream over a connection that breaks after so many bytes on the wire.
async fn connection(
    outgoing: &mut Outgoing<SendStream>,
    intake: &Intake,
    most: usize,
) -> Result<(), FeedError> {
    let (pipe, mut frames) = mpsc::channel::<bytes::Bytes>(1);
    let mut brought = Vec::new();
    let filling = async {
        let filled = outgoing.fill(intake.taken(), pipe).await;
        drop(filled);
        std::future::pending::<()>().await;
    };
    let reading = async {
        while let Some(frame) = frames.recv().await {
            brought.extend_from_slice(&frame);
            if brought.len() >= most {
                return;
            }
        }
    };
    tokio::select! {
        () = filling => {}
        () = reading => {}
    }
    brought.truncate(most);
    intake.feed(1, intake.taken(), brought.as_slice()).await
}

#[tokio::test]
async fn a_stream_that_is_cut_goes_on_into_the_same_receiver() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 200 * MIB).await?,
        pools.open("b", 200 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    let live = a.live_path(&dataset);
    write(&live, "noise", &noise(1, 9 * MIB))?;
    write(&live, "text", &b"again and again ".repeat(200_000))?;
    let snapshot = a.snapshot(&dataset, "mig-1").await?;
    let meter = Meter::default();
    let source = a.send(&dataset, "mig-1", None).await?;
    let mut outgoing = Outgoing::new(source, meter.clone(), Compression::adaptive());
    let (intake, mut arrivals) = Intake::new();
    let stop = CancellationToken::new();

    let sending = async {
        for most in [10, 2_500_000, 1_048_593, 3_000_000] {
            let cut = connection(&mut outgoing, &intake, most).await;
            ensure!(matches!(cut, Err(FeedError::Cut(_))), "{most}: {cut:?}");
        }
        Ok(connection(&mut outgoing, &intake, usize::MAX).await?)
    };
    let storing = b.receive(&dataset, "mig-1", &snapshot.guid, &mut arrivals);
    let (sent, stored) = tokio::join!(sending, intake.store(&stop, storing));

    sent?;
    assert_eq!(stored?, snapshot);
    assert_eq!(meter.bytes().0, intake.taken());
    b.promote(&dataset, "mig-1", None).await?;
    let there = b.live_path(&dataset);
    assert!(std::fs::read(there.join("noise"))? == noise(1, 9 * MIB));
    assert_eq!(
        std::fs::read(there.join("text"))?,
        b"again and again ".repeat(200_000)
    );
    Ok(())
}

#[tokio::test]
async fn of_a_stream_that_is_given_up_nothing_is_left_and_the_next_arrives() -> Test {
    let Some(pools) = Pools::new()? else {
        return Ok(());
    };
    let (a, b) = (
        pools.open("a", 200 * MIB).await?,
        pools.open("b", 200 * MIB).await?,
    );
    let dataset = DatasetId::generate();
    a.create(&dataset, None).await?;
    write(&a.live_path(&dataset), "noise", &noise(1, 5 * MIB))?;
    let snapshot = a.snapshot(&dataset, "mig-1").await?;
    for most in [3_000_000, usize::MAX] {
        let source = a.send(&dataset, "mig-1", None).await?;
        let mut outgoing = Outgoing::new(source, Meter::default(), Compression::adaptive());
        let (intake, mut arrivals) = Intake::new();
        let stop = CancellationToken::new();
        let sending = async {
            let fed = connection(&mut outgoing, &intake, most).await;
            if fed.is_err() {
                ensure!(!work(&pools.path("b"))?.is_empty(), "nothing was begun");
                intake.give_up();
            }
            Ok(())
        };
        let storing = b.receive(&dataset, "mig-1", &snapshot.guid, &mut arrivals);
        let (sent, stored) = tokio::join!(sending, intake.store(&stop, storing));
        sent?;
        if most == usize::MAX {
            assert_eq!(stored?, snapshot);
            let here = b.inspect(&dataset).await?.context("it is there")?;
            assert_eq!(here.snapshots, std::slice::from_ref(&snapshot));
        } else {
            ensure!(stored.is_err(), "half of it was taken for all");
            assert_eq!(b.inspect(&dataset).await?, None);
        }
        assert_eq!(work(&pools.path("b"))?, Vec::<PathBuf>::new());
    }
    Ok(())
}
