//! Our tables in the kernel, as they are now. These calls block, each for a bounded time.

use std::net::SocketAddr;

use proxyd_core::fast::{Element, Flip, Found, Noted};
use rehome_shared::api::proxy::{ClientAddress, RouteKey};
use rustix::io::Errno;

use super::netlink::{KernelError, Message, Netlink, number};
use super::ruleset::{self, ANCHOR, Anchor, Guard, NOTES, Notes, Ruleset, TABLE};

/// So many messages of elements are one transaction: all that fits. Five thousand elements change
/// together; of more, each five thousand do.
const TOGETHER: usize = 10;

/// A way to our tables. Other processes can change them only when it is closed, where the kernel
/// knows of owners; closing it leaves them as they are.
#[derive(Debug)]
pub(super) struct Kernel {
    netlink: Netlink,
    ruleset: Ruleset,
    guard: Guard,
    /// The number of the last change that we know of; absent when there may have been others.
    generation: Option<u32>,
}

/// What was found of our tables.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// They are as they should be, and hold this.
    Whole(Found),
    /// They were not, and were made anew with what was asked for.
    Made,
}

impl Kernel {
    /// Opens one.
    ///
    /// # Errors
    /// Without the privilege, and where the kernel has no packet filter.
    pub(super) fn open(ruleset: Ruleset) -> Result<Self, KernelError> {
        let mut kernel = Self {
            netlink: Netlink::open()?,
            ruleset,
            guard: Guard::Owned,
            generation: None,
        };
        kernel.generation()?;
        Ok(kernel)
    }

    /// Makes our tables anew, with nothing in them.
    ///
    /// # Errors
    /// The kernel's: nothing has changed then.
    pub(super) fn make(&mut self) -> Result<(), KernelError> {
        let anchor = self.anchor()?;
        self.generation = None;
        self.build(anchor)
    }

    /// Takes every element out, whichever there are; fences stay.
    ///
    /// # Errors
    /// The kernel's: nothing has changed then.
    pub(super) fn clear(&mut self) -> Result<(), KernelError> {
        self.generation = None;
        match self.netlink.batch(&ruleset::clear()) {
            // Without a table there is no element.
            Err(Errno::NOENT) => Ok(()),
            cleared => cleared.map_err(KernelError::of("take elements out")),
        }
    }

