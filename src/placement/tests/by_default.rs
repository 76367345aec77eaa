//! Containers that ask for nothing, where the configuration has a pool for them.

use super::{Machine, group_of, said};
use crate::claims::Claim;
use crate::names::Names;
use crate::placement::{Start, pin_container, release};
use crate::process::Process;
use crate::request::{Request, from_annotations};

/// Runs the hook for a container; that of one that is not pinned yet fails at the last step, as
/// there is no such process to confine.
fn start(
    machine: &Machine,
    id: &str,
    process: Process,
    request: &Request,
) -> anyhow::Result<Option<Claim>> {
    start_on(machine, id, process, request, None)
}

/// The same for one for which the shim has made a reservation.
fn start_on(
    machine: &Machine,
    id: &str,
    process: Process,
    request: &Request,
    reservation: Option<&str>,
) -> anyhow::Result<Option<Claim>> {
    machine.put(
        &format!("proc/{}/cgroup", std::process::id()),
        "0::/user.slice\n",
    );
    let start = Start {
        id,
        pid: process.pid,
        names: Names::default(),
        reservation,
    };
    pin_container(&machine.site(), start, request)
}

fn machine() -> Machine {
    let machine = Machine::new();
    machine.pool("common", "0", &["0"]);
    machine.pool("dp", "1", &["4", "5"]);
    machine
}

fn asking(pool: &str) -> Request {
    let annotations = [("pinfold.io/pool".to_owned(), pool.to_owned())];
    let request = from_annotations(&annotations.into()).unwrap();
    request.unwrap()
}

#[test]
fn a_default_pool_that_is_missing_is_to_be_made_as_a_shared_one() {
    let machine = machine();
    let process = machine.start(1, &group_of("web"));
    for (request, is_default) in [(Request::by_default("new"), true), (asking("new"), false)] {
        let said = said(start(&machine, "web", process, &request));
        assert_eq!(
            said.contains("`pinfold pool add new=1:shared`"),
            is_default,
            "{said}"
        );
        assert_eq!(
            said.contains("`pinfold pool add new=1:exclusive`"),
            !is_default,
            "{said}"
        );
    }
}

#[test]
fn what_somebody_chose_for_it_stays() {
    let machine = machine();
    let process = machine.start(1, &group_of("web"));
    let file = "sys/fs/cgroup/machine.slice/web/cpuset.cpus";
    machine.put(file, "6-7\n");
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-7\n");
    let common = Request::by_default("common");
    assert_eq!(start(&machine, "web", process, &common).unwrap(), None);
    assert!(!machine.knows("web"));
    assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "6-7");
    // Of one that asks, it is a second request.
    let refused = said(start(&machine, "web", process, &asking("dp")));
    assert!(refused.contains("6-7"), "{refused}");
}

/// The runtime has confined it to what the shim reserved: others can be given those CPUs.
#[test]
fn what_was_reserved_and_is_gone_is_nobodys_choice() {
    let machine = machine();
    let process = machine.start(1, &group_of("web"));
    machine.put("sys/fs/cgroup/machine.slice/web/cpuset.cpus", "0\n");
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-7\n");
    let common = Request::by_default("common");
    let refused = said(start_on(&machine, "web", process, &common, Some("gone")));
    assert!(refused.contains("reserved for it is gone"), "{refused}");
    assert!(!machine.knows("web"));
}

#[test]
fn what_a_killed_runtime_left_is_nobodys_choice() {
    let machine = machine();
    machine.dead("former", 1, "dp", &["4"]);
    let process = machine.process(2);
    machine.live(process, &group_of("former"));
    let tried = said(start(
        &machine,
        "web",
        process,
        &Request::by_default("common"),
    ));
    assert!(tried.contains("after 0 was written"), "{tried}");
    assert_eq!(machine.tasks("dp", "4"), "");
}

#[test]
fn where_it_cannot_be_given_the_sentence_says_why() {
    let machine = machine();
    let process = machine.start(1, &group_of("web"));
    let other = machine.process(2);
    machine.live(other, &group_of("web"));
    for (pool, part) in [
        ("common", "has no cgroup of its own"),
        ("dp", "has no cgroup of its own"),
    ] {
        let refused = said(start(&machine, "web", process, &Request::by_default(pool)));
        assert!(refused.contains(part), "{refused}");
    }
    machine.end(other, &group_of("web"));
    for (pool, part) in [
        (
            "dp",
            "is the configuration's default-pool, and is exclusive",
        ),
        ("gone", "gone"),
    ] {
        let refused = said(start(&machine, "web", process, &Request::by_default(pool)));
        assert!(refused.contains(part), "{refused}");
    }
    machine.put("sys/devices/system/cpu/online", "4-7\n");
    let refused = said(start(
        &machine,
        "web",
        process,
        &Request::by_default("common"),
    ));
    assert!(refused.contains("online"), "{refused}");
    assert!(!machine.knows("web"));
}

/// A device's hook asks, and the engine's hook comes before it or after it.
#[test]
fn whoever_asks_comes_before_the_default() {
    let machine = machine();
    let claim = machine.pinned("web", 1, "dp", &["4"]);
    let kept = start(&machine, "web", claim.owner, &Request::by_default("common"));
    assert_eq!(kept.unwrap(), Some(claim));
    let mut claim = machine.pinned("db", 2, "common", &["0"]);
    claim.by_default = true;
    machine.ledger().write(&claim).unwrap();
    let tried = said(start(&machine, "db", claim.owner, &asking("dp")));
    assert!(tried.contains("after 5 was written"), "{tried}");
    assert_eq!(machine.tasks("common", "0"), "");
    assert!(!machine.knows("db"));
}

#[test]
fn its_end_gives_it_back() {
    let machine = machine();
    let mut claim = machine.pinned("web", 1, "common", &["0"]);
    claim.by_default = true;
    machine.ledger().write(&claim).unwrap();
    let text = machine.get(&format!(
        "run/pinfold/claims/web/{}-{}.json",
        claim.owner.pid, claim.owner.start
    ));
    assert!(text.contains(r#""by_default":true"#), "{text}");
    machine.end(claim.owner, &group_of("web"));
    let freed = release(&machine.site(), "web").unwrap().freed;
    assert!(freed[0].by_default);
    assert_eq!(machine.tasks("common", "0"), "");
}
