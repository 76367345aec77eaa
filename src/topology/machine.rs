//! The whole machine, for showing it and for planning pools.

use std::collections::BTreeMap;

use anyhow::Result;

use super::levels::{CpuGroup, Levels, groups, last_level_cache, siblings};
use super::memory::memory_of;
use super::nodes;
use super::told::{FileValue, Format, Oddity, Reader};
use super::{isolated, online};
use crate::cpulist::CpuSet;
use crate::host::Host;

/// Everything that sysfs tells of a machine's CPUs.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// The CPUs that are online.
    pub online: CpuSet,
    /// The CPUs that are present but offline.
    pub offline: CpuSet,
    /// The CPUs that the scheduler does not balance, by `isolcpus=` or an isolated cpuset
    /// partition.
    pub isolated: CpuSet,
    /// The packages, NUMA nodes with CPUs, last-level caches and cores of the online CPUs.
    pub levels: Levels,
    /// All NUMA nodes, by number, those without CPUs included; empty where the kernel knows none.
    pub nodes: Vec<Node>,
    /// Dies, by lowest CPU; empty where the kernel does not tell.
    pub dies: Vec<CpuGroup>,
    /// Clusters of cores, by lowest CPU; empty where the kernel does not tell.
    pub clusters: Vec<CpuGroup>,
    /// The last-level caches, by lowest CPU; empty where the kernel does not tell.
    pub caches: Vec<Cache>,
    /// The kinds of core of a hybrid machine, largest first; empty where all are alike.
    pub kinds: Vec<CoreKind>,
    /// The files, besides those of the levels, that differ from the kernel's documentation.
    pub odd: Vec<Oddity>,
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
    /// The kernel's name of the kind: Intel's `core`, `atom`, `lowpower`; or `capacity N`, the work
    /// that one core does where the largest does 1024.
    pub name: String,
    /// The CPUs of these cores that are online.
    pub cpus: CpuSet,
}

impl Topology {
    /// Reads the whole topology: some ten files per CPU.
    ///
    /// # Errors
    /// Sysfs does not say which CPUs are online, or the kernel's command line cannot be read.
    pub fn read(host: &Host) -> Result<Topology> {
        let online = online(host)?;
        let reader = Reader::new(host);
        let present = reader.first(&[(host.sys_cpu("present"), Format::List)], None);
        let mut isolated = isolated(host)?;
        // The file is empty, or `(null)`, where no CPU is isolated.
        let by_kernel = reader.set(&host.sys_cpu("isolated"), Format::List);
        isolated.extend(&by_kernel.value().unwrap_or_default());
        let levels = Levels::of(host, &online);
        let nodes = nodes_of(&reader, &online, &levels);
        let (dies, clusters) = (
            told_groups(&reader, &online, "die_cpus"),
            told_groups(&reader, &online, "cluster_cpus"),
        );
        let caches = caches(host, &reader, &levels);
        let kinds = kinds(&reader, &online);
        Ok(Topology {
            offline: present.unwrap_or_default().difference(&online),
            isolated: isolated.intersection(&online),
            nodes,
            dies,
            clusters,
            caches,
            kinds,
            odd: reader.into_odd(),
            levels,
            online,
        })
    }

    /// What is special about a core: its kind, and `isolated`.
    pub fn marks(&self, core: &CpuSet) -> Vec<&str> {
        let kinds = self.kinds.iter();
        let kinds = kinds.filter(|kind| core.is_subset(&kind.cpus));
        let isolated = core.is_subset(&self.isolated).then_some("isolated");
        kinds
            .map(|kind| kind.name.as_str())
            .chain(isolated)
            .collect()
    }
}

/// The groups of dies or clusters; empty where the kernel does not tell the first CPU's.
fn told_groups(reader: &Reader<'_>, online: &CpuSet, name: &str) -> Vec<CpuGroup> {
    let of = |cpu| siblings(reader, cpu, [name; 2]);
    match online.first().and_then(of) {
        Some(_) => groups(online, of).groups,
        None => Vec::new(),
    }
}

