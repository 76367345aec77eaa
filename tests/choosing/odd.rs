//! What is read where a file of sysfs is missing, empty, or not as the kernel documents it: each
//! file that is read, with each odd content that kernels in use have, or that cannot be read at
//! all.

use std::fs;
use std::path::Path;

use pinfold::choose::{NoChoice, Within};
use pinfold::cpulist::CpuSet;
use pinfold::host::Host;
use pinfold::topology::{
    CpuGroup, Gaps, Levels, Topology, local_memory_nodes, nodes_near, online, remarks,
};

use crate::machines::{Shape, Tree, set};
use crate::pool::{Pool, want};

/// What a file can be made.
const KINDS: [&str; 7] = [
    "missing",
    "empty",
    "newline",
    "nul",
    "(null)",
    "rubbish",
    "unreadable",
];

/// Makes a file so; one that ends in NUL keeps its value.
fn spoil(path: &Path, kind: &str) {
    let text = fs::read_to_string(path).unwrap();
    match kind {
        "missing" => fs::remove_file(path).unwrap(),
        "empty" => fs::write(path, "").unwrap(),
        "newline" => fs::write(path, "\n").unwrap(),
        "nul" => fs::write(path, format!("{}\0", text.trim())).unwrap(),
        "(null)" => fs::write(path, "(null)\n").unwrap(),
        "rubbish" => fs::write(path, "0-x,\u{1b}[31m\n").unwrap(),
        // Root reads everything: a directory in its place is as unreadable to everybody.
        _ => {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }
    }
}

/// The same for as long as something is looked at.
fn while_spoiled(path: &Path, kind: &str, look: impl FnOnce()) {
    let text = fs::read_to_string(path).unwrap();
    spoil(path, kind);
    look();
    if kind == "unreadable" {
        fs::remove_dir(path).unwrap();
    }
    fs::write(path, text).unwrap();
}

/// Two packages, each a node of two caches of two cores of two threads.
fn shape() -> Shape {
    Shape::regular([2, 1, 2, 2, 2])
}

/// The tree with everything that a kernel of today tells, masks included, and a network card near
/// node 1.
fn whole() -> Tree {
    let shape = shape();
    let tree = shape.tree();
    let put = |path: &Path, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    };
    let levels = shape.levels();
    let mask_of = |groups: &[CpuGroup], cpu: u32| {
        let group = groups
            .iter()
            .find(|group| group.cpus.contains(cpu))
            .unwrap();
        format!("{:0>8}", group.cpus.to_hex_mask().to_lowercase())
    };
    for cpu in shape.online().iter() {
        for (file, groups) in [
            ("topology/package_cpus", &levels.packages),
            ("topology/core_cpus", &levels.cores),
            ("topology/die_cpus", &levels.packages),
            ("cache/index3/shared_cpu_map", &levels.caches),
        ] {
            let path = tree.host.sys_cpu(&format!("cpu{cpu}/{file}"));
            put(&path, &mask_of(groups, cpu));
        }
        let die = levels
            .packages
            .iter()
            .find(|group| group.cpus.contains(cpu));
        let path = tree
            .host
            .sys_cpu(&format!("cpu{cpu}/topology/die_cpus_list"));
        put(&path, &die.unwrap().cpus.to_string());
        let node = levels.nodes.iter().find(|group| group.cpus.contains(cpu));
        let link = format!("cpu{cpu}/node{}", node.unwrap().id);
        fs::create_dir(tree.host.sys_cpu(&link)).unwrap();
    }
    for node in &levels.nodes {
        let mask = format!("{:0>8}", node.cpus.to_hex_mask());
        let path = format!("node{}/cpumap", node.id);
        put(&tree.host.sys_node(&path), &mask);
        let path = format!("node{}/distance", node.id);
        put(
            &tree.host.sys_node(&path),
            if node.id == 0 { "10 20" } else { "20 10" },
        );
    }
    put(&tree.host.sys_cpu("isolated"), "3");
    put(&tree.host.sys_cpu("smt/active"), "1");
    put(
        &tree.host.sys_device("pci0000:00/0000:00:03.0/numa_node"),
        "1",
    );
    let bus = tree.host.pci_device("");
    fs::create_dir_all(&bus).unwrap();
    std::os::unix::fs::symlink(
        "../../../devices/pci0000:00/0000:00:03.0",
        bus.join("0000:00:03.0"),
    )
    .unwrap();
    tree
}

