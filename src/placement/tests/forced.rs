//! Releasing: dead owners, and by force live ones.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{FIRST, Machine, group_of, open, said};
use crate::placement::{force_release, reconcile, release};

/// Without shared CPUs it gets those of exclusive pools that nobody is known to own.
#[test]
fn a_live_owner_is_let_out_to_what_nobody_owns() {
    for (shared, lists, expected) in [
        (&[][..], &["0", "1", "2", "3", "4-7"][..], "3"),
        (&["4-7"], &["0", "1", "2", "3"], "4-7"),
    ] {
        let machine = Machine::new();
        machine.pool("dp", "1", lists);
        machine.pool("cp", "0", shared);
        machine.pinned("web", 1, "dp", &["0"]);
        // A list that `tasks` shows as free, and one that only `tasks` shows as owned.
        machine.pinned("db", 2, "dp", &["1"]);
        machine.set_tasks("dp", "1", "");
        machine.set_tasks("dp", "2", &(FIRST + 3).to_string());
        if lists.len() == 5 {
            machine.pinned("rest", 4, "dp", &["4-7"]);
        }
        let group = group_of("web");
        machine.put(
            &format!("sys/fs/cgroup{group}/cpuset.cpus.effective"),
            expected,
        );
        let outcome = force_release(&machine.site(), "web").unwrap();
        assert_eq!(outcome.problems, [], "{lists:?}");
        assert_eq!(outcome.freed.len(), 1);
        assert_eq!(machine.value(&group, "cpuset.cpus"), expected);
        assert_eq!(machine.tasks("dp", "0"), "");
        assert!(!machine.knows("web") && machine.knows("db"));
    }
}

/// A pool that cannot be read counts as exclusive, and its lists as owned.
#[test]
fn nobody_is_let_out_onto_the_cpus_of_a_pool_that_cannot_be_read() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1-6"]);
    machine.pool("odd", "1", &["7"]);
    machine.remove("etc/kcm/pools/odd/exclusive");
    machine.pinned("web", 1, "dp", &["0"]);
    machine.pinned("db", 2, "dp", &["1-6"]);
    let outcome = force_release(&machine.site(), "web").unwrap();
    assert_eq!(outcome.freed.len(), 0);
    let problem = &outcome.problems[0].what;
    assert!(
        problem.contains("web has nowhere to run but on 0"),
        "{problem}"
    );
    assert!(machine.knows("web"));
}

/// I2: an owner that may still run on its CPUs keeps them.
#[test]
fn an_owner_whose_group_stays_on_its_cpus_keeps_them() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let claim = machine.pinned("web", 1, "dp", &["0"]);
    // In this tree a write does not change the effective CPUs: the group still has its old ones.
    let outcome = force_release(&machine.site(), "web").unwrap();
    assert_eq!((outcome.freed.len(), outcome.problems.len()), (0, 1));
    assert_eq!(machine.tasks("dp", "0"), claim.owner.pid.to_string());
}

/// I4: an id without a claim costs no lock.
#[test]
fn an_unknown_id_needs_no_lock() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.pinned("web", 1, "dp", &["0"]);
    let site = machine.site();
    let books = open(&site);
    assert!(release(&site, "other").unwrap().kept.is_empty());
    assert!(force_release(&site, "other").unwrap().freed.is_empty());
    assert!(said(release(&site, "web")).contains("the lock"));
    drop(books);
    assert_eq!(release(&site, "web").unwrap().kept.len(), 1);
}

/// The lists of a dead owner are freed although its group cannot be restored, which is done later.
#[test]
fn of_a_dead_owner_the_lists_are_freed_and_the_rest_is_undone_later() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.dead("web", 1, "dp", &["0"]);
    let mask = machine.path("sys/fs/cgroup/machine.slice/web/cpuset.cpus");
    let kept = machine.path("mask");
    std::fs::rename(&mask, &kept).unwrap();
    std::fs::create_dir(&mask).unwrap();
    let outcome = force_release(&machine.site(), "web").unwrap();
    assert_eq!((outcome.freed.len(), outcome.problems.len()), (1, 0));
    assert_eq!(machine.tasks("dp", "0"), "");
    assert!(machine.knows("web"));
    // What still cannot be undone is reported.
    assert_eq!(reconcile(&machine.site()).unwrap().problems.len(), 1);
    std::fs::remove_dir(&mask).unwrap();
    std::fs::rename(&kept, &mask).unwrap();
    assert_eq!(reconcile(&machine.site()).unwrap().problems, []);
    assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "");
    assert!(!machine.knows("web"));
}

/// `runc delete -f` kills, and does not wait for the last thread.
#[test]
fn the_last_threads_of_a_process_that_ends_are_waited_for_a_moment() {
    for ends in [true, false] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        let claim = machine.pinned("web", 1, "dp", &["0"]);
        let stat = format!("proc/{}/stat", claim.owner.pid);
        let running = machine.get(&stat);
        machine.put(
            &stat,
            &running
                .replace(" S 1 ", " Z 1 ")
                .replace(" 1 0 1001 ", " 2 0 1001 "),
        );
        let began = Instant::now();
        let outcome = std::thread::scope(|scope| {
            if ends {
                scope.spawn(|| {
                    sleep(Duration::from_millis(20));
                    machine.end(claim.owner, &group_of("web"));
                });
            }
            release(&machine.site(), "web").unwrap()
        });
        assert_eq!(
            (outcome.freed.len(), outcome.kept.len()),
            if ends { (1, 0) } else { (0, 1) }
        );
        assert!(began.elapsed() >= Duration::from_millis(if ends { 20 } else { 100 }));
    }
}

#[test]
fn nobody_waits_for_a_process_that_lives() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let claim = machine.pinned("web", 1, "dp", &["0"]);
    assert!(!crate::process::is_ending(
        &machine.site().host,
        claim.owner.pid
    ));
    assert_eq!(release(&machine.site(), "web").unwrap().kept.len(), 1);
}

/// Its claim names a list that its pool does not have, so nothing was tried to move it off.
#[test]
fn an_owner_that_lives_and_cannot_be_settled_keeps_its_claim() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let mut web = machine.pinned("web", 1, "dp", &["0"]);
    machine.ledger().remove(&web).unwrap();
    web.lists = vec!["4".to_owned()];
    machine.ledger().write(&web).unwrap();
    // It left its group, which is gone.
    machine.group("/other");
    machine.end(web.owner, &group_of("web"));
    machine.live(web.owner, "/other");
    std::fs::remove_dir_all(machine.path("sys/fs/cgroup/machine.slice/web")).unwrap();
    let outcome = force_release(&machine.site(), "web").unwrap();
    assert_eq!((outcome.freed.len(), outcome.problems.len()), (0, 1));
    let kept = machine.ledger().of_id("web").unwrap();
    assert_eq!(kept[0].claim(), Some(&web));
}
