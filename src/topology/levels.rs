//! The levels of the machine that a choice of CPUs looks at: nodes, packages, caches, cores. As few
//! files as possible are read. Where one file tells nothing, another is asked; where none tells,
//! the level's [`Gap`] keeps the CPUs, and no strict request is met with them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::nodes::nodes;
use super::told::{FileValue, Format, Oddity, Reader};
use crate::cpulist::CpuSet;
use crate::host::Host;

/// Most cache indexes that are tried; no CPU has so many caches. A limit is needed because a cache
/// that cannot be read counts as there.
const MOST_INDEXES: u32 = 16;

/// The cache index that is tried first: `index3` is the last on machines with three levels.
const USUAL_LAST_INDEX: u32 = 3;

/// CPUs that share a node, a package, a cache, a core, or anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuGroup {
    /// The kernel's number of the node or package; else the lowest CPU of the group;
    /// [`CpuGroup::UNTOLD`] for CPUs whose node the kernel does not tell.
    pub id: u32,
    /// The CPUs; never empty.
    pub cpus: CpuSet,
}

impl CpuGroup {
    /// Stands for a node that the kernel does not tell; no node has this number.
    pub const UNTOLD: u32 = u32::MAX;
}

/// What the kernel does not tell of one level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gap {
    /// The CPUs whose group is not known.
    pub cpus: CpuSet,
    /// The files that are missing or odd, even where another file told the group.
    pub odd: Vec<Oddity>,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.odd.first() else {
            return f.write_str("no file tells it");
        };
        write!(f, "{first}")?;
        match self.odd.len() - 1 {
            0 => Ok(()),
            1 => write!(f, ", and another file is odd"),
            more => write!(f, ", and {more} more files are odd"),
        }
    }
}

/// What the kernel does not tell, by level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Of NUMA nodes.
    pub nodes: Gap,
    /// Of packages.
    pub packages: Gap,
    /// Of last-level caches.
    pub caches: Gap,
    /// Of cores.
    pub cores: Gap,
}

/// How some CPUs share NUMA nodes, packages, last-level caches and cores. On each level, every CPU
/// is in exactly one group.
///
/// CPUs whose group the kernel does not tell are also in `gaps`. Those of one node and package make
/// one group; on the level of cores, each is a group of its own.
///
/// A package can hold several nodes, and a node several packages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels {
    /// NUMA nodes, by number.
    pub nodes: Vec<CpuGroup>,
    /// Packages (sockets), by lowest CPU.
    pub packages: Vec<CpuGroup>,
    /// Last-level caches, by lowest CPU.
    pub caches: Vec<CpuGroup>,
    /// Physical cores with their SMT siblings, by lowest CPU.
    pub cores: Vec<CpuGroup>,
    /// What the kernel does not tell, by level.
    pub gaps: Gaps,
}

impl Levels {
    /// Reads the levels of these CPUs, which are online: about one file per node, package, cache
    /// and core.
    pub fn of(host: &Host, cpus: &CpuSet) -> Levels {
        let mut levels = Levels::without_cores(host, cpus);
        (levels.cores, levels.gaps.cores) = cores(host, cpus).unzipped();
        levels
    }

    /// Reads the levels without the many files of cores: each CPU counts as a core.
    pub fn without_cores(host: &Host, cpus: &CpuSet) -> Levels {
        let (packages, packages_gap) = packages(host, cpus).unzipped();
        let (nodes, nodes_gap) = nodes(host, cpus, &packages, &packages_gap).unzipped();
        let (caches, caches_gap) = caches(host, cpus, &nodes, &packages).unzipped();
        Levels {
            nodes,
            packages,
            caches,
            cores: each_alone(cpus),
            gaps: Gaps {
                nodes: nodes_gap,
                packages: packages_gap,
                caches: caches_gap,
                cores: Gap::default(),
            },
        }
    }
}

/// The groups of one level, and what the kernel does not tell of it.
#[derive(Debug, Default)]
pub(super) struct Grouping {
    pub(super) groups: Vec<CpuGroup>,
    /// The CPUs that are in no group yet.
    pub(super) untold: CpuSet,
    pub(super) odd: Vec<Oddity>,
}

