//! Freeing what dead owners hold: of one claim, of one list, of a pool.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Books;
use super::life::Life;
use crate::claims::{Claim, Entry};
use crate::pools::{CpuList, Pool, TasksChange};
use crate::process::Process;

/// One pid that no longer holds a CPU list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reclaimed {
    /// The pool.
    pub pool: String,
    /// The list's directory name.
    pub cpus: String,
    /// The pid that was in its `tasks`.
    pub pid: i32,
}

impl Books<'_> {
    /// Brings a claim up to date with its owner: gives back what a dead one holds, `None`; otherwise lets those of
    /// its processes that live stand for it in `tasks`, or one of the others in its group, so that other tools
    /// see the owner too.
    pub(super) fn settle(&self, claim: &Claim) -> Result<Option<Claim>> {
        if self.free_if_gone(claim)? {
            return Ok(None);
        }
        let mut living = Vec::new();
        for process in &claim.processes {
            if process.is_alive(self.host)? {
                living.push(*process);
            }
        }
        if living.is_empty() {
            match self.life_of(claim)? {
                Life::Survived(Some(survivor)) => living.push(survivor),
                // It was there a moment ago, or is of another pid namespace: the next one to look sees.
                _ => return Ok(Some(claim.clone())),
            }
            // Until `tasks` has the new number, the claim knows both: neither is ever taken for a stranger's.
            let mut both = claim.clone();
            both.processes.extend(&living);
            self.ledger.write(&both)?;
        }
        // A survivor can have the number of a dead one.
        let is_dead = |process: &&Process| !living.iter().any(|other| other.pid == process.pid);
        let dead: Vec<i32> = claim
            .processes
            .iter()
            .filter(is_dead)
            .map(|p| p.pid)
            .collect();
        let after = Claim {
            processes: living,
            ..claim.clone()
        };
        self.record_instead_of(&dead, &after)?;
        if after.processes != claim.processes {
            self.ledger.write(&after)?;
        }
        Ok(Some(after))
    }

    /// Frees what dead owners hold of these lists of a pool.
    pub(super) fn reap_lists(
        &self,
        pool: &Pool,
        wanted: impl Fn(&CpuList) -> bool,
    ) -> Result<Vec<Reclaimed>> {
        let mut freed = Vec::new();
        for list in pool.lists.iter().filter(|list| wanted(list)) {
            freed.extend(self.reap_list(&pool.name, &list.name)?);
        }
        Ok(freed)
    }

    /// Frees what dead owners hold of one list. A claim that makes trouble counts as held, and does not stop the rest.
    pub(super) fn reap_list(&self, pool: &str, list: &str) -> Result<Vec<Reclaimed>> {
        let mut freed = BTreeSet::new();
        let mut claimed = BTreeSet::new();
        let mut is_clear = true;
        let tasks = self.directory.tasks(pool, list)?;
        for entry in self.claims_on(list, &tasks)? {
            let Some(claim) = entry.claim() else {
                is_clear = false;
                continue;
            };
            match self.settle(claim) {
                Ok(None) => freed.extend(reclaimed(claim)),
                // Who stands for it now, and who did: `tasks` was read before.
                Ok(Some(kept)) => claimed.extend([kept.pids(), claim.pids()].concat()),
                Err(error) => {
                    log::warn!("{} counts as held: {error:#}", claim.shown());
                    claimed.extend(claim.pids());
                }
            }
        }
        // Any of these pids may be the one that a claim which cannot be read stands for.
        if is_clear {
            freed.extend(self.drop_dead_pids(pool, list, &claimed)?);
        }
        self.directory.remove_leftovers(&self.lock, pool, list)?;
        Ok(freed.into_iter().collect())
    }

    /// The claims on a list. A dead pid that none of them explains may be that of one whose link is lost: then, once, every
    /// claim gets its links again.
    fn claims_on(&self, list: &str, tasks: &[i32]) -> Result<Vec<Entry>> {
        let entries = self.ledger.on_list(list)?;
        let is_claimed = |pid: &i32| {
            let mut claims = entries.iter().filter_map(Entry::claim);
            claims.any(|claim| claim.pids().contains(pid))
        };
        let mut unclaimed = tasks.iter().filter(|pid| !is_claimed(pid));
        if self.is_relinked.get() || !unclaimed.any(|pid| !self.is_pid_alive(*pid)) {
            return Ok(entries);
        }
        for claim in self.ledger.all()?.iter().filter_map(Entry::claim) {
            self.ledger.link(claim)?;
        }
        self.is_relinked.set(true);
        self.ledger.on_list(list)
    }

    /// Drops the pids that no claim explains and that have no process any more.
    fn drop_dead_pids(
        &self,
        pool: &str,
        list: &str,
        claimed: &BTreeSet<i32>,
    ) -> Result<Vec<Reclaimed>> {
        let mut dead = self.directory.tasks(pool, list)?;
        dead.retain(|pid| !claimed.contains(pid) && !self.is_pid_alive(*pid));
        let change = TasksChange {
            pool,
            list,
            drop: &dead,
            add: &[],
        };
        self.directory.change_tasks(&self.lock, &change)?;
        let of_pid = |pid| Reclaimed {
            pool: pool.to_owned(),
            cpus: list.to_owned(),
            pid,
        };
        Ok(dead.into_iter().map(of_pid).collect())
    }

    /// Are all owners of a list dead? What cannot be told counts as alive. Nothing is freed; but where one lives on whose
    /// recorded process is dead, another of its processes stands for it in `tasks` from now on.
    pub(super) fn has_dead_owners_alone(&self, list: &CpuList) -> Result<bool> {
        let mut claimed = Vec::new();
        let is_shown = |claim: &Claim| claim.pids().iter().all(|pid| list.tasks.contains(pid));
        for entry in self.ledger.on_list(&list.name)? {
            let Some(claim) = entry.claim() else {
                return Ok(false);
            };
            match self.life_of(claim) {
                Ok(Life::Gone) => claimed.extend(claim.pids()),
                Ok(Life::Recorded) if is_shown(claim) => return Ok(false),
                Ok(_) => {
                    if let Err(error) = self.settle(claim) {
                        log::warn!("{} counts as held: {error:#}", claim.shown());
                    }
                    return Ok(false);
                }
                Err(_) => return Ok(false),
            }
        }
        let mut others = list.tasks.iter().filter(|pid| !claimed.contains(pid));
        Ok(!others.any(|pid| self.is_pid_alive(*pid)))
    }

    /// Frees a list, if only dead owners hold it: is it nobody's now?
    pub(super) fn clear_list(&self, pool: &str, list: &CpuList) -> Result<bool> {
        let entries = self.ledger.on_list(&list.name)?;
        for entry in &entries {
            if let Entry::Opaque { path, reason } = entry {
                log::warn!("the claim {} counts as held: {reason}", path.display());
            }
        }
        if entries.is_empty() && list.tasks.is_empty() {
            return Ok(true);
        }
        self.reap_list(pool, &list.name)?;
        Ok(self.ledger.on_list(&list.name)?.is_empty()
            && self.directory.tasks(pool, &list.name)?.is_empty())
    }

    /// Others wait while a start looks for what dead owners hold.
    pub(super) fn ensure_time_to_look(&self, pool: &Pool) -> Result<()> {
        ensure!(
            Instant::now() < self.until,
            "there was no time to look at all owners of pool {}: `pinfold reconcile` frees what dead ones hold; start it again then",
            pool.name
        );
        Ok(())
    }
}

/// What a claim held, list by list and pid by pid.
pub(super) fn reclaimed(claim: &Claim) -> Vec<Reclaimed> {
    let mut all = Vec::new();
    for list in &claim.lists {
        for pid in claim.pids() {
            all.push(Reclaimed {
                pool: claim.pool.clone(),
                cpus: list.clone(),
                pid,
            });
        }
    }
    all
}
