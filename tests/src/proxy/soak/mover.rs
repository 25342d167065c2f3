//! Moves of an application: the verbs that `migrated` says, on the hosts that it says them to.

use std::time::Duration;

use fastrand::Rng;

use super::instance::{self, Instance};
use super::world::{HOSTS, Place, World};
use crate::proxy::{Version, local, park_limits, remote};

/// Moves an application until all stops; how often.
pub(super) fn work(world: &World, number: usize, mut rng: Rng) -> u64 {
    let mut moves = 0;
    while !world.stop.rest(Duration::from_millis(rng.u64(200..2500))) {
        if let Err(error) = a_move(world, number, &mut rng) {
            world.complain(format!("a move of application {number}: {error:#}"));
            return moves;
        }
        moves += 1;
    }
    moves
}

fn a_move(world: &World, number: usize, rng: &mut Rng) -> anyhow::Result<()> {
    let application = &world.applications[number];
    let (name, port) = (application.name, application.port);
    let Place { host, epoch } = application.place();
    let (at, next) = (Version(epoch, 1), Version(epoch + 1, 0));
    let limits = park_limits(10_000, Duration::from_mins(1));
    let drain = Duration::from_millis(rng.u64(50..1500));
    let _cuts = world.disturb();
    world.insist(host, "prepare", |proxy| {
        proxy.try_prepare(name, at, &limits)
    })?;
    world.insist(host, "drain", |proxy| proxy.try_drain(name, at, drain))?;
    if rng.u8(0..5) == 0 {
        world.insist(host, "rollback", |proxy| proxy.try_rollback(name, next))?;
        application.set_place(Place {
            host,
            epoch: epoch + 1,
        });
        world.diary.note(&format!("{name} stays on host {host}"));
        return Ok(());
    }
    world.insist(host, "freeze", |proxy| proxy.try_freeze(name, at))?;
    if let Some(instance) = application.instance().take() {
        instance.stop()?;
    }
    world.stop.rest(Duration::from_millis(rng.u64(0..200)));
    let to = (host + rng.usize(1..HOSTS)) % HOSTS;
    *application.instance() = Some(Instance::start(to, number)?);
    let target = local(instance::address(to, number));
    application.set_place(Place {
        host: to,
        epoch: epoch + 1,
    });
    world.tell(to)?;
    let away = remote(u8::try_from(to + 1)?);
    world.insist(host, "commit", |proxy| {
        proxy.try_commit(name, next, port, &away)
    })?;
    // The third host sometimes stays behind until the next move.
    for third in (0..HOSTS).filter(|third| ![host, to].contains(third)) {
        if rng.u8(0..3) > 0 {
            world.tell(third)?;
        }
    }
    let note = format!(
        "{name} moved from host {host} to {to}, {}",
        target["local"]["addr"]
    );
    world.diary.note(&note);
    Ok(())
}
