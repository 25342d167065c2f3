//! Random histories over the real machines and the real bytes of the journal.
//!
//! Three hosts, three applications (one of them without a volume), as many moves as the sequence
//! makes. The explorer beside this visits every state of a small world; here the world is larger,
//! crashes cut the journal's bytes anywhere, every effect is performed twice, and any message
//! that was ever sent may arrive now. After every event the invariants of the contract are
//! checked, and in the end that everything comes to rest where the deployment wants it.
//!
//! A sequence that once failed, or leads into a corner worth keeping, stands by its name in
//! `sequences.json` and is run by an ordinary test; a failure prints itself in that form.

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod values;
#[cfg(test)]
mod world;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use proptest::test_runner::{
        Config, FileFailurePersistence, TestCaseError, TestError, TestRunner,
    };
    use serde::Deserialize;

    use crate::steps::{Step, sequences};
    use crate::world::{Mutant, Reached, World};

    /// Enough for every corner that is asked for below.
    const CASES: u32 = 1000;

    fn config(cases: u32) -> Config {
        Config {
            cases,
            max_shrink_iters: 20_000,
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
                "tests/handoff_properties/regressions.txt",
            ))),
            ..Config::default()
        }
    }

    fn as_json(steps: &[Step]) -> String {
        serde_json::to_string(steps).unwrap()
    }

    #[test]
    fn any_sequence_is_safe_and_comes_to_rest() {
        let total = RefCell::new(Reached::default());
        let outcome = TestRunner::new(config(CASES)).run(&sequences(), |steps| {
            let (_, reached) = World::run(None, &steps).map_err(TestCaseError::fail)?;
            total.borrow_mut().add(&reached);
            Ok(())
        });
        if let Err(TestError::Fail(why, steps)) = &outcome {
            panic!("{why}, by {}", as_json(steps));
        }
        outcome.unwrap();
        let total = total.into_inner();
        println!("{CASES} sequences: {total:?}");
        assert!(total.is_everything(), "sequences never get far: {total:?}");
    }

    /// A sequence that is kept.
    #[derive(Deserialize)]
    struct Named {
        steps: Vec<Step>,
        /// Where it leads: a sequence that does not get there any more keeps nothing.
        reaches: Reached,
        /// A guard that it needs, and what is broken without.
        #[serde(default)]
        needs: Option<(Mutant, String)>,
    }

    #[test]
    fn sequences_that_are_kept_stay_safe_and_lead_where_they_led() {
        let text = include_str!("sequences.json");
        let all: BTreeMap<String, Named> = serde_json::from_str(text).unwrap();
        let mut elsewhere = BTreeMap::new();
        for (name, Named { steps, reaches, .. }) in &all {
            let (_, reached) =
                World::run(None, steps).unwrap_or_else(|problem| panic!("{name}: {problem}"));
            if reached != *reaches {
                elsewhere.insert(name, reached);
            }
        }
        assert!(
            elsewhere.is_empty(),
            "these lead elsewhere now: {}",
            serde_json::to_string(&elsewhere).unwrap()
        );
    }

    /// The harness sees what is wrong: with a guard taken out a sequence breaks an invariant.
    #[test]
    fn a_guard_that_is_taken_out_is_seen() {
        let text = include_str!("sequences.json");
        let all: BTreeMap<String, Named> = serde_json::from_str(text).unwrap();
        let mut mutants = Vec::new();
        for (name, Named { steps, needs, .. }) in all {
            let Some((mutant, expected)) = needs else {
                continue;
            };
            let Err(problem) = World::run(Some(mutant), &steps) else {
                panic!("{name}: {mutant:?} is not seen");
            };
            assert!(problem.contains(&expected), "{name}: {problem}");
            mutants.push(mutant);
        }
        for mutant in Mutant::ALL {
            assert!(mutants.contains(&mutant), "nothing needs {mutant:?}");
        }
    }

    /// Sequences are found, not only kept.
    #[test]
    fn a_destination_that_takes_anything_is_found() {
        let config = Config {
            failure_persistence: None,
            max_shrink_iters: 400,
            ..config(4000)
        };
        let outcome = TestRunner::new(config).run(&sequences(), |steps| {
            World::run(Some(Mutant::TakesAnything), &steps)
                .map(drop)
                .map_err(TestCaseError::fail)
        });
        let Err(TestError::Fail(why, steps)) = outcome else {
            panic!("it is not found");
        };
        println!("{why}, by {}", as_json(&steps));
    }
}
