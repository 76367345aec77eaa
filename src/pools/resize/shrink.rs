//! Making a pool smaller: only lists without owners are given up.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{PoolStanding, Resized};
use crate::cpulist::CpuSet;
use crate::pools::{CpuList, Kind};
use crate::refusal::Refusal;

impl PoolStanding<'_> {
    pub(super) fn smaller(&self, wanted: usize) -> Result<Resized> {
        let surplus = self.size() - wanted;
        let (smaller, left) = match self.pool.kind {
            Kind::Exclusive => self.without_lists(surplus),
            Kind::Shared => self.without_cores(surplus),
        };
        let lists = self.pool.lists.iter().zip(self.owners);
        let owned: Vec<String> = lists
            .filter_map(|(list, owner)| Some(format!("{} owns {}", owner.as_ref()?, list.name)))
            .collect();
        ensure!(
            left == 0,
            Refusal::new(
                format!(
                    "pool {} cannot have {wanted} {}, but {} at least, for lists with owners stay \
                     as they are: {}",
                    self.pool.name,
                    self.counted(),
                    wanted + left,
                    owned.join(", ")
                ),
                "stop them first (`pinfold describe` shows them)"
            )
        );
        Ok(smaller)
    }

    /// Chooses `surplus` lists without owners to give up: the last ones first, and preferably all
    /// lists of a core. Also returns how many are missing because too few have no owner.
    fn without_lists(&self, surplus: usize) -> (Resized, usize) {
        let mut cores: BTreeMap<u32, OfCore> = BTreeMap::new();
        for (list, owner) in self.pool.lists.iter().zip(self.owners) {
            let of_core = cores.entry(self.core_of(list)).or_default();
            match owner {
                Some(_) => of_core.has_owners = true,
                None => of_core.free.push(list.cpus.clone()),
            }
        }
        let mut removed = Vec::new();
        while removed.len() < surplus {
            let left = surplus - removed.len();
            let with_free = cores.values_mut().filter(|core| !core.free.is_empty());
            let Some(core) = with_free.rev().min_by_key(|core| core.rank(left)) else {
                break;
            };
            let count = if core.can_go(left) {
                core.free.len()
            } else {
                1
            };
            let kept = core.free.len() - count;
            removed.extend(core.free.drain(kept..).rev());
        }
        let left = surplus - removed.len();
        let smaller = Resized {
            removed,
            ..Resized::default()
        };
        (smaller, left)
    }

    /// The first CPU of the core with the list's first CPU.
    fn core_of(&self, list: &CpuList) -> u32 {
        let first = list.cpus.first().expect("a list of a pool has a CPU");
        let mut cores = self.stock.cores.iter();
        let core = cores.find(|core| core.cpus.contains(first));
        core.and_then(|core| core.cpus.first()).unwrap_or(first)
    }

    /// Chooses `surplus` cores of shared lists without owners to give up: whole lists first, the
    /// last ones first; once none fits any more, the last cores of the last list. Also returns how
    /// many are missing.
    fn without_cores(&self, surplus: usize) -> (Resized, usize) {
        let mut left = surplus;
        let mut smaller = Resized::default();
        let lists = self.pool.lists.iter().zip(self.owners);
        let ownerless = lists.filter(|(_, owner)| owner.is_none());
        let mut kept: Vec<&CpuList> = ownerless.map(|(list, _)| list).collect();
        let can_go = self.pool.lists.len() > 1;
        for index in (0..kept.len()).rev() {
            let cores = self.cores_of(kept[index]);
            if can_go && cores <= left {
                left -= cores;
                smaller.removed.push(kept.remove(index).cpus.clone());
            }
        }
        if let Some(last) = kept.last().filter(|_| left > 0) {
            let cores = self.stock.cores_in(&last.cpus);
            let stays = cores[..cores.len() - left].iter();
            let stays = stays.flat_map(CpuSet::iter).collect();
            smaller.renamed = Some((last.cpus.clone(), stays));
            left = 0;
        }
        (smaller, left)
    }
}

/// The lists of an exclusive pool that are on one core.
#[derive(Default)]
struct OfCore {
    free: Vec<CpuSet>,
    has_owners: bool,
}

impl OfCore {
    /// Can the pool give up all it has of this core, if `left` lists are to be given up?
    fn can_go(&self, left: usize) -> bool {
        !self.has_owners && self.free.len() <= left
    }

    /// Lists of the core with the lowest rank are given up first. That is the core of which the
    /// pool has least, so that most cores become wholly free; if no core can be given up, one that
    /// has owners.
    fn rank(&self, left: usize) -> (bool, usize) {
        match self.can_go(left) {
            true => (false, self.free.len()),
            false => (true, usize::from(!self.has_owners)),
        }
    }
}
