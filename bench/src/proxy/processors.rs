//! Which processors whom belong to. Clients and server do not take the relay's, so that what it
//! can do shows in figures and not in how the scheduler happened to place it.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity};
use serde::{Deserialize, Serialize};

/// The processors of a run, shared out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// Those of clients and server.
    pub generators: Vec<usize>,
    /// The relay's.
    pub relay: Vec<usize>,
}

impl Processors {
    /// Shares out those that this process may use. Without `pinned` everybody may use all.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn here(pinned: bool) -> io::Result<Self> {
        let set = sched_getaffinity(None)?;
        let all: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .collect();
        Ok(Self::share(all, pinned))
    }

    /// One for the relay, which has one worker, and the others for the rest, if there are any.
    fn share(all: Vec<usize>, pinned: bool) -> Self {
        match all.split_last() {
            Some((last, others)) if pinned && !others.is_empty() => Self {
                generators: others.to_vec(),
                relay: vec![*last],
            },
            _ => Self {
                generators: all.clone(),
                relay: all,
            },
        }
    }

    /// How they were shared out, for people.
    #[must_use]
    pub fn note(&self) -> String {
        if self.generators == self.relay {
            format!(
                "clients, server and relay share {} processors, the relay with a worker for each",
                self.relay.len()
            )
        } else {
            format!(
                "one processor is the relay's, which has one worker; {} more belong to clients and \
                 server",
                self.generators.len()
            )
        }
    }
}

/// A command that may use only these.
#[must_use]
pub fn pinned(processors: &[usize], command: impl IntoIterator<Item = String>) -> Vec<String> {
    let list: Vec<String> = processors.iter().map(usize::to_string).collect();
    let mut words = vec!["taskset".to_owned(), "-c".to_owned(), list.join(",")];
    words.extend(command);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_has_a_processor_of_its_own_where_there_are_two() {
        let shared = Processors::share(vec![0, 1, 4, 5], true);
        assert_eq!((shared.generators, shared.relay), (vec![0, 1, 4], vec![5]));
        let one = Processors::share(vec![3], true);
        assert_eq!((one.generators, one.relay), (vec![3], vec![3]));
        let all = Processors::share(vec![0, 1], false);
        assert_eq!((all.generators, all.relay), (vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn a_command_is_told_its_processors() {
        let words = pinned(&[0, 2], ["true".to_owned()]);
        assert_eq!(words, ["taskset", "-c", "0,2", "true"]);
    }
}
