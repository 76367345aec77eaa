//! The whole machine, as a person wants to see it and pools are planned by.

use std::collections::BTreeMap;

use anyhow::Result;

use super::levels::{Group, Levels, groups, last_level_cache};
use super::{isolated, online, read_list, read_number};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// Everything that sysfs tells of a machine's CPUs.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// The CPUs that can run something now.
    pub online: CpuSet,
    /// Those that are there and cannot.
    pub offline: CpuSet,
    /// Those that the scheduler leaves alone, by `isolcpus=` or an isolated cpuset partition.
    pub isolated: CpuSet,
    /// How the CPUs that are online lie in packages, NUMA nodes with CPUs, last-level caches and cores.
    pub levels: Levels,
    /// All NUMA nodes, by number, those without CPUs included; empty where the kernel knows none.
    pub nodes: Vec<Node>,
    /// Dies, by lowest CPU; empty where the kernel does not tell.
    pub dies: Vec<Group>,
    /// Clusters of cores, by lowest CPU; empty where the kernel does not tell.
    pub clusters: Vec<Group>,
    /// The last-level caches, by lowest CPU; empty where the kernel does not tell.
    pub caches: Vec<Cache>,
    /// The kinds of core of a hybrid machine, largest first; empty where all are alike.
    pub kinds: Vec<CoreKind>,
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number.
    pub id: u32,
    /// Its CPUs that are online; empty for a node of memory alone.
    pub cpus: CpuSet,
    /// Its memory in KiB.
    pub memory_kib: u64,
}

/// One last-level cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// 3 for an L3; 0 where it is not told.
    pub level: u64,
    /// Its size in KiB; 0 where it is not told.
    pub size_kib: u64,
    /// The CPUs that share it.
    pub cpus: CpuSet,
}

/// Cores of one size on a hybrid machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreKind {
    /// The kernel's name of it: `core`, `atom`, `lowpower` of Intel; or `capacity N`, the work that one does of the
    /// largest's 1024.
    pub name: String,
    /// Their CPUs that are online.
    pub cpus: CpuSet,
}

impl Topology {
    /// Reads all of it: some ten files a CPU.
    ///
    /// # Errors
    /// A machine whose sysfs does not say which CPUs are online, and files that are not as the kernel writes them.
    pub fn read(host: &Host) -> Result<Topology> {
        let online = online(host)?;
        let present = read_list(&host.sys_cpu("present"))?.unwrap_or_default();
        let mut isolated = isolated(host)?;
        isolated.extend(&read_list(&host.sys_cpu("isolated"))?.unwrap_or_default());
        let levels = Levels::of(host, &online)?;
        let known = |file: &str| -> Result<Vec<Group>> {
            let of = |cpu| read_list(&host.sys_cpu(&format!("cpu{cpu}/topology/{file}")));
            let found = groups(&online, of)?;
            // One group of all may be what is left where nothing is told.
            let is_told = online.first().map_or(Ok(None), of)?.is_some();
            Ok(if is_told { found } else { Vec::new() })
        };
        Ok(Topology {
            offline: present.difference(&online),
            isolated: isolated.intersection(&online),
            nodes: nodes(host, &online)?,
            dies: known("die_cpus_list")?,
            clusters: known("cluster_cpus_list")?,
            caches: caches(host, &levels)?,
            kinds: kinds(host, &online)?,
            levels,
            online,
        })
    }
}

fn nodes(host: &Host, online: &CpuSet) -> Result<Vec<Node>> {
    let numbers = read_list(&host.sys_node("online"))?.unwrap_or_default();
    let mut nodes = Vec::new();
    for id in numbers.iter() {
        let cpus = read_list(&host.sys_node(&format!("node{id}/cpulist")))?.unwrap_or_default();
        let meminfo = files::read_if_there(&host.sys_node(&format!("node{id}/meminfo")))?;
        nodes.push(Node {
            id,
            cpus: cpus.intersection(online),
            memory_kib: memory_in(&meminfo.unwrap_or_default()),
        });
    }
    Ok(nodes)
}

/// The `MemTotal:` of a node's `meminfo`, in KiB; 0 where it has none.
fn memory_in(meminfo: &str) -> u64 {
    let value = meminfo
        .split_once("MemTotal:")
        .map(|(_, rest)| rest.split_whitespace().next());
    value
        .flatten()
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

fn caches(host: &Host, levels: &Levels) -> Result<Vec<Cache>> {
    let mut caches = Vec::new();
    for group in &levels.caches {
        let Some((index, _)) = last_level_cache(host, group.id, 3)? else {
            continue;
        };
        let file = |name: &str| host.sys_cpu(&format!("cpu{}/cache/index{index}/{name}", group.id));
        let size = files::read_if_there(&file("size"))?.unwrap_or_default();
        caches.push(Cache {
            level: read_number(&file("level"))?.unwrap_or(0),
            size_kib: size.trim().trim_end_matches('K').parse().unwrap_or(0),
            cpus: group.cpus.clone(),
        });
    }
    Ok(caches)
}

/// Intel names its kinds as devices that count events; others tell a capacity for each CPU.
fn kinds(host: &Host, online: &CpuSet) -> Result<Vec<CoreKind>> {
    let mut kinds = Vec::new();
    for name in ["core", "atom", "lowpower"] {
        if let Some(cpus) = read_list(&host.sys_device(&format!("cpu_{name}/cpus")))? {
            let cpus = cpus.intersection(online);
            let name = name.to_owned();
            kinds.extend((!cpus.is_empty()).then_some(CoreKind { name, cpus }));
        }
    }
    if kinds.is_empty() {
        let mut by_capacity: BTreeMap<u64, CpuSet> = BTreeMap::new();
        for cpu in online.iter() {
            if let Some(capacity) = read_number(&host.sys_cpu(&format!("cpu{cpu}/cpu_capacity")))? {
                by_capacity
                    .entry(capacity)
                    .or_default()
                    .extend(&CpuSet::from_iter([cpu]));
            }
        }
        let kind = |(capacity, cpus)| CoreKind {
            name: format!("capacity {capacity}"),
            cpus,
        };
        kinds = by_capacity.into_iter().rev().map(kind).collect();
    }
    Ok(if kinds.len() > 1 { kinds } else { Vec::new() })
}
