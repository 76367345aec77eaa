//! What is told of CPU lists as devices.

use std::os::unix::fs::PermissionsExt;

use super::{Machine, cpus};
use crate::names::Names;
use crate::placement::{ListDevices, ListState, list_devices};
use crate::request::ExactList;

/// A machine of two NUMA nodes, with CPUs 0 to 3 and 4 to 7.
fn of_two_nodes() -> Machine {
    let machine = Machine::new();
    for (node, cpus) in [("0", "0-3"), ("1", "4-7")] {
        let node = format!("sys/devices/system/node/node{node}/cpulist");
        machine.put(&node, &format!("{cpus}\n"));
    }
    machine.put("sys/devices/system/node/online", "0-1\n");
    machine.put("sys/devices/system/node/possible", "0-1\n");
    machine
}

fn look(machine: &Machine) -> ListDevices {
    list_devices(&machine.site()).unwrap()
}

#[test]
fn each_list_lies_where_it_lies() {
    let machine = of_two_nodes();
    machine.pool("dp", "1", &["0-1", "3,7", "4,6"]);
    machine.pool("sh", "0", &["2"]);
    machine.pool("not.askable", "1", &["5"]);
    machine.put("sys/devices/system/cpu/online", "0-5,7\n");
    let devices = look(&machine);
    let pools: Vec<&str> = devices
        .pools
        .iter()
        .map(|pool| pool.name.as_str())
        .collect();
    assert_eq!(pools, ["dp", "sh"]);
    let lists = devices.pools[0].lists.iter();
    let told = lists.map(|list| {
        let (nodes, offline) = (list.nodes.to_string(), list.offline.to_string());
        (list.exact.device_name().unwrap(), nodes, offline)
    });
    let told: Vec<_> = told.collect();
    let expected = [
        ("dp.0-1", "0", ""),
        ("dp.3_7", "0-1", ""),
        ("dp.4_6", "1", "6"),
    ]
    .map(|(name, nodes, offline)| (name.to_owned(), nodes.to_owned(), offline.to_owned()));
    assert_eq!(told, expected);
}

/// What an earlier look knew fills in for lists that cannot be read, and for these alone: which
/// lists a pool has is known where its options are not.
#[test]
fn lists_that_were_taken_out_do_not_come_back_with_an_unreadable_option() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["2", "3"]);
    let earlier = look(&machine);
    std::fs::remove_dir_all(machine.path("etc/kcm/pools/dp/3")).unwrap();
    let names = |devices: ListDevices| {
        let devices = devices.completed(Some(&earlier)).unwrap();
        let lists = devices.pools.iter().flat_map(|pool| &pool.lists);
        let names: Vec<String> = lists.map(|list| list.name.clone()).collect();
        names.join(" ")
    };
    // No option is read that anybody can write.
    machine.put("etc/kcm/pools/dp/irqs", "keep");
    let anybody = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(machine.path("etc/kcm/pools/dp/irqs"), anybody).unwrap();
    let devices = look(&machine);
    assert_eq!((devices.unread.len(), devices.remarks.len()), (0, 1));
    assert_eq!(names(devices), "2");
    // Whatever a directory is that is no list, it may have been one.
    machine.put("etc/kcm/pools/dp/odd/tasks", "");
    let devices = look(&machine);
    assert_eq!(devices.unread, ["dp"]);
    assert_eq!(names(devices), "2 3");
}

/// The kubelet's own containers are no reason to withdraw a list from it; everybody else is, as
/// long as they live.
#[test]
fn who_owns_a_list_is_told_and_whether_the_kubelet_had_it_started() {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0", "1", "2", "3", "4", "5"]);
    let named = |number: i32, list: &str, names: Names| {
        let mut claim = machine.pinned(&format!("id-{number}"), number, "dp", &[list]);
        claim.names = names;
        machine.ledger().write(&claim).unwrap();
    };
    let of_pod = |pod: &str, namespace: Option<&str>| Names {
        engine: Some("containerd".to_owned()),
        name: Some("main".to_owned()),
        pod: Some(pod.to_owned()),
        namespace: namespace.map(str::to_owned),
        unit: None,
    };
    named(1, "0", of_pod("web", Some("shop")));
    named(2, "1", of_pod("a\npod", None));
    machine.dead("gone", 3, "dp", &["2"]);
    let stranger = machine.start(4, "/other");
    machine.set_tasks("dp", "3", &stranger.pid.to_string());
    let torn = machine.dead("torn", 5, "dp", &["4"]);
    let file = format!("torn/{}-{}.json", torn.owner.pid, torn.owner.start);
    machine.put(&format!("run/pinfold/claims/{file}"), "{");
    let devices = look(&machine);
    let lists = &devices.pools[0].lists;
    let states: Vec<ListState> = lists.iter().map(|list| list.state).collect();
    let (owned, dead) = (ListState::Owned, ListState::Dead);
    assert_eq!(states, [owned, owned, dead, owned, owned, ListState::Free]);
    let strangers: Vec<_> = lists.iter().map(|list| devices.stranger_on(list)).collect();
    let of_pid = format!("process {}", stranger.pid);
    assert_eq!(strangers[0], None);
    assert_eq!(strangers[1].as_deref(), Some(r#""a\npod/main (id-2)""#));
    assert_eq!(strangers[2], None);
    assert!(
        strangers[3]
            .as_deref()
            .is_some_and(|who| who.contains(&of_pid)),
        "{strangers:?}"
    );
    assert_eq!(
        strangers[4].as_deref(),
        Some("an owner whose claim cannot be read")
    );
    assert_eq!(strangers[5], None);
    let owners: Vec<bool> = devices
        .owners_of(&lists[2])
        .map(|owner| owner.is_alive())
        .collect();
    assert_eq!(owners, [false]);
}

#[test]
fn the_available_lists_that_go_together_are_preferred() {
    let machine = of_two_nodes();
    machine.pool("dp", "1", &["0", "1", "2,3", "4", "5", "6", "7"]);
    let devices = look(&machine);
    let pool = &devices.pools[0];
    let ids = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    for (available, must, count, expected) in [
        ("0 1 4 5", "", 2, Some("0 1")),
        ("0 4 5", "", 2, Some("4 5")),
        ("0 1 4 5", "4", 2, Some("4 5")),
        ("0 1 4", "4", 2, Some("0 4")),
        ("0 1 2-3 4 5", "2-3", 3, Some("0 1 2-3")),
        ("0 1", "1", 1, Some("1")),
        ("0 1 9 3_7 x", "", 2, Some("0 1")),
        ("0 1", "", 3, None),
        ("0 1", "9", 1, None),
    ] {
        let preferred = pool.preferred(&ids(available), &ids(must), count).ok();
        assert_eq!(preferred, expected.map(ids), "{available} {must} {count}");
    }
    machine.put("sys/devices/system/cpu/online", "0-4,6-7\n");
    let devices = look(&machine);
    let preferred = devices.pools[0].preferred(&ids("4 5 6"), &[], 2).unwrap();
    assert_eq!(preferred, ["4", "6"]);
    let exact = ExactList {
        pool: "dp".to_owned(),
        cpus: cpus("2-3"),
    };
    assert_eq!(devices.pools[0].by_id("2-3").unwrap().exact, exact);
}
