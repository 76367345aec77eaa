//! Changing pools: who is in the way, what the refusal says, and what is done.

use super::{FIRST, Machine, cpus, group_of, said};
use crate::cpulist::CpuSet;
use crate::isolation::Options;
use crate::placement::{Change, change, try_change};
use crate::pools::Kind;
use crate::pools::carve::{Core, Cut};
use crate::pools::plan::{Cores, ListUnit, PlannedPool, PoolSpec, Stock};

/// Four cores of two threads, all for pools.
fn stock() -> Stock {
    let core = |first: u32| Core {
        cpus: CpuSet::from_iter([first, first + 4]),
        node: None,
        cache: None,
    };
    Stock {
        cores: (0..4).map(core).collect(),
        ..Stock::default()
    }
}

fn spec(name: &str, kind: Kind, cores: Cores) -> PoolSpec {
    PoolSpec {
        name: name.to_owned(),
        cores,
        kind,
        cut: Cut::default(),
        unit: ListUnit::Core,
        options: Options::default(),
    }
}

#[test]
fn a_dead_owner_is_in_nobodys_way_and_a_live_or_unreadable_one_is() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0,4", "1,5", "2,6", "3,7"]);
    let remove = || {
        let site = machine.site();
        change(&site, stock(), &Change::Remove("dp".to_owned()))
    };
    let live = machine.pinned("web", 1, "dp", &["0,4"]);
    let message = said(remove());
    assert!(
        message.contains("web owns 0,4 of pool dp: stop it first"),
        "{message}"
    );
    machine.end(live.owner, &group_of("web"));
    let stranger = machine.start(2, "/other");
    machine.set_tasks("dp", "1,5", &stranger.pid.to_string());
    let message = said(remove());
    let owner = format!("process {} owns 1,5", stranger.pid);
    assert!(message.contains(&owner), "{message}");
    machine.end(stranger, "/other");
    let torn = machine.dead("torn", 3, "dp", &["2,6"]);
    let file = format!(
        "run/pinfold/claims/torn/{}-{}.json",
        torn.owner.pid, torn.owner.start
    );
    machine.put(&file, "{");
    let message = said(remove());
    assert!(
        message.contains("the claim /") && message.contains("owns 2,6"),
        "{message}"
    );
    assert!(machine.has_list("dp", "0,4"));
    machine.ledger().remove(&torn).unwrap();
    remove().unwrap();
    assert!(!machine.is_there("etc/kcm/pools/dp"));
    assert!(!machine.knows("web"));
    // The removal can be repeated.
    let again = Change::RemoveIfThere("dp".to_owned());
    change(&machine.site(), stock(), &again).unwrap();
}

#[test]
fn a_pool_is_removed_where_it_is_there() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0,4"]);
    let removal = Change::RemoveIfThere("dp".to_owned());
    let steps = try_change(&machine.site(), stock(), &removal).unwrap();
    assert_eq!(steps.removed, [cpus("0,4")]);
    assert!(machine.has_list("dp", "0,4"));
    let steps = change(&machine.site(), stock(), &removal).unwrap();
    assert_eq!(steps.removed, [cpus("0,4")]);
    assert!(!machine.is_there("etc/kcm/pools/dp"));
}

/// The pool was removed by hand under its owner.
#[test]
fn cpus_that_somebody_owns_and_no_pool_has_are_not_given_again() {
    let machine = Machine::new();
    machine.pool("old", "1", &["0,4"]);
    let claim = machine.pinned("web", 1, "old", &["0,4"]);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/old")).unwrap();
    let add = |cores| Change::Add(spec("dp", Kind::Exclusive, cores));
    let steps = try_change(&machine.site(), stock(), &add(Cores::Rest)).unwrap();
    assert_eq!(steps.added, [cpus("1,5"), cpus("2,6"), cpus("3,7")]);
    let lists = Change::AddLists(PlannedPool {
        name: "dp".to_owned(),
        kind: Kind::Exclusive,
        lists: vec![cpus("4")],
        options: Options::default(),
    });
    let message = said(try_change(&machine.site(), stock(), &lists));
    assert!(
        message.contains("CPU 4 is in no pool, and web owns it"),
        "{message}"
    );
    machine.end(claim.owner, &group_of("web"));
    let steps = try_change(&machine.site(), stock(), &add(Cores::Rest)).unwrap();
    assert_eq!(steps.added.len(), 4);
    try_change(&machine.site(), stock(), &lists).unwrap();
}

