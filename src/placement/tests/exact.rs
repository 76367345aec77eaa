//! Lists that are asked for by their CPUs, one after the other for one container.

use super::{Machine, group_of, said};
use crate::claims::Claim;
use crate::names::Names;
use crate::placement::{Start, pin_container};
use crate::process::Process;
use crate::request::{Request, with_list};

fn asked(list: &str) -> Request {
    with_list(None, Some(list)).unwrap().unwrap()
}

/// Runs the hook for a container's device, or its annotation. As there is no such process to
/// confine, whatever comes so far fails at the last step, and is taken back.
fn pin(machine: &Machine, process: Process, request: &Request) -> anyhow::Result<Claim> {
    machine.put(
        &format!("proc/{}/cgroup", std::process::id()),
        "0::/user.slice\n",
    );
    let start = Start {
        id: "web",
        pid: process.pid,
        names: Names::default(),
        reservation: None,
    };
    let pinned = pin_container(&machine.site(), start, request)?;
    Ok(pinned.expect("who asks is pinned"))
}

/// A container that has CPU 2 by a device.
fn with_two(machine: &Machine) -> Claim {
    let mut claim = machine.pinned("web", 1, "dp", &["2"]);
    claim.is_exact = true;
    machine.ledger().write(&claim).unwrap();
    claim
}

/// The books have nothing of it but CPU 2.
fn assert_has_two(machine: &Machine, claim: &Claim, what: &str) {
    let entries = machine.ledger().of_id("web").unwrap();
    let claims: Vec<_> = entries.iter().map(|entry| entry.claim().unwrap()).collect();
    assert_eq!(claims, [claim], "{what}");
    assert_eq!(
        machine.tasks("dp", "2"),
        claim.owner.pid.to_string(),
        "{what}"
    );
    // A write to a plain file leaves the rest of a longer text.
    let mask = machine.value(&group_of("web"), "cpuset.cpus");
    assert!(mask.starts_with('2'), "{what}: {mask}");
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2", "3", "4,7"]);
    machine.pinned("db", 2, "dp", &["0"]);
    let stranger = machine.start(3, "/other");
    machine.set_tasks("dp", "1", &stranger.pid.to_string());
    let torn = machine.dead("torn", 4, "dp", &["3"]);
    let file = format!("torn/{}-{}.json", torn.owner.pid, torn.owner.start);
    machine.put(&format!("run/pinfold/claims/{file}"), "{");
    machine.put("sys/devices/system/cpu/online", "0-6\n");
    let new = machine.start(5, &group_of("web"));
    let process = format!("is owned by process {}", stranger.pid);
    for (list, words) in [
        ("dp:0", "its CPU list 0 is owned by \"db\""),
        ("dp:1", &process),
        ("dp:3", "which cannot be read"),
        ("dp:4", "the pool has no CPU list 4"),
        ("dp:4,7", "of its CPU list 4,7, 7 is offline"),
        ("ix:4", "ix"),
    ] {
        let refused = said(pin(&machine, new, &asked(list)));
        assert!(refused.contains(words), "{list}: {refused}");
        assert!(!machine.knows("web"), "{list}");
        assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
    }
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-1\n");
    let refused = said(pin(&machine, new, &asked("dp:2")));
    assert!(refused.contains("allows only the CPUs 0-1"), "{refused}");
}

/// The last two fail at the mask: the tree's kernel does not tell of one that was written.
#[test]
fn a_further_list_that_fails_leaves_what_was_there() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2", "3"]);
    let claim = with_two(&machine);
    machine.pinned("db", 2, "dp", &["0"]);
    machine.dead("old", 3, "dp", &["3"]);
    for (list, words) in [
        ("dp:0", "is owned by \"db\""),
        ("dp:4", "the pool has no CPU list 4"),
        ("dp:1", "after 1-2 was written"),
        ("dp:3", "after 2-3 was written"),
    ] {
        let failed = said(pin(&machine, claim.owner, &asked(list)));
        assert!(failed.contains(words), "{list}: {failed}");
        assert_has_two(&machine, &claim, list);
    }
    assert_eq!(machine.tasks("dp", "1"), "");
    assert_eq!(machine.tasks("dp", "3"), "", "a dead owner's is free");
    assert!(!machine.is_there("run/pinfold/lists/1"));
}

/// `true`: it is the same again, which is done again.
#[test]
fn devices_of_one_pool_add_up_and_an_annotation_may_name_the_pool() {
    let plain = Request::for_device("dp").unwrap();
    let two = Request::for_device("dp.2").unwrap();
    let other = Request::for_device("ix").unwrap();
    for (is_exact, request, agrees) in [
        (true, asked("dp:2"), true),
        (true, asked("ix:4"), false),
        (true, plain.clone(), true),
        (true, two, false),
        (true, other, false),
        (false, asked("dp:2"), true),
        (false, asked("dp:1"), false),
        (false, plain, true),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["1", "2"]);
        machine.pool("ix", "1", &["4"]);
        let mut claim = with_two(&machine);
        claim.is_exact = is_exact;
        machine.ledger().write(&claim).unwrap();
        let message = said(pin(&machine, claim.owner, &request));
        let is_refused = message.contains("it has 2 of pool dp since a moment ago");
        assert_eq!(is_refused, !agrees, "{request:?}: {message}");
        if is_refused {
            assert_has_two(&machine, &claim, &message);
        }
    }
}

#[test]
fn a_shared_pool_gives_one_list() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["1", "2"]);
    let claim = with_two(&machine);
    let refused = said(pin(&machine, claim.owner, &asked("dp:1")));
    assert!(refused.contains("gives one CPU list"), "{refused}");
    assert_has_two(&machine, &claim, "");
}

/// Such a pool is never exhausted, and would fill with dead owners.
#[test]
fn a_list_of_a_shared_pool_is_freed_of_dead_owners() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["1", "2"]);
    machine.dead("old", 2, "dp", &["1"]);
    let process = machine.start(1, &group_of("web"));
    pin(&machine, process, &asked("dp:1")).unwrap_err();
    assert_eq!(machine.ledger().of_id("old").unwrap().len(), 0);
    assert_eq!(machine.tasks("dp", "1"), "");
}
