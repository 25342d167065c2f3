use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A frame of so many bytes of the stream, which says its number.
fn wire(number: usize, length: usize) -> Bytes {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); length];
    bytes.truncate(length);
    bytes.into()
}

/// All frames from an offset on.
fn from(ring: &Replay, mut offset: u64) -> Option<Vec<Bytes>> {
    let mut frames = Vec::new();
    loop {
        match ring.at(offset) {
            At::Gone => return None,
            At::Next => return Some(frames),
            At::Frame(kept) => {
                frames.push(kept.wire.clone());
                if kept.last {
                    return Some(frames);
                }
                offset = kept.next();
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_kept_is_the_newest_frames_in_order_and_within_the_limit(
        frames in vec((1..2000_usize, 1..500_usize), 1..60),
        limit in 1..5000_usize,
        complete: bool,
    ) {
        let mut ring = Replay::new(limit);
        let mut starts = Vec::new();
        let mut sent = Vec::new();
        for (number, (raw, length)) in frames.iter().enumerate() {
            starts.push(ring.end());
            sent.push(wire(number, *length));
            ring.push(*raw, wire(number, *length));
            let newest = *length;
            prop_assert!(ring.held() <= limit.max(newest));
        }
        let total: usize = frames.iter().map(|(raw, _)| raw).sum();
        prop_assert_eq!(ring.end(), u64::try_from(total).unwrap());
        if complete {
            starts.push(ring.end());
            sent.push(Bytes::from_static(b"end"));
            ring.finish(Bytes::from_static(b"end"));
        }
        let mut reached = false;
        for (number, start) in starts.iter().enumerate() {
            match from(&ring, *start) {
                Some(replayed) => {
                    reached = true;
                    prop_assert_eq!(&replayed[..], &sent[number..]);
                }
                // Once a frame is there, all after it are.
                None => prop_assert!(!reached),
            }
        }
        prop_assert!(reached, "not even the newest is there");
    }

    #[test]
    fn an_offset_inside_of_a_frame_or_beyond_the_stream_is_none(
        frames in vec(2..2000_usize, 1..20),
        inside in any::<prop::sample::Index>(),
        beyond in 1..u64::MAX / 2,
    ) {
        let mut ring = Replay::new(usize::MAX);
        let mut starts = std::collections::BTreeSet::new();
        for raw in &frames {
            starts.insert(ring.end());
            ring.push(*raw, wire(0, 1));
        }
        let end = usize::try_from(ring.end()).unwrap();
        let offset = u64::try_from(inside.index(end)).unwrap();
        prop_assert_eq!(ring.at(offset) == At::Gone, !starts.contains(&offset));
        prop_assert_eq!(ring.at(ring.end() + beyond), At::Gone);
    }
}

#[test]
fn after_the_last_frame_nothing_is_next() {
    let mut ring = Replay::new(100);
    assert_eq!(ring.at(0), At::Next);
    ring.finish(Bytes::from_static(b"end"));
    let At::Frame(last) = ring.at(0) else {
        panic!("the end is not there")
    };
    assert!(last.last && last.next() == 0);
    assert_eq!(ring.at(1), At::Gone);
}
