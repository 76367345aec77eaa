//! The levels of a machine that a choice of CPUs looks at, read with as few files as will do.

use anyhow::Result;

use super::memory::nodes_with_cpus;
use super::{read_list, read_needed_list, read_number};
use crate::cpulist::CpuSet;
use crate::host::Host;

/// Where a last-level cache is first looked for, the `index3` of machines with three levels.
const USUAL_LAST_INDEX: u32 = 3;

/// CPUs that have something in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The kernel's number of a node or a package; the lowest CPU of a cache, a core, or anything else.
    pub id: u32,
    /// The CPUs; never empty.
    pub cpus: CpuSet,
}

/// Which of some CPUs share a NUMA node, a package, a last-level cache, a core. Every CPU is in one group of each
/// level; what the kernel does not tell counts as shared by all, but a core, which is then a CPU.
///
/// Neither packages nor nodes need lie within the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels {
    /// NUMA nodes, by number.
    pub nodes: Vec<Group>,
    /// Packages (sockets), by lowest CPU.
    pub packages: Vec<Group>,
    /// Last-level caches, by lowest CPU.
    pub caches: Vec<Group>,
    /// Physical cores with their SMT siblings, by lowest CPU.
    pub cores: Vec<Group>,
}

impl Levels {
    /// Reads where these CPUs, which are online, lie: about one file a node, a package, a cache and a core.
    pub fn of(host: &Host, cpus: &CpuSet) -> Result<Levels> {
        Ok(Levels {
            cores: cores(host, cpus)?,
            ..Levels::without_cores(host, cpus)?
        })
    }

    /// The same without asking for cores, of which there are many: each CPU stands for one.
    pub fn without_cores(host: &Host, cpus: &CpuSet) -> Result<Levels> {
        Ok(Levels {
            nodes: nodes(host, cpus)?,
            packages: packages(host, cpus)?,
            caches: caches(host, cpus)?,
            cores: groups(cpus, |_| Ok(Some(CpuSet::new())))?,
        })
    }
}

fn nodes(host: &Host, cpus: &CpuSet) -> Result<Vec<Group>> {
    let numbers = nodes_with_cpus(host)?;
    let mut left = cpus.clone();
    let mut nodes = Vec::new();
    for (index, id) in numbers.iter().enumerate() {
        // The last node has what no other has: a machine with one node needs no file.
        let is_last = index + 1 == numbers.len();
        let cpus = match is_last {
            true => left.clone(),
            false => {
                read_needed_list(&host.sys_node(&format!("node{id}/cpulist")))?.intersection(&left)
            }
        };
        left = left.difference(&cpus);
        nodes.extend((!cpus.is_empty()).then_some(Group { id, cpus }));
    }
    if !left.is_empty() {
        nodes.push(Group { id: 0, cpus: left });
    }
    Ok(nodes)
}

fn packages(host: &Host, cpus: &CpuSet) -> Result<Vec<Group>> {
    let mut packages = groups(cpus, |cpu| {
        siblings(host, cpu, ["package_cpus_list", "core_siblings_list"])
    })?;
    for package in &mut packages {
        let file = format!("cpu{}/topology/physical_package_id", package.id);
        let number = read_number(&host.sys_cpu(&file))?;
        package.id = number.and_then(|n| n.try_into().ok()).unwrap_or(0);
    }
    Ok(packages)
}

/// The CPUs, one group per physical core.
pub(super) fn cores(host: &Host, cpus: &CpuSet) -> Result<Vec<Group>> {
    if read_number(&host.sys_cpu("smt/active"))? == Some(0) {
        return groups(cpus, |_| Ok(Some(CpuSet::new())));
    }
    groups(cpus, |cpu| {
        let siblings = siblings(host, cpu, ["core_cpus_list", "thread_siblings_list"])?;
        Ok(Some(siblings.unwrap_or_default()))
    })
}

fn caches(host: &Host, cpus: &CpuSet) -> Result<Vec<Group>> {
    let mut index = USUAL_LAST_INDEX;
    groups(cpus, |cpu| {
        let found = last_level_cache(host, cpu, index)?;
        Ok(found.map(|(found, cpus)| {
            index = found;
            cpus
        }))
    })
}

/// The index and the CPUs of the last-level cache of a CPU: the kernel numbers its caches by ascending level
/// (kernel: Documentation/ABI/testing/sysfs-devices-system-cpu, drivers/base/cacheinfo.c). `expected` is tried first.
pub(super) fn last_level_cache(
    host: &Host,
    cpu: u32,
    expected: u32,
) -> Result<Option<(u32, CpuSet)>> {
    let shared_by = |index: u32| {
        let file = format!("cpu{cpu}/cache/index{index}/shared_cpu_list");
        Ok::<_, anyhow::Error>(read_list(&host.sys_cpu(&file))?.map(|cpus| (index, cpus)))
    };
    let mut found = shared_by(expected)?;
    match &found {
        Some(_) => {
            while let Some((index, _)) = found {
                match shared_by(index + 1)? {
                    None => break,
                    higher => found = higher,
                }
            }
        }
        None => {
            for index in (0..expected).rev() {
                found = shared_by(index)?;
                if found.is_some() {
                    break;
                }
            }
        }
    }
    Ok(found)
}

/// The first of these files below `cpuN/topology` that is there; files have had two names.
fn siblings(host: &Host, cpu: u32, names: [&str; 2]) -> Result<Option<CpuSet>> {
    for name in names {
        let found = read_list(&host.sys_cpu(&format!("cpu{cpu}/topology/{name}")))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Divides CPUs by asking one of each group who the others are; those that nothing is known of make one group.
pub(super) fn groups(
    cpus: &CpuSet,
    mut members: impl FnMut(u32) -> Result<Option<CpuSet>>,
) -> Result<Vec<Group>> {
    let mut left = cpus.clone();
    let mut groups = Vec::new();
    let mut unknown = CpuSet::new();
    while let Some(id) = left.first() {
        let this = CpuSet::from_iter([id]);
        match members(id)? {
            Some(members) => {
                let mut group = members.intersection(&left);
                group.extend(&this);
                left = left.difference(&group);
                groups.push(Group { id, cpus: group });
            }
            None => {
                unknown.extend(&this);
                left = left.difference(&this);
            }
        }
    }
    if let Some(id) = unknown.first() {
        groups.push(Group { id, cpus: unknown });
        groups.sort_by_key(|group| group.id);
    }
    Ok(groups)
}
