//! Freeing what dead owners hold, and nothing else.

use super::{FIRST, Machine, group_of, open};
use crate::claims::Claim;
use crate::placement::end::reap::Owners;
use crate::placement::reconcile;
use crate::process;

/// A start frees only part of a crowded list.
#[test]
fn no_more_owners_are_freed_than_was_said() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["0-3"]);
    for number in 1..=3 {
        machine.dead(&format!("c{number}"), number, "dp", &["0-3"]);
    }
    let site = machine.site();
    let books = open(&site);
    let left = || books.ledger.on_list("0-3").unwrap().len();
    let reaped = books.reap_list("dp", "0-3", 0).unwrap();
    assert_eq!((reaped.freed.len(), reaped.is_whole, left()), (0, false, 3));
    let reaped = books.reap_list("dp", "0-3", 2).unwrap();
    assert_eq!((reaped.freed.len(), reaped.is_whole, left()), (2, false, 1));
    let reaped = books.reap_list("dp", "0-3", 2).unwrap();
    assert_eq!((reaped.freed.len(), reaped.is_whole, left()), (1, true, 0));
    assert_eq!(machine.tasks("dp", "0-3"), "");
}

/// Of thousands of owners not all are looked at, so the dead come first.
#[test]
fn the_dead_are_freed_before_the_living_are_looked_at() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["0-3"]);
    // Several: the links are not read in order.
    for number in 1..=8 {
        machine.pinned(&format!("c{number}"), number, "dp", &["0-3"]);
    }
    machine.dead("dead", 9, "dp", &["0-3"]);
    let site = machine.site();
    let books = open(&site);
    let reaped = books.reap_list("dp", "0-3", 1).unwrap();
    assert_eq!((reaped.freed.len(), reaped.is_whole), (1, false));
    assert_eq!(books.ledger.on_list("0-3").unwrap().len(), 8);
}

/// A dead pid may belong to a claim that is unreadable or was not looked at.
#[test]
fn a_pid_is_not_dropped_while_any_claim_of_the_list_is_unread() {
    let stranger = FIRST + 7;
    for is_torn in [true, false] {
        let machine = Machine::new();
        machine.pool("dp", "0", &["0-3"]);
        let web = machine.dead("web", 1, "dp", &["0-3"]);
        let db = machine.dead("db", 2, "dp", &["0-3"]);
        let tasks = format!("{},{},{stranger}", web.owner.pid, db.owner.pid);
        machine.set_tasks("dp", "0-3", &tasks);
        if is_torn {
            machine.put(&file_of(&db), "{");
        }
        let site = machine.site();
        let books = open(&site);
        let most = if is_torn { usize::MAX } else { 1 };
        books.reap_list("dp", "0-3", most).unwrap();
        let tasks = machine.tasks("dp", "0-3");
        assert!(tasks.ends_with(&stranger.to_string()), "{is_torn}: {tasks}");
        // Once all can be read and looked at, it goes.
        if !is_torn {
            books.reap_list("dp", "0-3", usize::MAX).unwrap();
            assert_eq!(machine.tasks("dp", "0-3"), "");
        }
    }
}

/// A claim without links gets them before its pid is taken for a stranger's.
#[test]
fn a_dead_pid_that_no_link_explains_has_all_links_looked_at() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let web = machine.pinned("web", 1, "dp", &["0"]);
    let survivor = machine.process(2);
    machine.live(survivor, &group_of("web"));
    machine.end(web.owner, &group_of("web"));
    let link = format!(
        "run/pinfold/lists/0/web@{}-{}",
        web.owner.pid, web.owner.start
    );
    machine.remove(&link);
    let site = machine.site();
    let books = open(&site);
    assert_eq!(books.reap_list("dp", "0", usize::MAX).unwrap().freed, []);
    assert!(machine.is_there(&link));
    assert_eq!(machine.tasks("dp", "0"), survivor.pid.to_string());
}

/// I6: other tools see an owner by its pids in `tasks`.
#[test]
fn who_owns_a_list_is_told_and_shown() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2", "3"]);
    let site = machine.site();
    let owners = |name: &str| open(&site).owners_of("dp", name).unwrap();
    let live = machine.pinned("live", 1, "dp", &["0"]);
    assert_eq!(owners("0"), Owners::Living);
    machine.set_tasks("dp", "0", "");
    assert_eq!(owners("0"), Owners::Living);
    assert_eq!(machine.tasks("dp", "0"), live.owner.pid.to_string());
    machine.dead("dead", 2, "dp", &["1"]);
    assert_eq!(owners("1"), Owners::Dead);
    let slow = machine.dead("slow", 3, "dp", &["2"]);
    let slow = Claim {
        is_slow: true,
        ..slow
    };
    machine.ledger().write(&slow).unwrap();
    assert_eq!(owners("2"), Owners::Slow);
    // Another tool's process beside a dead owner.
    let stranger = machine.start(4, "/other");
    let both = format!("{},{}", machine.tasks("dp", "1"), stranger.pid);
    machine.set_tasks("dp", "1", &both);
    assert_eq!(owners("1"), Owners::Living);
    // None of them was freed.
    for id in ["live", "dead", "slow"] {
        assert!(machine.knows(id), "{id}");
    }
}

