//! The head of a trunk connection, and the answer to it.

use std::fmt::Debug;

use rehome_shared::trunk::{
    ANSWER_CAP, ANSWER_FIXED, Answer, Decoded, FrameError, HEADER_CAP, HEADER_FIXED, Header,
};

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    frame(
        bytes,
        HEADER_FIXED + HEADER_CAP,
        Header::decode,
        Header::encode,
    );
    frame(
        bytes,
        ANSWER_FIXED + ANSWER_CAP,
        Answer::decode,
        Answer::encode,
    );
    // The same behind a true beginning, so that the fields are reached.
    let Some((family, fields)) = bytes.split_first() else {
        return;
    };
    let Ok(length) = u16::try_from(fields.len()) else {
        return;
    };
    let mut framed = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    framed.push(*family);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(fields);
    frame(
        &framed,
        HEADER_FIXED + HEADER_CAP,
        Header::decode,
        Header::encode,
    );
}

fn frame<T: PartialEq + Debug>(
    bytes: &[u8],
    cap: usize,
    decode: fn(&[u8]) -> Result<Decoded<T>, FrameError>,
    encode: fn(&T) -> Vec<u8>,
) {
    match decode(bytes) {
        Ok(Decoded::Need(more)) => {
            let whole = bytes.len().saturating_add(more);
            assert!(
                more > 0 && whole <= cap,
                "{more} bytes more, {whole} in all"
            );
        }
        Ok(Decoded::Done(value)) => {
            let written = encode(&value);
            assert_eq!(decode(&written), Ok(Decoded::Done(value)), "{bytes:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "no reason"),
    }
    // Who reads exactly what is asked for never reads too far, and hears the same in the end.
    let mut have = 0;
    while let Some(part) = bytes.get(..have) {
        let Ok(Decoded::Need(more)) = decode(part) else {
            return;
        };
        have = have.saturating_add(more);
    }
}
