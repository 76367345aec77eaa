//! The situations that the tests of the kubelet's static CPU manager cover (kubernetes,
//! pkg/kubelet/cm/cpumanager), told in our own words: the same machines, the same CPUs free, the
//! same request. Where a list is a CPU, lists stand for the kubelet's CPUs; where it is a core, for
//! its groups of two. Its tests of single functions have no counterpart.

use crate::machines::{Cpu, Shape, set};
use crate::pool::{Pool, want};

/// What a list is.
#[derive(Clone, Copy)]
enum Lists {
    Threads,
    Cores,
}
use Lists::{Cores, Threads};

fn one_package() -> Shape {
    Shape::regular([1, 1, 1, 4, 2])
}

/// Two packages whose CPUs alternate, three cores of two threads each.
fn two_packages() -> Shape {
    let cpu = |number: u32| Cpu {
        package: number % 2,
        node: number % 2,
        cache: number % 2,
        core: number % 6,
    };
    Shape {
        cpus: (0..12).map(|number| (number, cpu(number))).collect(),
    }
}

fn two_packages_of_two_nodes() -> Shape {
    Shape::regular([2, 2, 1, 10, 2])
}

/// Two nodes of two packages each.
fn two_nodes_of_two_packages() -> Shape {
    let mut shape = Shape::regular([4, 1, 1, 10, 2]);
    for cpu in shape.cpus.values_mut() {
        cpu.node = cpu.package / 2;
    }
    shape
}

fn eight_nodes() -> Shape {
    Shape::regular([2, 4, 1, 16, 2])
}

/// A package with four last-level caches of four cores.
fn split_cache() -> Shape {
    Shape::regular([1, 1, 4, 4, 2])
}

struct Case {
    situation: &'static str,
    machine: fn() -> Shape,
    lists: Lists,
    free: &'static str,
    request: &'static str,
    chosen: &'static str,
    /// What the kubelet chooses, and why we do not.
    differs: Option<(&'static str, &'static str)>,
}

const fn same(
    situation: &'static str,
    machine: fn() -> Shape,
    lists: Lists,
    free: &'static str,
    request: &'static str,
    chosen: &'static str,
) -> Case {
    Case {
        situation,
        machine,
        lists,
        free,
        request,
        chosen,
        differs: None,
    }
}

const REFUSED: &str = "refused";

const PACKED: &[Case] = &[
    same(
        "more than is free",
        one_package,
        Threads,
        "0,2,4,6",
        "lists=5",
        REFUSED,
    ),
    same(
        "one CPU of an empty machine",
        one_package,
        Threads,
        "0-7",
        "lists=1",
        "0",
    ),
    same(
        "one CPU where a core is broken already",
        one_package,
        Threads,
        "1,3,5-7",
        "lists=1",
        "6",
    ),
    same(
        "two CPUs of an empty machine are a core",
        one_package,
        Threads,
        "0-7",
        "lists=2",
        "0,4",
    ),
    same(
        "all of a machine",
        one_package,
        Threads,
        "0-7",
        "lists=8",
        "0-7",
    ),
    same(
        "two CPUs where one core is whole",
        one_package,
        Threads,
        "0-3,6",
        "lists=2",
        "2,6",
    ),
    same(
        "one CPU of the fuller package",
        two_packages,
        Threads,
        "1-5,7-11",
        "lists=1",
        "2",
    ),
    same(
        "a whole package",
        two_packages,
        Threads,
        "0-11",
        "lists=6",
        "0,2,4,6,8,10",
    ),
    same(
        "a package of two nodes",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=40",
        "0-19,40-59",
    ),
    same(
        "a node",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=20",
        "0-9,40-49",
    ),
    same(
        "a node where one is taken",
        two_packages_of_two_nodes,
        Threads,
        "10-39,50-79",
        "lists=20",
        "10-19,50-59",
    ),
    same(
        "a package and a node",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=60",
        "0-29,40-69",
    ),
    same(
        "a package and a node where a core of the first is taken",
        two_packages_of_two_nodes,
        Threads,
        "1-39,41-79",
        "lists=60",
        "10-39,50-79",
    ),
    same(
        "a package that is filled and a core of the other",
        two_packages,
        Threads,
        "0-11",
        "lists=8",
        "0-2,4,6-8,10",
    ),
    same(
        "three nodes that are filled and two cores of the fourth",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=64",
        "0-31,40-71",
    ),
    same(
        "a node of two packages",
        two_nodes_of_two_packages,
        Threads,
        "0-79",
        "lists=40",
        "0-19,40-59",
    ),
    same(
        "a package of a node of two",
        two_nodes_of_two_packages,
        Threads,
        "0-79",
        "lists=20",
        "0-9,40-49",
    ),
    same(
        "an even number of CPUs in whole cores",
        one_package,
        Cores,
        "0-7",
        "cpus=4",
        "0-1,4-5",
    ),
    Case {
        situation: "an odd number of CPUs in whole cores",
        machine: one_package,
        lists: Cores,
        free: "0-7",
        request: "cpus=3",
        chosen: "0-1,4-5",
        differs: Some((
            REFUSED,
            "a list is given whole: at least so many CPUs were asked for",
        )),
    },
];

