//! What sysfs says of the machine's CPUs: which are online, which are siblings, which are isolated,
//! and which NUMA nodes have the memory near them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::cpulist::{BadCpuList, CpuSet, LARGEST_CPU};
use crate::files;
use crate::host::Host;

/// The CPUs that can run something now (`/sys/devices/system/cpu/online`).
pub fn online(host: &Host) -> Result<CpuSet> {
    let path = host.sys_cpu("online");
    files::read(&path)?
        .parse()
        .with_context(|| format!("read {}", path.display()))
}

/// The online CPUs, one set per physical core with its SMT siblings, by first CPU.
pub fn cores(host: &Host) -> Result<Vec<CpuSet>> {
    let online = online(host)?;
    let mut cores = BTreeMap::new();
    for cpu in online.iter() {
        let siblings = siblings(host, cpu)?.intersection(&online);
        cores.insert(siblings.first(), siblings);
    }
    Ok(cores.into_values().collect())
}

/// The CPUs that share a core with this one, itself included. Where sysfs has no topology
/// (a machine without it, an old capture) a CPU is a core of its own.
fn siblings(host: &Host, cpu: u32) -> Result<CpuSet> {
    for name in ["core_cpus_list", "thread_siblings_list"] {
        let path = host.sys_cpu(&format!("cpu{cpu}/topology/{name}"));
        if let Some(text) = files::read_if_there(&path)? {
            let mut siblings: CpuSet = text
                .parse()
                .with_context(|| format!("read {}", path.display()))?;
            siblings.extend(&CpuSet::from_iter([cpu]));
            return Ok(siblings);
        }
    }
    Ok(CpuSet::from_iter([cpu]))
}

/// The NUMA nodes with memory that is local to any of `cpus`; all nodes with memory where none of
/// theirs has any, and empty where the kernel knows no nodes.
pub fn local_memory_nodes(host: &Host, cpus: &CpuSet) -> Result<CpuSet> {
    let path = host.sys_node("has_memory");
    let Some(text) = files::read_if_there(&path)? else {
        return Ok(CpuSet::new());
    };
    let with_memory: CpuSet = text
        .parse()
        .with_context(|| format!("read {}", path.display()))?;
    let mut local = CpuSet::new();
    for node in with_memory.iter() {
        let path = host.sys_node(&format!("node{node}/cpulist"));
        let node_cpus: CpuSet = files::read(&path)?
            .parse()
            .with_context(|| format!("read {}", path.display()))?;
        if !node_cpus.intersection(cpus).is_empty() {
            local.extend(&CpuSet::from_iter([node]));
        }
    }
    Ok(if local.is_empty() { with_memory } else { local })
}

/// The CPUs that `isolcpus=` on the kernel's command line takes out of the scheduler's domains.
pub fn isolated(host: &Host) -> Result<CpuSet> {
    let path = host.kernel_command_line();
    let Some(text) = files::read_if_there(&path)? else {
        return Ok(CpuSet::new());
    };
    parse_isolcpus(&text).with_context(|| format!("read isolcpus= in {}", path.display()))
}

/// Parses `isolcpus=[flag,…,]<cpu-list>` (kernel: Documentation/admin-guide/kernel-parameters.txt).
///
/// Without a flag, or with `domain` among them, the CPUs are isolated; `nohz` and `managed_irq` alone
/// isolate nothing from the scheduler. `all` and `N`, the last CPU, stand for numbers as in any
/// bitmap list; CPUs that the machine does not have are for the caller to drop.
fn parse_isolcpus(command_line: &str) -> Result<CpuSet, BadCpuList> {
    let Some(value) = command_line
        .split_whitespace()
        .take_while(|word| *word != "--")
        .find_map(|word| word.trim_matches('"').strip_prefix("isolcpus="))
    else {
        return Ok(CpuSet::new());
    };
    let (flags, list): (Vec<&str>, Vec<&str>) = value
        .split(',')
        .partition(|part| matches!(*part, "nohz" | "domain" | "managed_irq"));
    if !flags.is_empty() && !flags.contains(&"domain") {
        return Ok(CpuSet::new());
    }
    let last = LARGEST_CPU.to_string();
    list.join(",")
        .replace("all", &format!("0-{last}"))
        .replace('N', &last)
        .parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
        }
        let host = Host::new(dir.path());
        (dir, host)
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn isolcpus_with_flags_and_strides() {
        for (line, cpus) in [
            ("quiet root=/dev/sda1", ""),
            ("isolcpus=2-5", "2-5"),
            ("quiet isolcpus=2,4 ro", "2,4"),
            ("isolcpus=managed_irq,domain,2-5", "2-5"),
            ("isolcpus=nohz,domain,managed_irq,2-5,8", "2-5,8"),
            ("isolcpus=managed_irq,2-5", ""),
            ("isolcpus=nohz,2-5", ""),
            ("isolcpus=0-31:2/8", "0-1,8-9,16-17,24-25"),
            ("init=/bin/x -- isolcpus=2", ""),
            ("\"isolcpus=1\"", "1"),
        ] {
            assert_eq!(parse_isolcpus(line).unwrap(), set(cpus), "{line}");
        }
        assert_eq!(parse_isolcpus("isolcpus=8190-N").unwrap(), set("8190-8191"));
        assert_eq!(parse_isolcpus("isolcpus=all").unwrap().len(), 8192);
        assert!(parse_isolcpus("isolcpus=2-x").is_err());
    }

    #[test]
    fn cores_are_siblings_without_the_offline_ones() {
        let (_dir, host) = tree(&[
            ("sys/devices/system/cpu/online", "0-2,4-5\n"),
            (
                "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
                "0,4\n",
            ),
            (
                "sys/devices/system/cpu/cpu4/topology/core_cpus_list",
                "0,4\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                "1,5\n",
            ),
            (
                "sys/devices/system/cpu/cpu5/topology/thread_siblings_list",
                "1,5\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/topology/thread_siblings_list",
                "2,6\n",
            ),
        ]);
        assert_eq!(cores(&host).unwrap(), [set("0,4"), set("1,5"), set("2")]);
    }

    #[test]
    fn memory_is_local_to_the_nodes_of_the_cpus() {
        let (_dir, host) = tree(&[
            ("sys/devices/system/node/has_memory", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
            ("sys/devices/system/node/node2/cpulist", "8\n"),
        ]);
        for (cpus, nodes) in [("0", "0"), ("3-4", "0-1"), ("7", "1"), ("8", "0-1")] {
            let local = local_memory_nodes(&host, &set(cpus)).unwrap();
            assert_eq!(local, set(nodes), "{cpus}");
        }
    }

    #[test]
    fn a_machine_without_nodes_has_no_local_memory() {
        let (_dir, host) = tree(&[("sys/devices/system/cpu/online", "0\n")]);
        assert!(local_memory_nodes(&host, &set("0")).unwrap().is_empty());
    }
}