/// Another tool has dropped the pid of a dead owner whose group cannot be looked at or restored.
#[test]
fn a_list_that_cannot_be_freed_is_not_taken_away() {
    for tasks in [String::new(), (FIRST + 1).to_string()] {
        let machine = Machine::new();
        machine.pool("dp", "1", &["0,4", "1,5"]);
        machine.dead("web", 1, "dp", &["0,4"]);
        machine.set_tasks("dp", "0,4", &tasks);
        machine.remove("sys/fs/cgroup/machine.slice/web/cpuset.cpus");
        let mask = machine.path("sys/fs/cgroup/machine.slice/web/cpuset.cpus");
        std::fs::create_dir(mask).unwrap();
        let removal = Change::Remove("dp".to_owned());
        let message = said(change(&machine.site(), stock(), &removal));
        assert!(
            message.contains("what a dead owner held of 0,4 could not be freed"),
            "{tasks:?}: {message}"
        );
        assert!(machine.has_list("dp", "0,4") && machine.knows("web"));
    }
}

#[test]
fn a_pool_that_is_there_is_added_again_and_another_one_is_refused_with_what_makes_it_so() {
    let machine = Machine::new();
    let add = |kind, cores, unit| {
        let spec = PoolSpec {
            unit,
            ..spec("dp", kind, cores)
        };
        change(&machine.site(), stock(), &Change::Add(spec))
    };
    let (exclusive, core) = (Kind::Exclusive, ListUnit::Core);
    assert!(add(exclusive, Cores::Count(2), core).unwrap().is_new);
    assert_eq!(machine.tasks("dp", "1,5"), "");
    assert!(!add(exclusive, Cores::Count(2), core).unwrap().is_new);
    let resize = |size: &str| format!("give it its new size: `pinfold pool resize dp {size}`");
    let other = "it is exclusive: name the new one otherwise, or remove the old one: \
                 `pinfold pool remove dp`";
    for (kind, cores, unit, remedy) in [
        (exclusive, Cores::Count(3), core, resize("3").as_str()),
        (exclusive, Cores::Count(1), core, resize("1").as_str()),
        (exclusive, Cores::Rest, core, resize("rest").as_str()),
        (exclusive, Cores::Count(2), ListUnit::Thread, other),
        (Kind::Shared, Cores::Count(2), core, other),
    ] {
        let message = said(add(kind, cores, unit));
        assert!(
            message.starts_with("there is a pool dp already, and it is another")
                && message.ends_with(remedy),
            "{kind:?} {cores:?} {unit:?}: {message}"
        );
    }
    assert!(machine.has_list("dp", "0,4") && !machine.has_list("dp", "2,6"));
}

#[test]
fn a_pool_is_added_with_its_lists_once() {
    let machine = Machine::new();
    let add = |kind, lists: &[&str]| {
        let lists = lists.iter().map(|list| cpus(list)).collect();
        let name = "dp".to_owned();
        let planned = PlannedPool {
            name,
            kind,
            lists,
            options: Options::default(),
        };
        change(&machine.site(), stock(), &Change::AddLists(planned))
    };
    assert!(add(Kind::Exclusive, &["1", "0"]).unwrap().is_new);
    assert!(!add(Kind::Exclusive, &["1", "0"]).unwrap().is_new);
    for (kind, lists) in [(Kind::Exclusive, ["0", "2"]), (Kind::Shared, ["0", "1"])] {
        let message = said(add(kind, &lists));
        assert!(
            message.contains("there is a pool dp already, with other lists"),
            "{message}"
        );
    }
}

