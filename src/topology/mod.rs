//! What sysfs says of the machine's CPUs: packages, NUMA nodes, caches, cores, threads; which are online, and which
//! are isolated; which NUMA nodes have the memory, and the devices, near them.

mod device;
mod isolcpus;
mod levels;
mod machine;
mod memory;

use std::path::Path;

use anyhow::{Context, Result};

pub use device::{nodes_near, nodes_near_number};
pub use isolcpus::isolated;
pub use levels::{Group, Levels};
pub use machine::{Cache, CoreKind, Node, Topology};
pub use memory::local_memory_nodes;

use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// The CPUs that can run something now (`/sys/devices/system/cpu/online`).
pub fn online(host: &Host) -> Result<CpuSet> {
    read_needed_list(&host.sys_cpu("online"))
}

/// The online CPUs, one set per physical core with its SMT siblings, by first CPU. Where sysfs has no topology
/// (a machine without it, an old capture) a CPU is a core of its own.
pub fn cores(host: &Host) -> Result<Vec<CpuSet>> {
    let cores = levels::cores(host, &online(host)?)?;
    Ok(cores.into_iter().map(|core| core.cpus).collect())
}

/// A file in list format; `None` where there is none.
fn read_list(path: &Path) -> Result<Option<CpuSet>> {
    let text = files::read_if_there(path)?;
    let list = text.map(|text| text.parse()).transpose();
    list.with_context(|| format!("read {}", path.display()))
}

fn read_needed_list(path: &Path) -> Result<CpuSet> {
    files::read(path)?
        .parse()
        .with_context(|| format!("read {}", path.display()))
}

/// A file with one number; `None` where there is none, or something else.
fn read_number(path: &Path) -> Result<Option<u64>> {
    let text = files::read_if_there(path)?;
    Ok(text.and_then(|text| text.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    pub(super) fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
        }
        let host = Host::new(dir.path());
        (dir, host)
    }

    pub(super) fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
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
}
