//! Which NUMA nodes have the memory near some CPUs.

use anyhow::{Context, Result, ensure};

use super::{read_list, read_needed_list};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// The NUMA nodes with memory that is local to any of `cpus`. Of a node without memory those that are nearest to it
/// (its `distance`); empty where the kernel knows no nodes.
pub fn local_memory_nodes(host: &Host, cpus: &CpuSet) -> Result<CpuSet> {
    let Some(with_memory) = read_list(&host.sys_node("has_memory"))? else {
        return Ok(CpuSet::new());
    };
    let of_cpus = nodes_of(host, cpus)?;
    let mut local = of_cpus.intersection(&with_memory);
    for node in of_cpus.difference(&with_memory).iter() {
        local.extend(&nearest(host, node, &with_memory)?);
    }
    Ok(if local.is_empty() { with_memory } else { local })
}

/// The NUMA nodes that any of `cpus` belongs to; empty where the kernel knows no nodes.
fn nodes_of(host: &Host, cpus: &CpuSet) -> Result<CpuSet> {
    let mut nodes = CpuSet::new();
    for node in nodes_with_cpus(host)?.iter() {
        let node_cpus = read_needed_list(&host.sys_node(&format!("node{node}/cpulist")))?;
        if !node_cpus.is_disjoint(cpus) {
            nodes.extend(&CpuSet::from_iter([node]));
        }
    }
    Ok(nodes)
}

/// The NUMA nodes that have CPUs; empty where the kernel knows no nodes.
pub(super) fn nodes_with_cpus(host: &Host) -> Result<CpuSet> {
    for file in ["has_cpu", "online"] {
        if let Some(nodes) = read_list(&host.sys_node(file))? {
            return Ok(nodes);
        }
    }
    Ok(CpuSet::new())
}

/// Those of `others` with the least distance from a node (kernel: Documentation/ABI/stable/sysfs-devices-node:
/// one number for each node that is online, in their order, without a unit). All of them where it is not told.
fn nearest(host: &Host, node: u32, others: &CpuSet) -> Result<CpuSet> {
    let path = host.sys_node(&format!("node{node}/distance"));
    let Some(text) = files::read_if_there(&path)? else {
        return Ok(others.clone());
    };
    let online = read_needed_list(&host.sys_node("online"))?;
    let distances: Vec<u32> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(
        distances.len() == online.len(),
        "read {}: {} distances of {} nodes",
        path.display(),
        distances.len(),
        online.len()
    );
    let known = || online.iter().zip(&distances);
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