const CACHES: &[Case] = &[
    same(
        "what fits under a cache is under one",
        split_cache,
        Threads,
        "0-31",
        "lists=8",
        "0-3,16-19",
    ),
    same(
        "less than a cache holds is under one",
        split_cache,
        Threads,
        "0-31",
        "lists=6",
        "0-2,16-18",
    ),
    same(
        "a broken cache that suffices is filled first",
        split_cache,
        Threads,
        "2-31",
        "lists=4",
        "2-3,18-19",
    ),
    same(
        "a broken cache that does not suffice is left",
        split_cache,
        Threads,
        "3-15,19-31",
        "lists=4",
        "4-5,20-21",
    ),
    same(
        "whole caches and a part",
        split_cache,
        Threads,
        "0-31",
        "lists=12",
        "0-5,16-21",
    ),
    same(
        "more than any cache has left is under as few as it can be",
        split_cache,
        Threads,
        "2-3,6-7,8-9,12-15,18-19,22-23,24-25,28-31",
        "lists=10",
        "2,12-15,18,28-31",
    ),
];

const SPREAD: &[Case] = &[
    same(
        "two cores of each package",
        two_packages,
        Threads,
        "0-11",
        "lists=8",
        "0-3,6-9",
    ),
    same(
        "eight cores of each node",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=64",
        "0-7,10-17,20-27,30-37,40-47,50-57,60-67,70-77",
    ),
    same(
        "eight cores of each of as few nodes as have them",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=48",
        "0-7,10-17,20-27,40-47,50-57,60-67",
    ),
    same(
        "the three nodes that leave the least difference: the first ones",
        two_packages_of_two_nodes,
        Threads,
        "1-29,32-39,41-69,72-79",
        "lists=48",
        "1-8,10-17,20-27,41-48,50-57,60-67",
    ),
    same(
        "the three nodes that leave the least difference: the last ones",
        two_packages_of_two_nodes,
        Threads,
        "2-29,31-39,42-69,71-79",
        "lists=48",
        "10-17,20-27,31-38,50-57,60-67,71-78",
    ),
    same(
        "two cores of each node where each has but five CPUs",
        two_packages_of_two_nodes,
        Threads,
        "0-2,10-12,20-22,30-32,40-41,50-51,60-61,70-71",
        "lists=16",
        "0-1,10-11,20-21,30-31,40-41,50-51,60-61,70-71",
    ),
    same(
        "an odd number of cores of two nodes",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=26",
        "0-6,10-16,40-45,50-55",
    ),
    same(
        "an odd number of whole cores of two nodes",
        two_packages_of_two_nodes,
        Cores,
        "0-79",
        "lists=13",
        "0-6,10-15,40-46,50-55",
    ),
    same(
        "what cannot be divided goes to the first of equal nodes",
        two_packages_of_two_nodes,
        Threads,
        "0-79",
        "lists=62",
        "0-7,10-17,20-27,30-37,40-47,50-57,60-66,70-76",
    ),
    same(
        "whole cores that cannot be divided go to the first of equal nodes",
        two_packages_of_two_nodes,
        Cores,
        "0-79",
        "lists=31",
        "0-7,10-17,20-27,30-36,40-47,50-57,60-67,70-76",
    ),
    same(
        "what cannot be divided goes to the nodes with the most left",
        two_packages_of_two_nodes,
        Threads,
        "0-8,10-18,20-39,40-48,50-58,60-79",
        "lists=62",
        "0-7,10-17,20-27,30-37,40-46,50-56,60-67,70-77",
    ),
    same(
        "whole cores that cannot be divided go to the nodes with the most left",
        two_packages_of_two_nodes,
        Cores,
        "0-8,10-18,20-39,40-48,50-58,60-79",
        "lists=31",
        "0-7,10-16,20-27,30-37,40-47,50-56,60-67,70-77",
    ),
    same(
        "what cannot be divided goes only where there is room",
        two_packages_of_two_nodes,
        Threads,
        "0-3,10-13,20-23,30-36,40-43,50-53,60-63,70-76",
        "lists=34",
        "0-3,10-13,20-23,30-34,40-43,50-53,60-63,70-74",
    ),
    Case {
        situation: "a large machine on which much is taken",
        machine: eight_nodes,
        lists: Threads,
        free: "0,128,30-31,158-159,43-47,171-175,62-63,190-191,75-79,203-207,94,96,222-223,101-111,229-239,126-127,254-255",
        request: "lists=28",
        chosen: "43-47,75-79,101-105,171-174,203-206,229-233",
        differs: Some((
            "43-47,75-79,96,101-105,171-174,203-206,229-232",
            "of one node ten CPUs are five whole cores, not four and the halves of two",
        )),
    },
    Case {
        situation: "one CPU",
        machine: two_packages,
        lists: Threads,
        free: "1-5,7-11",
        request: "lists=1",
        chosen: "2",
        differs: Some(("1", "what cannot be spread is packed")),
    },
    Case {
        situation: "what fits on one node",
        machine: two_packages_of_two_nodes,
        lists: Threads,
        free: "0-79",
        request: "lists=20",
        chosen: "0-4,10-14,40-44,50-54",
        differs: Some((
            "0-9,40-49",
            "whoever asks a container to be spread wants more than one node",
        )),
    },
];

