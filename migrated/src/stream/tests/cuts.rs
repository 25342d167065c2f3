//! In memory: what a connection brings is cut at every place that matters.

use migrated_core::stream::{Decoder, Frame};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::super::{FeedError, FillError, Intake, Outgoing};
use super::*;

/// The last frame on the wire.
const END: usize = 17 + 32;

/// Sends a stream over one connection for each place in `cuts`, which breaks after so many bytes
/// on the wire, and one that does not break. Returns what arrived and how many bytes of the
/// stream went over each connection.
async fn send_with_cuts(data: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<u64>) {
    let mut outgoing = outgoing(data);
    let (intake, arrivals) = Intake::new();
    let stop = CancellationToken::new();
    let sending = async {
        let mut starts = Vec::new();
        for cut in cuts.iter().copied().map(Some).chain([None]) {
            let offset = intake.taken();
            starts.push(offset);
            assert!(outgoing.reaches(offset));
            let brought = one_connection(&mut outgoing, offset, cut).await;
            match feed(&intake, offset, &brought).await {
                Ok(()) => return starts,
                Err(FeedError::Cut(_)) => assert!(cut.is_some(), "cut without a cut"),
                Err(wrong) => panic!("{wrong:?}"),
            }
        }
        panic!("the stream did not end")
    };
    let (starts, stored) = tokio::join!(sending, intake.store(&stop, read(arrivals)));
    (stored.unwrap(), starts)
}

/// What a connection brings that breaks after so many bytes: whoever fills it is dropped in the
/// middle of whatever it does.
async fn one_connection<R: AsyncRead + Send + Unpin>(
    outgoing: &mut Outgoing<R>,
    offset: u64,
    cut: Option<usize>,
) -> Vec<u8> {
    let (pipe, mut frames) = mpsc::channel::<bytes::Bytes>(1);
    let mut brought = Vec::new();
    let reading = async {
        while let Some(frame) = frames.recv().await {
            brought.extend_from_slice(&frame);
            if cut.is_some_and(|cut| brought.len() >= cut) {
                return;
            }
        }
    };
    let filling = async {
        let filled: Result<(), FillError> = outgoing.fill(offset, pipe).await;
        drop(filled);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = filling => {}
        () = reading => {}
    }
    brought.truncate(cut.unwrap_or(usize::MAX));
    brought
}

/// Where each frame ends on the wire.
fn boundaries(wire: &[u8]) -> Vec<usize> {
    let mut decoder = Decoder::default();
    let mut ends = Vec::new();
    for (index, byte) in wire.iter().enumerate() {
        decoder.room(0).extend_from_slice(&[*byte]);
        if decoder.next_frame().unwrap().is_some() {
            ends.push(index + 1);
        }
    }
    ends
}

#[tokio::test]
async fn a_cut_at_every_boundary_and_inside_of_every_frame_loses_and_doubles_nothing() {
    let data = mixed(4_500_000);
    let wire = wire_of(&data).await;
    let ends = boundaries(&wire);
    assert!(ends.len() >= 6, "{ends:?}");
    let mut begin = 0;
    for end in ends {
        for cut in [
            begin,
            begin + 1,
            begin + 17,
            usize::midpoint(begin, end),
            end - 1,
            end,
        ] {
            let (arrived, starts) = send_with_cuts(&data, &[cut]).await;
            assert!(arrived == data, "cut at {cut}");
            // It goes on where it was: no frame that was there whole is sent again.
            let taken = starts
                .get(1)
                .copied()
                .unwrap_or(u64::try_from(data.len()).unwrap());
            let whole = if cut == end { end } else { begin };
            assert_eq!(taken, raw_until(&wire, whole), "cut at {cut}");
        }
        begin = end;
    }
}

