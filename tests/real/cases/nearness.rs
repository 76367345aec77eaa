//! Where on the machine an owner's CPUs, and its memory, are.

use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::{Engine, Front};
use crate::needs::{Need, device_near};
use crate::plan::Plan;
use crate::process::{self, Running};
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let engines = || {
        let direct = |engine: &Engine| engine.front == Front::Direct;
        Engine::all().into_iter().filter(direct).collect()
    };
    let two_nodes = &[Need::Cpus(8), Need::Nodes(2)];
    let mut cases = each(
        engines(),
        "nearness::four_cpus_on_one_node_with_its_memory",
        two_nodes,
        four_cpus_on_one_node_with_its_memory,
    );
    cases.extend(each(
        engines(),
        "nearness::near_a_device",
        &[Need::Cpus(8), Need::Nodes(2), Need::DeviceNear(1)],
        near_a_device,
    ));
    cases.extend(each(
        engines(),
        "nearness::refused_where_no_node_suffices",
        two_nodes,
        refused_where_no_node_suffices,
    ));
    cases
}

/// The test machine's cores; the first four CPUs are node 0.
fn cores(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0,1", "2,3", "4,5", "6,7"]);
}

/// Somebody on so many lists, where packing puts it.
fn neighbour(world: &World, arguments: &[&str]) -> Running {
    let probe = crate::probe::path().to_str().unwrap();
    let line = [
        &["isolate", "--pool", "dp"],
        arguments,
        &["--", probe, "--wait"],
    ]
    .concat();
    let neighbour = Running::start(&mut world.pinfold(&line), b"");
    process::eventually("the neighbour runs", || {
        neighbour.stdout().contains("affinity").then_some(())
    });
    neighbour
}

/// The node 1 is whole, node 0 is not: four CPUs are node 1, and so is every page that the process
/// has made its own.
fn four_cpus_on_one_node_with_its_memory(world: &World, engine: Engine) {
    cores(world);
    let _neighbour = neighbour(world, &[]);
    let plan = Plan::pinned("a", "dp")
        .asking("pinfold.io/cpus", "4")
        .asking("pinfold.io/mems", "local");
    let container = Container::up(world, engine, plan);
    assert_eq!(container.affinity(), "4-7");
    container.assert_confined_to("4-7");
    let pid = container.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Mems_allowed_list:\t1\n"), "{status}");
    let claim = world.claim_of(&container.id());
    assert_eq!(claim["mems"], "1");
    // proc_pid_numa_maps(5): N<node>=<pages>; pages of files can have been read by others before.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    let stack = maps.lines().find(|line| line.contains(" stack ")).unwrap();
    assert!(stack.contains(" N1=") && !stack.contains(" N0="), "{maps}");
}

fn near_a_device(world: &World, engine: Engine) {
    cores(world);
    let device = device_near(1).unwrap();
    let near = |name: &str, near: &str| {
        let plan = Plan::pinned(name, "dp").asking("pinfold.io/near", near);
        Container::up(world, engine, plan)
    };
    let first = near("a", &device);
    let second = near("b", &format!("/dev/{device}"));
    assert_eq!(
        (first.affinity(), second.affinity()),
        ("4-5".into(), "6-7".into())
    );
    let plan = Plan::pinned("c", "dp").asking("pinfold.io/near", "nosuch0");
    let refused = Container::prepare(world, engine, plan).launch();
    assert_ne!(refused.code(), Some(0));
}

fn refused_where_no_node_suffices(world: &World, engine: Engine) {
    cores(world);
    let _first = neighbour(world, &["--numa", "0"]);
    let _second = neighbour(world, &["--numa", "1"]);
    let explain = |numa: &str| {
        let line = ["explain", "--pool", "dp", "--cpus", "4", "--numa", numa];
        process::run(&mut world.pinfold(&line))
    };
    let refused = explain("single").exits(1);
    let part = "4 CPUs free in dp, but 2 on node 0, 2 on node 1";
    assert!(refused.stderr.contains(part), "{refused}");
    explain("best").ok();
    let plan = |numa: &str| {
        Plan::pinned("a", "dp")
            .asking("pinfold.io/cpus", "4")
            .asking("pinfold.io/numa", numa)
    };
    let refused = Container::prepare(world, engine, plan("single")).launch();
    assert_ne!(refused.code(), Some(0));
    let container = Container::up(world, engine, plan("spread"));
    assert_eq!(container.affinity(), "2-3,6-7");
}
