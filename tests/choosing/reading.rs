//! What is read of captured and made-up machines.

use pinfold::cpulist::CpuSet;
use pinfold::topology::{CpuGroup, Levels, Topology, local_memory_nodes, online};

use crate::machines::{Shape, captured, set};

/// The sets of a level, as `0-1 2-3`.
fn shown(groups: &[CpuGroup]) -> String {
    let sets: Vec<String> = groups.iter().map(|group| group.cpus.to_string()).collect();
    sets.join(" ")
}

#[test]
fn captured_machines_are_read_as_they_are() {
    for (name, packages, nodes, caches, cores) in [
        ("real-2-cpus", "0-1", "0-1", "0-1", "0 1"),
        (
            "emulated-1-package-smt",
            "0-7",
            "0-7",
            "0-7",
            "0-1 2-3 4-5 6-7",
        ),
        (
            "emulated-2-packages-no-smt",
            "0-3 4-7",
            "0-3 4-7",
            "0-3 4-7",
            "0 1 2 3 4 5 6 7",
        ),
        ("emulated-memory-node", "0-3", "0-3", "0-3", "0-1 2-3"),
        (
            "emulated-offline-holes",
            "0-2 4,7",
            "0-2 4,7",
            "0-2 4,7",
            "0-1 2 4 7",
        ),
    ] {
        let tree = captured(name);
        let levels = Levels::of(&tree.host, &online(&tree.host).unwrap());
        assert_eq!(shown(&levels.packages), packages, "{name}");
        assert_eq!(shown(&levels.nodes), nodes, "{name}");
        assert_eq!(shown(&levels.caches), caches, "{name}");
        assert_eq!(shown(&levels.cores), cores, "{name}");
    }
}

#[test]
fn a_large_machine_has_several_nodes_a_package_and_caches_a_node() {
    for (name, packages, nodes, caches, cores, cpus) in [
        ("emulated-2-packages-4-nodes", 2, 4, 4, 16, 32),
        ("emulated-8-nodes-128-threads", 2, 8, 32, 64, 128),
    ] {
        let topology = Topology::read(&captured(name).host).unwrap();
        let levels = &topology.levels;
        assert_eq!(
            (
                levels.packages.len(),
                levels.nodes.len(),
                levels.caches.len(),
                levels.cores.len(),
                topology.online.len(),
            ),
            (packages, nodes, caches, cores, cpus),
            "{name}"
        );
        for level in [
            &levels.packages,
            &levels.nodes,
            &levels.caches,
            &levels.cores,
        ] {
            let mut seen = CpuSet::new();
            for group in level {
                assert!(group.cpus.is_disjoint(&seen), "{name}: {level:?}");
                seen.extend(&group.cpus);
            }
            assert_eq!(seen, topology.online, "{name}");
        }
    }
}

#[test]
fn offline_cpus_and_nodes_of_memory_alone_are_told() {
    let holes = Topology::read(&captured("emulated-offline-holes").host).unwrap();
    assert_eq!(holes.offline, set("3,5-6"));
    let tree = captured("emulated-memory-node");
    let topology = Topology::read(&tree.host).unwrap();
    let nodes: Vec<(u32, usize, bool)> = topology
        .nodes
        .iter()
        .map(|node| (node.id, node.cpus.len(), node.memory_kib > 0))
        .collect();
    assert_eq!(nodes, [(0, 4, true), (1, 0, true)]);
    assert_eq!(topology.levels.nodes.len(), 1);
    assert_eq!(local_memory_nodes(&tree.host, &set("1")).unwrap(), set("0"));
}

#[test]
fn made_up_machines_are_read_as_they_were_made() {
    for shape in [
        Shape::regular([1, 1, 1, 2, 1]),
        Shape::regular([2, 4, 4, 2, 2]),
        Shape::regular([2, 1, 2, 3, 2]).without("3,5-6"),
    ] {
        let tree = shape.tree();
        assert_eq!(Levels::of(&tree.host, &shape.online()), shape.levels());
        // Of some CPUs alone, groups are what those have in common.
        let some: CpuSet = shape.online().iter().filter(|cpu| cpu % 3 == 0).collect();
        let part = Levels::without_cores(&tree.host, &some);
        let expected = shape.levels();
        assert_eq!(part.packages.len(), overlapping(&expected.packages, &some));
        assert_eq!(part.nodes.len(), overlapping(&expected.nodes, &some));
        assert_eq!(part.caches.len(), overlapping(&expected.caches, &some));
    }
}

fn overlapping(groups: &[CpuGroup], cpus: &CpuSet) -> usize {
    let overlaps = |group: &&CpuGroup| !group.cpus.is_disjoint(cpus);
    groups.iter().filter(overlaps).count()
}

#[test]
fn a_machine_that_tells_little_is_one_of_everything() {
    let tree = Shape::regular([1, 1, 1, 3, 1]).tree();
    let cpus = tree.host.sys_cpu("");
    for cpu in 0..3 {
        std::fs::remove_dir_all(cpus.join(format!("cpu{cpu}"))).unwrap();
    }
    std::fs::remove_dir_all(tree.host.sys_node("")).unwrap();
    let topology = Topology::read(&tree.host).unwrap();
    let levels = &topology.levels;
    assert_eq!(shown(&levels.packages), "0-2");
    assert_eq!(shown(&levels.nodes), "0-2");
    assert_eq!(shown(&levels.caches), "0-2");
    assert_eq!(shown(&levels.cores), "0 1 2");
    assert!(topology.nodes.is_empty() && topology.caches.is_empty() && topology.dies.is_empty());
}

/// A hybrid machine as Intel's are: two cores of two threads, four of one that share a cluster.
#[test]
fn cores_of_several_sizes_are_told_apart() {
    let mut shape = Shape::regular([1, 1, 1, 8, 1]);
    for (number, cpu) in &mut shape.cpus {
        cpu.core = if *number < 4 { number / 2 } else { *number };
    }
    let tree = shape.tree();
    for (kind, cpus) in [("core", "0-3"), ("atom", "4-7")] {
        let path = tree.host.sys_device(&format!("cpu_{kind}/cpus"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, cpus).unwrap();
    }
    let topology = Topology::read(&tree.host).unwrap();
    assert_eq!(shown(&topology.levels.cores), "0-1 2-3 4 5 6 7");
    let kinds: Vec<(&str, String)> = topology
        .kinds
        .iter()
        .map(|kind| (kind.name.as_str(), kind.cpus.to_string()))
        .collect();
    assert_eq!(kinds, [("core", "0-3".into()), ("atom", "4-7".into())]);
}