    /// Takes our tables out. What flows by them ends.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn dismantle(&mut self) -> Result<(), KernelError> {
        self.generation = None;
        for name in [TABLE, ANCHOR] {
            match self.netlink.batch(&[ruleset::delete_table(name)]) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(KernelError::of("take our tables out")(errno)),
            }
        }
        Ok(())
    }

    /// Goes by other rules from the next look on.
    pub(super) fn set_rules(&mut self, ruleset: Ruleset) {
        if ruleset.mark != self.ruleset.mark {
            self.ruleset = ruleset;
            self.generation = None;
        }
    }

    /// Whether somebody may have changed something since the last look or flip.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn is_changed(&mut self) -> Result<bool, KernelError> {
        let now = self.generation()?;
        Ok(self.generation != Some(now))
    }

    /// Looks at our tables; where they are not as they should be, makes them anew with this, as many
    /// elements at once as are one transaction.
    ///
    /// # Errors
    /// The kernel's; what there is, is not known then.
    pub(super) fn look(&mut self, else_with: &Found) -> Result<State, KernelError> {
        let before = self.generation()?;
        let anchor = self.anchor()?;
        let whole = anchor == Anchor::Holds
            && self.mark(TABLE)?.as_ref() == Some(&self.ruleset.mark)
            && self.rules(TABLE)? == self.ruleset.rules;
        if !whole {
            self.build(anchor)?;
            let now = self.generation()?;
            self.generation = (now == before.wrapping_add(1)).then_some(now);
            self.fill(else_with)?;
            return Ok(State::Made);
        }
        self.claim()?;
        let found = self.elements()?;
        let now = self.generation()?;
        // Ours was one change, if any.
        let known = now == before || now == before.wrapping_add(1);
        self.generation = known.then_some(now);
        Ok(State::Whole(found))
    }

    /// Puts this into tables that are empty: first what keeps flows from going on.
    fn fill(&mut self, with: &Found) -> Result<(), KernelError> {
        self.flip(&Flip {
            fence: with.fences.iter().copied().collect(),
            ..Flip::default()
        })?;
        self.flip(&Flip {
            add: with.elements.iter().map(|(k, e)| (*k, *e)).collect(),
            ..Flip::default()
        })
    }

    /// Makes a change.
    ///
    /// # Errors
    /// The kernel's: nothing has changed then, but of more than a transaction holds.
    pub(super) fn flip(&mut self, flip: &Flip) -> Result<(), KernelError> {
        let failed = KernelError::of("change elements");
        for messages in ruleset::flip(flip).chunks(TOGETHER) {
            self.change(messages).map_err(failed)?;
        }
        Ok(())
    }

    /// Reads what was noted of ports lately.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn notes(&mut self) -> Result<Noted, KernelError> {
        let [asked, answered, refused] = NOTES;
        let mut read = |set: Notes| {
            let read = |piece: &[u8]| Some(ruleset::read_elements(piece));
            let read = self.netlink.dump(&ruleset::get_set(set.name), read);
            let read = read.map_err(KernelError::of("tell which ports answer"))?;
            Ok(read.into_iter().flatten().map(|(key, _)| key).collect())
        };
        // Questions first: an answer that comes meanwhile is then seen with its question.
        Ok(Noted {
            asked: read(asked)?,
            answered: read(answered)?,
            refused: read(refused)?,
        })
    }

    /// Makes a change, and knows whether it is the only one since the last.
    fn change(&mut self, messages: &[Message]) -> Result<(), Errno> {
        self.netlink.batch(messages)?;
        let now = self.generation().map_err(|error| error.errno)?;
        let before = self.generation;
        let known = before.is_some_and(|before| before.wrapping_add(1) == now);
        self.generation = known.then_some(now);
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        let mut generation = None;
        let asked = self.netlink.ask(&ruleset::get_generation(), |piece| {
            generation = generation.or(number(piece, 1));
        });
        let failed = KernelError::of("say how often its packet filter changed");
        asked.map_err(failed)?;
        generation.ok_or_else(|| failed(Errno::BADMSG))
    }

    fn mark(&mut self, table: &str) -> Result<Option<String>, KernelError> {
        let mut mark = None;
        let asked = self.netlink.ask(&ruleset::get_table(table), |piece| {
            mark = Some(ruleset::read_mark(piece).unwrap_or_default());
        });
        match asked {
            Ok(()) => Ok(mark),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(KernelError::of("show a table")(errno)),
        }
    }

    fn rules(&mut self, table: &str) -> Result<usize, KernelError> {
        let rules = self.netlink.dump(&ruleset::get_rules(table), |_| Some(()));
        match rules {
            Ok(rules) => Ok(rules.len()),
            Err(Errno::NOENT) => Ok(0),
            Err(errno) => Err(KernelError::of("show rules")(errno)),
        }
    }

    fn anchor(&mut self) -> Result<Anchor, KernelError> {
        let holds = self.mark(ANCHOR)?.is_some() && self.rules(ANCHOR)? > 0;
        Ok(if holds {
            Anchor::Holds
        } else {
            Anchor::Missing
        })
    }

    fn elements(&mut self) -> Result<Found, KernelError> {
        let mut found = Found::default();
        for (get, client) in ruleset::get_elements() {
            let read = self.netlink.dump(&get, |p| Some(ruleset::read_elements(p)));
            let read = read.map_err(KernelError::of("show elements"))?;
            for (key, target) in read.into_iter().flatten() {
                note(&mut found, key, target, client);
            }
        }
        Ok(found)
    }

    fn claim(&mut self) -> Result<(), KernelError> {
        if self.guard == Guard::Open {
            return Ok(());
        }
        match self.netlink.batch(&self.ruleset.claim()) {
            // Made by a kernel, or a version, without owners.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => {
                self.guard = Guard::Open;
                Ok(())
            }
            claimed => claimed.map_err(KernelError::of("let us have our tables")),
        }
    }

    fn build(&mut self, anchor: Anchor) -> Result<(), KernelError> {
        let build = |guard| self.ruleset.build(guard, anchor);
        let mut built = self.netlink.batch(&build(self.guard));
        if self.guard == Guard::Owned && matches!(built, Err(Errno::OPNOTSUPP | Errno::INVAL)) {
            self.guard = Guard::Open;
            let build: Vec<Message> = self.ruleset.build(self.guard, anchor);
            built = self.netlink.batch(&build);
        }
        built.map_err(KernelError::of("make our tables"))
    }
}

fn note(
    found: &mut Found,
    key: RouteKey,
    target: Option<SocketAddr>,
    client: Option<ClientAddress>,
) {
    match target.zip(client) {
        Some((target, client)) => {
            found.elements.insert(key, Element { target, client });
        }
        None => {
            found.fences.insert(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proxyd_core::reload::Place;
    use rehome_shared::ids::Protocol;
    use rehome_sys::namespace::{Namespace, unshare};

    use super::*;

    fn found(elements: u16, fences: u16) -> Found {
        let key = |port| RouteKey::new(port, Protocol::Tcp);
        let element = |port: u16| {
            let target = ([10, 1, 2, 3], port).into();
            let client = ClientAddress::Kept;
            (key(port), Element { target, client })
        };
        Found {
            elements: (1..=elements).map(element).collect(),
            fences: (1..=fences).map(key).collect(),
        }
    }

    #[test]
    fn more_elements_than_one_transaction_holds_come_back_at_once_and_go_at_once() {
        let in_a_network_of_its_own = || {
            unshare(&[Namespace::Network]).unwrap();
            let mut kernel = Kernel::open(Ruleset::new(&[Place::Everywhere])).unwrap();
            let all = found(30_000, 25_000);
            assert_eq!(kernel.look(&all).unwrap(), State::Made);
            assert!(!kernel.is_changed().unwrap());
            let State::Whole(there) = kernel.look(&Found::default()).unwrap() else {
                panic!("they are made anew");
            };
            assert!(there == all);
            kernel.clear().unwrap();
            let fences = Found {
                fences: all.fences,
                ..Found::default()
            };
            let left = kernel.look(&Found::default()).unwrap();
            assert!(left == State::Whole(fences));
            kernel.dismantle().unwrap();
            kernel.dismantle().unwrap();
            // Nothing is there that could hold anything.
            kernel.clear().unwrap();
            assert_eq!(kernel.look(&found(1, 1)).unwrap(), State::Made);
        };
        std::thread::spawn(in_a_network_of_its_own).join().unwrap();
    }
}
