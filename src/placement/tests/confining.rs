//! Where the host's own units may run, by a systemd that is a stand-in.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use super::{FIRST, Machine, group_of};
use crate::cgroup::standin::Standin;
use crate::claims::{ClaimedGroup, OwnerKind};
use crate::isolation::{Kind, Wanted};
use crate::outside::{self, UnitCpus};
use crate::placement::Site;
use crate::placement::confine::{Confinable, confinable};

const UNITS: [&str; 3] = ["system.slice", "user.slice", "init.scope"];

/// A machine whose systemd gives all units all CPUs, and whose pools have 4 and 5 exclusively.
fn machine() -> (Machine, Standin, Site) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["4", "5"]);
    machine.pool("common", "0", &["0-3"]);
    machine.put("sys/devices/system/cpu/possible", "0-7\n");
    let mut site = machine.site();
    site.confines_host = true;
    let standin = Standin::on(&site.host, &UNITS.map(|unit| (unit, "")));
    (machine, standin, site)
}

fn cpus(standin: &Standin) -> [String; 3] {
    UNITS.map(|unit| standin.cpus(unit))
}

#[track_caller]
fn confine(site: &Site) {
    let problems = site.confine_units().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
}

#[track_caller]
fn assert_as_before(machine: &Machine, standin: &Standin) {
    assert_eq!(cpus(standin), ["", "", ""]);
    assert!(!machine.is_there("run/pinfold-machine/units"));
    for unit in UNITS {
        let settings = format!("run/systemd/system.control/{unit}.d");
        assert!(!machine.is_there(&settings), "{settings}");
    }
}

#[test]
fn units_leave_exclusive_cpus_and_have_them_back() {
    let (machine, standin, mut site) = machine();
    assert_eq!(confinable(&site).unwrap(), Confinable::Yes);
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,6-7"; 3]);
    let off = outside::kept_off(&site.host);
    let all = UNITS.map(|unit| UnitCpus {
        unit: unit.to_owned(),
        cpus: "4-5".parse().unwrap(),
    });
    assert_eq!(off.len(), 3);
    assert!(all.iter().all(|unit| off.contains(unit)), "{off:?}");
    // It is so already.
    standin.units().set.clear();
    confine(&site);
    assert!(standin.units().set.is_empty());
    // Another list.
    machine.pool("dp", "1", &["6"]);
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,7"; 3]);
    standin.units().set.clear();
    site.confines_host = false;
    confine(&site);
    assert_as_before(&machine, &standin);
    // All CPUs come before none: an older kernel would leave the narrow mask.
    let of_one = standin
        .units()
        .set
        .iter()
        .filter(|(unit, _)| unit == "user.slice")
        .cloned()
        .collect::<Vec<_>>();
    let values: Vec<&str> = of_one.iter().map(|(_, cpus)| cpus.as_str()).collect();
    assert_eq!(values, ["0-7", ""]);
}

#[test]
fn a_partition_beside_the_units_is_named_by_none_of_them() {
    let (machine, standin, mut site) = machine();
    machine.group("/fast.slice");
    machine.put("sys/fs/cgroup/fast.slice/cpuset.cpus.partition", "root\n");
    machine.put("sys/fs/cgroup/fast.slice/cpuset.cpus", "5-7\n");
    machine.put("sys/fs/cgroup/fast.slice/cpuset.cpus.effective", "5-7\n");
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3"; 3].map(str::to_owned));
    site.confines_host = false;
    confine(&site);
    let set = standin.units().set.clone();
    let values = set.iter().filter(|(unit, _)| unit == "init.scope");
    let values: Vec<&str> = values.map(|(_, cpus)| cpus.as_str()).collect();
    assert_eq!(values, ["0-3", "0-4", ""]);
    assert_as_before(&machine, &standin);
}

#[test]
fn when_the_pools_go_and_at_an_uninstall_all_is_as_before() {
    let (machine, standin, site) = machine();
    confine(&site);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools")).unwrap();
    confine(&site);
    assert_as_before(&machine, &standin);
    machine.pool("dp", "1", &["4"]);
    confine(&site);
    assert_eq!(standin.cpus("init.scope"), "0-3,5-7");
    let path = site.conf_dir.canonicalize().unwrap();
    let soon = Instant::now() + Duration::from_secs(20);
    outside::confine(&site.host, &path, Vec::new(), soon).unwrap();
    assert_as_before(&machine, &standin);
}

#[test]
fn what_an_operator_set_comes_back_and_what_he_sets_since_stays() {
    let (machine, standin, mut site) = machine();
    let drop_in = "run/systemd/system.control/user.slice.d/50-AllowedCPUs.conf";
    machine.put(drop_in, "");
    standin
        .units()
        .cpus
        .insert("user.slice".to_owned(), "2-5".parse().unwrap());
    confine(&site);
    assert_eq!(standin.cpus("user.slice"), "2-3");
    standin
        .units()
        .cpus
        .insert("system.slice".to_owned(), "0-4".parse().unwrap());
    confine(&site);
    assert_eq!(standin.cpus("system.slice"), "0-4");
    site.confines_host = false;
    confine(&site);
    assert_eq!(cpus(&standin), ["0-4", "2-5", ""]);
    assert!(machine.is_there(drop_in));
    assert!(!machine.is_there("run/pinfold-machine/units"));
}

