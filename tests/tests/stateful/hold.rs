//! A daemon waits at a fail point of its own, in a lab of the builds that have them.

use std::time::Duration;

use rehome_tests::lab::Host;
use rehome_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_mins(2);

const DIRECTORY: &str = "/run/rehome/failpoints";

/// A fail point at which `migrated` of a host waits when it comes there.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    host: &'a Host,
    order: String,
}

impl<'a> Hold<'a> {
    /// Has the daemon wait at a point.
    pub(crate) fn at(host: &'a Host, point: &str) -> anyhow::Result<Self> {
        let order = format!("{DIRECTORY}/{}", point.replace('/', "__"));
        // Appears whole: a point that is just passed must not read half of it.
        host.shell(&format!(
            "mkdir -p {DIRECTORY}; rm -f {order}.hit; printf hold >{order}.new; mv {order}.new {order}"
        ))?;
        Ok(Self { host, order })
    }

    /// Waits until the daemon waits there.
    pub(crate) fn wait(&self) -> anyhow::Result<()> {
        let hit = format!("{}.hit", self.order);
        let what = format!("{} comes to {}", self.host.name(), self.order);
        wait_until(&what, PATIENCE, || {
            Ok(self.host.exec(&["test", "-e", &hit])?.status == 0)
        })
    }

    /// Lets the daemon go on.
    pub(crate) fn let_go(self) -> anyhow::Result<()> {
        self.host.shell(&format!("rm -f {}", self.order)).map(drop)
    }
}
