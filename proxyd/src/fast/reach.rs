//! How a fast path begins and ends.
//!
//! ```text
//!   Nothing ── wanted, the kernel can ──► Elements ── not wanted, or a stop ──► Flows
//!      ▲                                     └──────── and nothing flows ────────┤
//!      └───────────── nothing flows any more: our tables go ─────────────────────┘
//! ```
//!
//! The marker goes ahead of what it says, and what it says is believed by whoever starts next: with
//! `Nothing` a proxy that wants no fast path asks the kernel nothing at all, and otherwise none of
//! its verbs is answered before the kernel was read.

use std::io;

use proxyd_core::fast::Found;
use proxyd_core::table::RouteTable;
use rehome_runtime::report::Report;
use rustix::io::Errno;

use super::carried::{Availability, Trouble};
use super::flows::{self, Life};
use super::kernel::Kernel;
use super::marker::Left;
use super::netlink::{KernelError, Netlink};
use super::tracked::in_thread;
use super::{Fast, LEAVE};
use crate::fair;

impl Fast {
    /// Whether elements may be made, as far as the marker says.
    pub(super) fn is_ready(&self) -> bool {
        self.kernel.is_some() && (self.left == Left::Elements || !self.plan.policy().wanted)
    }

    /// Whether there is anything to do with the kernel.
    pub(super) fn is_concerned(&self) -> bool {
        self.plan.policy().wanted || self.carried.is_used()
    }

    /// Opens the way to the kernel where there is something to do, and settles.
    pub(super) async fn reach(&mut self, table: &RouteTable) {
        let reached = if self.is_concerned() {
            self.try_reach(table).await
        } else {
            Ok(())
        };
        self.note(reached);
    }

    async fn try_reach(&mut self, table: &RouteTable) -> Result<(), Trouble> {
        let wanted = self.plan.policy().wanted;
        let is_new = self.kernel.is_none();
        if let Err(error) = self.open().await {
            // Its elements are known to be gone, and what cannot be asked cannot be waited for.
            let gone = self.left == Left::Flows && error.is_for_good();
            if gone {
                tracing::warn!(
                    error = %Report(&error),
                    "flows of an earlier fast path are neither counted nor ended"
                );
                self.forget().await?;
            }
            return if gone && !wanted {
                Ok(())
            } else {
                Err(error.into())
            };
        }
        if wanted && (is_new || self.left != Left::Elements) {
            // A successor that failed may have said something else.
            self.mark(Left::Elements).await?;
        }
        if !self.carried.is_used() {
            self.try_out().await?;
        }
        self.settle(table).await?;
        if !wanted {
            self.wind_down().await?;
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<(), KernelError> {
        if self.kernel.is_none() {
            let rules = self.rules.clone();
            let kernel = in_thread("open", move || Kernel::open(rules)).await?;
            self.kernel = Some(Box::new(kernel));
        }
        Ok(())
    }

    /// Uses the kernel only when it can do all that a move needs: it takes our tables, and tells its
    /// flows.
    async fn try_out(&mut self) -> Result<(), Trouble> {
        let tried = self.with(|kernel| {
            kernel.make()?;
            flows::all(&mut Netlink::open()?).map(drop)
        });
        if let Err(error) = tried.await {
            // They hold nothing, if they are there.
            let _in_vain = self.with(Kernel::dismantle).await;
            self.kernel = None;
            self.mark(Left::Nothing).await?;
            return Err(error.into());
        }
        self.carried.use_it();
        Ok(())
    }

    /// Ends what is not wanted any more: no element is there by now, and where nothing flows, our
    /// tables go and nothing is left.
    pub(super) async fn wind_down(&mut self) -> Result<(), Trouble> {
        let flows = in_thread("list", || flows::all(&mut Netlink::open()?)).await;
        // What is not known may be.
        let none = |flows: Vec<flows::Flow>| flows.iter().all(|flow| flow.life == Life::Over);
        if !flows.is_ok_and(none) {
            if self.left != Left::Flows {
                self.mark(Left::Flows).await?;
            }
            return Ok(());
        }
        self.with(Kernel::dismantle).await?;
        self.forget().await
    }

    /// There is nothing of ours in the kernel.
    async fn forget(&mut self) -> Result<(), Trouble> {
        self.kernel = None;
        self.unsettled = true;
        self.plan.learn(Found::default());
        self.carried.set_there(self.plan.there());
        self.carried.leave_it();
        self.mark(Left::Nothing).await
    }

    /// Takes every element out, for a process that follows and knows nothing of them.
    ///
    /// # Errors
    /// When that is not certain.
    ///
    /// # Cancel safety
    /// Dropping it may leave elements; the marker says so.
    pub(crate) async fn leave(&mut self) -> Result<(), Trouble> {
        if !self.carried.is_used() {
            return Ok(());
        }
        self.open().await?;
        self.unsettled = true;
        self.with(Kernel::clear).await?;
        let fences = self.plan.there().fences.clone();
        self.plan.learn(Found {
            fences,
            ..Found::default()
        });
        self.carried.set_there(self.plan.there());
        self.mark(Left::Flows).await
    }

    /// An end after which nobody follows: nobody is led anywhere any more. What flows goes on, and
    /// our tables stay for it; where nothing flows they go.
    ///
    /// # Cancel safety
    /// Dropping it may leave elements; the marker says so.
    pub(crate) async fn end(&mut self) {
        if !self.carried.is_used() {
            return;
        }
        let gone = fair::within(LEAVE, async {
            self.leave().await?;
            self.wind_down().await
        });
        match gone.await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!(error = %Report(&error), "the fast path is left as it is");
            }
            None => tracing::error!("the fast path is left as it is: the kernel takes too long"),
        }
    }

    /// Has the marker say this.
    async fn mark(&mut self, left: Left) -> Result<(), Trouble> {
        let marker = self.marker.clone();
        let written = tokio::task::spawn_blocking(move || marker.write(left)).await;
        let written = written.map_err(|_| Trouble::Marker(Errno::CANCELED))?;
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        written.map_err(|error| Trouble::Marker(errno(error)))?;
        self.left = left;
        Ok(())
    }

    /// Says what there is, once, and counts what failed.
    pub(super) fn note(&self, done: Result<(), Trouble>) {
        let availability = match done {
            Err(error) => Availability::Missing(error),
            Ok(()) if self.plan.policy().wanted => Availability::There,
            Ok(()) => Availability::Off,
        };
        self.carried.set_availability(availability);
    }
}