const ONE_NODE: &[Case] = &[
    same(
        "a node that is free",
        two_packages,
        Threads,
        "0-11",
        "numa=single lists=6",
        "0,2,4,6,8,10",
    ),
    same(
        "no node alone suffices",
        two_packages,
        Threads,
        "0-3,6-9",
        "numa=single lists=6",
        REFUSED,
    ),
    same(
        "the only node that suffices",
        two_packages,
        Threads,
        "0-1,3,5-7,9,11",
        "numa=single lists=5",
        "1,3,5,7,9",
    ),
];

fn check(cases: &[Case], also: &str) {
    for case in cases {
        let levels = (case.machine)().levels();
        let pool = match case.lists {
            Threads => Pool::of_threads(levels),
            Cores => Pool::of_cores(levels),
        };
        let request = format!("{} {also}", case.request);
        let chosen = pool.with_free(case.free).cpus(&want(&request));
        let chosen = chosen.map_or_else(|_| REFUSED.to_owned(), |cpus| cpus.to_string());
        assert_eq!(chosen, case.chosen, "{} ({request})", case.situation);
        if let Some((theirs, why)) = case.differs {
            assert_ne!(chosen, theirs, "{}: no longer {why}", case.situation);
            assert!(theirs == REFUSED || !set(theirs).is_empty());
        }
    }
}

#[test]
fn packed() {
    check(PACKED, "");
}

#[test]
fn packed_by_caches() {
    check(CACHES, "");
}

#[test]
fn distributed_across_nodes() {
    check(SPREAD, "numa=spread");
}

#[test]
fn on_a_single_node() {
    check(ONE_NODE, "");
}
