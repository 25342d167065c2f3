//! What every scenario begins with: a lab, and the store on its first host.

use std::net::SocketAddr;

use rehome_tests::deployment::Deployment;
use rehome_tests::lab::{Lab, with_lab};
use rehome_tests::load::block_on;
use rehome_tests::store::Store;

/// The external port of the store.
pub(crate) const PORT: u16 = 7000;

/// The name of the store.
pub(crate) const NAME: &str = "store";

/// A lab and a store that can be deployed on it.
#[derive(Debug)]
pub(crate) struct Scene<'a, S> {
    pub(crate) lab: &'a Lab,
    pub(crate) store: S,
    /// The store's port on every host.
    pub(crate) doors: Vec<SocketAddr>,
}

/// Makes a lab and plays a scenario on it.
pub(crate) fn on_stage<S: Store>(
    store: S,
    options: &[&str],
    scenario: fn(&Scene<'_, S>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_lab(S::RUNTIME, options, |lab| {
        store.provide(lab)?;
        let doors = lab.doors(PORT)?;
        scenario(&Scene { lab, store, doors })
    })
}

impl<S: Store> Scene<'_, S> {
    /// The deployment of the store alone, on a host.
    pub(crate) fn alone(&self, host: usize) -> Deployment {
        Deployment::new().with(NAME, host, &self.store.body(PORT))
    }

    /// Deploys the store on the first host, with whatever else `deployment` holds, ready for words.
    pub(crate) fn open(&self, deployment: &Deployment) -> anyhow::Result<()> {
        self.lab.deploy(deployment)?.ok()?;
        self.lab.wait_running(NAME, 1)?;
        block_on(self.store.prepare(self.door()))
    }

    /// The store's port on the first host.
    pub(crate) fn door(&self) -> SocketAddr {
        self.doors[0]
    }
}
