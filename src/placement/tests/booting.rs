//! What the first to take the lock does after a boot, or after the lock was replaced.

use std::fs::{remove_dir, rename};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::{FIRST, Machine, group_of, open, said};
use crate::cgroup::cpuset;

/// Boots the machine now, after all that was written. Files are dated by their change time, which
/// nobody can set.
fn boot(machine: &Machine) {
    let seconds = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let written = seconds();
    while seconds() == written {
        sleep(Duration::from_millis(10));
    }
    // A file written now can have a time some milliseconds old (coarse clock, time(7)).
    sleep(Duration::from_millis(20));
    machine.put("proc/stat", &format!("btime {}\n", seconds()));
}

#[test]
fn what_is_damaged_and_of_an_earlier_boot_is_nobodys_and_what_cannot_be_read_is_held() {
    let tasks = "etc/kcm/pools/dp/0/tasks";
    for (content, after) in [("rubbish", ""), ("4194310", "")] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        machine.put(tasks, content);
        boot(&machine);
        drop(open(&machine.site()));
        assert_eq!(machine.get(tasks), after, "{content}");
    }
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.remove(tasks);
    std::fs::create_dir(machine.path(tasks)).unwrap();
    boot(&machine);
    drop(open(&machine.site()));
    // Still a directory, it can be removed.
    remove_dir(machine.path(tasks)).unwrap();
}

/// The clock was set forward since it was written, or the machine booted since: nothing tells
/// which.
#[test]
fn what_is_damaged_and_of_an_unknown_boot_is_held() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.put("run/initctl", "");
    machine.set_tasks("dp", "0", "rubbish");
    machine.put("proc/stat", "btime 99999999999\n");
    drop(open(&machine.site()));
    assert_eq!(machine.tasks("dp", "0"), "rubbish");
}

/// In this boot its readers judge it.
#[test]
fn what_is_damaged_in_this_boot_stays() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    machine.set_tasks("dp", "0", "rubbish");
    drop(open(&machine.site()));
    assert_eq!(machine.tasks("dp", "0"), "rubbish");
}

/// rsync, for one, puts another file in the lock's place.
#[test]
fn claims_are_taken_over_from_a_lock_that_was_replaced() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2"]);
    drop(open(&machine.site()));
    let live = machine.pinned("live", 1, "dp", &["0"]);
    machine.dead("dead", 2, "dp", &["1"]);
    let torn = machine.dead("torn", 3, "dp", &["2"]);
    let file = format!("torn/{}-{}.json", FIRST + 3, torn.owner.start);
    machine.put(&format!("run/pinfold/claims/{file}"), "{");
    let lock = machine.path("etc/kcm/lock");
    machine.put("etc/kcm/lock.new", "");
    rename(machine.path("etc/kcm/lock.new"), &lock).unwrap();
    drop(open(&machine.site()));
    assert!(machine.knows("live") && machine.knows("torn") && !machine.knows("dead"));
    assert_eq!(machine.tasks("dp", "0"), live.owner.pid.to_string());
    assert_eq!(machine.tasks("dp", "1"), "");
    // The owner's list is gone: nobody could keep others from its CPUs.
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp/0")).unwrap();
    machine.put("etc/kcm/lock.new", "");
    rename(machine.path("etc/kcm/lock.new"), &lock).unwrap();
    let site = machine.site();
    let hierarchy = cpuset::hierarchy(&site.host).unwrap();
    let message = said(site.open_books(hierarchy).map(drop));
    assert!(
        message.contains("was replaced, and live runs on 0 of pool dp, which is not there"),
        "{message}"
    );
    machine.end(live.owner, &group_of("live"));
    drop(open(&machine.site()));
}

/// A run directory serves one pool directory.
#[test]
fn claims_of_another_pool_directory_are_not_taken_over() {
    for is_torn in [true, false] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0"]);
        drop(open(&machine.site()));
        let claim = machine.pinned("web", 1, "dp", &["0"]);
        if is_torn {
            let file = format!("web/{}-{}.json", claim.owner.pid, claim.owner.start);
            machine.put(&format!("run/pinfold/claims/{file}"), "{");
        }
        machine.put("etc/other/lock", "");
        machine.put("etc/other/pools/dp/exclusive", "1");
        machine.put("etc/other/pools/dp/0/tasks", "");
        let mut site = machine.site();
        site.conf_dir = machine.path("etc/other");
        let hierarchy = cpuset::hierarchy(&site.host).unwrap();
        let message = said(site.open_books(hierarchy).map(drop));
        assert!(
            message.contains("holds the claims of another pool directory"),
            "{message}"
        );
    }
}
