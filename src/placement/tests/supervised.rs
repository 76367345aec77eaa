//! Commands in the group of their supervisor, a unit, and what earlier ones left there.

use super::{Machine, cpus, open};
use crate::cgroup::cpuset::Masks;
use crate::cgroup::{Group, cpuset};
use crate::claims::{Before, Claim, OwnerKind};
use crate::placement::start::command::Lodging;
use crate::placement::start::give::Confinement;
use crate::process::Process;

const UNIT: &str = "/system.slice/job.service";

/// A machine with a unit that has these CPUs now and holds only its new command.
fn machine(now: &str) -> (Machine, Process) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0-1", "2-3"]);
    let process = machine.start(9, UNIT);
    machine.put(
        &format!("sys/fs/cgroup{UNIT}/cpuset.cpus"),
        &format!("{now}\n"),
    );
    (machine, process)
}

fn unit(machine: &Machine) -> Group {
    let hierarchy = cpuset::hierarchy(&machine.site().host).unwrap();
    hierarchy.group(UNIT).unwrap()
}

/// The claim of an earlier command of the unit, which was killed.
fn earlier(machine: &Machine, number: i32, lists: &[&str]) -> Claim {
    let owner = machine.process(number);
    machine.group("/machine.slice/none");
    let mut claim = machine.claim("none", owner, "dp", lists);
    claim.id = format!("isolate-{}", owner.pid);
    claim.kind = OwnerKind::Process;
    let mut claimed = machine.claimed(UNIT);
    claimed.before = Before {
        cpus: "0-5".to_owned(),
        mems: String::new(),
    };
    claim.cgroup = Some(claimed);
    claim
}

/// The masks that the unit has without us, and the ids that still have claims.
fn evicted(machine: &Machine, process: Process) -> (Masks, Vec<String>) {
    let site = machine.site();
    let books = open(&site);
    let before = books
        .evict_stale_from_unit(&unit(machine), process)
        .unwrap();
    (before, books.ledger.ids().unwrap())
}

#[test]
fn what_a_unit_had_before_its_killed_command_is_what_it_has_without_us() {
    // Narrowed to the CPUs of the claim, or to some of them; set by an operator since; inherited.
    for (now, before) in [("0-1", "0-5"), ("0", "0-5"), ("4", "4"), ("", "")] {
        let (machine, process) = machine(now);
        let claim = earlier(&machine, 1, &["0-1"]);
        machine.ledger().write(&claim).unwrap();
        machine.set_tasks("dp", "0-1", &claim.owner.pid.to_string());
        let (found, left) = evicted(&machine, process);
        assert_eq!((found.cpus.as_str(), left), (before, vec![]), "{now:?}");
        assert_eq!(machine.tasks("dp", "0-1"), "");
    }
}

/// A process of its that left the unit still runs on the CPUs. Our own claim is not an earlier one.
#[test]
fn a_command_that_lives_keeps_what_it_has() {
    let (machine, process) = machine("0-1");
    let elsewhere = machine.start(1, "/other");
    let mut claim = earlier(&machine, 1, &["0-1"]);
    claim.processes = vec![elsewhere];
    machine.ledger().write(&claim).unwrap();
    let (found, left) = evicted(&machine, process);
    assert_eq!((found.cpus.as_str(), left.len()), ("0-1", 1));
    machine.ledger().remove(&claim).unwrap();
    let mut own = earlier(&machine, 9, &["2-3"]);
    own.processes = vec![machine.process(8)];
    machine.ledger().write(&own).unwrap();
    let (_, left) = evicted(&machine, process);
    assert_eq!(left, [own.id]);
}

/// systemd made the group anew and kept the CPUs of two claims; no list leads to the one that was
/// freed by force.
#[test]
fn claims_on_a_unit_are_found_by_its_path_where_its_group_is_new() {
    let (machine, process) = machine("0-1");
    let anew = |claim: Claim| {
        let mut claimed = machine.claimed(UNIT);
        claimed.inode += 1_000_000;
        claimed.before.cpus = "0-5".to_owned();
        Claim {
            cgroup: Some(claimed),
            ..claim
        }
    };
    let listed = anew(earlier(&machine, 1, &["0-1"]));
    let forced = anew(earlier(&machine, 2, &[]));
    // Claims of other units, of containers and of earlier boots do not count.
    let mut other = anew(earlier(&machine, 3, &["0-1"]));
    other.cgroup.as_mut().unwrap().path = "/system.slice/other.service".to_owned();
    let mut container = anew(earlier(&machine, 4, &["0-1"]));
    container.kind = OwnerKind::Container;
    // The unit has none of its CPUs.
    let apart = anew(earlier(&machine, 5, &["2-3"]));
    for claim in [&listed, &forced, &other, &container, &apart] {
        machine.ledger().write(claim).unwrap();
    }
    let site = machine.site();
    let books = open(&site);
    let found = books.claims_on_unit(&unit(&machine), &cpus("0-1")).unwrap();
    let mut ids: Vec<String> = found.into_iter().map(|claim| claim.id).collect();
    ids.sort();
    assert_eq!(ids, [listed.id.clone(), forced.id.clone()]);
    drop(books);
    let (before, left) = evicted(&machine, process);
    assert_eq!(before.cpus, "0-5");
    assert!(!left.contains(&listed.id) && !left.contains(&forced.id));
    assert_eq!(left.len(), 3);
}

/// Both a list and the group lead to it.
#[test]
fn a_claim_that_is_found_twice_is_one() {
    let (machine, _) = machine("0-1");
    let claim = earlier(&machine, 1, &["0-1"]);
    machine.ledger().write(&claim).unwrap();
    let site = machine.site();
    let books = open(&site);
    let found = books.claims_on_unit(&unit(&machine), &cpus("0-1")).unwrap();
    assert_eq!(found, [claim]);
}

/// Somebody entered the unit while the lock was waited for.
#[test]
fn a_command_has_a_group_of_its_own_where_its_unit_was_entered_meanwhile() {
    for is_entered in [true, false] {
        let (machine, process) = machine("");
        if is_entered {
            machine.live(machine.process(3), UNIT);
        }
        let site = machine.site();
        let books = open(&site);
        let lodging = Lodging::Supervisors(unit(&machine));
        let place = books.place_of_command(lodging, "isolate-9", process, true);
        let is_own = match place.unwrap() {
            Confinement::Supervised { group, .. } => {
                assert_eq!(group.path(), UNIT);
                false
            }
            Confinement::Entered { group, confined } => {
                assert!(confined && group.path().starts_with("/pinfold/"));
                true
            }
            _ => panic!("it is neither"),
        };
        assert_eq!(is_own, is_entered);
    }
}
