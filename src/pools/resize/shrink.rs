//! Less for a pool: lists without owners alone.

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
                    "pool {} cannot have {wanted} {}, but {} at least, for lists with owners stay as they are: {}",
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

    /// Gives up so many lists without owners, the last first, and rather all that are of one core;
    /// how many are missing for want of such lists is beside it.
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

    /// The first CPU of the core that a list begins on.
    fn core_of(&self, list: &CpuList) -> u32 {
        let first = list.cpus.first().expect("a list of a pool has a CPU");
        let mut cores = self.stock.cores.iter();
        let core = cores.find(|core| core.cpus.contains(first));
        core.and_then(|core| core.cpus.first()).unwrap_or(first)
    }

    /// Gives up so many cores of shared lists without owners: whole lists, the last first, and
    /// where none fits any more, the last cores of the last.
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

/// An exclusive pool's lists of one core.
#[derive(Default)]
struct OfCore {
    free: Vec<CpuSet>,
    has_owners: bool,
}

impl OfCore {
    /// Would the pool have nothing of this core any more?
    fn can_go(&self, left: usize) -> bool {
        !self.has_owners && self.free.len() <= left
    }

    /// The lowest gives lists up first: what the pool has least of, as most cores are then wholly
    /// free; and where none can go, one that cannot go anyway.
    fn rank(&self, left: usize) -> (bool, usize) {
        match self.can_go(left) {
            true => (false, self.free.len()),
            false => (true, usize::from(!self.has_owners)),
        }
    }
}