/// All nodes that the kernel knows, with the CPUs that the levels give them.
fn nodes_of(reader: &Reader<'_>, online: &CpuSet, levels: &Levels) -> Vec<Node> {
    // A reader of its own: the levels have noted what is odd about these files.
    let mut numbers = nodes::all(&Reader::new(reader.host));
    let told = levels
        .nodes
        .iter()
        .filter(|node| node.id != CpuGroup::UNTOLD);
    numbers.extend(&told.map(|node| node.id).collect());
    let node = |id| {
        let known = levels.nodes.iter().find(|node| node.id == id);
        let cpus = known.map(|node| node.cpus.intersection(online));
        Node {
            id,
            cpus: cpus.unwrap_or_default(),
            memory_kib: memory_of(reader, id),
        }
    };
    let nodes: Vec<Node> = numbers.iter().map(node).collect();
    let those = |has: &dyn Fn(&&Node) -> bool| nodes.iter().filter(has).map(|one| one.id).collect();
    // A node whose file tells nothing contradicts no other file.
    if levels.gaps.nodes.cpus.is_empty() {
        let with_cpus: CpuSet = those(&|node| !node.cpus.is_empty());
        let with_memory: CpuSet = those(&|node| node.memory_kib > 0);
        nodes::note_contradictions(reader, &with_cpus, &with_memory);
    }
    nodes
}

fn caches(host: &Host, reader: &Reader<'_>, levels: &Levels) -> Vec<Cache> {
    let mut caches = Vec::new();
    for group in &levels.caches {
        // The levels have noted what is odd about these files, unless they could read them then.
        let again = Reader::new(host);
        let Some((index, _)) = last_level_cache(&again, group.id, 3) else {
            if !levels.gaps.caches.cpus.contains(group.id) {
                reader.add_all(again.into_odd());
            }
            continue;
        };
        let file = |name: &str| host.sys_cpu(&format!("cpu{}/cache/index{index}/{name}", group.id));
        caches.push(Cache {
            level: reader.number(&file("level")).unwrap_or(0),
            size_kib: size(reader, group.id, index),
            cpus: group.cpus.clone(),
        });
    }
    caches
}

/// A cache's size in KiB; 0 where it is not told.
fn size(reader: &Reader<'_>, cpu: u32, index: u32) -> u64 {
    let path = reader
        .host
        .sys_cpu(&format!("cpu{cpu}/cache/index{index}/size"));
    let FileValue::Value(text) = reader.text(&path) else {
        return 0;
    };
    let size = text.trim_end_matches('K').parse().ok();
    if size.is_none() {
        reader.is_no(&path, &text, "size in KiB");
    }
    size.unwrap_or(0)
}

/// The kinds of core. Intel's are performance-monitoring devices with a list of CPUs; on other
/// machines each CPU tells a capacity.
fn kinds(reader: &Reader<'_>, online: &CpuSet) -> Vec<CoreKind> {
    let mut kinds = Vec::new();
    for name in ["core", "atom", "lowpower"] {
        let path = reader.host.sys_device(&format!("cpu_{name}/cpus"));
        // The list is empty where no CPU of this kind is online.
        if let FileValue::Value(cpus) = reader.set(&path, Format::List) {
            let cpus = cpus.intersection(online);
            let name = name.to_owned();
            kinds.extend((!cpus.is_empty()).then_some(CoreKind { name, cpus }));
        }
    }
    if kinds.is_empty() {
        let mut by_capacity: BTreeMap<u64, CpuSet> = BTreeMap::new();
        for cpu in online.iter() {
            let path = reader.host.sys_cpu(&format!("cpu{cpu}/cpu_capacity"));
            if let Some(capacity) = reader.number(&path) {
                by_capacity.entry(capacity).or_default().insert(cpu);
            }
        }
        let kind = |(capacity, cpus)| CoreKind {
            name: format!("capacity {capacity}"),
            cpus,
        };
        kinds = by_capacity.into_iter().rev().map(kind).collect();
    }
    if kinds.len() > 1 { kinds } else { Vec::new() }
}
