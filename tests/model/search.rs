//! A search through all states of a model, breadth first, so that what it finds is shortest.
//!
//! A model checker with an interface of its own (stateright) brings a web server and over a hundred crates; all that is
//! needed of it is this.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::books::{State, World};

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
pub(crate) fn explore(world: &World) -> Outcome {
    // How each state was reached first: the state before it, by its place in `seen`, and the step.
    let mut reached: HashMap<State, usize> = HashMap::new();
    let mut seen: Vec<(State, Option<(usize, String)>)> = Vec::new();
    let mut pending = VecDeque::from([(world.first(), None)]);
    while let Some((state, from)) = pending.pop_front() {
        let Entry::Vacant(free) = reached.entry(state.clone()) else {
            continue;
        };
        let place = seen.len();
        free.insert(place);
        seen.push((state.clone(), from));
        if !state.is_sound() {
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

fn trace_to(seen: &[(State, Option<(usize, String)>)], last: usize) -> Vec<String> {
    let mut steps = Vec::new();
    let mut place = last;
    while let Some((before, step)) = &seen[place].1 {
        steps.push(step.clone());
        place = *before;
    }
    steps.reverse();
    steps
}
