//! The fast path: the kernel carries steady routes, packet by packet, over the sockets that listen
//! all the same.
//!
//! ```text
//!   keeper ── Fast ── plan (proxyd_core::fast) ── Kernel: our tables
//!   verbs, status ── Carried: flows that are counted, waited for and cut; what is in the kernel
//! ```
//!
//! Invariant: what has gone wrong in the kernel is found and mended by the next look, and until
//! then no verb of a gate is answered as if it had not. Where no fast path is wanted and the kernel
//! has nothing of ours, as the [`marker`] says, nothing here asks it anything.

mod carried;
mod expression;
mod flows;
mod forwarding;
mod kernel;
mod marker;
mod netlink;
mod nudge;
mod reach;
mod ruleset;
mod tracked;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proxyd_core::fast::{Flip, Found, Plan, Policy, Trials};
use proxyd_core::reload::Place;
use proxyd_core::table::{Changes, RouteTable};
use rehome_shared::api::proxy::RouteKey;
use rustix::io::Errno;

use crate::book::Book;
use crate::settings::Settings;
pub(crate) use carried::Carried;
pub use carried::Trouble;
use kernel::{Kernel, State};
use marker::{Left, Marker};
pub use netlink::KernelError;
use ruleset::Ruleset;
use tracked::in_thread;

/// Looks between two tries to reach the kernel, and between two looks at all flows.
const SELDOM: u32 = 10;
/// Looks after a change in which packets that were on their way are looked for.
const AFTER: u32 = 3;
/// Routes that are looked at in a row.
const AT_ONCE: usize = 1024;
/// What an ordinary end may take.
const LEAVE: Duration = Duration::from_secs(5);

/// What the keeper has of the fast path.
#[derive(Debug)]
pub(crate) struct Fast {
    carried: Arc<Carried>,
    plan: Plan,
    trials: Trials,
    rules: Ruleset,
    kernel: Option<Box<Kernel>>,
    marker: Marker,
    /// What the marker says.
    left: Left,
    /// What is in the kernel may not be what the plan says.
    unsettled: bool,
    looks: u32,
    /// Looks until which flows are looked for that have no element.
    sweeps: u32,
}

impl Fast {
    /// One whose marker is in this directory's file of the name [`marker::FILE`].
    pub(crate) fn new(carried: Arc<Carried>, settings: &Settings, directory: &Path) -> Self {
        let mut plan = Plan::default();
        plan.set_policy(settings.fast_path.clone());
        carried.set_policy(&settings.fast_path);
        Self {
            carried,
            plan,
            trials: Trials::default(),
            rules: Ruleset::new(&Place::all(&settings.listen)),
            kernel: None,
            marker: Marker::new(directory.join(marker::FILE)),
            left: Left::Nothing,
            unsettled: true,
            looks: 0,
            sweeps: 0,
        }
    }

    /// Takes out what the kernel has of routes that are not open any more; before anything is
    /// served.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next look.
    pub(crate) async fn begin(&mut self, table: &RouteTable) {
        // A small file, before anybody is served.
        self.left = self.marker.read();
        if self.left != Left::Nothing {
            // Nothing is known of it until it was read.
            self.carried.use_it();
        }
        self.reach(table).await;
    }

    /// Goes by another configuration.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next look.
    pub(crate) async fn configure(&mut self, policy: Policy, places: &[Place], table: &RouteTable) {
        self.carried.set_policy(&policy);
        self.plan.set_policy(policy);
        self.rules = Ruleset::new(places);
        if let Some(kernel) = &mut self.kernel {
            kernel.set_rules(self.rules.clone());
        }
        self.unsettled = true;
        self.reach(table).await;
    }

    /// Has the kernel follow a change: what it makes wrong is out when this returns.
    ///
    /// # Errors
    /// When that is not certain.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next look.
    pub(crate) async fn follow(
        &mut self,
        table: &RouteTable,
        changes: &Changes,
    ) -> Result<(), KernelError> {
        if !self.carried.is_used() {
            return Ok(());
        }
        for key in changes.keys() {
            self.trials.forget(key);
        }
        if self.unsettled {
            return self.settle(table).await;
        }
        let flip = self.plan.change(table, changes.keys());
        self.make(table, flip).await
    }

    /// Ends what flows by the kernel on these ports, from now on until an element comes.
    ///
    /// # Errors
    /// When that is not certain.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next try.
    pub(crate) async fn fence(
        &mut self,
        table: &RouteTable,
        keys: Vec<RouteKey>,
    ) -> Result<(), KernelError> {
        if !self.carried.is_used() {
            return Ok(());
        }
        if self.unsettled {
            self.settle(table).await?;
        }
        let flip = self.plan.fence(keys);
        self.make(table, flip).await
    }

