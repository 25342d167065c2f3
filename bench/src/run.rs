//! A whole run: for each store and repetition a fresh lab, on it every scene, in it every
//! contender, in turn.

use std::time::Instant;

use anyhow::Context as _;
use rehome_tests::lab::{Lab, with_lab};
use tokio::runtime::Runtime;

use crate::by_hand::{ByHand, Hosts};
use crate::plan::{Contender, Kind, Plan, Scene};
use crate::record::Trial;
use crate::rehome_move::RehomeMove;
use crate::{store, trial};

/// Room for what the trials of one lab leave behind; it is taken only as it is used.
const POOL: &str = "24GiB";

/// Does all of a plan. A repetition that fails ends its lab and is told at the end; the others
/// are done nevertheless.
///
/// # Errors
/// Those of repetitions that failed; `keep` has what was measured.
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
        for kind in &plan.stores {
            let mut measured = |trial| keep(trial);
            let done = with_lab(store::runtime(*kind), &["--pool-size", POOL], |lab| {
                let round = Round {
                    plan,
                    runtime: &runtime,
                    lab,
                    kind: *kind,
                    repetition,
                };
                round.all(say, &mut measured)
            });
            if let Err(error) = done {
                let text = format!("{} {repetition}: {error:#}", kind.title());
                say(&text);
                failures.push(text);
            }
        }
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// One repetition for one store.
struct Round<'a> {
    plan: &'a Plan,
    runtime: &'a Runtime,
    lab: &'a Lab,
    kind: Kind,
    repetition: u32,
}

impl Round<'_> {
    fn all(
        &self,
        say: &dyn Fn(&str),
        keep: &mut dyn FnMut(Trial) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        store::provide(self.kind, self.lab)?;
        let mut hosts = Hosts::open(self.lab).context("the hosts by hand")?;
        let scenes = self.plan.scenes(self.kind);
        let first = usize::try_from(self.repetition)?;
        let mut number = 0_u32;
        for (index, scene) in scenes.into_iter().enumerate() {
            for contender in self.plan.order(first + index) {
                number += 1;
                let name = format!("store-{number}");
                let trial = self
                    .one(&mut hosts, scene, contender, &name)
                    .with_context(|| format!("{} at {} MiB/s", contender.title(), scene.rate))?;
                say(&line(&trial));
                keep(trial)?;
            }
        }
        Ok(())
    }

    fn one(
        &self,
        hosts: &mut Hosts,
        scene: Scene,
        contender: Contender,
        name: &str,
    ) -> anyhow::Result<Trial> {
        let (moved, seen) = match contender {
            Contender::Rehome | Contender::RehomeNoDrain => {
                let mut mover = RehomeMove::new(self.lab, contender, self.kind, name);
                trial::run(self.runtime, scene, &mut mover)?
            }
            Contender::TwoPhase | Contender::Send | Contender::Rsync => {
                let mut mover = ByHand::new(hosts, contender, self.kind, name);
                trial::run(self.runtime, scene, &mut mover)?
            }
        };
        Ok(Trial {
            contender,
            scene,
            repetition: self.repetition,
            moved,
            seen,
        })
    }
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
