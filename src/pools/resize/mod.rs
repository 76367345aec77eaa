//! Pure: changing a pool's size: which CPUs it gets, and which it gives up.

mod grow;
mod shrink;

use anyhow::{Context, Result};

use super::carve::Cut;
use super::plan::{Cores, ListUnit, PoolSpec, Stock};
use super::{CpuList, Kind, Pool};
use crate::cpulist::CpuSet;
use crate::isolation::Options;

/// A pool as it is, and what is around it.
#[derive(Debug)]
pub struct PoolStanding<'a> {
    /// The pool.
    pub pool: &'a Pool,
    /// For each list of the pool, in the same order: somebody who keeps it from being removed.
    pub owners: &'a [Option<String>],
    /// The machine's cores, whoever has them.
    pub stock: &'a Stock,
    /// The CPUs that are in any pool or have an owner.
    pub taken: &'a CpuSet,
}

/// What a pool gets and gives up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Resized {
    /// New lists.
    pub added: Vec<CpuSet>,
    /// Lists that are removed.
    pub removed: Vec<CpuSet>,
    /// A shared list whose CPUs change, from the first to the second set.
    pub renamed: Option<(CpuSet, CpuSet)>,
    /// For a pool by threads: the CPUs that are in no pool afterwards and share a core with the
    /// pool. It gets them next.
    pub siblings: CpuSet,
}

impl Resized {
    /// Does the pool get or give up anything?
    pub fn changes_lists(&self) -> bool {
        let is_other = |(from, to): &(CpuSet, CpuSet)| from != to;
        !self.added.is_empty()
            || !self.removed.is_empty()
            || self.renamed.as_ref().is_some_and(is_other)
    }
}

/// Changes the number of an exclusive pool's lists, or of a shared pool's cores. A pool by threads
/// gets the siblings of its own CPUs first. The list of a shared pool grows; if it has several, it
/// gets another.
///
/// # Errors
/// There are too few free cores, or lists with owners are in the way.
pub fn resize(standing: &PoolStanding<'_>, cores: Cores, cut: Cut) -> Result<Resized> {
    let there = standing.size();
    let mut resized = match cores {
        Cores::Count(wanted) if wanted < there => standing.smaller(wanted)?,
        Cores::Count(wanted) => {
            let more = standing.more(wanted - there, cut);
            let more = more.map_err(|_| standing.refusal(wanted, cut))?;
            standing.with(more)
        }
        Cores::Rest => {
            let rest = standing.rest(cut);
            let name = &standing.pool.name;
            let rest = rest.with_context(|| format!("pool {name} cannot have the rest"))?;
            standing.with(rest)
        }
    };
    if resized != Resized::default() {
        resized.siblings = standing.siblings_after(&resized);
    }
    Ok(resized)
}

impl PoolStanding<'_> {
    /// The number of an exclusive pool's lists, or of a shared pool's cores.
    pub fn size(&self) -> usize {
        let lists = self.pool.lists.iter();
        match self.pool.kind {
            Kind::Exclusive => lists.len(),
            Kind::Shared => lists.map(|list| self.cores_of(list)).sum(),
        }
    }

    /// The word for what the size counts.
    fn counted(&self) -> &'static str {
        match self.pool.kind {
            Kind::Exclusive => "lists",
            Kind::Shared => "cores",
        }
    }

    fn cores_of(&self, list: &CpuList) -> usize {
        self.stock.cores_in(&list.cpus).len()
    }

    /// What a list of this pool is: a thread if each list is one CPU of a core with several,
    /// otherwise a core.
    fn unit(&self) -> ListUnit {
        let is_part = |list: &CpuList| {
            let mut cores = self.stock.cores.iter();
            list.cpus.len() == 1
                && cores.any(|core| core.cpus.len() > 1 && list.cpus.is_subset(&core.cpus))
        };
        let is_by_threads = self.pool.kind == Kind::Exclusive && !self.pool.lists.is_empty();
        match is_by_threads && self.pool.lists.iter().all(is_part) {
            true => ListUnit::Thread,
            false => ListUnit::Core,
        }
    }

    fn spec(&self, cores: Cores, cut: Cut) -> PoolSpec {
        PoolSpec {
            name: self.pool.name.clone(),
            cores,
            kind: self.pool.kind,
            cut,
            unit: self.unit(),
            options: Options::default(),
        }
    }
}

impl Stock {
    /// The cores that have none of these CPUs.
    pub fn without(&self, taken: &CpuSet) -> Stock {
        let mut left = self.clone();
        left.cores.retain(|core| core.cpus.is_disjoint(taken));
        left
    }

    /// Divides a set into parts, one for each core. A CPU that is offline is a part by itself.
    pub fn cores_in(&self, cpus: &CpuSet) -> Vec<CpuSet> {
        let mut offline = cpus.clone();
        let mut parts = Vec::new();
        for core in &self.cores {
            parts.push(core.cpus.intersection(cpus));
            offline = offline.difference(&core.cpus);
        }
        parts.retain(|part| !part.is_empty());
        parts.extend(offline.iter().map(|cpu| CpuSet::from_iter([cpu])));
        parts
    }
}

/// All CPUs of these lists.
pub fn cpus_of(lists: &[CpuList]) -> CpuSet {
    lists.iter().flat_map(|list| list.cpus.iter()).collect()
}

#[cfg(test)]
mod tests;
