use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn frame() -> impl Strategy<Value = Frame> {
    let data = vec(any::<u8>(), 1..5000);
    prop_oneof![
        (any::<u64>(), data).prop_map(|(offset, data)| Frame::plain(offset, data.into())),
        (any::<u64>(), vec(any::<u8>(), 1..5000), 1..5000_usize).prop_map(
            |(offset, payload, more)| Frame::Data {
                offset,
                encoding: Encoding::Zstd,
                raw: payload.len() + more,
                payload: payload.into(),
            }
        ),
    ]
}

fn end() -> impl Strategy<Value = Frame> {
    (any::<u64>(), any::<[u8; DIGEST]>()).prop_map(|(total, digest)| Frame::End { total, digest })
}

/// Pushes pieces and takes the frames after each.
fn decode(pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.room(0).extend_from_slice(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        assert!(decoder.waiting() < HEAD + RAW_CAP);
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
        mut frames in vec(frame(), 0..8),
        end in end(),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        frames.push(end);
        let wire: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        places.extend([0, wire.len()]);
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
        prop_assert_eq!(decode(&pieces), Ok(frames));
    }

    #[test]
    fn a_stream_that_is_cut_short_gives_its_whole_frames_and_no_end(
        mut frames in vec(frame(), 1..5),
        end in end(),
        at in any::<prop::sample::Index>(),
    ) {
        frames.push(end);
        let wire: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        let cut = at.index(wire.len());
        let got = decode(&[&wire[..cut]]).unwrap();
        prop_assert!(got.len() < frames.len());
        prop_assert_eq!(&got[..], &frames[..got.len()]);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_hold_more_than_a_frame(
        pieces in vec(vec(any::<u8>(), 0..3000), 0..20),
    ) {
        let mut decoder = Decoder::default();
        for piece in &pieces {
            let before = decoder.waiting();
            decoder.room(0).extend_from_slice(piece);
            prop_assert!(decoder.waiting() <= before + piece.len());
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.raw() <= RAW_CAP);
            }
        }
    }

    /// Random bytes hardly ever begin with a kind that is known: these do.
    #[test]
    fn a_head_is_believed_only_when_it_is_possible(kind in 0..5_u8, offset: u64, raw: u32, payload: u32) {
        let mut head = vec![kind];
        head.extend(offset.to_be_bytes());
        head.extend(raw.to_be_bytes());
        head.extend(payload.to_be_bytes());
        let cap = u32::try_from(RAW_CAP).unwrap();
        let possible = match kind {
            1 => (1..=cap).contains(&raw) && payload == raw,
            2 => (1..=cap).contains(&raw) && (1..raw).contains(&payload),
            3 => raw == 0 && payload == 32,
            _ => false,
        };
        prop_assert_eq!(decode(&[&head]).is_ok(), possible);
    }
}

#[test]
fn the_bytes_on_the_wire_stay_what_they_are() {
    let data = Frame::plain(0x0102, Bytes::from_static(b"abc"));
    let expected = b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0\0\x03abc";
    assert_eq!(&data.encode()[..], expected);
    let packed = Frame::Data {
        offset: 7,
        encoding: Encoding::Zstd,
        raw: 300,
        payload: Bytes::from_static(b"zz"),
    };
    let expected = b"\x02\0\0\0\0\0\0\0\x07\0\0\x01\x2c\0\0\0\x02zz";
    assert_eq!(&packed.encode()[..], expected);
    let end = Frame::End {
        total: 0x0102,
        digest: [7; DIGEST],
    };
    let mut expected = b"\x03\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x20".to_vec();
    expected.extend([7; DIGEST]);
    assert_eq!(&end.encode()[..], &expected[..]);
}

#[test]
fn lengths_that_cannot_be_are_refused_before_the_payload_comes() {
    let cap = u32::try_from(RAW_CAP).unwrap();
    for (kind, raw, payload) in [
        (1, 0, 0),
        (1, cap + 1, cap + 1),
        (1, 5, 4),
        (2, 5, 5),
        (2, 5, 0),
        (2, u32::MAX, 1),
        (3, 1, 32),
        (3, 0, 31),
        (3, 0, u32::MAX),
    ] {
        let mut head = vec![kind];
        head.extend([0; 8]);
        head.extend(raw.to_be_bytes());
        head.extend(payload.to_be_bytes());
        let refused = FrameError::Length { kind, raw, payload };
        assert_eq!(decode(&[&head]), Err(refused));
    }
    assert_eq!(decode(&[b"\x09"]), Err(FrameError::Kind(9)));
}

#[test]
fn nothing_may_follow_the_end() {
    let end = Frame::End {
        total: 0,
        digest: [0; DIGEST],
    };
    let mut wire = end.encode().to_vec();
    wire.push(1);
    assert_eq!(decode(&[&wire]), Err(FrameError::AfterEnd));
}