impl Grouping {
    /// Puts the CPUs of `untold` into groups, one for each value of `key`.
    fn with_rest<K: Ord>(mut self, id: Option<u32>, key: impl Fn(u32) -> K) -> Grouping {
        let mut rest: BTreeMap<K, CpuSet> = BTreeMap::new();
        for cpu in self.untold.iter() {
            rest.entry(key(cpu)).or_default().insert(cpu);
        }
        for cpus in rest.into_values() {
            let id = id.or(cpus.first()).unwrap_or_default();
            self.groups.push(CpuGroup { id, cpus });
        }
        self.groups.sort_by_key(|group| group.cpus.first());
        self
    }

    fn unzipped(self) -> (Vec<CpuGroup>, Gap) {
        let gap = Gap {
            cpus: self.untold,
            odd: self.odd,
        };
        (self.groups, gap)
    }
}

fn each_alone(cpus: &CpuSet) -> Vec<CpuGroup> {
    let alone = |cpu| CpuGroup {
        id: cpu,
        cpus: CpuSet::from_iter([cpu]),
    };
    cpus.iter().map(alone).collect()
}

/// The four files of `cpuN/topology` that can hold a set: a list (since Linux 2.6.26) and a mask,
/// each under two names.
fn topology_files(host: &Host, cpu: u32, names: [&str; 2]) -> Vec<(PathBuf, Format)> {
    let file = |name: &str, tail: &str| host.sys_cpu(&format!("cpu{cpu}/topology/{name}{tail}"));
    let lists = names.map(|name| (file(name, "_list"), Format::List));
    let masks = names.map(|name| (file(name, ""), Format::Mask));
    lists.into_iter().chain(masks).collect()
}

/// The set of the first of `topology_files` that holds one with this CPU in it.
pub(super) fn siblings(reader: &Reader<'_>, cpu: u32, names: [&str; 2]) -> Option<CpuSet> {
    reader.first(&topology_files(reader.host, cpu, names), Some(cpu))
}

fn packages(host: &Host, cpus: &CpuSet) -> Grouping {
    let reader = Reader::new(host);
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    let number_file = |cpu: u32| host.sys_cpu(&format!("cpu{cpu}/topology/physical_package_id"));
    let mut level = groups(cpus, |cpu| {
        siblings(&reader, cpu, ["package_cpus", "core_siblings"])
    });
    // Without a set, the package's number tells the same; -1 is no number (arm64).
    let mut by_number: BTreeMap<u32, CpuSet> = BTreeMap::new();
    for cpu in level.untold.iter() {
        if let Some(number) = package_number(&reader, number_file(cpu)) {
            by_number.entry(number).or_default().insert(cpu);
        }
    }
    for cpus in by_number.into_values() {
        level.untold = level.untold.difference(&cpus);
        let id = cpus.first().unwrap_or_default();
        level.groups.push(CpuGroup { id, cpus });
    }
    note_missing(&reader, &level.untold, "topology");
    let mut level = level.with_rest(None, |_| ());
    for group in &level.groups {
        if let Some(number) = package_number(&reader, number_file(group.id)) {
            numbers.insert(group.id, number);
        }
    }
    let is_numbered = numbers.len() == level.groups.len();
    for (index, group) in level.groups.iter_mut().enumerate() {
        group.id = match numbers.get(&group.id) {
            Some(number) if is_numbered => *number,
            _ => index as u32,
        };
    }
    level.odd = reader.into_odd();
    level
}

fn package_number(reader: &Reader<'_>, file: PathBuf) -> Option<u32> {
    match reader.text(&file) {
        FileValue::Value(text) if text == "-1" => None,
        _ => reader.number(&file),
    }
}

/// The CPUs, one group per physical core.
pub(super) fn cores(host: &Host, cpus: &CpuSet) -> Grouping {
    let reader = Reader::new(host);
    let smt = reader.text(&host.sys_cpu("smt/active")).value();
    if smt.as_deref() == Some("0") {
        return Grouping {
            groups: each_alone(cpus),
            ..Grouping::default()
        };
    }
    let level = groups(cpus, |cpu| {
        siblings(&reader, cpu, ["core_cpus", "thread_siblings"])
    });
    note_missing(&reader, &level.untold, "topology");
    let mut level = level.with_rest(None, |cpu| cpu);
    level.odd = reader.into_odd();
    level
}

