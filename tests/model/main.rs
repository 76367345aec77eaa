//! A model of the books: which order of steps keeps every CPU list with one owner, whoever is killed when, whatever the
//! clock does, and whoever replaces the lock. It is explored whole: every order in which hooks, `reconcile`, another
//! tool's `isolate`, deaths and disturbances can follow each other.
//!
//! The rules that protect I1 and I2 can be left out one at a time; each time the search has to find
//! two owners. So the model shows why each rule is there, and that it would notice. That the
//! program keeps the rules is for `tests/real` and `tests/faults` to show. What the model does not
//! know is exit codes: that a verb says that it is done, and has left a pid in `tasks` or an owner
//! on its old CPUs, is for `tests/faults` too.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

mod books;
mod search;

use books::{Rule, World};
use search::{Outcome, explore};

/// Every order of steps keeps the rules: the worlds differ in who is there.
#[test]
fn no_list_has_two_owners() {
    for (name, world) in World::all() {
        let outcome = explore(&world);
        println!("{name}: {} states", outcome.states());
        if let Outcome::Broken { trace, .. } = outcome {
            panic!("{name}: two owners after\n{}", trace.join("\n"));
        }
    }
}

/// Without any one of the rules some order of steps gives a list to two owners.
#[test]
fn each_rule_is_needed() {
    for rule in Rule::ALL {
        let found = World::all().into_iter().find_map(|(name, world)| {
            match explore(&world.without(rule)) {
                Outcome::Broken { trace, .. } => Some((name, trace)),
                Outcome::Sound { .. } => None,
            }
        });
        let (name, trace) = found.unwrap_or_else(|| panic!("nothing breaks without {rule:?}"));
        println!("without {rule:?}, {name}:\n  {}", trace.join("\n  "));
    }
}
