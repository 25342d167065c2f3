//! The header by which a proxy in front announces a client.

use proxyd_core::announce::{Announced, LONGEST, Seen, header, look};

/// Runs the target.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    check(bytes);
    // The same behind true beginnings, so that the fields and the words are reached.
    if let Some((family, body)) = bytes.split_first()
        && let Ok(length) = u16::try_from(body.len())
    {
        let start = b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice();
        check(&[start, &[*family], &length.to_be_bytes(), body].concat());
    }
    check(&[b"PROXY TCP4 ".as_slice(), bytes].concat());
}

/// However the bytes are cut, the verdict is the same, and only on what it is about.
fn check(bytes: &[u8]) {
    let verdict = look(bytes);
    match verdict {
        Ok(Seen::Part) => {
            assert!(bytes.len() < LONGEST, "{} bytes and no end", bytes.len());
        }
        Ok(Seen::Whole { length, announced }) => {
            assert!(length <= bytes.len().min(LONGEST), "{length} bytes");
            assert_eq!(look(bytes.get(..length).unwrap_or_default()), verdict);
            let before = bytes.get(..length.saturating_sub(1)).unwrap_or_default();
            assert_eq!(look(before), Ok(Seen::Part));
            if let Announced::Client {
                client,
                destination,
            } = announced
            {
                let written = header(client, destination);
                let length = written.len();
                assert_eq!(look(&written), Ok(Seen::Whole { length, announced }));
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "no reason");
            let more = [bytes, b"more"].concat();
            assert_eq!(look(&more), verdict, "more bytes change the verdict");
        }
    }
}
