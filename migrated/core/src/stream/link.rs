//! Whether a connection that takes no more bytes is dead, or its receiver only slow.
//!
//! A link that was cut for a while leaves a TCP connection that waits ever longer before it tries
//! again; a new one would go on at once. But a receiver whose disk is busy takes no bytes either,
//! and to break its connection helps nobody. The receiver knows which it is, and is asked.

/// What the receiver says of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Bytes that came over the connection that is meant.
    pub wire: u64,
    /// Whether it waits for bytes of the network, and not for its own storage.
    pub hungry: bool,
    /// Whether it has taken the stream, or failed to, and has said so.
    pub answered: bool,
}

/// Whether to give a connection up on which `sent` bytes left and nothing happens, after two
/// readings. It is dead when the receiver waits for bytes, none of those that were sent
/// arrives, or when an answer was given that does not arrive.
#[must_use]
pub fn is_dead(before: &Reading, now: &Reading, sent: u64) -> bool {
    let starved = |reading: &Reading| reading.hungry && reading.wire < sent;
    let lost = starved(before) && starved(now) && before.wire == now.wire;
    lost || (before.answered && now.answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARVED: Reading = Reading {
        wire: 10,
        hungry: true,
        answered: false,
    };

    #[test]
    fn bytes_that_were_sent_and_do_not_arrive_are_lost() {
        assert!(is_dead(&STARVED, &STARVED, 11));
    }

    #[test]
    fn a_connection_over_which_bytes_still_come_is_alive() {
        let later = Reading {
            wire: 11,
            ..STARVED
        };
        assert!(!is_dead(&STARVED, &later, 100));
    }

    #[test]
    fn a_sender_that_has_nothing_to_send_has_lost_nothing() {
        assert!(!is_dead(&STARVED, &STARVED, 10));
    }

    #[test]
    fn a_receiver_that_waits_for_its_storage_is_waited_for() {
        let busy = Reading {
            hungry: false,
            ..STARVED
        };
        assert!(!is_dead(&busy, &busy, 100));
        assert!(!is_dead(&busy, &STARVED, 100), "only just hungry");
    }

    #[test]
    fn an_answer_that_does_not_arrive_is_asked_for_again() {
        let answered = Reading {
            hungry: false,
            answered: true,
            ..STARVED
        };
        assert!(is_dead(&answered, &answered, 10));
        let before = Reading {
            answered: false,
            ..answered
        };
        assert!(!is_dead(&before, &answered, 10), "it may be on its way");
    }
}
