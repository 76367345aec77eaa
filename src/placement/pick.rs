//! Picking CPU lists for a request: what is free in `tasks`, what live claims hold all the same, what dead owners
//! can be relieved of; and saying why there is nothing.

use anyhow::{Result, bail};

use super::Books;
use crate::cgroup::cpuset::Bound;
use crate::choose::{Offer, Reach, Refusal, choose};
use crate::claims::Entry;
use crate::cpulist::CpuSet;
use crate::pools::{Kind, Pool};
use crate::request::{Request, Size};

/// A pool as it was read, and the lists of it that were picked.
pub(super) struct Picked {
    pub(super) pool: Pool,
    /// Indices into the pool's lists, ascending.
    pub(super) chosen: Vec<usize>,
}

impl Picked {
    /// All CPUs of the lists.
    pub(super) fn cpus(&self) -> CpuSet {
        let mut cpus = CpuSet::new();
        for index in &self.chosen {
            cpus.extend(&self.pool.lists[*index].cpus);
        }
        cpus
    }

    /// The directory names of the lists.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self
            .chosen
            .iter()
            .map(|index| &self.pool.lists[*index].name);
        names.cloned().collect()
    }
}

impl Books<'_> {
    /// Picks; where dead owners are in the way, frees what they hold and picks again.
    pub(super) fn pick(&self, request: &Request, online: &CpuSet, bound: &Bound) -> Result<Picked> {
        let reach = Reach {
            online: online.clone(),
            allowed: bound.cpus.clone(),
        };
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, request.size)? {
            Ok(chosen) if !self.has_dead_pids(&pool) => {
                return Ok(Picked { pool, chosen });
            }
            Ok(_) | Err(Refusal::Exhausted { .. }) => {}
            Err(refusal) => bail!(explain(&refusal, &pool, request, bound)),
        }
        self.reap_pool(&pool)?;
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, request.size)? {
            Ok(chosen) => Ok(Picked { pool, chosen }),
            Err(refusal) => bail!(explain(&refusal, &pool, request, bound)),
        }
    }

    /// A shared pool is never exhausted: there dead owners are seen by their numbers.
    fn has_dead_pids(&self, pool: &Pool) -> bool {
        let mut pids = pool.lists.iter().flat_map(|list| &list.tasks);
        pool.kind == Kind::Shared && pids.any(|pid| !self.is_pid_alive(*pid))
    }

    /// Chooses among the lists that are free in `tasks`, and passes over those that a live claim holds all
    /// the same: another tool may have dropped a pid that it took for dead. Only claims on chosen lists are read.
    fn choose_free(
        &self,
        pool: &Pool,
        reach: &Reach,
        size: Size,
    ) -> Result<Result<Vec<usize>, Refusal>> {
        let mut offers: Vec<Offer<'_>> = pool
            .lists
            .iter()
            .map(|list| Offer {
                cpus: &list.cpus,
                owners: list.tasks.len(),
            })
            .collect();
        loop {
            let chosen = match choose(pool.kind, &offers, reach, size) {
                Ok(chosen) if pool.kind == Kind::Exclusive => chosen,
                other => return Ok(other),
            };
            let mut held = Vec::new();
            for index in &chosen {
                if self.is_held(&pool.lists[*index].name)? {
                    held.push(*index);
                }
            }
            if held.is_empty() {
                return Ok(Ok(chosen));
            }
            for index in held {
                offers[index].owners += 1;
            }
        }
    }

    /// Does any claim hold this list? What dead owners hold of it is freed on the way; a claim that makes trouble
    /// counts as held.
    fn is_held(&self, list: &str) -> Result<bool> {
        let mut held = false;
        for entry in self.ledger.on_list(list)? {
            held |= match entry {
                Entry::Claim(claim) => !self.free_if_gone(&claim).unwrap_or_else(|error| {
                    log::warn!("{} counts as held: {error:#}", claim.id);
                    false
                }),
                Entry::Opaque { path, reason } => {
                    log::warn!("the claim {} counts as held: {reason}", path.display());
                    true
                }
            };
        }
        Ok(held)
    }
}

/// A refusal as a sentence: the reason, and what to do. Whoever asked adds for whom, and which pool.
fn explain(refusal: &Refusal, pool: &Pool, request: &Request, bound: &Bound) -> String {
    let size = request.size;
    match refusal {
        Refusal::Exhausted { free } => format!(
            "the pool is exhausted: {size} asked for, {free} free: stop an owner (pinfold describe shows them), or make the pool larger"
        ),
        Refusal::TooSmall { all } => {
            let cpus = pool.lists.iter().map(|list| list.cpus.len()).sum::<usize>();
            let whole = match (pool.kind, size) {
                (Kind::Shared, _) => *all,
                (Kind::Exclusive, Size::Lists(_)) => pool.lists.len(),
                (Kind::Exclusive, Size::Cpus(_)) => cpus,
            };
            let reason = if whole > *all {
                format!(", for others are offline or not allowed by the cgroup {}", bound.group())
            } else {
                String::new()
            };
            format!(
                "the pool is too small: {size} asked for, and it can give {all} at most{reason}: ask for less, or make it larger"
            )
        }
        Refusal::OneListOnly => format!(
            "the pool is shared, which gives one CPU list, and {size} asked for: ask for 1, or use pinfold.io/cpus"
        ),
        Refusal::Offline => {
            "every CPU list of the pool has a CPU that is offline: put CPUs online in /sys/devices/system/cpu, or change the pool".to_owned()
        }
        Refusal::NotAllowed => format!(
            "the cgroup {} allows only the CPUs {}, which hold no CPU list of the pool: widen that, or use another pool",
            bound.group(), bound.cpus
        ),
    }
}
