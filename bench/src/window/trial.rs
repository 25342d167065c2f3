//! One move under load.

use std::time::Duration;

use anyhow::Context as _;
use rehome_tests::load::block_on;
use rehome_tests::store::{Postgres, Redis, Store as _};
use tokio::runtime::Runtime;

use crate::window::clients::{self, Clients};
use crate::window::contender::Mover;
use crate::window::plan::{Kind, Scene};
use crate::window::record::{Moved, Seen};

/// How often both kinds of probes are served before the move, and after it.
const SERVED: usize = 50;
/// How long they are served before the move, at least.
const BEFORE: Duration = Duration::from_secs(2);
/// The same after it.
const AFTER: Duration = Duration::from_secs(1);

/// Moves a store of a scene in a contender's way.
///
/// # Errors
/// When it could not be measured.
pub fn run(
    runtime: &Runtime,
    scene: Scene,
    mover: &mut dyn Mover,
) -> anyhow::Result<(Moved, Seen)> {
    let front = mover.open().context("the store does not start")?;
    clients::fill(runtime, scene, front).context("the store is not filled")?;
    mover.settle()?;
    let clients = Clients::start(runtime, scene, front);
    clients
        .wait_served(SERVED, BEFORE)
        .context("before the move")?;
    let began = clients.elapsed();
    let moved = mover.go().context("the move")?;
    clients
        .wait_served(SERVED, AFTER)
        .context("after the move")?;
    let log = clients.stop(runtime);
    let words = match scene.store {
        Kind::Redis => block_on(Redis.words(front)),
        Kind::Postgres => block_on(Postgres.words(front)),
    };
    let seen = Seen {
        lost: log.lost(&words.context("the words after the move")?),
        ..log.seen(began)
    };
    mover.close().context("cannot clean up")?;
    Ok((moved, seen))
}
