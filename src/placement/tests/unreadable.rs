//! Unreadable claims: who may be their owner, and what is done once nobody is.

use std::process::Command;

use super::{FIRST, Machine, group_of};
use crate::claims::Claim;
use crate::placement::reconcile;
use crate::process::Process;

/// Makes a claim unreadable; returns the path of its file.
pub(super) fn torn(machine: &Machine, claim: &Claim) -> String {
    let Claim { id, owner, .. } = claim;
    let path = format!("run/pinfold/claims/{id}/{}-{}.json", owner.pid, owner.start);
    machine.put(&path, "{");
    path
}

fn problems(machine: &Machine) -> Vec<String> {
    let report = reconcile(&machine.site()).unwrap();
    let problems = report.problems.into_iter();
    problems
        .map(|problem| format!("{}: {}", problem.what, problem.remedy))
        .collect()
}

#[test]
fn it_is_freed_once_nobody_is_left_who_could_be_its_owner() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let claim = machine.pinned("web", 1, "dp", &["0", "1"]);
    let file = torn(&machine, &claim);
    let group = group_of("web");
    let held = |who: &str| {
        let problems = problems(&machine);
        assert!(
            problems.len() == 1 && problems[0].contains(who),
            "{who}: {problems:?}"
        );
        assert!(machine.is_there(&file));
        assert!(
            machine
                .tasks("dp", "1")
                .contains(&claim.owner.pid.to_string())
        );
    };
    held(&format!("process {} may be its owner", claim.owner.pid));
    let survivor = machine.process(2);
    machine.live(survivor, &group);
    machine.end(claim.owner, &group);
    held("a process in the cgroup /machine.slice/web may be its owner");
    // It left the group, and another tool put it into one of the lists.
    machine.end(survivor, &group);
    let stranger = machine.start(3, "/other");
    let both = format!("{},{}", claim.owner.pid, stranger.pid);
    machine.set_tasks("dp", "1", &both);
    held(&format!("process {} may be its owner", stranger.pid));
    machine.set_tasks("dp", "1", &claim.owner.pid.to_string());
    assert_eq!(problems(&machine), Vec::<String>::new());
    assert_eq!(machine.tasks("dp", "0"), "");
    assert_eq!(machine.tasks("dp", "1"), "");
    assert_eq!(machine.value(&group, "cpuset.cpus"), "");
    assert!(!machine.is_there("run/pinfold/claims/web"));
    assert!(!machine.is_there("run/pinfold/lists/0"));
    assert!(!machine.is_there("run/pinfold/lists/1"));
    let links = std::fs::read_dir(machine.path("run/pinfold/cgroups"));
    assert_eq!(links.unwrap().count(), 0);
}

/// A process in `tasks` that another claim names is not its owner, nor is any in that claim's
/// group.
#[test]
fn the_owner_of_another_claim_is_not_its_owner() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["0"]);
    let web = machine.dead("web", 1, "dp", &["0"]);
    let db = machine.pinned("db", 2, "dp", &["0"]);
    torn(&machine, &web);
    assert_eq!(problems(&machine), Vec::<String>::new());
    assert_eq!(machine.tasks("dp", "0"), db.owner.pid.to_string());
    assert!(machine.knows("db") && !machine.knows("web"));
}

/// Told by its file's name and the links to it, not by its content.
#[test]
fn what_was_freed_is_told() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    machine.pool("other", "1", &["2"]);
    let claim = machine.dead("web", 1, "dp", &["0", "1"]);
    torn(&machine, &claim);
    let report = reconcile(&machine.site()).unwrap();
    let told: Vec<(String, String, i32)> = report
        .reclaimed
        .into_iter()
        .map(|one| (one.pool, one.cpus, one.pid))
        .collect();
    let of = |list: &str| ("dp".to_owned(), list.to_owned(), FIRST + 1);
    assert_eq!(told, [of("0"), of("1")]);
}

/// A claim that was freed by force has no list, and at most a group to restore.
#[test]
fn one_without_lists_ends_with_its_owner_and_its_group() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let mut claim = machine.pinned("web", 1, "dp", &["0"]);
    machine.ledger().remove(&claim).unwrap();
    machine.set_tasks("dp", "0", "");
    claim.lists.clear();
    machine.ledger().write(&claim).unwrap();
    torn(&machine, &claim);
    let problem = problems(&machine).pop().unwrap();
    assert!(problem.contains("may be its owner"), "{problem}");
    machine.end(claim.owner, &group_of("web"));
    let problem = problems(&machine).pop().unwrap();
    let group = machine.path("sys/fs/cgroup/machine.slice/web");
    let remedy = format!("`rmdir {}`, and then `pinfold reconcile`", group.display());
    assert!(problem.ends_with(&remedy), "{problem}");
    std::fs::remove_dir_all(group).unwrap();
    assert_eq!(problems(&machine), Vec::<String>::new());
    assert!(!machine.is_there("run/pinfold/claims/web"));
}

/// A real process on one CPU alone, which the tree shows too.
struct Confined(std::process::Child);

impl Confined {
    fn on(cpu: u32, machine: &Machine, group: &str) -> Confined {
        let confined = Confined(Command::new("sleep").arg("60").spawn().unwrap());
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu as usize).unwrap();
        let pid = confined.pid();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(pid), &cpus).unwrap();
        machine.group(group);
        machine.live(Process { pid, start: 1 }, group);
        confined
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// A process in no group and no `tasks` that can run on nothing but these CPUs may be its owner,
/// unless it is in another claim's group or below it.
#[test]
fn whoever_runs_on_its_cpus_alone_may_be_its_owner() {
    let cpu = crate::process::affinity(0).unwrap().first().unwrap();
    let list = &cpu.to_string();
    for (group, is_held) in [
        ("/other", true),
        ("/machine.slice/db-too", true),
        ("/machine.slice/db", false),
        ("/machine.slice/db/below", false),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "0", &[list]);
        let web = machine.dead("web", 1, "dp", &[list]);
        machine.pinned("db", 2, "dp", &[list]);
        torn(&machine, &web);
        let confined = Confined::on(cpu, &machine, group);
        let problems = problems(&machine);
        let who = format!("process {}, which runs on them alone,", confined.pid());
        let is_told = problems.iter().any(|problem| problem.contains(&who));
        assert_eq!(is_told, is_held, "{group}: {problems:?}");
        assert_eq!(machine.knows("web"), is_held, "{group}");
    }
}
