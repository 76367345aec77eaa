//! What is chosen on machines of all kinds.

use pinfold::choose::{NoChoice, Scattered, Within};
use pinfold::cpulist::CpuSet;
use pinfold::topology::{Levels, online};

use crate::machines::{Cpu, Shape, captured, set};
use crate::pool::{Pool, want};

fn captured_levels(name: &str) -> Levels {
    let tree = captured(name);
    Levels::of(&tree.host, &online(&tree.host).unwrap())
}

/// Two cores of two threads, eight of one.
fn hybrid() -> Levels {
    let cpu = |number: u32| Cpu {
        package: 0,
        node: 0,
        cache: 0,
        core: if number < 4 { number / 2 } else { number },
    };
    let cpus = (0..12).map(|number| (number, cpu(number))).collect();
    Shape { cpus }.levels()
}

/// Rows of free CPUs, request, and the chosen CPUs; a list a core.
fn check(name: &str, levels: &Levels, rows: &[(&str, &str, &str)]) {
    for (free, request, chosen) in rows {
        let pool = Pool::of_cores(levels.clone());
        let all = pool.free.to_string();
        let pool = pool.with_free(if free.is_empty() { &all } else { free });
        let got = pool.cpus(&want(request));
        let got = got.map_or_else(|refusal| format!("{refusal:?}"), |cpus| cpus.to_string());
        assert_eq!(&got, chosen, "{name}: {request} of {free}");
    }
}

#[test]
fn two_cpus() {
    check(
        "real-2-cpus",
        &captured_levels("real-2-cpus"),
        &[
            ("", "lists=1", "0"),
            ("1", "lists=1", "1"),
            ("", "cpus=2 numa=single cache=single", "0-1"),
            ("", "lists=2 numa=spread", "0-1"),
            ("1", "cpus=2", "Exhausted { free: 1 }"),
            ("", "cpus=3 numa=0", "TooSmall { all: 2 }"),
            ("", "lists=1 near=0 rather=0", "0"),
        ],
    );
}

#[test]
fn one_package_with_smt() {
    check(
        "emulated-1-package-smt",
        &captured_levels("emulated-1-package-smt"),
        &[
            ("", "cpus=1", "0-1"),
            ("", "cpus=3", "0-3"),
            ("2-7", "lists=2 numa=single", "2-5"),
            ("", "cpus=8 cache=single", "0-7"),
        ],
    );
}

#[test]
fn no_smt() {
    check(
        "emulated-2-packages-no-smt",
        &captured_levels("emulated-2-packages-no-smt"),
        &[
            ("", "cpus=4", "0-3"),
            ("1-7", "cpus=4", "4-7"),
            ("1-7", "cpus=3", "1-3"),
            ("1-7", "cpus=2", "1-2"),
            ("1-7", "cpus=5", "1,4-7"),
            ("", "cpus=4 numa=spread", "0-1,4-5"),
            ("", "cpus=2 numa=1", "4-5"),
            ("", "cpus=2 near=1", "4-5"),
        ],
    );
}

#[test]
fn two_packages_of_two_nodes() {
    check(
        "emulated-2-packages-4-nodes",
        &captured_levels("emulated-2-packages-4-nodes"),
        &[
            ("", "cpus=8", "0-7"),
            ("", "cpus=16", "0-15"),
            // Two whole nodes of one package before two of two.
            ("0-7,16-31", "cpus=16", "16-31"),
            // The rest of a used package before an empty one.
            ("4-31", "cpus=8", "8-15"),
            ("4-31", "cpus=4", "4-7"),
            // Few nodes before nearness that was asked for, and that before few packages.
            ("0-7,10-31", "cpus=8 near=1", "0-7"),
            ("8-31", "cpus=16 near=1", "8-23"),
            ("8-31", "cpus=16 rather=1", "16-31"),
            ("", "cpus=4 rather=3", "24-27"),
            ("", "cpus=4 near=2 rather=3", "16-19"),
            ("", "cpus=16 near=3", "16-31"),
            ("", "cpus=12 numa=spread near=3", "0-5,24-29"),
        ],
    );
}

#[test]
fn eight_nodes_with_four_caches_each() {
    check(
        "emulated-8-nodes-128-threads",
        &captured_levels("emulated-8-nodes-128-threads"),
        &[
            ("", "cpus=4", "0-3"),
            ("2-127", "cpus=2", "2-3"),
            ("2-127", "cpus=4", "4-7"),
            // One node with more caches before two nodes with as many.
            (
                "0-1,4-5,8-9,12-13,16-19,32-35",
                "cpus=8",
                "0-1,4-5,8-9,12-13",
            ),
            ("", "cpus=16 numa=5", "80-95"),
            ("", "cpus=4 cache=single numa=5", "80-83"),
            ("", "cpus=64", "0-63"),
            // Of two packages with enough nodes the fuller.
            ("0-63,80-127", "cpus=32", "80-111"),
        ],
    );
}