/// A claim in another claim's place is unreadable. Files that are not named as claims do not count.
#[test]
fn only_a_claim_in_its_own_place_counts() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let web = machine.pinned("web", 1, "dp", &["0"]);
    let text = machine.get(&file_of(&web));
    machine.put("run/pinfold/claims/web/.4-4.json.pinfold.x", &text);
    machine.put("run/pinfold/claims/web/.4-4.json", &text);
    machine.put("run/pinfold/claims/web/notes", &text);
    assert_eq!(machine.ledger().of_id("web").unwrap().len(), 1);
    for path in ["web/4194399-9.json", "other/4194305-1001.json"] {
        machine.put(&format!("run/pinfold/claims/{path}"), &text);
        let id = path.split_once('/').unwrap().0;
        let entries = machine.ledger().of_id(id).unwrap();
        let unread = entries.iter().filter(|entry| entry.claim().is_none());
        assert_eq!(unread.count(), 1, "{path}");
    }
}

/// What a killed writer left beside a dead owner's claim goes with it.
#[test]
fn a_reconciliation_leaves_nothing_of_the_dead() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.dead("web", 1, "dp", &["0"]);
    machine.put("run/pinfold/claims/web/.pinfold-x", "");
    let report = reconcile(&machine.site()).unwrap();
    assert_eq!((report.problems.len(), report.reclaimed.len()), (0, 1));
    assert_eq!(machine.tasks("dp", "0"), "");
    assert!(!machine.is_there("run/pinfold/claims/web"));
    assert!(!machine.is_there("run/pinfold/lists/0"));
    assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
}

/// A shared list shrank, a CPU went offline, or somebody else wrote the file: the next container
/// must not get what is there.
#[test]
fn the_group_of_a_dead_container_is_as_before_whatever_it_has() {
    for mask in ["0-1", "0", "0-3", "5", ""] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0-1"]);
        machine.dead("web", 1, "dp", &["0-1"]);
        machine.put(
            "sys/fs/cgroup/machine.slice/web/cpuset.cpus",
            &format!("{mask}\n"),
        );
        let report = reconcile(&machine.site()).unwrap();
        assert_eq!(report.problems, [], "{mask:?}");
        assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
        assert!(!machine.knows("web"));
    }
}

/// A copy from before the list was renamed was put back: the new list's link reveals it.
#[test]
fn an_old_copy_of_a_claim_is_not_read_as_what_it_was() {
    let machine = Machine::new();
    machine.pool("dp", "0", &["0-1", "0-3"]);
    let old = machine.pinned("web", 1, "dp", &["0-1"]);
    let copy = machine.get(&file_of(&old));
    let new = Claim {
        lists: vec!["0-3".to_owned()],
        ..old.clone()
    };
    let ledger = machine.ledger();
    ledger.rewrite(&old, &new).unwrap();
    assert!(ledger.on_list("0-1").unwrap().is_empty());
    assert!(!machine.is_there("run/pinfold/lists/0-1"));
    assert_eq!(ledger.on_list("0-3").unwrap()[0].claim(), Some(&new));
    machine.put(&file_of(&old), &copy);
    assert!(ledger.on_list("0-3").unwrap()[0].claim().is_none());
    // If the old link was left by a kill, both links lead to the claim, and the new list counts.
    ledger.write(&old).unwrap();
    assert!(ledger.on_list("0-3").unwrap().is_empty());
    assert_eq!(ledger.on_list("0-1").unwrap()[0].claim(), Some(&old));
}

fn file_of(claim: &Claim) -> String {
    let Claim { id, owner, .. } = claim;
    format!("run/pinfold/claims/{id}/{}-{}.json", owner.pid, owner.start)
}

/// Another tool's process has ended, and a killed start of ours has left its group.
#[test]
fn what_no_claim_tells_of_is_brought_in_order() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.set_tasks("dp", "0", &(FIRST + 9).to_string());
    let site = machine.site();
    let key = open(&site).lock.key();
    let group = format!("sys/fs/cgroup/pinfold/{key}/x");
    std::fs::create_dir_all(machine.path(&group)).unwrap();
    let report = reconcile(&site).unwrap();
    assert_eq!(report.problems, []);
    let freed: Vec<_> = report.reclaimed.iter().map(|one| one.pid).collect();
    assert_eq!(freed, [FIRST + 9]);
    assert_eq!(machine.tasks("dp", "0"), "");
    assert!(!machine.is_there(&group));
}

