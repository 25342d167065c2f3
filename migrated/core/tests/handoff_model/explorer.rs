//! Breadth first through all states of the world.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;

/// A world that can be explored.
pub(crate) trait Model {
    type State: Copy + Eq + Hash;
    type Label: Copy + Display;
    type Violation: Copy;

    fn first(&mut self) -> Self::State;
    /// All that can happen next.
    fn edges(&mut self, state: &Self::State) -> Vec<Edge<Self::State, Self::Label>>;
    /// The first invariant that a state breaks.
    fn violation(&self, state: &Self::State) -> Option<Self::Violation>;
    /// Whether clients are served.
    fn serves(&self, state: &Self::State) -> bool;
    /// How things ended up to a state.
    fn outcomes(&self, state: &Self::State) -> Vec<&'static str>;
    /// What the real machines must never do, if they did.
    fn broken(&self) -> Option<&str>;
    fn journals(&self) -> usize;
}

/// One step of a world.
pub(crate) struct Edge<State, Label> {
    pub(crate) label: Label,
    pub(crate) next: State,
    /// Whether it is a fault, somebody's doing or a message that wandered about: nothing may rest
    /// on its coming.
    pub(crate) fault: bool,
}

/// What the exploration found.
pub(crate) struct Found<M: Model> {
    pub(crate) states: usize,
    pub(crate) journals: usize,
    /// The first state that breaks an invariant.
    pub(crate) violation: Option<M::Violation>,
    /// States from which service cannot be restored without another fault.
    pub(crate) stuck: usize,
    /// Ways in which migrations ended.
    pub(crate) outcomes: HashSet<&'static str>,
    /// How the violation, or the first stuck state, comes about.
    path: Vec<M::Label>,
}

impl<M: Model> Found<M> {
    pub(crate) fn trace(&self) -> String {
        trace(&self.path)
    }
}

fn trace<Label: Display>(path: &[Label]) -> String {
    let steps: Vec<String> = path.iter().map(ToString::to_string).collect();
    format!("by: {}", steps.join(" > "))
}

struct Graph<M: Model> {
    states: Vec<M::State>,
    parents: Vec<Option<(usize, M::Label)>>,
    /// To whom each state leads without a fault.
    quiet: Vec<Vec<usize>>,
}

impl<M: Model> Graph<M> {
    fn path(&self, mut at: usize) -> Vec<M::Label> {
        let mut path = Vec::new();
        while let Some((parent, label)) = self.parents[at] {
            path.push(label);
            at = parent;
        }
        path.reverse();
        path
    }

    /// States from which no quiet path leads to a state that serves.
    fn stuck(&self, world: &M) -> Vec<usize> {
        let mut into = vec![Vec::new(); self.states.len()];
        for (from, nexts) in self.quiet.iter().enumerate() {
            for next in nexts {
                into[*next].push(from);
            }
        }
        let mut well: Vec<bool> = self
            .states
            .iter()
            .map(|state| world.serves(state))
            .collect();
        let mut queue: Vec<usize> = (0..well.len()).filter(|at| well[*at]).collect();
        while let Some(at) = queue.pop() {
            for from in &into[at] {
                if !well[*from] {
                    well[*from] = true;
                    queue.push(*from);
                }
            }
        }
        (0..well.len()).filter(|at| !well[*at]).collect()
    }
}

/// More than this is a world without bounds.
const MOST: usize = 2_000_000;

/// Visits every state until one breaks an invariant.
pub(crate) fn explore<M: Model>(mut world: M) -> Found<M> {
    let first = world.first();
    let mut known: HashMap<M::State, usize> = HashMap::from([(first, 0)]);
    let mut graph: Graph<M> = Graph {
        states: vec![first],
        parents: vec![None],
        quiet: vec![Vec::new()],
    };
    let mut queue = VecDeque::from([0]);
    let mut violation = None;
    let mut path = Vec::new();
    while let Some(at) = queue.pop_front() {
        let state = graph.states[at];
        violation = world.violation(&state);
        if violation.is_some() {
            path = graph.path(at);
            break;
        }
        assert!(graph.states.len() < MOST, "more than {MOST} states");
        for Edge { label, next, fault } in world.edges(&state) {
            let to = *known.entry(next).or_insert_with(|| {
                graph.states.push(next);
                graph.parents.push(Some((at, label)));
                graph.quiet.push(Vec::new());
                queue.push_back(graph.states.len() - 1);
                graph.states.len() - 1
            });
            if !fault {
                graph.quiet[at].push(to);
            }
        }
        assert_eq!(world.broken(), None, "{}", trace(&graph.path(at)));
    }
    let stuck = if violation.is_some() {
        Vec::new()
    } else {
        graph.stuck(&world)
    };
    if let Some(one) = stuck.first() {
        path = graph.path(*one);
    }
    let outcomes = graph
        .states
        .iter()
        .flat_map(|state| world.outcomes(state))
        .collect();
    Found {
        states: graph.states.len(),
        journals: world.journals(),
        violation,
        stuck: stuck.len(),
        outcomes,
        path,
    }
}
