//! The frames of a volume's stream between two `migrated`s. The first byte says in which pieces the
//! others come.

use migrated_core::stream::frame::HEAD;
use migrated_core::stream::{Decoder, Frame, FrameError, RAW_CAP};

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = decode(bytes, bytes.len().max(1));
    let pieces = decode(bytes, usize::from(*size) + 1);
    assert_eq!(whole, pieces, "pieces of {size} make a difference");
    let (frames, _) = whole;
    // What was understood is written as it was read.
    let written: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    assert!(
        bytes.starts_with(&written),
        "frames are written in another way"
    );
}

/// The frames, and what comes after them.
fn decode(bytes: &[u8], size: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(size) {
        decoder.room(piece.len()).extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(
            decoder.waiting() < HEAD + RAW_CAP,
            "more than a frame is held"
        );
    }
    (frames, Ok(()))
}