#[test]
fn an_owner_that_has_its_mask_alone_keeps_its_cpus() {
    let (machine, standin, site) = machine();
    let claim = machine.pinned("web", 1, "dp", &["4"]);
    confine(&site);
    assert_eq!(
        standin.cpus("system.slice"),
        "0-3,6-7",
        "it is in machine.slice"
    );
    let process = machine.start(2, "/system.slice/docker-db.scope");
    let mut docker = machine.claim("web", process, "dp", &["5"]);
    docker.id = "db".to_owned();
    docker.cgroup = Some(machine.claimed("/system.slice/docker-db.scope"));
    machine.ledger().write(&docker).unwrap();
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,5-7", "0-3,6-7", "0-3,6-7"]);
    machine.ledger().remove(&docker).unwrap();
    confine(&site);
    assert_eq!(standin.cpus("system.slice"), "0-3,6-7");
    // Where it is not known who runs where, no unit loses any, but for what the pools have no more
    // it has back.
    let path = format!(
        "run/pinfold/claims/web/{}-{}.json",
        claim.owner.pid, claim.owner.start
    );
    machine.put(&path, "{torn");
    let problems = site.confine_units().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(cpus(&standin), ["0-3,6-7"; 3]);
    machine.pool("dp", "1", &["7"]);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp/4")).unwrap();
    assert_eq!(site.confine_units().unwrap(), problems);
    assert_eq!(cpus(&standin), ["0-4,6-7"; 3]);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp")).unwrap();
    assert_eq!(site.confine_units().unwrap(), problems);
    assert_as_before(&machine, &standin);
}

#[test]
fn a_pool_that_cannot_be_read_changes_nothing_for_its_cpus_alone() {
    let (machine, standin, site) = machine();
    confine(&site);
    machine.pool("other", "1", &["6"]);
    machine.put("etc/kcm/pools/dp/exclusive", "torn");
    let problems = site.confine_units().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(cpus(&standin), ["0-3,7"; 3]);
    machine.pool("dp", "1", &[]);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp/5")).unwrap();
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,5,7"; 3]);
    // One that nobody could read yet takes nothing.
    machine.pool("late", "torn", &["0"]);
    assert_eq!(site.confine_units().unwrap().len(), 1);
    assert_eq!(cpus(&standin), ["0-3,5,7"; 3]);
}

/// A systemd that does not answer costs the time that is given for all of it, and the lock is free
/// again.
#[test]
fn a_stuck_systemd_is_waited_for_once() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["4", "5"]);
    let site = machine.site();
    let socket = site.host.systemd_socket();
    for directory in [socket.parent().unwrap(), &site.host.systemd_mark()] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let _stuck = UnixListener::bind(&socket).unwrap();
    let all = UNITS.map(|unit| UnitCpus {
        unit: unit.to_owned(),
        cpus: "4-5".parse().unwrap(),
    });
    let patience = Duration::from_secs(2);
    for _ in 0..2 {
        let began = Instant::now();
        let problems = outside::confine(
            &site.host,
            &site.conf_dir,
            all.to_vec(),
            Instant::now() + patience,
        );
        let problems = problems.unwrap();
        assert!(began.elapsed() < patience * 2, "{:?}", began.elapsed());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].what.contains("in time"), "{problems:?}");
    }
}

#[test]
fn all_units_are_asked_over_one_connection() {
    let (_machine, standin, site) = machine();
    confine(&site);
    let connections = standin.units().connections;
    confine(&site);
    assert_eq!(standin.units().connections, connections + 1);
}

#[test]
fn an_owner_whose_partition_stands_needs_no_cpu_of_its_unit() {
    let (machine, standin, site) = machine();
    let process = machine.start(1, "/system.slice/docker-web.scope");
    machine.group(&group_of("web"));
    let mut claim = machine.claim("web", process, "dp", &["4", "5"]);
    claim.cgroup = Some(machine.claimed("/system.slice/docker-web.scope"));
    claim.isolation = Some(Wanted {
        kind: Kind::Root,
        is_needed: false,
    });
    machine.ledger().write(&claim).unwrap();
    let put = |file: &str, text: &str| {
        let path = format!("sys/fs/cgroup/system.slice/docker-web.scope/cpuset.cpus.{file}");
        machine.put(&path, text);
    };
    put("partition", "root\n");
    put("effective", "4-5\n");
    confine(&site);
    assert_eq!(standin.cpus("system.slice"), "0-3,6-7");
    // It lacks what is offline.
    machine.put("sys/devices/system/cpu/online", "0-4,6-7\n");
    put("effective", "4\n");
    confine(&site);
    assert_eq!(standin.cpus("system.slice"), "0-3,6-7");
    put("partition", "root invalid\n");
    confine(&site);
    assert_eq!(standin.cpus("system.slice"), "");
}

