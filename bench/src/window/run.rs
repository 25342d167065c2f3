//! A whole run: in each repetition every scene, in it every contender, in turn, each on a fresh lab.
//! What one trial leaves behind, above all in a file system that copies on write, must not slow
//! down the next.

use std::time::Instant;

use anyhow::Context as _;
use rehome_tests::lab::with_lab;
use tokio::runtime::Runtime;

use crate::window::by_hand::{ByHand, Hosts};
use crate::window::plan::{Contender, Disks, Plan, Scene};
use crate::window::record::{Moved, Seen, Trial};
use crate::window::rehome_move::RehomeMove;
use crate::window::{store, trial};

/// Room for what a store writes; it is taken only as it is used.
const POOL: &str = "24GiB";

/// The application, and what it is called by hand.
const NAME: &str = "store";

/// Does all of a plan. A trial that fails is told at the end; the others are done nevertheless.
///
/// # Errors
/// Those of trials that failed; `keep` has what was measured.
pub fn run(
    plan: &Plan,
    say: &dyn Fn(&str),
    keep: &mut dyn FnMut(Trial) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    let mut failures = Vec::new();
    let began = Instant::now();
    let mut repetition = 0;
    while plan.goes_on(repetition, began.elapsed()) {
        repetition += 1;
        for (scene, contender) in trials(plan, repetition)? {
            match one(&runtime, plan, scene, contender) {
                Ok((moved, seen)) => {
                    let trial = Trial {
                        contender,
                        scene,
                        repetition,
                        moved,
                        seen,
                    };
                    say(&line(&trial));
                    keep(trial)?;
                }
                Err(error) => {
                    let (who, rate) = (contender.title(), scene.rate);
                    let text = format!("{who}, {rate} MiB/s, {repetition}: {error:#}");
                    say(&text);
                    failures.push(text);
                }
            }
        }
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The trials of a repetition, in their order.
fn trials(plan: &Plan, repetition: u32) -> anyhow::Result<Vec<(Scene, Contender)>> {
    let first = usize::try_from(repetition)?;
    let mut all = Vec::new();
    for store in &plan.stores {
        for (index, scene) in plan.scenes(*store).into_iter().enumerate() {
            let order = plan.order(scene, first + index).into_iter();
            all.extend(order.map(|contender| (scene, contender)));
        }
    }
    Ok(all)
}

fn one(
    runtime: &Runtime,
    plan: &Plan,
    scene: Scene,
    contender: Contender,
) -> anyhow::Result<(Moved, Seen)> {
    let mut options = vec!["--pool-size", POOL];
    if plan.disks == Disks::Memory {
        options.push("--in-memory");
    }
    let kind = scene.store;
    let mut measured = None;
    with_lab(store::runtime(kind), &options, |lab| {
        store::provide(kind, lab)?;
        measured = Some(match contender {
            Contender::Rehome | Contender::RehomeNoDrain | Contender::RehomeThrottle => {
                let mut mover = RehomeMove::new(lab, contender, kind, NAME);
                trial::run(runtime, scene, &mut mover)?
            }
            Contender::TwoPhase | Contender::Send | Contender::Rsync => {
                let mut hosts = Hosts::open(lab).context("the hosts by hand")?;
                let mut mover = ByHand::new(&mut hosts, contender, kind, NAME);
                trial::run(runtime, scene, &mut mover)?
            }
        });
        Ok(())
    })?;
    measured.context("nothing was measured")
}

/// A trial in one line.
fn line(trial: &Trial) -> String {
    let Trial {
        contender,
        scene,
        repetition,
        moved,
        seen,
    } = trial;
    let ended = moved.failure.as_deref().unwrap_or("done");
    format!(
        "{} {} MiB, {} MiB/s ({:.1} achieved), {}, repetition {repetition}: window {:.3} s, \
         gap {:.3} s, failed {} + {}, lost {}; {ended}",
        scene.store.title(),
        scene.size,
        scene.rate,
        seen.achieved,
        contender.title(),
        moved.window(),
        seen.gap,
        seen.failed_fresh,
        seen.failed_kept,
        seen.lost,
    )
}
