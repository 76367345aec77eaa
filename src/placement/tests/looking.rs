//! What a survey tells of lists and owners.

use super::{FIRST, Machine, group_of};
use crate::placement::{ListState, Owner, OwnerState, Survey, survey};

fn look(machine: &Machine) -> Survey {
    survey(&machine.site()).unwrap()
}

fn states(machine: &Machine) -> Vec<ListState> {
    let survey = look(machine);
    let lists = survey.pools[0].lists.iter();
    lists.map(|list| list.state).collect()
}

/// The only owner of a survey.
fn owner(machine: &Machine) -> Owner {
    let mut owners = look(machine).owners;
    assert_eq!(owners.len(), 1, "{owners:?}");
    owners.remove(0)
}

fn runs_on(machine: &Machine, number: i32, cpus: &str) {
    let path = format!("proc/{}/status", FIRST + number);
    machine.put(&path, &format!("Cpus_allowed_list:\t{cpus}\n"));
}

#[test]
fn a_list_is_owned_as_long_as_its_owner_may_live() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2", "3"]);
    machine.pinned("live", 1, "dp", &["0"]);
    machine.dead("dead", 2, "dp", &["1"]);
    let torn = machine.dead("torn", 3, "dp", &["2"]);
    let file = format!("torn/{}-{}.json", torn.owner.pid, torn.owner.start);
    machine.put(&format!("run/pinfold/claims/{file}"), "{");
    let owned = ListState::Owned;
    assert_eq!(
        states(&machine),
        [owned, ListState::Dead, owned, ListState::Free]
    );
}

/// Both its group and its process must have its CPUs, and no others.
#[test]
fn an_owner_that_runs_elsewhere_is_told() {
    let running = OwnerState::Running;
    let moved = OwnerState::Moved;
    for (group, process, state, runs) in [
        ("0", Some("0"), running, "0"),
        ("0", None, running, "0"),
        ("0", Some("0-1"), moved, "0-1"),
        ("0-1", Some("0"), moved, "0-1"),
        ("0-1", None, moved, "0-1"),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        machine.pinned("web", 1, "dp", &["0"]);
        machine.put(
            "sys/fs/cgroup/machine.slice/web/cpuset.cpus.effective",
            &format!("{group}\n"),
        );
        if let Some(cpus) = process {
            runs_on(&machine, 1, cpus);
        }
        let owner = owner(&machine);
        let found = owner.runs_on.map(|cpus| cpus.to_string());
        assert_eq!((owner.state, found.as_deref()), (state, Some(runs)));
    }
}

#[test]
fn another_process_stands_for_an_owner_that_lives_on_without_its_first() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let claim = machine.pinned("web", 1, "dp", &["0"]);
    let survivor = machine.process(2);
    machine.live(survivor, &group_of("web"));
    machine.end(claim.owner, &group_of("web"));
    let owner = owner(&machine);
    assert_eq!(
        (owner.pid, owner.state),
        (survivor.pid, OwnerState::Running)
    );
}

#[test]
fn an_owner_without_one_of_its_cpus_is_told() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["6-7"]);
    machine.pinned("web", 1, "dp", &["6-7"]);
    machine.put("sys/devices/system/cpu/online", "0-6\n");
    let survey = look(&machine);
    assert_eq!(survey.owners[0].state, OwnerState::Offline);
    let about = &survey.about_owners[0];
    assert!(about.what.contains("for 7 is offline"), "{about:?}");
}

/// A pid from before the boot may now be a kernel thread's; a captured machine may not tell its
/// boot.
#[test]
fn a_process_of_another_tool_is_told_as_far_as_it_is_known() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let stranger = machine.start(1, "/other");
    machine.set_tasks("dp", "0", &stranger.pid.to_string());
    assert_eq!(owner(&machine).state, OwnerState::Running);
    let stat = format!("proc/{}/stat", stranger.pid);
    let text = machine.get(&stat);
    let of_kernel = text.replace(" S 1 0 0 0 0 0 ", " S 1 0 0 0 0 2097152 ");
    machine.put(&stat, &of_kernel);
    assert_eq!(owner(&machine).state, OwnerState::Running);
    machine.put("proc/stat", "cpu 1\nbtime 99999999999\n");
    assert_eq!(owner(&machine).state, OwnerState::Gone);
    machine.put(&stat, &text);
    assert_eq!(owner(&machine).state, OwnerState::Running);
    machine.remove("proc/sys/kernel/random/boot_id");
    assert_eq!(owner(&machine).state, OwnerState::Unknown);
}
