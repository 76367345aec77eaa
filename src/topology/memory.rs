//! The NUMA nodes with the memory near some CPUs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::levels::Levels;
use super::nodes;
use super::told::{Format, Reader};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;

const DROP: &str = "drop pinfold.io/mems";

/// The NUMA nodes with memory local to any of `cpus`. For a node without memory: the nodes with
/// memory that are nearest to it (`distance`). Empty where the kernel knows no nodes.
///
/// # Errors
/// The kernel knows nodes but does not tell which have memory, or which node a CPU belongs to.
pub fn local_memory_nodes(host: &Host, cpus: &CpuSet) -> Result<CpuSet> {
    let reader = Reader::new(host);
    let nodes = nodes::all(&reader);
    if nodes.is_empty() {
        return Ok(CpuSet::new());
    }
    let mut with_memory = nodes_with_memory(&reader, &nodes);
    ensure!(
        !with_memory.is_empty(),
        Refusal::new(
            format!(
                "the kernel does not tell which NUMA nodes have memory ({} and the nodes' meminfo)",
                host.sys_node("has_memory").display()
            ),
            DROP
        )
    );
    let levels = Levels::without_cores(host, cpus);
    let gap = &levels.gaps.nodes;
    ensure!(
        gap.cpus.is_empty(),
        Refusal::new(
            format!(
                "the kernel does not tell the NUMA node of the CPUs {} ({gap})",
                gap.cpus
            ),
            DROP
        )
    );
    let of_cpus: CpuSet = levels.nodes.iter().map(|node| node.id).collect();
    // A node's `meminfo` is more reliable than a list of all nodes.
    for node in of_cpus.iter() {
        match told_memory(&reader, node) {
            Some(0) => with_memory = with_memory.difference(&CpuSet::from_iter([node])),
            Some(_) => with_memory.insert(node),
            None => {}
        }
    }
    let mut local = of_cpus.intersection(&with_memory);
    for node in of_cpus.difference(&with_memory).iter() {
        local.extend(&nearest(host, node, &nodes, &with_memory)?);
    }
    Ok(if local.is_empty() { with_memory } else { local })
}

/// The nodes that `has_memory` lists; else those of `has_normal_memory` (before Linux 3.9); else
/// those whose `meminfo` counts memory.
fn nodes_with_memory(reader: &Reader<'_>, nodes: &CpuSet) -> CpuSet {
    let file = |name| (reader.host.sys_node(name), Format::List);
    let told = reader.first(&[file("has_memory"), file("has_normal_memory")], None);
    told.unwrap_or_else(|| {
        let has_memory = |node: &u32| memory_of(reader, *node) > 0;
        nodes.iter().filter(has_memory).collect()
    })
}

/// The memory of a node in KiB. Where `meminfo` does not tell: 0, and that is noted.
pub(super) fn memory_of(reader: &Reader<'_>, node: u32) -> u64 {
    let told = told_memory(reader, node);
    let path = meminfo(reader, node);
    if told.is_none() && !reader.has_noted_below(&path) {
        reader.note(&path, "tells no MemTotal");
    }
    told.unwrap_or(0)
}

/// The `MemTotal:` of a node's `meminfo`, in KiB.
fn told_memory(reader: &Reader<'_>, node: u32) -> Option<u64> {
    let text = reader.text(&meminfo(reader, node)).value()?;
    let (_, rest) = text.split_once("MemTotal:")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn meminfo(reader: &Reader<'_>, node: u32) -> PathBuf {
    reader.host.sys_node(&format!("node{node}/meminfo"))
}

/// The nodes of `others` with the least distance from a node (kernel:
/// Documentation/ABI/stable/sysfs-devices-node: one number per online node, in their order, without
/// a unit). All of `others` where there is no such file.
fn nearest(host: &Host, node: u32, nodes: &CpuSet, others: &CpuSet) -> Result<CpuSet> {
    let path = host.sys_node(&format!("node{node}/distance"));
    if others.len() == 1 {
        return Ok(others.clone());
    }
    let Some(text) = files::read_if_there(&path)? else {
        return Ok(others.clone());
    };
    let distances: Vec<u32> = crate::cpulist::of_kernel(&text)
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(
        distances.len() == nodes.len(),
        Refusal::new(
            format!(
                "read {}: {} distances of {} nodes",
                path.display(),
                distances.len(),
                nodes.len()
            ),
            DROP
        )
    );
    let known = || nodes.iter().zip(&distances);
    let candidates = || known().filter(|(other, _)| others.contains(*other));
    let least = candidates().map(|(_, distance)| distance).min();
    Ok(candidates()
        .filter(|(_, distance)| Some(*distance) == least)
        .map(|(other, _)| other)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{set, tree};
    use super::*;

    #[test]
    fn memory_is_local_to_the_nodes_of_the_cpus() {
        let (_dir, host) = tree(&[
            ("sys/devices/system/node/online", "0-2\n"),
            ("sys/devices/system/node/has_cpu", "0-2\n"),
            ("sys/devices/system/node/has_memory", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
            ("sys/devices/system/node/node2/cpulist", "8\n"),
            ("sys/devices/system/node/node2/distance", "21 17 10\n"),
        ]);
        for (cpus, nodes) in [
            ("0", "0"),
            ("3-4", "0-1"),
            ("7", "1"),
            ("8", "1"),
            ("0,8", "0-1"),
        ] {
            let local = local_memory_nodes(&host, &set(cpus)).unwrap();
            assert_eq!(local, set(nodes), "{cpus}");
        }
    }

    #[test]
    fn without_distances_any_memory_is_as_near() {
        let (_dir, host) = tree(&[
            ("sys/devices/system/node/online", "0-2\n"),
            ("sys/devices/system/node/has_memory", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
            ("sys/devices/system/node/node2/cpulist", "8\n"),
        ]);
        assert_eq!(local_memory_nodes(&host, &set("8")).unwrap(), set("0-1"));
    }

    #[test]
    fn a_machine_without_nodes_has_no_local_memory() {
        let (_dir, host) = tree(&[("sys/devices/system/cpu/online", "0\n")]);
        assert!(local_memory_nodes(&host, &set("0")).unwrap().is_empty());
    }
}