/// I6: other tools see an owner by its pids in `tasks`.
#[test]
fn a_survivor_is_recorded_in_each_of_its_lists() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let claim = machine.pinned("web", 1, "dp", &["0", "1"]);
    let survivor = machine.process(2);
    machine.live(survivor, &group_of("web"));
    machine.end(claim.owner, &group_of("web"));
    assert_eq!(reconcile(&machine.site()).unwrap().reclaimed, []);
    for list in ["0", "1"] {
        assert_eq!(machine.tasks("dp", list), survivor.pid.to_string());
    }
    // Another tool drops it, and it is added again. A list that was renamed away is skipped.
    machine.set_tasks("dp", "0", "");
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp/1")).unwrap();
    let report = reconcile(&machine.site()).unwrap();
    assert_eq!(machine.tasks("dp", "0"), survivor.pid.to_string());
    assert_eq!(report.problems, []);
    assert!(!machine.has_list("dp", "1"));
}

/// A claim from before its list was renamed is not refreshed, and its pid stays.
#[test]
fn a_dead_pid_of_a_claim_that_cannot_be_linked_is_kept() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let mut web = machine.pinned("web", 1, "dp", &["0"]);
    machine.live(machine.process(2), &group_of("web"));
    machine.end(web.owner, &group_of("web"));
    machine.ledger().remove(&web).unwrap();
    web.lists = vec!["4".to_owned()];
    machine.ledger().write(&web).unwrap();
    // Claims that can be linked, read before and after it.
    machine.pinned("db", 3, "dp", &["1"]);
    machine.pinned("zoo", 4, "dp", &["1"]);
    let report = reconcile(&machine.site()).unwrap();
    let told = "names lists that pool \"dp\" does not have: 4";
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.what.contains(told)),
        "{:?}",
        report.problems
    );
    assert_eq!(report.reclaimed, []);
    assert_eq!(machine.tasks("dp", "0"), web.owner.pid.to_string());
    assert!(machine.knows("web"));
}

/// Has us in this pid namespace.
fn namespace(machine: &Machine, name: &str) {
    machine.put("proc/self/ns/x", "");
    let path = machine.path("proc/self/ns/pid");
    let _ = std::fs::remove_file(&path);
    std::os::unix::fs::symlink(name, path).unwrap();
}

/// In another pid namespace no process has the pids that were written down: that is nobody's end.
#[test]
fn a_missing_pid_tells_nothing_in_another_pid_namespace() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    namespace(&machine, "pid:[7]");
    let site = machine.site();
    drop(open(&site));
    assert!(machine.get("run/pinfold/boot").ends_with("\npid:[7]\n"));
    let dead = machine.dead("web", 1, "dp", &["0"]);
    let without_group = Claim {
        cgroup: None,
        ..dead
    };
    machine.ledger().write(&without_group).unwrap();
    machine.set_tasks("dp", "1", &(FIRST + 7).to_string());
    let before = (machine.tasks("dp", "0"), machine.tasks("dp", "1"));

    namespace(&machine, "pid:[8]");
    let report = reconcile(&site).unwrap();
    assert!(report.reclaimed.is_empty() && report.problems.is_empty());
    let books = open(&site);
    for list in ["0", "1"] {
        assert_eq!(books.owners_of("dp", list).unwrap(), Owners::Living);
    }
    drop(books);
    let now = (machine.tasks("dp", "0"), machine.tasks("dp", "1"));
    assert_eq!(now, before);

    // From the first one it shows whether the other has ended.
    let of_other = machine.path("proc/77/ns/pid");
    machine.put("proc/77/ns/x", "");
    std::os::unix::fs::symlink("pid:[7]", &of_other).unwrap();
    namespace(&machine, process::FIRST_PIDS);
    assert!(reconcile(&site).unwrap().reclaimed.is_empty());
    std::fs::remove_file(of_other).unwrap();
    assert_eq!(reconcile(&site).unwrap().reclaimed.len(), 2);
    assert!(!machine.knows("web"));
}

/// A cgroup namespace comes with a pid namespace, and shows no group of the machine's.
#[test]
fn a_missing_group_tells_nothing_in_another_pid_namespace() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    namespace(&machine, "pid:[7]");
    let site = machine.site();
    drop(open(&site));
    machine.dead("hidden", 1, "dp", &["0"]);
    machine.dead("empty", 2, "dp", &["1"]);
    std::fs::remove_dir_all(machine.path(&format!("sys/fs/cgroup{}", group_of("hidden")))).unwrap();
    namespace(&machine, "pid:[8]");
    let report = reconcile(&site).unwrap();
    assert_eq!(report.reclaimed.len(), 1);
    assert!(machine.knows("hidden") && !machine.knows("empty"));
    namespace(&machine, "pid:[7]");
    assert_eq!(reconcile(&site).unwrap().reclaimed.len(), 1);
    assert!(!machine.knows("hidden"));
}
