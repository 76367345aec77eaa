//! A container that comes back gets the lists that it had.

use std::fs::{File, FileTimes};
use std::time::{Duration, SystemTime};

use super::{Machine, group_of};
use crate::cgroup::of_config::Expected;
use crate::last_lists::{DAY, Last, LastLists};
use crate::names::Names;
use crate::placement::{Site, cancel_reservation, forget, reconcile, release, reserve};
use crate::request::{Locality, Mems, Request, Size};

fn site(machine: &Machine) -> Site {
    Site {
        last: Some(LastLists {
            directory: machine.path("var/lib/pinfold/last"),
            keep: Duration::from_secs(3600),
        }),
        ..machine.site()
    }
}

/// A machine with three lists, on which this process becomes the runtime of each container.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2"]);
    machine.pool("other", "1", &["3", "4"]);
    let pid = std::process::id();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    machine.put(&format!("proc/{pid}/stat"), &stat);
    machine.put(&format!("proc/{pid}/cgroup"), "0::/user.slice\n");
    machine
}

fn named(name: &str) -> Names {
    Names {
        engine: Some("podman".into()),
        name: Some(name.into()),
        ..Names::default()
    }
}

/// What a container of this name gets of a pool. Its id is another each time.
fn gets(site: &Site, name: &str, pool: &str, lists: usize) -> String {
    let request = Request {
        pool: pool.into(),
        exact: None,
        size: Size::Lists(lists),
        locality: Locality::default(),
        mems: Mems::Inherit,
        tuning: Default::default(),
        by_default: false,
    };
    let expected = Expected {
        path: group_of("web"),
        is_exact: false,
    };
    let claim = reserve(site, name, named(name), Some(expected), &request).unwrap();
    cancel_reservation(site, &claim).unwrap();
    claim.lists.join(" ")
}

fn has_lists(machine: &Machine, site: &Site, name: &str, pool: &str, lists: &[&str]) {
    machine.put("var/lib/pinfold/.keep", "");
    let last = Last {
        names: named(name),
        pool: pool.into(),
        lists: lists.iter().map(|list| (*list).to_owned()).collect(),
    };
    site.last.as_ref().unwrap().keep(&site.host, &last).unwrap();
}

#[test]
fn by_its_name_where_they_are_free() {
    let machine = machine();
    let site = site(&machine);
    assert_eq!(gets(&site, "web", "dp", 1), "0");
    has_lists(&machine, &site, "web", "dp", &["1"]);
    assert_eq!(gets(&site, "web", "dp", 1), "1");
    assert_eq!(gets(&site, "db", "dp", 1), "0");
    machine.pinned("else", 1, "dp", &["1"]);
    assert_eq!(gets(&site, "web", "dp", 1), "0");
    // That is remembered as its last list.
    let last = site.last.as_ref().unwrap().of(&site.host, &named("web"));
    assert_eq!(last.unwrap().0.lists, ["0"]);
}

#[test]
fn never_of_another_pool_nor_of_lists_that_are_gone() {
    let machine = machine();
    let site = site(&machine);
    has_lists(&machine, &site, "web", "dp", &["1", "../2", "9"]);
    assert_eq!(gets(&site, "web", "other", 1), "3");
    has_lists(&machine, &site, "web", "other", &["1"]);
    assert_eq!(gets(&site, "web", "dp", 1), "0");
}

#[test]
fn from_its_predecessor_that_nobody_has_ended_yet() {
    let machine = machine();
    let site = site(&machine);
    machine.dead("earlier", 1, "dp", &["1"]);
    has_lists(&machine, &site, "web", "dp", &["1"]);
    assert_eq!(gets(&site, "db", "dp", 1), "0");
    assert_eq!(gets(&site, "web", "dp", 1), "1");
}

#[test]
fn not_after_it_was_forgotten_nor_where_nobody_wants_it() {
    let machine = machine();
    let site = site(&machine);
    has_lists(&machine, &site, "web", "dp", &["1"]);
    let unremembering = machine.site();
    assert_eq!(gets(&unremembering, "web", "dp", 1), "0");
    assert_eq!(forget(&unremembering, "web").unwrap(), []);
    assert_eq!(forget(&site, "web").unwrap().len(), 1);
    assert_eq!(gets(&site, "web", "dp", 1), "0");
}

#[test]
fn what_cannot_be_written_or_read_fails_no_start() {
    let machine = machine();
    let site = site(&machine);
    machine.put("var/lib/pinfold/last", "a file");
    assert_eq!(gets(&site, "web", "dp", 1), "0");
    assert_eq!(machine.get("var/lib/pinfold/last"), "a file");
}

#[test]
fn ends_and_reconcile_know_who_is_still_here() {
    let machine = machine();
    let site = site(&machine);
    let lists = site.last.as_ref().unwrap();
    let path = |name: &str| {
        let before = crate::files::names_in(&lists.directory).unwrap_or_default();
        has_lists(&machine, &site, name, "dp", &["0"]);
        let mut after = crate::files::names_in(&lists.directory).unwrap();
        after.retain(|name| !before.contains(name));
        lists.directory.join(after.pop().unwrap())
    };
    let files = ["ends", "lives", "gone"].map(path);
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
    let age = || {
        for file in &files {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            let times = std::fs::FileTimes::new().set_modified(long_ago);
            file.set_times(times).unwrap();
        }
    };
    let claimed = |name: &str, mut claim: crate::claims::Claim| {
        claim.names = named(name);
        machine.ledger().write(&claim).unwrap();
    };
    let lives = machine.pinned("2", 2, "dp", &["1"]);
    claimed("lives", lives.clone());
    age();
    let torn = super::unreadable::torn(&machine, &lives);
    reconcile(&site).unwrap();
    let kept = crate::files::names_in(&lists.directory).unwrap().len();
    assert_eq!(kept, 3, "each can be its");
    machine.remove(&torn);
    claimed("lives", lives);
    claimed("ends", machine.dead("1", 1, "dp", &["0"]));
    assert_eq!(release(&site, "1").unwrap().freed.len(), 1);
    assert_eq!(lists.of(&site.host, &named("ends")).unwrap().0.lists, ["0"]);
    assert_eq!(lists.of(&site.host, &named("lives")), None);
    let report = reconcile(&site).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert!(lists.of(&site.host, &named("lives")).is_some());
    let left = crate::files::names_in(&lists.directory).unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// It gets the same lists each time, and never ends as it should.
#[test]
fn who_comes_back_each_day_is_not_forgotten() {
    let machine = machine();
    let site = site(&machine);
    let last = LastLists {
        keep: 30 * DAY,
        ..site.last.clone().unwrap()
    };
    let site = Site {
        last: Some(last.clone()),
        ..site
    };
    has_lists(&machine, &site, "web", "dp", &["1"]);
    let directory = &last.directory;
    let name = crate::files::names_in(directory).unwrap();
    let name = name.iter().find(|name| name.ends_with(".json")).unwrap();
    let file = File::options().write(true).open(directory.join(name));
    let then = SystemTime::now() - 20 * DAY;
    let times = FileTimes::new().set_modified(then);
    file.unwrap().set_times(times).unwrap();
    assert_eq!(gets(&site, "web", "dp", 1), "1");
    let (_, age) = last.of(&site.host, &named("web")).unwrap();
    assert!(age < DAY, "{age:?}");
}
