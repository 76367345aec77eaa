//! What a start finds of itself, and of earlier owners of its id or its group.

use super::{Machine, cpus, group_of, open, said};
use crate::claims::{Claim, OwnerKind};
use crate::names::Names;
use crate::placement::{Start, cancel_reservation, pin_container, reserve};
use crate::process::Process;
use crate::request::{Locality, Mems, Request, Size};

fn request(size: Size) -> Request {
    Request {
        pool: "dp".into(),
        exact: None,
        size,
        locality: Locality::default(),
        mems: Mems::Inherit,
        tuning: Default::default(),
        by_default: false,
    }
}

/// Runs the hook for a container. Unless it was pinned before, that fails at the last step, as
/// there is no such process to confine; nothing stays changed.
fn pin(machine: &Machine, id: &str, process: Process, size: Size) -> anyhow::Result<Claim> {
    machine.put(
        &format!("proc/{}/cgroup", std::process::id()),
        "0::/user.slice\n",
    );
    let start = Start {
        id,
        pid: process.pid,
        names: Names::default(),
        reservation: None,
    };
    let pinned = pin_container(&machine.site(), start, &request(size));
    pinned.map(|claim| claim.expect("who asks is pinned"))
}

/// Reserves for a container in a group of this path, under this process, which becomes the runtime.
fn reserve_for_web(machine: &Machine, path: &str) -> Claim {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    machine.put(&format!("proc/{}/stat", std::process::id()), &stat);
    let expected = crate::cgroup::of_config::Expected {
        path: path.to_owned(),
        is_exact: true,
    };
    let request = request(Size::Lists(1));
    let names = Names::default();
    reserve(&machine.site(), "web", names, Some(expected), &request).unwrap()
}

/// An engine with two hooks asks twice, each time for the same.
#[test]
fn whoever_asks_twice_has_to_ask_for_as_much() {
    for (size, agrees) in [
        (Size::Lists(2), true),
        (Size::Lists(1), false),
        (Size::Cpus(4), true),
        (Size::Cpus(3), true),
        (Size::Cpus(5), false),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0-1", "2-3"]);
        let claim = machine.pinned("web", 1, "dp", &["0-1", "2-3"]);
        let message = said(pin(&machine, "web", claim.owner, size));
        let is_refused = message.contains("it has 0-3 of pool dp since a moment ago");
        assert_eq!(is_refused, !agrees, "{size:?}: {message}");
    }
}

/// The earlier container died without a poststop.
#[test]
fn a_start_frees_dead_owners_of_its_id_and_keeps_live_ones() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2"]);
    let dead = machine.dead("web", 1, "dp", &["0"]);
    std::fs::rename(
        machine.path("sys/fs/cgroup/machine.slice/web"),
        machine.path("sys/fs/cgroup/machine.slice/former"),
    )
    .unwrap();
    let process = machine.start(2, &group_of("web"));
    said(pin(&machine, "web", process, Size::Lists(1)));
    assert_eq!(machine.tasks("dp", "0"), "", "{dead:?}");
    assert!(!machine.knows("web"));
    // Another root of the runtime has a container of the same id.
    let live = machine.pinned("db", 3, "dp", &["1"]);
    let process = machine.start(4, "/other.slice/db");
    said(pin(&machine, "db", process, Size::Lists(1)));
    assert_eq!(machine.tasks("dp", "1"), live.owner.pid.to_string());
    assert!(machine.knows("db"));
}

/// A killed runtime left its group with our mask, and this start is alone in it.
#[test]
fn a_start_that_is_alone_in_a_group_takes_it_from_whoever_had_it() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    machine.dead("former", 1, "dp", &["0"]);
    let process = machine.process(2);
    machine.live(process, &group_of("former"));
    let message = said(pin(&machine, "web", process, Size::Lists(1)));
    assert!(message.contains("affinity"), "{message}");
    assert_eq!(machine.tasks("dp", "0"), "");
    assert!(!machine.knows("former") && !machine.knows("web"));
    assert_eq!(machine.value(&group_of("former"), "cpuset.cpus"), "");
}