fn told(levels: &Levels) -> Levels {
    Levels {
        gaps: Gaps::default(),
        ..levels.clone()
    }
}

/// The files by which another file's answer is told as well: whatever becomes of one of them, the
/// levels, the memory and the isolated CPUs are what they were.
#[test]
fn what_a_second_file_tells_is_never_lost() {
    let tree = whole();
    let expected = shape().levels();
    for file in [
        "node/has_cpu",
        "node/online",
        "node/has_memory",
        "node/node0/cpulist",
        "node/node1/cpulist",
        "node/node0/cpumap",
        "node/node1/meminfo",
        "node/node1/distance",
        "cpu/smt/active",
        "cpu/cpu0/topology/package_cpus_list",
        "cpu/cpu0/topology/package_cpus",
        "cpu/cpu0/topology/core_cpus_list",
        "cpu/cpu3/topology/core_cpus_list",
        "cpu/cpu0/topology/core_cpus",
        "cpu/cpu0/topology/die_cpus_list",
        "cpu/cpu0/cache/index3/shared_cpu_list",
        "cpu/cpu0/cache/index3/shared_cpu_map",
        "cpu/cpu0/cache/index2/shared_cpu_list",
    ] {
        for kind in KINDS {
            while_spoiled(&system(&tree.host, file), kind, || {
                let topology = Topology::read(&tree.host).unwrap();
                assert_eq!(told(&topology.levels), expected, "{file} {kind}");
                let gaps = &topology.levels.gaps;
                for gap in [&gaps.nodes, &gaps.packages, &gaps.caches, &gaps.cores] {
                    assert!(gap.cpus.is_empty(), "{file} {kind}: {gap:?}");
                }
                assert_eq!(topology.dies.len(), 2, "{file} {kind}");
                for (cpus, nodes) in [("0", "0"), ("4", "1"), ("0,4", "0-1")] {
                    let local = local_memory_nodes(&tree.host, &set(cpus)).unwrap();
                    assert_eq!(local, set(nodes), "{file} {kind}");
                }
                let mut remarks = remarks(&topology).into_iter();
                // One that cannot be read now may tell more the next time, and is warned of.
                let is_well = remarks.all(|remark| remark.is_answered || kind == "unreadable");
                assert!(is_well, "{file} {kind}");
            });
        }
    }
}

fn system(host: &Host, file: &str) -> std::path::PathBuf {
    host.sys_device("system").join(file)
}

/// What is only for people to see is left out, and named.
#[test]
fn what_only_informs_is_left_out_and_named() {
    let tree = whole();
    let expected = shape().levels();
    for (file, nothing_is_odd) in [
        ("cpu/isolated", true),
        ("cpu/present", false),
        ("cpu/cpu0/cache/index3/size", true),
        ("cpu/cpu0/cache/index3/level", false),
        ("cpu/cpu0/topology/physical_package_id", false),
        ("node/node0/meminfo", false),
    ] {
        for kind in KINDS {
            let is_silent = match kind {
                "missing" => file != "node/node0/meminfo",
                "rubbish" | "unreadable" => false,
                "nul" => true,
                _ => nothing_is_odd,
            };
            let has_isolated = file != "cpu/isolated" || kind == "nul";
            let name = file.rsplit('/').next().unwrap();
            while_spoiled(&system(&tree.host, file), kind, || {
                let topology = Topology::read(&tree.host).unwrap();
                assert_eq!(topology.levels.nodes, expected.nodes);
                let isolated = set(if has_isolated { "3" } else { "" });
                assert_eq!(topology.isolated, isolated, "{file} {kind}");
                let remarks = remarks(&topology);
                let is_named = remarks.iter().any(|remark| remark.text.contains(name));
                assert_eq!(is_named, !is_silent, "{file} {kind}: {remarks:?}");
            });
        }
    }
}