/// Of all ways to make room a shared pool that loses no more than is missing comes first.
#[test]
fn who_asks_for_too_many_cores_is_told_which_pool_can_give_them_up() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0,4"]);
    machine.pool("both", "0", &["1-2,5-6"]);
    let add = |cores| {
        let spec = spec("new", Kind::Exclusive, Cores::Count(cores));
        said(change(&machine.site(), stock(), &Change::Add(spec)))
    };
    let message = add(2);
    assert!(
        message.ends_with(", or make room first: `pinfold pool resize both 1`"),
        "{message}"
    );
    let message = add(3);
    assert!(
        message.ends_with(", or make room first: `pinfold pool remove both`"),
        "{message}"
    );
    // No owner loses a list to make room, and a pool with owners is not removed for it.
    machine.pinned("web", 1, "both", &["1-2,5-6"]);
    let message = add(3);
    assert!(!message.contains("make room"), "{message}");
    // If nothing is free there are no fewer cores to ask for.
    machine.pool("rest", "1", &["3,7"]);
    let message = add(1);
    assert!(
        message.ends_with(": make room first: `pinfold pool remove dp`"),
        "{message}"
    );
    // A pool does not make room for itself.
    let larger = Change::Resize(spec("dp", Kind::Exclusive, Cores::Count(2)));
    let message = said(change(&machine.site(), stock(), &larger));
    assert!(
        message.ends_with(": make room first: `pinfold pool remove rest`"),
        "{message}"
    );
}

/// I1 and I3: claim, mask and `tasks` change with the list.
#[test]
fn owners_of_a_shared_list_follow_it() {
    let machine = Machine::new();
    machine.pool("cp", "0", &["0,4"]);
    let web = machine.pinned("web", 1, "cp", &["0,4"]);
    // Grouped without a mask.
    let mut loose = machine.pinned("loose", 2, "cp", &["0,4"]);
    loose.cgroup.as_mut().unwrap().confined = false;
    machine.ledger().write(&loose).unwrap();
    let mask = "sys/fs/cgroup/machine.slice/loose/cpuset.cpus";
    machine.put(mask, "\n");
    machine.dead("dead", 3, "cp", &["0,4"]);
    let stranger = machine.start(4, "/other");
    let tasks = format!("{},{}", machine.tasks("cp", "0,4"), stranger.pid);
    machine.set_tasks("cp", "0,4", &tasks);
    // A claim of a pool that was removed by hand, on a list of the same name.
    let mut other = machine.pinned("other", 5, "cp", &["0,4"]);
    other.pool = "gone".to_owned();
    machine.ledger().write(&other).unwrap();
    machine.set_tasks("cp", "0,4", &tasks);
    let effective = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.effective";
    machine.put(effective, "0-1,4-5\n");
    let larger = Change::Resize(spec("cp", Kind::Shared, Cores::Count(2)));
    let changed = change(&machine.site(), stock(), &larger).unwrap();
    assert_eq!(changed.renamed, Some((cpus("0,4"), cpus("0-1,4-5"))));
    let mut owners = changed.owners;
    owners.sort();
    assert_eq!(owners, ["loose", "web"]);
    assert_eq!(changed.strangers, [stranger.pid]);
    assert!(!machine.has_list("cp", "0,4"));
    let tasks = machine.tasks("cp", "0,1,4,5");
    for pid in [web.owner.pid, loose.owner.pid, stranger.pid] {
        assert!(tasks.contains(&pid.to_string()), "{tasks}");
    }
    for id in ["web", "loose"] {
        let entries = machine.ledger().of_id(id).unwrap();
        let claim = entries[0].claim().unwrap();
        assert_eq!(claim.lists, ["0,1,4,5"], "{id}");
        assert_eq!(claim.cpus, cpus("0-1,4-5"), "{id}");
    }
    assert_eq!(machine.value(&group_of("web"), "cpuset.cpus"), "0-1,4-5");
    assert_eq!(machine.value(&group_of("loose"), "cpuset.cpus"), "");
    let entries = machine.ledger().of_id("other").unwrap();
    assert_eq!(entries[0].claim(), Some(&other));
    // The change can be repeated.
    let again = change(&machine.site(), stock(), &larger).unwrap();
    assert_eq!((again.renamed, again.owners), (None, Vec::<String>::new()));
}