/// The shim died after its runtime had made the group; the same container starts again.
#[test]
fn what_was_reserved_for_an_earlier_start_is_free() {
    for is_confined in [true, false] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0", "1"]);
        let process = machine.start(2, &group_of("web"));
        let mut claim = machine.claim("web", machine.process(1), "dp", &["0"]);
        claim.kind = OwnerKind::Reservation;
        claim.cgroup = None;
        claim.awaited = Some(group_of("web"));
        claim.nonce = Some("an-earlier".to_owned());
        machine.ledger().write(&claim).unwrap();
        machine.set_tasks("dp", "0", &claim.owner.pid.to_string());
        let mask = if is_confined { "0\n" } else { "\n" };
        machine.put("sys/fs/cgroup/machine.slice/web/cpuset.cpus", mask);
        said(pin(&machine, "web", process, Size::Lists(1)));
        assert_eq!(machine.tasks("dp", "0"), "", "{is_confined}");
        assert!(!machine.knows("web"));
        assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
    }
}

/// Its runtime still runs, beside another start of the same id.
#[test]
fn what_is_reserved_for_another_start_stays_while_its_runtime_lives() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let runtime = machine.start(1, "/user.slice");
    machine.group(&group_of("web"));
    let mut claim = machine.claim("web", runtime, "dp", &["0"]);
    claim.kind = OwnerKind::Reservation;
    claim.cgroup = None;
    claim.awaited = Some(group_of("web"));
    claim.nonce = Some("another".to_owned());
    machine.ledger().write(&claim).unwrap();
    machine.set_tasks("dp", "0", &runtime.pid.to_string());
    let process = machine.start(2, &group_of("web"));
    said(pin(&machine, "web", process, Size::Lists(1)));
    assert!(machine.knows("web"));
    assert_eq!(machine.tasks("dp", "0"), runtime.pid.to_string());
}

/// Only reservations are looked at more closely, for a start has to wait for that.
#[test]
fn an_earlier_owner_of_the_id_that_lives_on_is_left_as_it_is() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let web = machine.pinned("web", 1, "dp", &["0"]);
    machine.live(machine.process(2), &group_of("web"));
    machine.end(web.owner, &group_of("web"));
    let process = machine.start(3, "/other.slice/web");
    said(pin(&machine, "web", process, Size::Lists(1)));
    assert_eq!(machine.tasks("dp", "0"), web.owner.pid.to_string());
    assert!(machine.knows("web"));
}

/// It frees them even if another list is free.
#[test]
fn a_reservation_frees_dead_owners_of_its_id() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let dead = machine.dead("web", 1, "dp", &["1"]);
    let claim = reserve_for_web(&machine, "/machine.slice/new");
    assert_eq!(claim.lists, ["0"]);
    assert_eq!(machine.tasks("dp", "1"), "", "{dead:?}");
    assert_eq!(machine.ledger().of_id("web").unwrap().len(), 1);
}

/// The runtime was killed after it had confined the group. What it did not set is not reset.
#[test]
fn a_group_that_was_awaited_gets_back_what_was_set() {
    for (mems, left) in [("0", ""), ("", "1")] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        machine.group(&group_of("web"));
        machine.put("sys/fs/cgroup/machine.slice/web/cpuset.cpus", "0\n");
        machine.put("sys/fs/cgroup/machine.slice/web/cpuset.mems", "1\n");
        let mut claim = machine.claim("web", machine.process(1), "dp", &["0"]);
        claim.kind = OwnerKind::Reservation;
        claim.cgroup = None;
        claim.mems = (!mems.is_empty()).then(|| mems.parse().unwrap());
        claim.awaited = Some(group_of("web"));
        machine.ledger().write(&claim).unwrap();
        crate::placement::reconcile(&machine.site()).unwrap();
        assert!(!machine.knows("web"));
        assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
        assert_eq!(machine.value(&group_of("web"), "cpuset.mems"), left);
    }
}

