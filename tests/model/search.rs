//! A search through all states of a model, breadth first, so that what it finds is shortest.
//!
//! A model checker with an interface of its own (stateright) brings a web server and over a hundred
//! crates; all that is needed of it is this.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What is searched.
pub(crate) trait Model {
    /// All of it at one moment.
    type State: Clone + Eq + Hash;
    /// How it begins.
    fn first(&self) -> Self::State;
    /// Everything that can happen next, with its name.
    fn steps(&self, state: &Self::State) -> Vec<(String, Self::State)>;
    /// Does what must always hold hold here?
    fn is_sound(&self, state: &Self::State) -> bool;
}

/// What a search came to.
pub(crate) enum Outcome {
    /// Every state that can be reached is sound.
    Sound {
        /// How many there are.
        states: usize,
    },
    /// One is not.
    Broken {
        /// How many were seen until then.
        states: usize,
        /// The steps that lead to it.
        trace: Vec<String>,
    },
}

impl Outcome {
    /// How many states were seen.
    pub(crate) fn states(&self) -> usize {
        let (Outcome::Sound { states } | Outcome::Broken { states, .. }) = self;
        *states
    }
}

/// Looks at every state that can be reached, until one is not sound.
pub(crate) fn explore<M: Model>(world: &M) -> Outcome {
    // How each state was reached first: the state before it, by its place in `seen`, and the step.
    let mut reached: HashMap<M::State, usize> = HashMap::new();
    let mut seen: Seen<M::State> = Vec::new();
    let mut pending = VecDeque::from([(world.first(), None)]);
    while let Some((state, from)) = pending.pop_front() {
        let Entry::Vacant(free) = reached.entry(state.clone()) else {
            continue;
        };
        let place = seen.len();
        free.insert(place);
        seen.push((state.clone(), from));
        if !world.is_sound(&state) {
            return Outcome::Broken {
                states: seen.len(),
                trace: trace_to(&seen, place),
            };
        }
        for (step, next) in world.steps(&state) {
            if !reached.contains_key(&next) {
                pending.push_back((next, Some((place, step))));
            }
        }
    }
    Outcome::Sound { states: seen.len() }
}

/// States, each with the one before it and the step between them.
type Seen<S> = Vec<(S, Option<(usize, String)>)>;

fn trace_to<S>(seen: &Seen<S>, last: usize) -> Vec<String> {
    let mut steps = Vec::new();
    let mut place = last;
    while let Some((before, step)) = &seen[place].1 {
        steps.push(step.clone());
        place = *before;
    }
    steps.reverse();
    steps
}
