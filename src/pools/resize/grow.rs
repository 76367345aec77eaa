//! Making a pool larger.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{PoolStanding, Resized, cpus_of};
use crate::cpulist::CpuSet;
use crate::pools::carve::{Core, Cut, FromCaches, FromNodes};
use crate::pools::plan::{Cores, ListUnit, PoolSpec, Stock, list_name, plan};
use crate::pools::{CpuList, Kind};
use crate::refusal::Refusal;

impl PoolStanding<'_> {
    /// `count` further lists for the pool; for a shared pool one list with `count` cores.
    pub(super) fn more(&self, count: usize, cut: Cut) -> Result<Vec<CpuSet>> {
        let mut lists = self.siblings(cut.numa);
        lists.truncate(count);
        let missing = count - lists.len();
        if missing == 0 {
            return Ok(lists);
        }
        if self.unit() == ListUnit::Core {
            lists.extend(self.cut_out(Cores::Count(missing), cut)?);
            return Ok(lists);
        }
        // Cores differ in their number of threads: one core more is tried until there are enough.
        let threads = self.stock.cores.iter().map(|core| core.cpus.len());
        let mut cores = missing.div_ceil(threads.max().unwrap_or(1));
        loop {
            let threads = self.cut_out(Cores::Count(cores), cut)?;
            if threads.len() >= missing {
                lists.extend(threads.into_iter().take(missing));
                return Ok(lists);
            }
            cores += 1;
        }
    }

    pub(super) fn rest(&self, cut: Cut) -> Result<Vec<CpuSet>> {
        let mut lists = self.siblings(cut.numa);
        if !self.free().is_used_up(&self.spec(Cores::Rest, cut)) {
            lists.extend(self.cut_out(Cores::Rest, cut)?);
        }
        Ok(lists)
    }

    /// For a pool by threads: the other CPUs of its own cores, each as a list, unless somebody else
    /// has any CPU of the core.
    fn siblings(&self, numa: FromNodes) -> Vec<CpuSet> {
        if self.unit() == ListUnit::Core {
            return Vec::new();
        }
        let own: CpuSet = cpus_of(&self.pool.lists);
        let spec = self.spec(Cores::Rest, Cut::default());
        let mut siblings = Vec::new();
        for core in self.stock.cores_for(&spec) {
            let others = core.cpus.difference(&own);
            if numa.has(&core) && others.len() < core.cpus.len() && others.is_disjoint(self.taken) {
                siblings.extend(others.iter().map(|cpu| CpuSet::from_iter([cpu])));
            }
        }
        siblings
    }

    /// The cores that the pool can get. A shared pool of isolated cores can get those too, as KCM's
    /// controlplane does.
    fn free(&self) -> Stock {
        let mut free = self.stock.without(self.taken);
        let own = cpus_of(&self.pool.lists);
        if self.pool.kind == Kind::Shared && !own.is_empty() && own.is_subset(&free.isolated) {
            free.shared_isolated = Some(self.pool.name.clone());
        }
        free
    }

    /// Chooses cores. If they are packed, those of the NUMA nodes of the pool's own lists come
    /// first.
    fn cut_out(&self, cores: Cores, cut: Cut) -> Result<Vec<CpuSet>> {
        let mut free = self.free();
        let spec = self.spec(cores, cut);
        let (Cores::Count(count), FromNodes::Pack) = (cores, free.cut_of(&spec).numa) else {
            return cut_from(&free, &spec);
        };
        let near = Stock {
            cores: self.near(&free),
            ..free.clone()
        };
        let of = |count| self.spec(Cores::Count(count), cut);
        let count_near = near.cores_for(&spec).len().min(count);
        if count_near == 0 {
            return cut_from(&free, &spec);
        }
        if count_near == count || cut.cache == FromCaches::Single {
            return cut_from(&near, &of(count)).or_else(|_| cut_from(&free, &spec));
        }
        let mut lists = cut_from(&near, &of(count_near))?;
        let near: CpuSet = near
            .cores
            .iter()
            .flat_map(|core| core.cpus.iter())
            .collect();
        free = free.without(&near);
        lists.extend(cut_from(&free, &of(count - count_near))?);
        Ok(lists)
    }

    /// The free cores of the nodes that have cores of the pool.
    fn near(&self, free: &Stock) -> Vec<Core> {
        let own = cpus_of(&self.pool.lists);
        let is_own = |core: &&Core| !core.cpus.is_disjoint(&own);
        let nodes: BTreeSet<Option<u32>> = self
            .stock
            .cores
            .iter()
            .filter(is_own)
            .map(|core| core.node)
            .collect();
        let mut cores = free.cores.clone();
        cores.retain(|core| core.node.is_some() && nodes.contains(&core.node));
        cores
    }

    pub(super) fn siblings_after(&self, resized: &Resized) -> CpuSet {
        let mut pool = self.pool.clone();
        pool.lists
            .retain(|list| !resized.removed.contains(&list.cpus));
        let mut taken = self.taken.clone();
        for cpus in &resized.removed {
            taken = taken.difference(cpus);
        }
        for cpus in &resized.added {
            taken.extend(cpus);
            pool.lists.push(CpuList {
                name: list_name(cpus),
                cpus: cpus.clone(),
                tasks: Vec::new(),
            });
        }
        let after = PoolStanding {
            pool: &pool,
            taken: &taken,
            ..*self
        };
        let siblings = after.siblings(FromNodes::Any);
        siblings.iter().flat_map(CpuSet::iter).collect()
    }

    pub(super) fn with(&self, lists: Vec<CpuSet>) -> Resized {
        match (self.pool.kind, &self.pool.lists[..], &lists[..]) {
            (Kind::Shared, [list], [more]) => {
                let mut grown = list.cpus.clone();
                grown.extend(more);
                Resized {
                    renamed: Some((list.cpus.clone(), grown)),
                    ..Resized::default()
                }
            }
            _ => Resized {
                added: lists,
                ..Resized::default()
            },
        }
    }

    /// The refusal that says how many lists or cores the pool has, and how many more it can get.
    pub(super) fn refusal(&self, wanted: usize, cut: Cut) -> anyhow::Error {
        let (name, there) = (&self.pool.name, self.size());
        let free = self.free();
        let possible: usize = free.cores.iter().map(|core| core.cpus.len()).sum();
        let mut counts = (1..(wanted - there).min(possible + 1)).rev();
        let most = counts.find(|count| self.more(*count, cut).is_ok());
        let spec = self.spec(Cores::Rest, cut);
        let place = match (cut.numa, cut.cache) {
            (FromNodes::Node(node), FromCaches::Single) => {
                format!(" of one last-level cache of NUMA node {node}")
            }
            (FromNodes::Node(node), _) => format!(" of NUMA node {node}"),
            (_, FromCaches::Single) => " of one last-level cache".to_owned(),
            _ => String::new(),
        };
        let unreserved = Stock {
            reserved: CpuSet::new(),
            ..free.clone()
        };
        let count = |stock: &Stock| {
            let cores = stock.cores_for(&spec).into_iter();
            cores.filter(|core| cut.numa.has(core)).count()
        };
        let kept = match count(&unreserved) > count(&free) {
            true => free.reservation() + ",",
            false => String::new(),
        };
        let remedy = most.map_or_else(
            || "take some from another pool first (`pinfold pool show`)".to_owned(),
            |more| format!("ask for {} at most", there + more),
        );
        let which = free.which(&spec);
        let left = match most.unwrap_or(0) {
            0 => format!("no free {which}{place}{kept} are left"),
            more => format!("the free {which}{place}{kept} make {more} more"),
        };
        let what = format!(
            "pool {name} cannot have {wanted} {}: it has {there}, and {left}",
            self.counted()
        );
        Refusal::new(what, remedy).into()
    }
}

fn cut_from(stock: &Stock, spec: &PoolSpec) -> Result<Vec<CpuSet>> {
    let planned = plan(stock, std::slice::from_ref(spec))?;
    Ok(planned.into_iter().flat_map(|pool| pool.lists).collect())
}