/// A reservation awaits only a group that nobody had before: no other identifies its owner.
#[test]
fn a_reservation_awaits_a_group_that_nobody_has_and_is_given_up_again() {
    for (path, is_awaited) in [
        ("/machine.slice/new", true),
        ("/machine.slice/empty", true),
        ("/machine.slice/used", false),
        ("/machine.slice/narrowed", false),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        machine.group("/machine.slice/empty");
        machine.group("/machine.slice/narrowed");
        machine.put("sys/fs/cgroup/machine.slice/narrowed/cpuset.cpus", "3\n");
        let effective = "sys/fs/cgroup/machine.slice/narrowed/cpuset.cpus.effective";
        machine.put(effective, "3\n");
        machine.start(1, "/machine.slice/used");
        let claim = reserve_for_web(&machine, path);
        let awaited = claim.awaited.as_deref();
        assert_eq!(awaited, is_awaited.then_some(path));
        assert_eq!(machine.tasks("dp", "0"), claim.owner.pid.to_string());
        cancel_reservation(&machine.site(), &claim).unwrap();
        assert_eq!(machine.tasks("dp", "0"), "");
        assert!(!machine.knows("web"));
    }
}

/// The mask identifies it: a group without one, or with other CPUs, is somebody else's.
#[test]
fn the_group_that_a_reservation_awaits_stands_for_it_once_it_is_confined() {
    for (mask, is_alive) in [("0-1", true), ("0", true), ("0-2", false), ("", false)] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0-1"]);
        machine.start(2, &group_of("web"));
        let mut claim = machine.claim("web", machine.process(1), "dp", &["0-1"]);
        claim.kind = OwnerKind::Reservation;
        claim.cgroup = None;
        claim.awaited = Some(group_of("web"));
        machine.put(
            "sys/fs/cgroup/machine.slice/web/cpuset.cpus",
            &format!("{mask}\n"),
        );
        let site = machine.site();
        let life = open(&site).life_of(&claim).unwrap();
        assert_eq!(life.is_alive(), is_alive, "{mask:?}");
        assert_eq!(claim.cpus, cpus("0-1"));
    }
}

/// Its process left the group and runs on the CPUs; or it cannot be told who has them.
#[test]
fn a_group_is_not_taken_from_whoever_may_live() {
    for is_torn in [true, false] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0", "1"]);
        let claim = machine.pinned("former", 1, "dp", &["0"]);
        machine.end(claim.owner, &group_of("former"));
        if is_torn {
            let file = format!("former/{}-{}.json", claim.owner.pid, claim.owner.start);
            machine.put(&format!("run/pinfold/claims/{file}"), "{");
        } else {
            machine.group("/other");
            machine.live(claim.owner, "/other");
        }
        let process = machine.process(2);
        machine.live(process, &group_of("former"));
        let message = said(pin(&machine, "web", process, Size::Lists(1)));
        assert_eq!(
            message.contains("it is on its cgroup"),
            is_torn,
            "{message}"
        );
        assert!(machine.knows("former"));
        assert_eq!(machine.tasks("dp", "0"), claim.owner.pid.to_string());
    }
}

/// I5: if it cannot be told whether an owner lives, the refusal says that.
#[test]
fn why_it_cannot_be_told_who_owns_a_list_is_said() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.pinned("live", 1, "dp", &["0"]);
    let web = machine.start(2, &group_of("web"));
    let message = said(pin(&machine, "web", web, Size::Lists(1)));
    assert!(message.contains("the pool is exhausted"), "{message}");
    // A file in place of the directory of links: ENOTDIR, even for root.
    let links = machine.path("run/pinfold/lists/0");
    std::fs::remove_dir_all(&links).unwrap();
    machine.put("run/pinfold/lists/0", "");
    let message = said(pin(&machine, "web", web, Size::Lists(1)));
    assert!(message.contains("lists/0"), "{message}");
    assert!(!message.contains("exhausted"), "{message}");
}