#[test]
fn an_owner_that_places_itself_keeps_its_cpus() {
    let (machine, standin, site) = machine();
    let process = machine.start(1, "/system.slice/forwarder.service");
    machine.group(&group_of("isolate-1"));
    let mut itself = machine.claim("isolate-1", process, "dp", &["5"]);
    itself.kind = OwnerKind::Process;
    let group = machine.claimed("/system.slice/forwarder.service");
    itself.cgroup = Some(ClaimedGroup {
        confined: false,
        ..group
    });
    machine.ledger().write(&itself).unwrap();
    machine.set_tasks("dp", "5", &process.pid.to_string());
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,5-7", "0-3,6-7", "0-3,6-7"]);
}

#[test]
fn an_owner_of_another_tool_keeps_its_cpus() {
    let (machine, standin, site) = machine();
    let theirs = machine.start(1, "/user.slice/session-1.scope");
    let of_systemd = machine.start(2, "/init.scope");
    // One with a claim counts by its group, wherever `isolate`, which is in `tasks` too, runs.
    let mut claim = machine.pinned("web", 3, "dp", &["5"]);
    let beside = machine.start(4, "/system.slice/isolate.service");
    claim.processes.push(beside);
    machine.ledger().write(&claim).unwrap();
    machine.set_tasks("dp", "4", &format!("{},{}", theirs.pid, FIRST + 9));
    machine.set_tasks("dp", "5", &format!("{},{}", claim.owner.pid, beside.pid));
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,6-7", "0-4,6-7", "0-3,6-7"]);
    machine.set_tasks("dp", "4", &of_systemd.pid.to_string());
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,6-7", "0-3,6-7", "0-4,6-7"]);
    // Where one cannot be looked at, nothing changes.
    machine.put(&format!("proc/{}/cgroup", of_systemd.pid), "torn");
    assert_eq!(site.confine_units().unwrap().len(), 1);
    machine.remove(&format!("proc/{}/cgroup", of_systemd.pid));
    let problems = site.confine_units().unwrap();
    let text = problems[0].to_string();
    assert!(text.contains("does not show where it runs"), "{text}");
    assert_eq!(standin.cpus("init.scope"), "0-4,6-7");
    machine.end(of_systemd, "/init.scope");
    confine(&site);
    assert_eq!(standin.cpus("init.scope"), "0-3,6-7");
}

#[test]
fn several_pool_directories_share_the_units() {
    let (machine, standin, site) = machine();
    confine(&site);
    machine.put("etc/other/lock", "");
    machine.put("etc/other/pools/op/exclusive", "1");
    machine.put("etc/other/pools/op/6/tasks", "");
    let mut other = site.clone();
    other.conf_dir = machine.path("etc/other");
    other.run_dir = machine.path("run/other");
    confine(&other);
    assert_eq!(cpus(&standin), ["0-3,7"; 3]);
    other.confines_host = false;
    confine(&other);
    assert_eq!(cpus(&standin), ["0-3,6-7"; 3]);
    // One that was removed by hand wants nothing any more.
    other.confines_host = true;
    confine(&other);
    std::fs::remove_dir_all(machine.path("etc/other")).unwrap();
    confine(&site);
    assert_eq!(cpus(&standin), ["0-3,6-7"; 3]);
}

#[test]
fn whatever_change_it_is_killed_at_the_next_one_mends_it() {
    for kill_at in 0..8 {
        let (machine, standin, mut site) = machine();
        standin.units().most_changes = Some(kill_at);
        let begun = site.confine_units();
        assert_eq!(begun.unwrap().is_empty(), kill_at >= 3, "{kill_at}");
        site.confines_host = false;
        // Killed again on the way back.
        standin.units().most_changes = Some(kill_at + 1);
        drop(site.confine_units().unwrap());
        standin.units().most_changes = None;
        confine(&site);
        assert_as_before(&machine, &standin);
    }
}

#[test]
fn where_it_cannot_be_nobody_is_moved() {
    let (machine, standin, site) = machine();
    machine.put(
        "proc/1/mountinfo",
        "40 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
    );
    assert_eq!(confinable(&site).unwrap(), Confinable::NoVersion1);
    let told = "run/pinfold-machine/told-no-units-on-version-1";
    let mut unasked = site.clone();
    unasked.confines_host = false;
    confine(&unasked);
    assert!(!machine.is_there(told));
    confine(&site);
    assert!(machine.is_there(told), "it is told once in a boot");
    let machine = Machine::new();
    machine.pool("dp", "1", &["4"]);
    let mut bare = machine.site();
    bare.confines_host = true;
    assert_eq!(confinable(&bare).unwrap(), Confinable::NoSystemd);
    confine(&bare);
    assert!(machine.is_there("run/pinfold-machine/told-no-units-without-systemd"));
    assert!(!machine.is_there("run/pinfold-machine/units"));
    assert!(standin.units().set.is_empty());
}
