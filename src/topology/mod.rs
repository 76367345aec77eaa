//! The machine's CPUs as sysfs tells them: packages, NUMA nodes, caches, cores, threads; which CPUs
//! are online and which isolated; which NUMA nodes have the memory, and the devices, near them.

mod device;
mod isolcpus;
mod levels;
mod machine;
mod memory;
mod nodes;
mod remarks;
mod told;
mod tree;

use anyhow::{Context, Result, ensure};

pub use device::{nodes_near, nodes_near_number};
pub use isolcpus::isolated;
pub use levels::{CpuGroup, Gap, Gaps, Levels};
pub use machine::{Cache, CoreKind, Node, Topology};
pub use memory::local_memory_nodes;
pub use remarks::{Remark, remarks};
pub use told::Oddity;
pub use tree::{Part, What};

use crate::cpulist::{self, CpuSet};
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;

/// The CPUs that are online (`/sys/devices/system/cpu/online`).
///
/// # Errors
/// The file is missing, names no CPU, or cannot be read: no other file tells for sure.
pub fn online(host: &Host) -> Result<CpuSet> {
    let path = host.sys_cpu("online");
    let text = files::read_record_of(&path)?;
    let cpus: CpuSet = cpulist::of_kernel(&text)
        .parse()
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(
        !cpus.is_empty(),
        Refusal::new(
            format!("read {}: it names no CPU", path.display()),
            "mount the sysfs of a running kernel there"
        )
    );
    Ok(cpus)
}

/// The CPUs of each NUMA node, of these; none where the kernel knows no nodes.
pub fn node_cpus(host: &Host, cpus: &CpuSet) -> Vec<CpuSet> {
    let level = nodes::nodes(host, cpus, &[], &levels::Gap::default());
    level.groups.into_iter().map(|node| node.cpus).collect()
}

/// The online CPUs, one set per physical core with its SMT siblings, by lowest CPU. Where sysfs has
/// no topology (some machines, an old capture), each CPU counts as a core.
pub fn cores(host: &Host) -> Result<Vec<CpuSet>> {
    let cores = levels::cores(host, &online(host)?).groups;
    Ok(cores.into_iter().map(|core| core.cpus).collect())
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