fn caches(host: &Host, cpus: &CpuSet, nodes: &[CpuGroup], packages: &[CpuGroup]) -> Grouping {
    let reader = Reader::new(host);
    let mut index = USUAL_LAST_INDEX;
    let level = groups(cpus, |cpu| {
        let (found, cpus) = last_level_cache(&reader, cpu, index)?;
        index = found;
        Some(cpus)
    });
    note_missing(&reader, &level.untold, "cache");
    let place = |groups: &[CpuGroup], cpu| groups.iter().position(|group| group.cpus.contains(cpu));
    let mut level = level.with_rest(None, |cpu| (place(nodes, cpu), place(packages, cpu)));
    level.odd = reader.into_odd();
    level
}

/// Notes the directory of each CPU for which no odd file is noted.
fn note_missing(reader: &Reader<'_>, cpus: &CpuSet, directory: &str) {
    for cpu in cpus.iter() {
        let path = reader.host.sys_cpu(&format!("cpu{cpu}/{directory}"));
        if !reader.has_noted_below(&path) {
            reader.note(&path, "is missing, or tells nothing");
        }
    }
}

/// The index and the CPUs of a CPU's last-level cache. Index `expected` is tried first: the kernel
/// numbers caches by ascending level (kernel: Documentation/ABI/testing/sysfs-devices-system-cpu,
/// drivers/base/cacheinfo.c).
pub(super) fn last_level_cache(
    reader: &Reader<'_>,
    cpu: u32,
    expected: u32,
) -> Option<(u32, CpuSet)> {
    let mut found = shared_by(reader, cpu, expected);
    if found == FileValue::Missing {
        let lower = (0..expected).rev();
        let there = lower.map(|index| shared_by(reader, cpu, index));
        return there
            .into_iter()
            .find(|said| *said != FileValue::Missing)?
            .value();
    }
    for index in expected + 1..MOST_INDEXES {
        match shared_by(reader, cpu, index) {
            FileValue::Missing => break,
            higher => found = higher,
        }
    }
    found.value()
}

/// The index of a cache and the CPUs that share it; `Missing` where the CPU has no cache of this
/// index.
fn shared_by(reader: &Reader<'_>, cpu: u32, index: u32) -> FileValue<(u32, CpuSet)> {
    let file = |name: &str| {
        reader
            .host
            .sys_cpu(&format!("cpu{cpu}/cache/index{index}/{name}"))
    };
    let sets = [
        (file("shared_cpu_list"), Format::List),
        (file("shared_cpu_map"), Format::Mask),
    ];
    if let Some(cpus) = reader.first(&sets, Some(cpu)) {
        return FileValue::Value((index, cpus));
    }
    if reader.has_noted_below(&file("")) {
        return FileValue::Odd;
    }
    match reader.text(&file("level")) {
        FileValue::Missing => FileValue::Missing,
        _ => {
            reader.note(&file("shared_cpu_list"), "is missing");
            FileValue::Odd
        }
    }
}

/// Divides CPUs into groups. One CPU of each group is asked for the members; a CPU that cannot be
/// asked joins the group that names it.
pub(super) fn groups(cpus: &CpuSet, mut members: impl FnMut(u32) -> Option<CpuSet>) -> Grouping {
    let mut left = cpus.clone();
    let mut level = Grouping::default();
    let mut named: Vec<CpuSet> = Vec::new();
    while let Some(id) = left.first() {
        let mut group = CpuSet::from_iter([id]);
        match members(id) {
            Some(members) => {
                group.extend(&members.intersection(&left));
                level.groups.push(CpuGroup {
                    id,
                    cpus: group.clone(),
                });
                named.push(members);
            }
            None => level.untold.extend(&group),
        }
        left = left.difference(&group);
    }
    for (group, members) in level.groups.iter_mut().zip(named) {
        let joining = level.untold.intersection(&members);
        group.cpus.extend(&joining);
        group.id = group.cpus.first().unwrap_or(group.id);
        level.untold = level.untold.difference(&joining);
    }
    level
}
