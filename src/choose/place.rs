//! Where CPU lists lie on the machine, for packing and spreading.

use std::collections::BTreeMap;

use crate::cpulist::CpuSet;
use crate::topology::{CpuGroup, Gap, Gaps, Levels};

/// Indices of groups of one level, ascending.
pub(super) type Groups = Vec<usize>;

/// The groups in which some CPUs lie. A CPU about which nothing is known counts as in the first
/// group of each level, and as a core of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) nodes: Groups,
    pub(super) packages: Groups,
    pub(super) caches: Groups,
    pub(super) cores: Groups,
}

/// The group of each CPU, by CPU number, for each level.
pub(super) struct Map<'a> {
    levels: &'a Levels,
    nodes: Vec<Option<usize>>,
    packages: Vec<Option<usize>>,
    caches: Vec<Option<usize>>,
    cores: Vec<Option<usize>>,
}

impl<'a> Map<'a> {
    pub(super) fn of(levels: &'a Levels) -> Map<'a> {
        Map {
            levels,
            nodes: by_cpu(&levels.nodes),
            packages: by_cpu(&levels.packages),
            caches: by_cpu(&levels.caches),
            cores: by_cpu(&levels.cores),
        }
    }

    pub(super) fn spot(&self, cpus: &CpuSet) -> Spot {
        let groups = |map: &[Option<usize>]| {
            let known = |cpu: u32| map.get(cpu as usize).copied().flatten();
            sorted(cpus.iter().map(|cpu| known(cpu).unwrap_or(0)))
        };
        let core = |cpu: u32| {
            let known = self.cores.get(cpu as usize).copied().flatten();
            known.unwrap_or(self.levels.cores.len() + cpu as usize)
        };
        Spot {
            nodes: groups(&self.nodes),
            packages: groups(&self.packages),
            caches: groups(&self.caches),
            cores: sorted(cpus.iter().map(core)),
        }
    }

    /// The kernel's number of a node.
    pub(super) fn node_number(&self, index: usize) -> u32 {
        self.levels.nodes.get(index).map_or(0, |node| node.id)
    }

    /// Is this a single node that the kernel has told of?
    pub(super) fn is_one_node(&self, nodes: &[usize]) -> bool {
        is_one(nodes, &self.levels.nodes, &self.levels.gaps.nodes)
    }

    /// Is this a single last-level cache that the kernel has told of?
    pub(super) fn is_one_cache(&self, caches: &[usize]) -> bool {
        is_one(caches, &self.levels.caches, &self.levels.gaps.caches)
    }

    /// What the kernel does not tell of NUMA nodes and of caches.
    pub(super) fn gaps(&self) -> &Gaps {
        &self.levels.gaps
    }

    /// The index of the node with this number; `None` if it has none of the CPUs that were looked
    /// at.
    pub(super) fn node_index(&self, number: u32) -> Option<usize> {
        self.levels.nodes.iter().position(|node| node.id == number)
    }
}

/// Is this a single group that the kernel has told of? The CPUs about which it tells nothing are
/// put into one group too, but need not share anything.
fn is_one(indices: &[usize], groups: &[CpuGroup], gap: &Gap) -> bool {
    let [index] = indices else {
        return false;
    };
    let group = groups.get(*index);
    group.is_none_or(|group| group.cpus.is_disjoint(&gap.cpus))
}

fn by_cpu(groups: &[CpuGroup]) -> Vec<Option<usize>> {
    let last = groups
        .iter()
        .filter_map(|group| group.cpus.iter().last())
        .max();
    let mut map = vec![None; last.map_or(0, |last| last as usize + 1)];
    for (index, group) in groups.iter().enumerate() {
        for cpu in group.cpus.iter() {
            map[cpu as usize] = Some(index);
        }
    }
    map
}

fn sorted(groups: impl Iterator<Item = usize>) -> Groups {
    let mut groups: Groups = groups.collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A free list.
#[derive(Debug, Clone)]
pub(super) struct FreeList {
    /// Its index in [`super::Situation::offers`].
    pub(super) index: usize,
    /// Its amount: 1 if lists are asked for, its number of CPUs if CPUs are.
    pub(super) size: usize,
    pub(super) spot: Spot,
}

/// The free lists in the same nodes, packages and caches: usually those of one cache.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) nodes: Groups,
    pub(super) packages: Groups,
    pub(super) caches: Groups,
    pub(super) units: Vec<FreeList>,
    /// The sum of its lists' sizes.
    pub(super) free: usize,
}

/// Gathers lists into cells, ordered by nodes, then packages, then caches.
pub(super) fn cells(units: impl IntoIterator<Item = FreeList>) -> Vec<Cell> {
    let mut cells: BTreeMap<(Groups, Groups, Groups), Vec<FreeList>> = BTreeMap::new();
    for unit in units {
        let spot = &unit.spot;
        let key = (
            spot.nodes.clone(),
            spot.packages.clone(),
            spot.caches.clone(),
        );
        cells.entry(key).or_default().push(unit);
    }
    let cell = |((nodes, packages, caches), units): (_, Vec<FreeList>)| Cell {
        nodes,
        packages,
        caches,
        free: units.iter().map(|unit| unit.size).sum(),
        units,
    };
    cells.into_iter().map(cell).collect()
}