    /// Mends, and lets routes have elements that are steady by now.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the next look.
    pub(crate) async fn look(&mut self, table: &RouteTable, book: &Book) {
        self.looks = self.looks.wrapping_add(1);
        let seldom = self.looks.is_multiple_of(SELDOM);
        if !self.is_ready() {
            // Verbs wait for what is used.
            if self.carried.is_used() || (self.plan.policy().wanted && seldom) {
                self.reach(table).await;
            }
            return;
        }
        let mut looked = self.check(table, book).await.map_err(Trouble::from);
        if looked.is_ok() && seldom && !self.plan.policy().wanted {
            looked = self.wind_down().await;
        }
        self.note(looked);
    }

    async fn check(&mut self, table: &RouteTable, book: &Book) -> Result<(), KernelError> {
        if self.unsettled || self.with(Kernel::is_changed).await? {
            self.settle(table).await?;
        }
        let noted = self.with(Kernel::notes).await?;
        let given_up = self.trials.look(noted);
        self.give_up(table, book, given_up).await?;
        if self.plan.waits() {
            let forwards = forwarding::forwards();
            let (plan, trials) = (&mut self.plan, &self.trials);
            let flip = plan.promote(table, AT_ONCE, |key| {
                trials.may(key) && book.is_steady(key, |target| forwards.has(target))
            });
            self.make(table, flip).await?;
        }
        // What an earlier process had may flow on, where datagrams do.
        let datagrams = || table.routes().keys().any(|key| key.is_udp());
        if self.sweeps > 0 || (self.looks.is_multiple_of(SELDOM) && datagrams()) {
            self.sweeps = self.sweeps.saturating_sub(1);
            self.sweep().await?;
        }
        Ok(())
    }

    /// User space carries these from now on, and those that got nowhere come again and find it.
    async fn give_up(
        &mut self,
        table: &RouteTable,
        book: &Book,
        keys: BTreeSet<RouteKey>,
    ) -> Result<(), KernelError> {
        let flip = self.plan.give_up(&keys);
        if flip.is_empty() {
            return Ok(());
        }
        self.carried.given_up(&keys);
        // A target that is there again is for user space to find out.
        for key in &keys {
            book.doubt(*key);
        }
        self.make(table, flip).await?;
        in_thread("forget", move || tracked::forget_stuck(&keys)).await
    }

    /// Lets go of our tables: another process of ours has them from now on, or this one again, at
    /// its next look.
    pub(crate) fn release(&mut self) {
        self.kernel = None;
        self.unsettled = true;
    }

    /// Finds out what is in the kernel, mends it, and takes out what is wrong.
    async fn settle(&mut self, table: &RouteTable) -> Result<(), KernelError> {
        self.unsettled = true;
        let mut right = self.plan.there().clone();
        let wrong = self.plan.change_all(table);
        right.apply(&wrong);
        let again = right.clone();
        let state = self.with(move |kernel| kernel.look(&again)).await?;
        let found = match state {
            State::Whole(found) => found,
            State::Made => {
                self.carried.made(right != Found::default());
                right
            }
        };
        self.plan.learn(found);
        self.unsettled = false;
        let flip = self.plan.change_all(table);
        let done = self.try_make(flip).await;
        self.unsettled = done.is_err();
        self.carried.set_there(self.plan.there());
        done
    }

    /// Makes a change; what fails is looked into once.
    async fn make(&mut self, table: &RouteTable, flip: Flip) -> Result<(), KernelError> {
        if flip.is_empty() {
            return Ok(());
        }
        let fence = flip.fence.clone();
        if self.try_make(flip).await.is_ok() {
            return Ok(());
        }
        self.settle(table).await?;
        let flip = self.plan.fence(fence);
        let made = self.try_make(flip).await;
        self.unsettled |= made.is_err();
        made
    }

    async fn try_make(&mut self, flip: Flip) -> Result<(), KernelError> {
        if flip.is_empty() {
            return Ok(());
        }
        let made = flip.clone();
        self.with(move |kernel| kernel.flip(&made)).await?;
        self.plan.done(&flip);
        self.carried.set_there(self.plan.there());
        if !flip.remove.is_empty() {
            self.sweeps = AFTER;
            self.sweep().await?;
        }
        Ok(())
    }

    /// Forgets flows that would go on to where no element leads.
    async fn sweep(&mut self) -> Result<(), KernelError> {
        let there = self.plan.there().clone();
        in_thread("sweep", move || tracked::sweep(&there)).await
    }

    async fn with<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut Kernel) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T, KernelError> {
        let Some(mut kernel) = self.kernel.take() else {
            return Err(KernelError::of("open a way to its packet filter")(
                Errno::NOTCONN,
            ));
        };
        let (kernel, done) = in_thread("change", move || {
            let done = task(&mut kernel);
            Ok((kernel, done))
        })
        .await?;
        self.kernel = Some(kernel);
        done
    }
}