#[test]
fn eight_nodes_with_256_threads_and_sixteen_caches_a_package() {
    check(
        "made-up 256 threads",
        &Shape::regular([2, 4, 4, 4, 2]).levels(),
        &[
            ("", "cpus=8", "0-3,128-131"),
            ("", "cpus=6", "0-2,128-130"),
            ("1-127,129-255", "cpus=6", "1-3,129-131"),
            ("1-127,129-255", "cpus=8", "4-7,132-135"),
            ("", "cpus=33", "0-16,128-144"),
            ("16-127,144-255", "cpus=64", "16-47,144-175"),
            (
                "",
                "lists=64 numa=single",
                "Scattered(Scattered { within: OneNode, free: 128, places: 4, fits: 16, node: 0, ever: false })",
            ),
            (
                "",
                "cpus=10 cache=single",
                "Scattered(Scattered { within: OneCache, free: 256, places: 2, fits: 8, node: 0, ever: false })",
            ),
        ],
    );
}

#[test]
fn a_node_without_cpus() {
    check(
        "emulated-memory-node",
        &captured_levels("emulated-memory-node"),
        &[
            ("", "cpus=4 numa=single", "0-3"),
            ("", "cpus=2 near=1", "0-1"),
            ("", "lists=2 numa=spread", "0-3"),
            (
                "",
                "cpus=2 numa=1",
                "Scattered(Scattered { within: Node(1), free: 4, places: 1, fits: 0, node: 1, ever: false })",
            ),
        ],
    );
}

#[test]
fn cores_of_several_sizes() {
    check(
        "made-up hybrid",
        &hybrid(),
        &[
            ("", "cpus=1", "4"),
            ("", "cpus=2", "0-1"),
            ("", "cpus=3", "0-1,4"),
            ("2-11", "cpus=4", "2-5"),
            ("4-11", "cpus=2", "4-5"),
            ("", "cpus=12", "0-11"),
            ("", "lists=1", "0-1"),
        ],
    );
}

#[test]
fn offline_holes() {
    check(
        "emulated-offline-holes",
        &captured_levels("emulated-offline-holes"),
        &[
            // Of the node that is used up by it.
            ("", "cpus=2", "4,7"),
            ("", "cpus=1", "4"),
            ("", "cpus=3 numa=single", "0-2"),
            ("", "cpus=2 numa=1", "4,7"),
            (
                "",
                "cpus=4 numa=single",
                "Scattered(Scattered { within: OneNode, free: 5, places: 2, fits: 3, node: 0, ever: false })",
            ),
        ],
    );
}

#[test]
fn a_refusal_tells_what_would_have_fitted() {
    let levels = Shape::regular([2, 1, 1, 4, 1]).levels();
    let pool = Pool::of_cores(levels).with_free("3,5,7");
    let refusal = pool.cpus(&want("lists=3 numa=single")).unwrap_err();
    assert_eq!(
        refusal,
        NoChoice::Scattered(Scattered {
            within: Within::OneNode,
            free: 3,
            places: 2,
            fits: 2,
            node: 1,
            ever: true,
        })
    );
}

/// What it gets again: rows of free CPUs, request, the CPUs that it had, and those that it gets.
#[test]
fn who_comes_back() {
    let rows = [
        // The empty node is kept whole for others, unless one had its lists there.
        ("0,2-7", "lists=1", "5", "5"),
        ("0,2-7", "lists=1", "1", "0"),
        ("", "lists=2", "6-7", "6-7"),
        // One of two is taken: the other, and one beside it.
        ("0-5,7", "lists=2", "6-7", "4,7"),
        // Fewer than before, of what it had.
        ("", "lists=1", "6-7", "6"),
        // It is asked for elsewhere now.
        ("", "lists=1 numa=0", "7", "0"),
        ("", "lists=1 near=0", "7", "0"),
        ("", "lists=1 rather=0", "7", "0"),
        ("", "lists=2 numa=spread", "6-7", "0,4"),
        ("", "lists=2 numa=spread", "3,6", "3,6"),
        // It lay scattered for want of better.
        ("", "lists=2", "3,6", "0-1"),
        ("", "lists=2 cache=single", "3,6", "0-1"),
        // More than before.
        ("", "lists=3", "6-7", "4,6-7"),
        ("", "cpus=3", "6", "4-6"),
    ];
    let levels = Shape::regular([2, 1, 1, 4, 1]).levels();
    for (free, request, had, expected) in rows {
        let pool = Pool::of_cores(levels.clone());
        let all = pool.free.to_string();
        let pool = pool.with_free(if free.is_empty() { &all } else { free });
        let had: Vec<usize> = set(had).iter().map(|cpu| cpu as usize).collect();
        let got = pool.choose_again(&want(request), &had).unwrap();
        let got: CpuSet = got
            .iter()
            .flat_map(|index| pool.lists[*index].iter())
            .collect();
        assert_eq!(
            got.to_string(),
            expected,
            "{request} of {free}, had {had:?}"
        );
    }
}
