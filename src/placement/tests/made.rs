//! Making a pool directory, and the trial of it.

use super::{Machine, cpus, group_of, said};
use crate::isolation::Options;
use crate::placement::{Existing, Made, init, try_init};
use crate::pools::Kind;
use crate::pools::plan::PlannedPool;

fn planned(names: &[&str]) -> Vec<PlannedPool> {
    let pool = |(index, name): (usize, &&str)| PlannedPool {
        name: (*name).to_owned(),
        kind: Kind::Exclusive,
        lists: vec![cpus(&index.to_string())],
        options: Options::default(),
    };
    names.iter().enumerate().map(pool).collect()
}

/// What a trial says. It must be what is then done.
fn made(machine: &Machine, names: &[&str], existing: Existing) -> Result<Made, String> {
    let plan = planned(names);
    let trial = try_init(&machine.site(), &plan, existing);
    let done = init(&machine.site(), &plan, existing);
    let said_or = |result: anyhow::Result<Made>| match result {
        Ok(made) => Ok(made),
        error => Err(said(error)),
    };
    let (trial, done) = (said_or(trial), said_or(done));
    assert_eq!(trial, done, "{names:?} {existing:?}");
    done
}

#[test]
fn a_trial_says_what_is_done() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.path("etc/kcm")).unwrap();
    let plan = planned(&["dp"]);
    let trial = try_init(&machine.site(), &plan, Existing::Keep);
    assert_eq!(trial.unwrap(), Made::New);
    assert!(!machine.is_there("etc/kcm"));
    assert_eq!(made(&machine, &["dp"], Existing::Keep), Ok(Made::New));
    assert_eq!(
        made(&machine, &["dp"], Existing::Keep),
        Ok(Made::AlreadyThere)
    );
    let other = made(&machine, &["a", "b"], Existing::Keep).unwrap_err();
    assert!(other.contains("has other pools already: dp: "), "{other}");
    assert_eq!(
        made(&machine, &["a", "b"], Existing::Replace),
        Ok(Made::Replaced)
    );
    let other = made(&machine, &["dp"], Existing::Keep).unwrap_err();
    assert!(other.contains("has other pools already: a, b: "), "{other}");
}

#[test]
fn live_owners_keep_pools_from_being_replaced_and_dead_ones_do_not() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let claim = machine.pinned("web", 1, "dp", &["0"]);
    // Pools that are as planned may have owners.
    assert_eq!(
        made(&machine, &["dp"], Existing::Keep),
        Ok(Made::AlreadyThere)
    );
    let refused = made(&machine, &["new"], Existing::Replace).unwrap_err();
    let owner = format!("process {} owns CPUs in ", claim.owner.pid);
    assert!(refused.contains(&owner), "{refused}");
    // Another tool may have dropped its pid.
    machine.set_tasks("dp", "0", "");
    let refused = made(&machine, &["new"], Existing::Replace).unwrap_err();
    assert!(refused.contains("web owns CPUs in "), "{refused}");
    // The pools of an owner were removed by hand.
    std::fs::remove_dir_all(machine.path("etc/kcm/pools")).unwrap();
    let refused = made(&machine, &["dp"], Existing::Keep).unwrap_err();
    assert!(refused.contains("web owns CPUs in "), "{refused}");
    machine.end(claim.owner, &group_of("web"));
    assert_eq!(made(&machine, &["dp"], Existing::Keep), Ok(Made::New));
    assert_eq!(
        made(&machine, &["new"], Existing::Replace),
        Ok(Made::Replaced)
    );
}