/// Nothing else tells which CPUs are online: the file is named.
#[test]
fn without_online_everything_is_refused() {
    for kind in KINDS {
        let tree = whole();
        spoil(&tree.host.sys_cpu("online"), kind);
        match online(&tree.host) {
            Ok(cpus) => assert_eq!((kind, cpus), ("nul", shape().online())),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("cpu/online"), "{kind}: {text}");
                assert!(!text.contains('\u{1b}'), "{kind}: {text}");
            }
        }
    }
}

/// Where no file tells a level, a strict request is refused by name; one that is not strict is met.
#[test]
fn what_nothing_tells_is_never_silently_one() {
    for (files, request, within, file) in [
        (
            &[
                "cache/index3/shared_cpu_list",
                "cache/index3/shared_cpu_map",
            ][..],
            "lists=2 cache=single",
            Within::OneCache,
            "shared_cpu_list",
        ),
        (
            &["topology/core_cpus_list", "topology/core_cpus"],
            "",
            Within::OneNode,
            "",
        ),
    ] {
        for kind in KINDS.into_iter().filter(|kind| *kind != "nul") {
            let tree = whole();
            for cpu in shape().online().iter() {
                for file in files {
                    spoil(&tree.host.sys_cpu(&format!("cpu{cpu}/{file}")), kind);
                }
            }
            let topology = Topology::read(&tree.host).unwrap();
            let unanswered = remarks(&topology);
            let named = unanswered.iter().filter(|remark| !remark.is_answered);
            assert_eq!(named.count(), 1, "{files:?} {kind}: {unanswered:?}");
            assert!(
                Pool::of_cores(topology.levels.clone())
                    .cpus(&want("lists=2"))
                    .is_ok()
            );
            if request.is_empty() {
                assert_eq!(topology.levels.cores.len(), topology.online.len());
                continue;
            }
            let refusal = Pool::of_cores(topology.levels)
                .cpus(&want(request))
                .unwrap_err();
            let NoChoice::Untold { within: found, gap } = refusal else {
                panic!("{files:?} {kind}: {refusal:?}");
            };
            assert_eq!(found, within);
            assert!(gap.to_string().contains(file), "{files:?} {kind}: {gap}");
        }
    }
}

/// Caches of some CPUs alone: those suffice, or the others' are named.
#[test]
fn caches_of_some_cpus_alone() {
    let tree = whole();
    let untold = set("0-1,4-5,8-9,12-13");
    for cpu in untold.iter() {
        fs::remove_dir_all(tree.host.sys_cpu(&format!("cpu{cpu}/cache"))).unwrap();
    }
    let levels = Levels::of(&tree.host, &shape().online());
    // Not one over packages, but one of each.
    let caches: Vec<String> = levels
        .caches
        .iter()
        .map(|cache| cache.cpus.to_string())
        .collect();
    assert_eq!(caches, ["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"]);
    assert_eq!(levels.gaps.caches.cpus, untold);
    let pool = Pool::of_cores(levels);
    let taken = pool.cpus(&want("lists=2 cache=single")).unwrap();
    assert_eq!(taken, set("2-3,10-11"));
    let error = pool.cpus(&want("lists=3 cache=single")).unwrap_err();
    assert!(matches!(error, NoChoice::Untold { .. }), "{error:?}");
}