/// How many bytes of the stream the frames up to a place on the wire hold.
fn raw_until(wire: &[u8], place: usize) -> u64 {
    let mut decoder = Decoder::default();
    decoder.room(0).extend_from_slice(&wire[..place]);
    let mut raw = 0;
    while let Some(frame) = decoder.next_frame().unwrap() {
        raw += frame.raw();
    }
    u64::try_from(raw).unwrap()
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_is_followed_by_the_next() {
    let data = mixed(6_000_000);
    let wire = wire_of(&data).await;
    for step in [1_048_593, 1_500_000, 2_097_200] {
        let cuts = vec![step; wire.len() / 1000];
        let (arrived, starts) = send_with_cuts(&data, &cuts).await;
        assert!(arrived == data, "steps of {step}");
        assert!(starts.is_sorted());
    }
}

#[tokio::test]
async fn an_empty_stream_and_one_of_a_byte_arrive() {
    for data in [&b""[..], b"x"] {
        for cut in [0, 1, 10, 20] {
            assert_eq!(send_with_cuts(data, &[cut]).await.0, data);
        }
    }
}

#[tokio::test]
async fn what_a_connection_brings_twice_is_taken_once() {
    let data = mixed(5_000_000);
    let wire = wire_of(&data).await;
    let (intake, arrivals) = Intake::new();
    let stop = CancellationToken::new();
    let sending = async {
        let cut = feed(&intake, 0, &wire[..wire.len() / 2]).await;
        assert!(matches!(cut, Err(FeedError::Cut(_))), "{cut:?}");
        assert!(intake.taken() > 0);
        // A source that does not ask where the stream is begins anew.
        feed(&intake, 0, &wire).await.unwrap();
        // And an answer that was lost is asked for with the stream's end.
        feed(&intake, intake.taken(), &wire[wire.len() - END..]).await
    };
    let (sent, stored) = tokio::join!(sending, intake.store(&stop, read(arrivals)));
    sent.unwrap();
    assert!(stored.unwrap() == data);
}

#[tokio::test]
async fn no_stream_that_differs_from_what_was_sent_is_whole() {
    let data = noise(2_500_000);
    let wire = wire_of(&data).await;
    let flipped = {
        let mut wire = wire.clone();
        wire[1_500_000] ^= 1;
        wire
    };
    let ends = boundaries(&wire);
    let without_the_second = [&wire[..ends[0]], &wire[ends[1]..]].concat();
    let twice_at_the_wrong_place = {
        let mut again = wire[..ends[0]].to_vec();
        again[1..9].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        [&wire[..ends[0]], &again, &wire[ends[1]..]].concat()
    };
    for (what, wire) in [
        ("a bit", flipped),
        ("a frame less", without_the_second),
        ("a frame at another place", twice_at_the_wrong_place),
    ] {
        let (intake, arrivals) = Intake::new();
        let stop = CancellationToken::new();
        let sending = async {
            let fed = feed(&intake, 0, &wire).await;
            intake.give_up();
            fed
        };
        let (fed, stored) = tokio::join!(sending, intake.store(&stop, read(arrivals)));
        let wrong = fed.unwrap_err();
        assert!(wrong.is_wrong(), "{what}: {wrong:?}");
        assert!(stored.is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_connection_that_begins_behind_what_arrived_is_refused() {
    let (intake, _arrivals) = Intake::new();
    let gap = intake.feed(1, 5, &b""[..]).await.unwrap_err();
    assert!(
        matches!(
            gap,
            FeedError::Gap {
                offset: 5,
                taken: 0
            }
        ),
        "{gap:?}"
    );
}

#[tokio::test]
async fn no_bytes_of_a_connection_make_it_panic() {
    for seed in 0..200_usize {
        let mut bytes = noise(20_000 + seed).split_off(seed * 97);
        // Every second one begins as a frame does.
        if seed % 2 == 0 {
            let kind = u8::try_from(1 + seed / 2 % 3).unwrap();
            bytes.splice(
                ..17,
                [kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 200],
            );
        }
        let (intake, arrivals) = Intake::new();
        let stop = CancellationToken::new();
        let sending = async {
            let fed = feed(&intake, 0, &bytes).await;
            intake.give_up();
            fed
        };
        let (fed, stored) = tokio::join!(sending, intake.store(&stop, read(arrivals)));
        assert!(fed.is_err() && stored.is_err(), "{seed}");
    }
}

#[tokio::test]
async fn a_ring_that_does_not_reach_back_says_so() {
    let data = noise(8 << 20);
    let mut outgoing = outgoing(&data).with_ring(3 << 20);
    let wire = one_connection(&mut outgoing, 0, Some(6 << 20)).await;
    assert_eq!(wire.len(), 6 << 20);
    assert!(!outgoing.reaches(0) && !outgoing.reaches(2 << 20) && outgoing.reaches(5 << 20));
    let (pipe, _frames) = mpsc::channel(1);
    let gone = outgoing.fill(0, pipe).await;
    assert!(matches!(gone, Err(FillError::Gone(0))), "{gone:?}");
}

#[tokio::test]
async fn compressible_data_takes_fewer_bytes_on_the_wire_and_noise_hardly_more() {
    let text = b"all work and no play makes a dull stream. ".repeat(100_000);
    let wire = wire_of(&text).await;
    assert!(wire.len() * 20 < text.len(), "{}", wire.len());
    let noise = noise(4 << 20);
    let wire = wire_of(&noise).await;
    assert!(wire.len() < noise.len() + 200, "{}", wire.len());
    let mut decoder = Decoder::default();
    decoder.room(0).extend_from_slice(&wire);
    while let Some(frame) = decoder.next_frame().unwrap() {
        if let Frame::Data { raw, payload, .. } = frame {
            assert_eq!(raw, payload.len(), "noise was sent compressed");
        }
    }
}

#[tokio::test]
async fn a_source_that_breaks_off_is_not_a_stream_that_ended() {
    let source = std::io::Cursor::new(noise(1_500_000)).chain(Broken);
    let mut outgoing = Outgoing::new(source, Meter::default(), Compression::adaptive());
    let (pipe, mut frames) = mpsc::channel(10);
    let broken = outgoing.fill(0, pipe).await;
    assert!(matches!(broken, Err(FillError::Source(_))), "{broken:?}");
    let mut wire = Vec::new();
    while let Some(frame) = frames.recv().await {
        wire.extend_from_slice(&frame);
    }
    let (intake, arrivals) = Intake::new();
    let stop = CancellationToken::new();
    let sending = async {
        let fed = feed(&intake, 0, &wire).await;
        intake.give_up();
        fed
    };
    let (fed, stored) = tokio::join!(sending, intake.store(&stop, read(arrivals)));
    assert!(matches!(fed, Err(FeedError::Cut(_))), "{fed:?}");
    assert!(stored.is_err());
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("the sender died")))
    }
}