/// A pool with an owned list cannot be removed, so its removal is not offered.
#[test]
fn who_names_cpus_of_a_pool_is_told_what_can_be_done() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1"]);
    let add = |list: &str| {
        let lists = Change::AddLists(PlannedPool {
            name: "new".to_owned(),
            kind: Kind::Exclusive,
            lists: vec![cpus(list)],
            options: Options::default(),
        });
        said(try_change(&machine.site(), stock(), &lists))
    };
    let removal = "or remove that pool: `pinfold pool remove dp`";
    assert!(add("0-2").ends_with(removal), "{}", add("0-2"));
    machine.pinned("web", 1, "dp", &["1"]);
    let message = add("0");
    assert!(
        message.contains("CPU 0 is in list 0 of pool dp: ") && !message.contains("remove"),
        "{message}"
    );
    let message = add("1");
    assert!(message.contains("of pool dp, which web owns"), "{message}");
}

/// An owner that cannot get the new CPUs is reported, and gets them when the command is repeated.
/// An owner's memory nodes stay confined if they were, and free if not.
#[test]
fn who_cannot_follow_a_list_is_told_of_and_follows_later() {
    let machine = Machine::new();
    machine.pool("cp", "0", &["0,4"]);
    machine.pinned("web", 1, "cp", &["0,4"]);
    machine.pinned("gone", 2, "cp", &["0,4"]);
    let group = group_of("web");
    let mask = machine.path(&format!("sys/fs/cgroup{group}/cpuset.cpus"));
    let kept = machine.path("mask");
    std::fs::rename(&mask, &kept).unwrap();
    std::fs::create_dir(&mask).unwrap();
    machine.put(
        &format!("sys/fs/cgroup{}/cpuset.cpus.effective", group_of("gone")),
        "0-1,4-5\n",
    );
    let grow = || {
        let spec = spec("cp", Kind::Shared, Cores::Count(2));
        change(&machine.site(), stock(), &Change::Resize(spec))
    };
    let message = said(grow());
    assert!(
        message.contains("not all of its owners have: web") && message.contains("do it again"),
        "{message}"
    );
    assert!(machine.has_list("cp", "0,1,4,5") && !machine.has_list("cp", "0,4"));
    assert_eq!(machine.value(&group_of("gone"), "cpuset.cpus"), "0-1,4-5");
    std::fs::remove_dir(&mask).unwrap();
    std::fs::rename(&kept, &mask).unwrap();
    // In this tree a write does not change the effective CPUs, which is reported as well.
    let message = said(grow());
    assert!(message.contains("web"), "{message}");
    assert_eq!(machine.value(&group, "cpuset.cpus"), "0-1,4-5");
    machine.put(
        &format!("sys/fs/cgroup{group}/cpuset.cpus.effective"),
        "0-1,4-5\n",
    );
    assert_eq!(grow().unwrap(), crate::placement::Changed::default());
    for entry in machine.ledger().all().unwrap() {
        let claim = entry.claim().unwrap();
        assert_eq!(claim.cpus, cpus("0-1,4-5"));
        assert_eq!(claim.lists, ["0,1,4,5"]);
        assert_eq!(claim.mems, None, "{}", claim.id);
    }
}
