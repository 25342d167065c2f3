//! Who waits to hear of one route. A change wakes those of its route and nobody else.

use std::collections::HashMap;

use rehome_shared::api::proxy::RouteKey;
use tokio::sync::watch;

/// Tells of every change of one route, also of its coming and going.
pub(crate) type News = watch::Receiver<()>;

/// Below so many routes that are waited for nobody looks for those that no longer are.
const FEW: usize = 64;

/// The routes that somebody waits for.
#[derive(Debug)]
pub(super) struct Board {
    told: HashMap<RouteKey, watch::Sender<()>>,
    /// At so many it is time to look for those that nobody waits for any more.
    sweep_at: usize,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            told: HashMap::new(),
            sweep_at: FEW,
        }
    }
}

impl Board {
    /// Hears of the changes from now on.
    pub(super) fn of(&mut self, key: RouteKey) -> News {
        if self.told.len() >= self.sweep_at {
            self.told.retain(|_, told| told.receiver_count() > 0);
            self.sweep_at = self.told.len().saturating_mul(2).max(FEW);
        }
        let told = self.told.entry(key);
        told.or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// The route changed.
    pub(super) fn tell(&mut self, key: RouteKey) {
        if let Some(told) = self.told.get(&key)
            && told.send(()).is_err()
        {
            // Nobody waits any more.
            self.told.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> RouteKey {
        format!("{port}/tcp").parse().unwrap()
    }

    #[test]
    fn a_change_is_heard_by_those_of_its_route_alone() {
        let mut board = Board::default();
        let (mut one, mut same, mut other) = (board.of(key(1)), board.of(key(1)), board.of(key(2)));
        board.tell(key(1));
        for heard in [&mut one, &mut same] {
            assert!(heard.has_changed().unwrap());
            heard.mark_unchanged();
        }
        assert!(!other.has_changed().unwrap());
        other.mark_unchanged();
        board.tell(key(2));
        assert!(other.has_changed().unwrap() && !one.has_changed().unwrap());
    }

    #[test]
    fn routes_that_nobody_waits_for_are_forgotten() {
        let mut board = Board::default();
        let mut kept = board.of(key(1));
        for port in 2..5000 {
            drop(board.of(key(port)));
        }
        assert!(board.told.len() <= FEW, "{}", board.told.len());
        board.tell(key(1));
        assert!(kept.has_changed().unwrap());
        kept.mark_unchanged();
        drop(kept);
        board.tell(key(1));
        assert!(!board.told.contains_key(&key(1)));
    }
}
