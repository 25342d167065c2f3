use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

/// A stream whose wire, compressor and data are steady.
#[derive(Debug, Clone, Copy)]
struct Steady {
    /// Microseconds to read a frame.
    read: u64,
    /// Microseconds to compress a frame.
    compress: u64,
    /// Microseconds that the wire takes for a frame as it is.
    wire: u64,
    /// What a frame is compressed to, of a thousand.
    permille: usize,
}

impl Steady {
    fn sample(&self, attempt: Attempt) -> Sample {
        let compressed = MIB / 1000 * self.permille;
        let (on_wire, compressing) = match attempt {
            Attempt::Compress => (compressed.min(MIB), self.compress),
            Attempt::Plain => (MIB, 0),
        };
        let sending = self.wire * u64::try_from(on_wire).unwrap() / u64::try_from(MIB).unwrap();
        let making = self.read + compressing;
        Sample {
            raw: MIB,
            compressed: (attempt == Attempt::Compress)
                .then_some((compressed, Duration::from_micros(self.compress))),
            waiting: Duration::from_micros(sending.saturating_sub(making)),
            total: Duration::from_micros(sending.max(making)),
        }
    }

    /// How many of so many frames are compressed.
    fn run(&self, compression: &mut Compression, frames: u32) -> u32 {
        let mut compressed = 0;
        for _ in 0..frames {
            let attempt = compression.next();
            compressed += u32::from(attempt == Attempt::Compress);
            compression.observe(&self.sample(attempt));
        }
        compressed
    }
}

const SLOW_WIRE: Steady = Steady {
    read: 1_000,
    compress: 2_000,
    wire: 10_000,
    permille: 300,
};

const NOISE: Steady = Steady {
    permille: 1000,
    ..SLOW_WIRE
};

const FAST_WIRE: Steady = Steady {
    wire: 500,
    ..SLOW_WIRE
};

#[test]
fn what_becomes_smaller_is_compressed_while_the_wire_is_slow() {
    let compressed = SLOW_WIRE.run(&mut Compression::adaptive(), 2000);
    assert!(compressed > 1900, "{compressed}");
    let slower = Steady {
        wire: 100_000,
        ..SLOW_WIRE
    };
    let all = slower.run(&mut Compression::adaptive(), 2000);
    assert_eq!(all, 2000, "the wire is never idle");
}

#[test]
fn what_does_not_become_smaller_is_sent_as_it_is_and_tried_now_and_then() {
    let mut compression = Compression::adaptive();
    assert_eq!(NOISE.run(&mut compression, WINDOW), WINDOW);
    assert_eq!(NOISE.run(&mut compression, PAUSE), 0);
    assert_eq!(NOISE.run(&mut compression, 10 * (PAUSE + 1)), 10);
}

#[test]
fn a_wire_that_is_faster_than_the_compressor_does_not_wait_for_it() {
    let mut compression = Compression::adaptive();
    let first = SLOW * WINDOW;
    assert_eq!(FAST_WIRE.run(&mut compression, first), first);
    let tried = FAST_WIRE.run(&mut compression, 10 * (PAUSE + 1));
    assert!((1..=11).contains(&tried), "{tried}");
}

#[test]
fn a_wire_that_became_faster_is_found_out() {
    let mut compression = Compression::adaptive();
    SLOW_WIRE.run(&mut compression, 100);
    FAST_WIRE.run(&mut compression, (BELIEF + 2 + SLOW) * WINDOW);
    assert!(FAST_WIRE.run(&mut compression, 1000) < 100);
}

#[test]
fn data_that_changes_is_noticed_within_one_pause() {
    let mut compression = Compression::adaptive();
    NOISE.run(&mut compression, 30);
    SLOW_WIRE.run(&mut compression, PAUSE + 1);
    assert!(SLOW_WIRE.run(&mut compression, 100) > 90);
    NOISE.run(&mut compression, 2 * WINDOW);
    assert!(NOISE.run(&mut compression, PAUSE) <= 1);
}

#[test]
fn who_does_not_understand_it_never_gets_it() {
    assert_eq!(SLOW_WIRE.run(&mut Compression::never(), 1000), 0);
}

proptest! {
    /// However the stream behaves, soon after it begins to the judgement follows it.
    #[test]
    fn a_steady_stream_is_judged_right(
        read in 0..5_000_u64,
        compress in 1..5_000_u64,
        wire in 1..20_000_u64,
        permille in 1..1000_usize,
    ) {
        let steady = Steady { read, compress, wire, permille };
        let mut compression = Compression::adaptive();
        steady.run(&mut compression, 200);
        let compressed = steady.run(&mut compression, 6500);
        if permille > 960 {
            prop_assert!(compressed <= 101, "{compressed} for nothing");
        }
        // Clearly worth it: half the bytes, and even so the wire is what is waited for.
        if permille < 500 && wire / 4 > read + compress && steady.sample(Attempt::Compress).waiting.as_micros() * 5 > u128::from(wire) {
            prop_assert!(compressed > 6000, "only {compressed}");
        }
        // Clearly not: the wire is idle and most of the time goes into compressing.
        if compress > 2 * read && wire < compress / 4 {
            prop_assert!(compressed <= 101, "{compressed} while the wire waits");
        }
    }
}
