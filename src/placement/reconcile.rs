//! Freeing what dead owners hold, in one pool or everywhere.

use std::collections::BTreeSet;

use anyhow::Result;

use super::life::Life;
use super::{Books, Site};
use crate::cgroup::{self, Group, Hierarchy, cpuset};
use crate::claims::{Claim, Entry};
use crate::files;
use crate::pools::{CpuList, Pool, TasksChange};
use crate::process::{self, Process};
use crate::topology;

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

/// What a reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// What was freed.
    pub reclaimed: Vec<Reclaimed>,
    /// What could not be done, a sentence each.
    pub problems: Vec<String>,
}

impl Report {
    fn note(&mut self, result: Result<()>) {
        self.problems
            .extend(result.err().map(|error| format!("{error:#}")));
    }
}

/// Frees what dead owners hold in every pool, confines again what is no longer confined as its claim says, and
/// removes what killed programs left behind. A problem with one claim or pool does not stop the rest.
///
/// # Errors
/// Only what keeps it from beginning: the pool directory, the lock, the ledger.
pub fn reconcile(site: &Site) -> Result<Report> {
    let books = site.open_books(Hierarchy::discover(&site.host)?)?;
    let mut report = Report::default();
    for entry in books.ledger.all()? {
        if let Entry::Opaque { path, reason } = entry {
            match books.free_unreadable(&path, &reason) {
                Ok(reclaimed) => report.reclaimed.extend(reclaimed),
                Err(error) => report.note(Err(error)),
            }
        }
    }
    for name in books.directory.pool_names()? {
        match books
            .directory
            .pool(&name)
            .and_then(|pool| books.reap_pool(&pool))
        {
            Ok(reclaimed) => report.reclaimed.extend(reclaimed),
            Err(error) => report.note(Err(error)),
        }
    }
    // Claims on pools or lists that are no longer in the directory are seen here alone.
    for entry in books.ledger.all()? {
        match entry {
            Entry::Claim(claim) => match books.settle_confined(&claim) {
                Ok(None) => report.reclaimed.extend(reclaimed(&claim)),
                Ok(Some(_)) => {}
                Err(error) => report.note(Err(error)),
            },
            // Told of above.
            Entry::Opaque { .. } => {}
        }
    }
    report.note(books.ledger.remove_leftovers());
    report.note(books.directory.remove_unfinished_pools(&books.lock));
    report.note(books.remove_unclaimed_groups());
    report.reclaimed.sort();
    report.reclaimed.dedup();
    // KCM's order.
    report.reclaimed.sort_by_key(|one| one.pid);
    Ok(report)
}

impl Books<'_> {
    /// Settles a claim, and confines its owner again where it lives and is not. One that ends meanwhile is gone, whatever
    /// its end made fail.
    fn settle_confined(&self, claim: &Claim) -> Result<Option<Claim>> {
        let Some(kept) = self.settle(claim)? else {
            return Ok(None);
        };
        match self.keep_confined(&kept) {
            Err(_) if !self.life_of(&kept)?.is_alive() => self.settle(&kept),
            confined => confined.map(|()| Some(kept)),
        }
    }

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

    /// Frees what dead owners hold of one pool. A claim that makes trouble counts as held, and does not stop the rest.
    pub(super) fn reap_pool(&self, pool: &Pool) -> Result<Vec<Reclaimed>> {
        let mut freed = BTreeSet::new();
        for list in &pool.lists {
            let mut claimed = BTreeSet::new();
            let mut is_clear = true;
            for entry in self.ledger.on_list(&list.name)? {
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
        }
        self.directory.remove_leftovers(&self.lock, pool)?;
        Ok(freed.into_iter().collect())
    }

    /// Drops the pids that no claim explains and that have no process any more.
    fn drop_dead_pids(
        &self,
        pool: &Pool,
        list: &CpuList,
        claimed: &BTreeSet<i32>,
    ) -> Result<Vec<Reclaimed>> {
        let mut dead = list.tasks.clone();
        dead.retain(|pid| !claimed.contains(pid) && !self.is_pid_alive(*pid));
        let change = TasksChange {
            pool: &pool.name,
            list: &list.name,
            drop: &dead,
            add: &[],
        };
        self.directory.change_tasks(&self.lock, &change)?;
        let of_pid = |pid| Reclaimed {
            pool: pool.name.clone(),
            cpus: list.name.clone(),
            pid,
        };
        Ok(dead.into_iter().map(of_pid).collect())
    }

    /// Confines an owner as its claim says where it is not any more: version 1 drops a CPU that goes offline from every
    /// cpuset for good, and moves the processes of one that has none left to a group above (kernel:
    /// cgroup-v1/cpusets.rst). CPUs that are offline are waited for.
    pub(super) fn keep_confined(&self, claim: &Claim) -> Result<()> {
        let Some(group) = self.confined_group_of(claim)? else {
            return Ok(());
        };
        let cpus = claim.cpus.intersection(&topology::online(self.host)?);
        if cpus.is_empty() {
            log::warn!(
                "all CPUs of {} are offline: it runs elsewhere until they are back",
                claim.shown()
            );
            return Ok(());
        }
        if cpuset::effective_cpus(&group)? != Some(cpus.clone()) {
            log::warn!(
                "{} is not confined to {cpus} any more: confining it again",
                claim.shown()
            );
            cpuset::widen_above(&group, &cpus)?;
            self.set_cpus(&group, &cpus, &claim.mems)?;
        }
        self.bring_back(claim, &group)
    }

    /// The owner's processes that the kernel moved to a group above its own: those that the claim records, and with them
    /// whatever else there is the owner's.
    fn bring_back(&self, claim: &Claim, group: &Group) -> Result<()> {
        let moved = |process: &&Process| !claim.is_beside(**process);
        for process in claim.processes.iter().filter(moved) {
            let now = self.hierarchy.group_of(self.host, process.pid)?;
            let Some(above) = now.filter(|now| now.is_above(group)) else {
                continue;
            };
            if !process.is_alive(self.host)? {
                continue;
            }
            adopt_if_there(group, process.pid)?;
            for pid in above.pids()? {
                if self.belongs(pid, process.pid, group)?
                    && Process::with_pid(self.host, pid)?.is_some()
                {
                    adopt_if_there(group, pid)?;
                }
            }
        }
        Ok(())
    }

    /// Is a process the owner's? In the other hierarchies of version 1 a runtime puts it into a group of the same path; in
    /// a group of ours it is a descendant of the recorded one.
    fn belongs(&self, pid: i32, recorded: i32, group: &Group) -> Result<bool> {
        Ok(cgroup::is_in_any(self.host, pid, group.path())?
            || process::descends_from(self.host, pid, recorded)?)
    }

    /// Removes groups of ours that hold nobody and that no claim names, and their parent when it is empty: their
    /// maker was killed before it wrote its claim.
    fn remove_unclaimed_groups(&self) -> Result<()> {
        let parent = self.hierarchy.parent_for(&self.lock.key()?)?;
        for group in parent.children()? {
            let claim = group
                .inode()?
                .and_then(|inode| self.ledger.on_cgroup(inode));
            if claim.is_none() {
                group.remove()?;
            }
        }
        if parent.children()?.is_empty() {
            parent.remove()?;
        }
        Ok(())
    }
}

/// Moves a process into a group, unless one of them has ended in this moment.
fn adopt_if_there(group: &Group, pid: i32) -> Result<()> {
    match group.adopt(pid) {
        Err(error) if files::says_gone(&error) => Ok(()),
        adopted => adopted,
    }
}

fn reclaimed(claim: &Claim) -> Vec<Reclaimed> {
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
