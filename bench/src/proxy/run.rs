//! A whole run: in each round every scene, in it every contender, in turn.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rehome_sys::child::kill_with_parent;
use rehome_tests::program;

use crate::proxy::contender::Programs;
use crate::proxy::plan::{Contender, Plan, Scene};
use crate::proxy::processors::Processors;
use crate::proxy::record::{Figure, Trial};
use crate::proxy::role::Role;
use crate::proxy::trial::{Outcome, Setup};

/// What a trial may take besides what it measures.
const BESIDES: Duration = Duration::from_mins(4);

/// Does all of a plan. A trial that fails is told at the end; the others are done nevertheless.
///
/// # Errors
/// Those of trials that failed; `keep` has what was measured.
pub fn run(
    plan: &Plan,
    programs: &Programs,
    processors: &Processors,
    say: &dyn Fn(&str),
    keep: &mut dyn FnMut(Trial) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let began = Instant::now();
    let mut round = 0;
    while plan.goes_on(round, began.elapsed()) {
        round += 1;
        for (scene, contender) in plan.trials(usize::try_from(round)?) {
            let setup = Setup {
                contender,
                scene,
                seconds: plan.seconds,
                processors: processors.clone(),
                programs: programs.clone(),
            };
            let name = format!("{}, {}, round {round}", scene.title(), contender.title());
            match one(&setup) {
                Ok(outcome) => {
                    say(&format!("{name}: {}", line(&outcome)));
                    keep(Trial {
                        contender,
                        scene,
                        round,
                        figures: outcome.figures,
                        failure: outcome.failure,
                    })?;
                }
                Err(error) => {
                    let text = format!("{name}: {error:#}");
                    say(&text);
                    failures.push(text);
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// One trial, in namespaces that end with it or with this process, whatever comes first.
fn one(setup: &Setup) -> anyhow::Result<Outcome> {
    let role = Role::Trial(Box::new(setup.clone())).command()?;
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "--"])
        .args(role);
    kill_with_parent(&mut command);
    let limit = Duration::try_from_secs_f64(setup.seconds)? + BESIDES;
    let outcome = program::run(&mut command, limit)?.ok()?;
    let last = outcome.stdout.lines().last().context("a silent trial")?;
    serde_json::from_str(last).context("a trial that says something strange")
}

/// A trial in one line.
fn line(outcome: &Outcome) -> String {
    let figures = outcome.figures.iter();
    let figure = |(name, value): (&Figure, &f64)| format!("{} {value:.1}", name.title());
    let mut words: Vec<String> = figures.map(figure).collect();
    words.extend(outcome.failure.clone());
    words.join("; ")
}

/// Those of the contenders that can take part, and why the others do not.
#[must_use]
pub fn present(wanted: &[Contender], programs: &Programs) -> (Vec<Contender>, Vec<String>) {
    let mut present = Vec::new();
    let mut notes = Vec::new();
    for contender in wanted {
        match programs.missing(*contender) {
            None => present.push(*contender),
            Some(path) => notes.push(format!(
                "{} is left out: there is no program {:?}",
                contender.title(),
                path.display().to_string()
            )),
        }
    }
    (present, notes)
}

/// Scenes whose name holds one of the words; all, when there is no word.
#[must_use]
pub fn chosen(scenes: Vec<Scene>, words: &[String]) -> Vec<Scene> {
    let is_meant = |scene: &Scene| {
        let title = scene.title().to_lowercase();
        words.is_empty()
            || words
                .iter()
                .any(|word| title.contains(&word.to_lowercase()))
    };
    scenes.into_iter().filter(is_meant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::plan::scenes;

    #[test]
    fn scenes_are_chosen_by_a_word_of_their_name() {
        let of = |word: &str| chosen(scenes(100), &[word.to_owned()]);
        assert_eq!(of("unannounced"), [Scene::Away]);
        assert_eq!(of("away"), [Scene::Away, Scene::Told]);
        assert_eq!(of("1 stream"), [Scene::Bulk(1)]);
        assert_eq!(chosen(scenes(100), &[]).len(), scenes(100).len());
        assert!(of("nothing").is_empty());
    }
}
