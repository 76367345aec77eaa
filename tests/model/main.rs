//! A model of the books: which order of steps keeps every CPU list with one owner, whoever is
//! killed when, whatever the clock does, and whoever replaces the lock. It is explored whole: every
//! order in which hooks, `reconcile`, another tool's `isolate`, deaths and disturbances can follow
//! each other.
//!
//! The rules that protect I1 and I2 can be left out one at a time; each time the search has to find
//! two owners. So the model shows why each rule is there, and that it would notice. That the
//! program keeps the rules is for `tests/real` and `tests/faults` to show.
//!
//! The same for what the verbs say: a verb that exits with 0 has left no pid in `tasks`, no owner
//! on old CPUs, and no mask.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

mod books;
mod search;
mod verbs;

use books::{Rule, World};
use search::{Outcome, explore};
use verbs::Verbs;

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

/// Whatever fails, and whoever is killed: what is said to be done is done.
#[test]
fn exit_codes_agree_with_the_books() {
    let outcome = explore(&Verbs::default());
    println!("{} states", outcome.states());
    if let Outcome::Broken { trace, .. } = outcome {
        panic!(
            "a lie, or a mask that is forgotten, after\n{}",
            trace.join("\n")
        );
    }
}

#[test]
fn each_rule_of_the_verbs_is_needed() {
    for rule in verbs::Rule::ALL {
        match explore(&Verbs::without(rule)) {
            Outcome::Broken { trace, .. } => {
                println!("without {rule:?}:\n  {}", trace.join("\n  "));
            }
            Outcome::Sound { .. } => panic!("nothing breaks without {rule:?}"),
        }
    }
}
