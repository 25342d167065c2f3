//! Changed seeds: what a fuzzer does that is not led by coverage.

use fastrand::Rng;

/// A longer one is cut.
const LONGEST: usize = 32 << 10;

/// Bytes that mean something to a parser.
const WORDS: [&[u8]; 28] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\n",
    b"\n  ",
    b"- ",
    b"-1",
    b"1e400",
    b"null",
    b"0.1",
    b"\\u0000",
    b"18446744073709551615",
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\n",
    b"\r\nContent-Length: 3",
    b"\r\nTransfer-Encoding: chunked",
];

/// Some seed, changed in some places.
pub fn change(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = rng.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..1 << rng.u32(0..5) {
        once(&mut bytes, seeds, rng);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn once(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(0..=bytes.len());
    let most: usize = 1 << rng.u32(0..8);
    let to = rng.usize(at..=bytes.len().min(at.saturating_add(most)));
    match rng.u8(0..8) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.u32(0..8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        2 => drop(bytes.drain(at..to)),
        3 => {
            let part: Vec<u8> = bytes.get(at..to).unwrap_or_default().to_vec();
            let other = rng.usize(0..=bytes.len());
            drop(bytes.splice(other..other, part));
        }
        4 | 5 => {
            let word = rng.choice(WORDS).unwrap_or_default();
            drop(bytes.splice(at..to, word.iter().copied()));
        }
        6 => {
            let other = rng.choice(seeds).map(Vec::as_slice).unwrap_or_default();
            let from = rng.usize(0..=other.len());
            let until = rng.usize(from..=other.len());
            let part = other.get(from..until).unwrap_or_default();
            drop(bytes.splice(at..to, part.iter().copied()));
        }
        _ => bytes.truncate(at),
    }
}