/// A link that leads to itself: whichever cache is asked for, it cannot be read.
#[test]
fn caches_that_give_an_error_each_have_an_end() {
    let tree = whole();
    let caches = tree.host.sys_cpu("cpu0/cache");
    fs::remove_dir_all(&caches).unwrap();
    std::os::unix::fs::symlink("cache", &caches).unwrap();
    let levels = Levels::of(&tree.host, &shape().online());
    assert!(levels.caches.iter().any(|cache| cache.cpus.contains(7)));
}

/// Nodes that no list, no mask and no link tells.
#[test]
fn nodes_that_nothing_tells_are_no_node() {
    let tree = whole();
    for node in 0..2 {
        for file in ["cpulist", "cpumap"] {
            spoil(
                &tree.host.sys_node(&format!("node{node}/{file}")),
                "newline",
            );
        }
    }
    // The links tell it still.
    let levels = Levels::of(&tree.host, &shape().online());
    assert_eq!(told(&levels), shape().levels());
    for cpu in shape().online().iter() {
        for node in 0..2 {
            let _ = fs::remove_dir(tree.host.sys_cpu(&format!("cpu{cpu}/node{node}")));
        }
    }
    let levels = Levels::of(&tree.host, &shape().online());
    assert_eq!(levels.gaps.nodes.cpus, shape().online());
    let pool = Pool::of_cores(levels);
    for request in ["numa=single", "numa=0", "numa=1"] {
        let refusal = pool.cpus(&want(request)).unwrap_err();
        let NoChoice::Untold { gap, .. } = refusal else {
            panic!("{request}: {refusal:?}");
        };
        assert!(gap.to_string().contains("cpulist is empty"), "{gap}");
    }
    assert!(pool.cpus(&want("lists=3")).is_ok());
    let error = local_memory_nodes(&tree.host, &set("0"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("node0/cpulist is empty"), "{error}");
}

#[test]
fn memory_that_nothing_tells_is_refused() {
    let tree = whole();
    spoil(&tree.host.sys_node("has_memory"), "newline");
    for node in 0..2 {
        spoil(
            &tree.host.sys_node(&format!("node{node}/meminfo")),
            "rubbish",
        );
    }
    let error = local_memory_nodes(&tree.host, &set("0"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has_memory") && error.contains("mems"),
        "{error}"
    );
}

/// A kernel without NUMA: memory is one for each package at best.
#[test]
fn without_nodes_packages_are() {
    let tree = whole();
    fs::remove_dir_all(tree.host.sys_node("")).unwrap();
    let topology = Topology::read(&tree.host).unwrap();
    let nodes: Vec<CpuSet> = topology
        .levels
        .nodes
        .iter()
        .map(|node| node.cpus.clone())
        .collect();
    let packages = shape().levels().packages;
    let packages: Vec<CpuSet> = packages.into_iter().map(|package| package.cpus).collect();
    assert_eq!(nodes, packages);
    assert!(remarks(&topology).iter().any(|remark| remark.is_answered));
    assert_eq!(local_memory_nodes(&tree.host, &set("0")).unwrap(), set(""));
    let pool = Pool::of_cores(topology.levels);
    assert!(pool.cpus(&want("lists=4 numa=single")).is_ok());
    assert!(pool.cpus(&want("lists=5 numa=single")).is_err());
}

/// As kernels before 2.6.26: masks, and the older names.
#[test]
fn masks_serve_where_there_are_no_lists() {
    let tree = whole();
    for cpu in shape().online().iter() {
        let topology = tree.host.sys_cpu(&format!("cpu{cpu}/topology"));
        for (new, old) in [
            ("core_cpus", "thread_siblings"),
            ("package_cpus", "core_siblings"),
        ] {
            fs::remove_file(topology.join(format!("{new}_list"))).unwrap();
            fs::rename(topology.join(new), topology.join(old)).unwrap();
        }
        let list = format!("cpu{cpu}/cache/index3/shared_cpu_list");
        fs::remove_file(tree.host.sys_cpu(&list)).unwrap();
    }
    for node in 0..2 {
        fs::remove_file(tree.host.sys_node(&format!("node{node}/cpulist"))).unwrap();
    }
    let topology = Topology::read(&tree.host).unwrap();
    assert_eq!(topology.levels, shape().levels());
    assert!(remarks(&topology).is_empty(), "{:?}", remarks(&topology));
}

#[test]
fn a_devices_node_is_told_not_told_or_odd() {
    let numa_node = |tree: &Tree| tree.host.sys_device("pci0000:00/0000:00:03.0/numa_node");
    let device = "0000:00:03.0".parse().unwrap();
    let tree = whole();
    fs::write(numa_node(&tree), "-1\n").unwrap();
    assert_eq!(nodes_near(&tree.host, &device).unwrap(), set(""));
    for kind in KINDS {
        let tree = whole();
        spoil(&numa_node(&tree), kind);
        match (kind, nodes_near(&tree.host, &device)) {
            ("missing", found) => assert_eq!(found.unwrap(), set("")),
            ("nul", found) => assert_eq!(found.unwrap(), set("1")),
            (_, found) => {
                let error = format!("{:#}", found.unwrap_err());
                assert!(error.contains("numa_node"), "{kind}: {error}");
            }
        }
    }
}

/// A real kernel's tree in short: four CPUs, two nodes, two packages, and `has_cpu` with a newline
/// alone.
#[test]
fn an_empty_has_cpu_leaves_two_nodes_two() {
    let tree = Shape::regular([2, 1, 1, 2, 1]).tree();
    fs::write(tree.host.sys_node("has_cpu"), "\n").unwrap();
    let levels = Levels::of(&tree.host, &set("0-3"));
    let pool = Pool::of_cores(levels);
    assert_eq!(pool.cpus(&want("lists=2 numa=1")).unwrap(), set("2-3"));
    assert!(pool.cpus(&want("lists=3 numa=single")).is_err());
    assert_eq!(local_memory_nodes(&tree.host, &set("2")).unwrap(), set("1"));
}

/// Well-formed, and wrong: the nodes' own files count, and what contradicts them is named.
#[test]
fn lists_of_nodes_that_are_wrong_are_not_believed() {
    for (file, wrong) in [
        ("has_cpu", "0"),
        ("has_cpu", "1"),
        ("has_cpu", "0-2"),
        ("has_cpu", "7"),
        ("online", "0"),
        ("has_memory", "0"),
        ("has_memory", "1"),
    ] {
        for others in [&[][..], &["has_cpu", "online"]] {
            let tree = Shape::regular([2, 1, 1, 2, 1]).tree();
            for other in others.iter().filter(|other| **other != file) {
                fs::remove_file(tree.host.sys_node(other)).unwrap();
            }
            fs::write(tree.host.sys_node(file), format!("{wrong}\n")).unwrap();
            let case = format!("{file} {wrong} without {others:?}");
            for (cpus, nodes) in [("0-3", 2), ("2-3", 1), ("0-1", 1)] {
                let levels = Levels::of(&tree.host, &set(cpus));
                assert_eq!(levels.nodes.len(), nodes, "{case}: {:?}", levels.nodes);
                let last = levels.nodes.last().unwrap();
                let end = if cpus == "0-1" { "0-1" } else { "2-3" };
                assert_eq!(last.cpus, set(end), "{case}");
                assert!(levels.gaps.nodes.cpus.is_empty(), "{case}");
            }
            for (cpus, node) in [("0", "0"), ("2", "1"), ("1-2", "0-1")] {
                let local = local_memory_nodes(&tree.host, &set(cpus)).unwrap();
                assert_eq!(local, set(node), "{case}: {cpus}");
            }
            let topology = Topology::read(&tree.host).unwrap();
            let remarks = remarks(&topology);
            let file = format!("node/{file} holds {wrong}");
            let is_named = remarks.iter().any(|remark| remark.text.contains(&file));
            assert!(is_named, "{case}: {remarks:?}");
        }
    }
}
