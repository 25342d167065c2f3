//! Streams that are cut: every byte arrives once.

mod cuts;
mod links;

use std::sync::Arc;
use std::time::Duration;

use migrated_core::stream::Compression;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{Arrivals, GRACE, Intake, Meter, Outgoing};

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Noise and what can be compressed, in turns.
fn mixed(length: usize) -> Vec<u8> {
    let mut data = noise(length);
    for (number, part) in data.chunks_mut(700_000).enumerate() {
        if number % 2 == 1 {
            part.fill(b'x');
        }
    }
    data
}

fn outgoing(data: &[u8]) -> Outgoing<std::io::Cursor<Vec<u8>>> {
    let source = std::io::Cursor::new(data.to_vec());
    Outgoing::new(source, Meter::default(), Compression::adaptive())
}

/// Reads a stream as a storage does, until its end or an error.
async fn read(mut arrivals: Arrivals) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    arrivals.read_to_end(&mut out).await?;
    Ok(out)
}

/// The frames of a stream as they go over the wire.
async fn wire_of(data: &[u8]) -> Vec<u8> {
    let (pipe, mut frames) = tokio::sync::mpsc::channel(1000);
    outgoing(data).fill(0, pipe).await.unwrap();
    let mut wire = Vec::new();
    while let Some(frame) = frames.recv().await {
        wire.extend_from_slice(&frame);
    }
    wire
}

/// Feeds bytes and says whether the stream was whole with them.
async fn feed(intake: &Intake, offset: u64, wire: &[u8]) -> Result<(), super::FeedError> {
    intake.feed(1, offset, wire).await
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stands_still_is_given_up_after_its_grace() {
    let (intake, arrivals) = Intake::new();
    let intake = Arc::new(intake);
    let stop = CancellationToken::new();
    let begun = tokio::time::Instant::now();
    let storing = intake.store(&stop, read(arrivals));
    let (mut source, body) = tokio::io::duplex(64);
    // A connection that is open and brings nothing is no better than none.
    let feeding = intake.feed(1, 0, body);
    let talk = async {
        tokio::time::sleep(GRACE / 2).await;
        source.write_all(&[1, 0, 0]).await.unwrap();
        tokio::time::sleep(GRACE / 2).await;
        // Who asks is alive.
        assert!(intake.progress().hungry);
        std::future::pending::<()>().await;
    };
    let (stored, fed) = tokio::select! {
        both = async { tokio::join!(storing, feeding) } => both,
        () = talk => unreachable!(),
    };
    let error = stored.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(fed.is_ok(), "the answer is what became of the stream");
    let waited = begun.elapsed();
    assert!(
        (GRACE * 2..GRACE * 2 + GRACE / 10).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_storage_is_not_a_silent_source() {
    let wire = wire_of(&noise(5 << 20)).await;
    let (intake, mut arrivals) = Intake::new();
    let slow = async {
        let mut first = vec![0; 10];
        arrivals.read_exact(&mut first).await?;
        tokio::time::sleep(GRACE * 5).await;
        read(arrivals).await
    };
    let stop = CancellationToken::new();
    let (stored, fed) = tokio::join!(intake.store(&stop, slow), feed(&intake, 0, &wire));
    fed.unwrap();
    assert_eq!(stored.unwrap().len(), (5 << 20) - 10);
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_is_slow_after_the_end_is_not_hurried() {
    let wire = wire_of(b"little").await;
    let (intake, arrivals) = Intake::new();
    let slow = async {
        tokio::time::sleep(GRACE * 3).await;
        let stored = read(arrivals).await;
        tokio::time::sleep(GRACE * 3).await;
        stored
    };
    let stop = CancellationToken::new();
    let fed = async {
        feed(&intake, 0, &wire).await.unwrap();
        assert!(!intake.progress().hungry);
    };
    let (stored, ()) = tokio::join!(intake.store(&stop, slow), fed);
    assert_eq!(stored.unwrap(), b"little");
}

#[tokio::test(start_paused = true)]
async fn the_stop_of_the_program_ends_a_stream_with_an_error() {
    let (intake, arrivals) = Intake::new();
    let stop = CancellationToken::new();
    stop.cancel();
    let begun = tokio::time::Instant::now();
    assert!(intake.store(&stop, read(arrivals)).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_newer_connection_takes_the_place_of_one_that_brings_nothing() {
    let data = noise(3 << 20);
    let wire = wire_of(&data).await;
    let (intake, arrivals) = Intake::new();
    let (_silent, body) = tokio::io::duplex(64);
    let stop = CancellationToken::new();
    let (older, newer, stored) = tokio::join!(
        intake.feed(1, 0, body),
        async {
            tokio::task::yield_now().await;
            intake.feed(2, 0, wire.as_slice()).await
        },
        intake.store(&stop, read(arrivals)),
    );
    assert!(
        matches!(older, Err(super::FeedError::Displaced)),
        "{older:?}"
    );
    newer.unwrap();
    assert!(stored.unwrap() == data);
    assert_eq!(intake.progress().connection, 2);
}
