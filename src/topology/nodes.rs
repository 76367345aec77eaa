//! The NUMA nodes, and the CPUs of each.

use std::path::PathBuf;

use super::levels::{CpuGroup, Gap, Grouping};
use super::told::{FileValue, Format, Reader};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// The nodes of some CPUs, by number. The nodes' own lists decide which nodes have CPUs, because
/// `has_cpu` is empty on some kernels and can be wrong; nodes that it leaves out are read where
/// CPUs remain without a node. Where the kernel knows no nodes, packages stand for them: memory is
/// divided by package at best.
pub(super) fn nodes(
    host: &Host,
    cpus: &CpuSet,
    packages: &[CpuGroup],
    packages_gap: &Gap,
) -> Grouping {
    let reader = Reader::new(host);
    let numbers = numbers(&reader);
    let mut level = Grouping {
        untold: cpus.clone(),
        ..Grouping::default()
    };
    let take = |level: &mut Grouping, id: u32, cpus: &CpuSet| {
        let cpus = level.untold.intersection(cpus);
        level.untold = level.untold.difference(&cpus);
        match level.groups.iter_mut().find(|group| group.id == id) {
            Some(group) => group.cpus.extend(&cpus),
            None if cpus.is_empty() => {}
            None => level.groups.push(CpuGroup { id, cpus }),
        }
    };
    match numbers.len() {
        0 => {
            let told = packages
                .iter()
                .filter(|package| package.cpus.is_disjoint(&packages_gap.cpus));
            for (index, package) in told.enumerate() {
                take(&mut level, index as u32, &package.cpus);
            }
        }
        count => {
            let told_by = |level: &mut Grouping, nodes: &CpuSet| {
                for node in nodes.iter() {
                    let of_node = cpus_of(&reader, node).unwrap_or_default();
                    take(level, node, &of_node);
                }
            };
            told_by(&mut level, &numbers);
            if !level.untold.is_empty() {
                // The list of nodes with CPUs lacks a node, or a node's own list cannot be read.
                let mut others = all(&reader);
                others.extend(&by_directory(&reader));
                told_by(&mut level, &others.difference(&numbers));
            }
            if !level.untold.is_empty() && count > 1 {
                note_empty(&reader, &numbers);
            }
            for cpu in level.untold.clone().iter() {
                if let Some(node) = node_of(&reader, cpu) {
                    take(&mut level, node, &CpuSet::from_iter([cpu]));
                }
            }
            if count == 1 {
                take(&mut level, numbers.first().unwrap_or_default(), cpus);
            }
        }
    }
    if !level.untold.is_empty() {
        level.groups.push(CpuGroup {
            id: CpuGroup::UNTOLD,
            cpus: level.untold.clone(),
        });
    }
    level.groups.sort_by_key(|node| node.id);
    level.odd = reader.into_odd();
    level
}

/// The nodes that are read first: those that `has_cpu` lists, else all. Empty where the kernel
/// knows no nodes.
pub(super) fn numbers(reader: &Reader<'_>) -> CpuSet {
    let has_cpu = (reader.host.sys_node("has_cpu"), Format::List);
    reader
        .first(&[has_cpu], None)
        .unwrap_or_else(|| all(reader))
}

/// All nodes, those without CPUs included.
pub(super) fn all(reader: &Reader<'_>) -> CpuSet {
    let online = (reader.host.sys_node("online"), Format::List);
    if let Some(nodes) = reader.first(&[online], None) {
        return nodes;
    }
    let nodes = by_directory(reader);
    if nodes.is_empty() {
        reader.note(&reader.host.sys_node(""), "is missing, or names no node");
    }
    nodes
}

/// The nodes that have a directory.
fn by_directory(reader: &Reader<'_>) -> CpuSet {
    let directory = reader.host.sys_node("");
    let names = files::directories_in(&directory).unwrap_or_else(|error| {
        reader.note(
            &directory,
            format!("cannot be read: {}", error.root_cause()),
        );
        Vec::new()
    });
    names.iter().filter_map(|name| number_of(name)).collect()
}

/// Notes where `has_cpu`, `has_memory` and `online` contradict the nodes' own files.
pub(super) fn note_contradictions(reader: &Reader<'_>, with_cpus: &CpuSet, with_memory: &CpuSet) {
    for (name, what, nodes) in [
        ("has_cpu", "CPUs", with_cpus),
        ("has_memory", "memory", with_memory),
    ] {
        let path = reader.host.sys_node(name);
        match reader.set(&path, Format::List) {
            FileValue::Value(said) if said != *nodes && !nodes.is_empty() => reader.note(
                &path,
                format!("holds {said}, and by their own files the nodes {nodes} have {what}"),
            ),
            _ => {}
        }
    }
    let path = reader.host.sys_node("online");
    match reader.set(&path, Format::List) {
        FileValue::Value(said) if !with_cpus.is_subset(&said) => reader.note(
            &path,
            format!("holds {said}, and the nodes {with_cpus} have CPUs"),
        ),
        _ => {}
    }
}

/// The CPUs of a node; `None` where no file tells them, or where it has none.
pub(super) fn cpus_of(reader: &Reader<'_>, node: u32) -> Option<CpuSet> {
    let list = reader.set(&cpulist(reader.host, node), Format::List);
    let map = || {
        reader.set(
            &reader.host.sys_node(&format!("node{node}/cpumap")),
            Format::Mask,
        )
    };
    list.value().or_else(|| map().value())
}

/// Notes the nodes that tell no CPUs. A node of memory alone has none; but where CPUs are left
/// without a node, they may be of such a node.
fn note_empty(reader: &Reader<'_>, nodes: &CpuSet) {
    for node in nodes.iter() {
        let path = cpulist(reader.host, node);
        match reader.text(&path) {
            FileValue::Missing => reader.note(&path, "is missing"),
            FileValue::Nothing => reader.note(&path, "is empty"),
            FileValue::Odd | FileValue::Value(_) => {}
        }
    }
}

fn cpulist(host: &Host, node: u32) -> PathBuf {
    host.sys_node(&format!("node{node}/cpulist"))
}

/// The node that a CPU's own directory links to.
fn node_of(reader: &Reader<'_>, cpu: u32) -> Option<u32> {
    let names = files::names_in(&reader.host.sys_cpu(&format!("cpu{cpu}"))).ok()?;
    names.iter().find_map(|name| number_of(name))
}

fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("node")?.parse().ok()
}
