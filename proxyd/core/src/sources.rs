//! How many connections each client address has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// The connections of each client address that has any. Nothing is counted while there is no
/// limit; connections of that time do not count later either.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    limit: Option<NonZeroU32>,
    counts: HashMap<IpAddr, u32>,
}

/// Whether a client address gets another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// There is no limit; it is not counted.
    Free,
    /// It is counted until it is given back.
    Counted,
    /// The address has as many as it may.
    Full,
}

impl Sources {
    /// Another limit, for connections from now on.
    pub fn set_limit(&mut self, limit: Option<NonZeroU32>) {
        self.limit = limit;
    }

    /// Takes a place for a connection.
    pub fn take(&mut self, source: IpAddr) -> Answer {
        let Some(limit) = self.limit else {
            return Answer::Free;
        };
        let count = self.counts.entry(source).or_default();
        if *count >= limit.get() {
            return Answer::Full;
        }
        *count = count.saturating_add(1);
        Answer::Counted
    }

    /// Gives a place back that was counted.
    pub fn give_back(&mut self, source: IpAddr) {
        if let Some(count) = self.counts.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    /// How many addresses have counted connections.
    #[must_use]
    pub fn known(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn each_address_has_its_own_places() {
        let mut sources = Sources::default();
        assert_eq!(sources.take(address(1)), Answer::Free);
        sources.set_limit(NonZeroU32::new(2));
        assert_eq!(sources.take(address(1)), Answer::Counted);
        assert_eq!(sources.take(address(1)), Answer::Counted);
        assert_eq!(sources.take(address(1)), Answer::Full);
        assert_eq!(sources.take(address(2)), Answer::Counted);
        sources.give_back(address(1));
        assert_eq!(sources.take(address(1)), Answer::Counted);
    }

    proptest! {
        /// Whatever comes, goes and is set: nobody has more than the limit by new connections,
        /// and nothing is remembered of who has none.
        #[test]
        fn nobody_gets_more_than_the_limit(
            steps in prop::collection::vec((0_u8..4, 0_u8..4, 0_u32..4), 0..200),
        ) {
            let mut sources = Sources::default();
            let mut live: Vec<IpAddr> = Vec::new();
            let mut limit = None;
            for (what, who, number) in steps {
                match what {
                    0 => {
                        limit = NonZeroU32::new(number);
                        sources.set_limit(limit);
                    }
                    1 => if let Some(gone) = live.pop() {
                        sources.give_back(gone);
                    },
                    _ => {
                        let has = live.iter().filter(|ip| **ip == address(who)).count();
                        match (sources.take(address(who)), limit) {
                            (Answer::Free, None) => {}
                            (Answer::Counted, Some(limit)) => {
                                prop_assert!(has < usize::try_from(limit.get()).unwrap());
                                live.push(address(who));
                            }
                            (Answer::Full, Some(limit)) => {
                                prop_assert!(has >= usize::try_from(limit.get()).unwrap());
                            }
                            (answer, limit) => prop_assert!(false, "{answer:?} {limit:?}"),
                        }
                    }
                }
            }
            for gone in live {
                sources.give_back(gone);
            }
            prop_assert_eq!(sources.known(), 0);
        }
    }
}
