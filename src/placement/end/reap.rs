//! Freeing what dead owners hold: one claim, or all claims of a list.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::claims::{Claim, Entry, Marker};
use crate::placement::Books;
use crate::placement::end::{Fate, Settled, warn_held};
use crate::placement::life::Life;
use crate::pools::TasksChange;
use crate::process::Process;
use crate::refusal::Refusal;
use crate::text::Shown;

/// The owners of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// One lives, or it cannot be told.
    Living,
    /// All are dead.
    Dead,
    /// All are dead, and freeing one of them once took long and failed.
    Slow,
}

/// What was freed of one list.
pub(crate) struct Reaped {
    pub(crate) freed: Vec<Reclaimed>,
    /// Was every owner looked at?
    pub(crate) is_whole: bool,
}

/// A pid that was dropped from a list's `tasks`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reclaimed {
    /// The pool.
    pub pool: String,
    /// The list's directory name.
    pub cpus: String,
    /// The pid.
    pub pid: i32,
}

impl Books<'_> {
    /// Frees the claim if its owner is dead. Otherwise refreshes it: `tasks` then names the
    /// recorded processes that live, or one other of the owner's group, so that other tools see the
    /// owner too.
    pub(crate) fn free_or_refresh(&self, claim: &Claim) -> Result<Settled> {
        if self.free_if_dead(claim)? == Fate::Freed {
            return Ok(Settled::Freed);
        }
        self.ensure_current(claim)?;
        let mut living = Vec::new();
        for process in &claim.processes {
            if process.is_alive(self.host)? {
                living.push(*process);
            }
        }
        if living.len() != claim.processes.len() && !self.pids_tell() {
            return Ok(Settled::Held(Box::new(claim.clone())));
        }
        if living.is_empty() {
            match self.life_of(claim)? {
                Life::Survived(Some(survivor)) => living.push(survivor),
                // The survivor ended just now, or is in another pid namespace. The next look tells.
                _ => return Ok(Settled::Held(Box::new(claim.clone()))),
            }
            // Until `tasks` has the new pid the claim names both, so that neither is taken for a
            // stranger's.
            let mut both = claim.clone();
            both.processes.extend(&living);
            self.ledger.write(&both)?;
        }
        // A survivor can have the pid of a dead process.
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
        Ok(Settled::Held(Box::new(after)))
    }

    /// Frees what dead owners hold of one list: at most `most` owners, and while there is time to
    /// look. A claim that fails counts as held, and does not stop the rest.
    pub(crate) fn reap_list(&self, pool: &str, list: &str, most: usize) -> Result<Reaped> {
        let reaped = self.reap_uncounted(pool, list, most)?;
        if !reaped.freed.is_empty() {
            self.tally.count_reclaimed();
        }
        Ok(reaped)
    }

    /// [`Books::reap_list`] for callers that count the freed lists themselves.
    pub(crate) fn reap_uncounted(&self, pool: &str, list: &str, most: usize) -> Result<Reaped> {
        let mut freed = BTreeSet::new();
        let mut claimed = BTreeSet::new();
        let mut is_whole = true;
        let tasks = self.directory.tasks(pool, list)?;
        let mut is_clear = self.links_are_whole(list, &tasks)?;
        let mut markers = self.ledger.markers_on(list)?;
        // Dead owners first: of thousands not all are looked at.
        markers.sort_by_cached_key(|marker| {
            let mut pids = marker.pid().into_iter();
            pids.any(|pid| self.is_pid_alive(pid))
        });
        let mut owners = 0;
        for marker in markers {
            is_whole = owners < most && Instant::now() < self.until;
            if !is_whole {
                break;
            }
            let Some(entry) = self.ledger.at(list, &marker) else {
                continue;
            };
            let Some(claim) = entry.claim() else {
                is_clear = false;
                continue;
            };
            match self.free_or_refresh(claim) {
                Ok(Settled::Freed) => {
                    owners += 1;
                    freed.extend(reclaimed(claim));
                }
                // Both the old pids and the new ones: `tasks` was read before this.
                Ok(Settled::Held(kept)) => claimed.extend([kept.pids(), claim.pids()].concat()),
                Err(error) => {
                    warn_held(claim, &error);
                    claimed.extend(claim.pids());
                }
            }
        }
        // An unreadable claim, or one that was not looked at, may stand for any of these pids.
        if is_clear && is_whole {
            freed.extend(self.drop_dead_pids(pool, list, &claimed)?);
        }
        self.directory.remove_leftovers(&self.lock, pool, list)?;
        Ok(Reaped {
            freed: freed.into_iter().collect(),
            is_whole,
        })
    }

    /// Does every claim of a list have its link from there? A dead pid that no link explains may
    /// belong to a claim that lost its link. Then, once, all claims get their links again.
    fn links_are_whole(&self, list: &str, tasks: &[i32]) -> Result<bool> {
        let mut unclaimed: BTreeSet<i32> = tasks.iter().copied().collect();
        unclaimed.retain(|pid| !self.is_pid_alive(*pid));
        let markers = self.ledger.markers_on(list)?;
        for pid in markers.iter().filter_map(Marker::pid) {
            unclaimed.remove(&pid);
        }
        for marker in markers {
            if unclaimed.is_empty() || Instant::now() >= self.until {
                break;
            }
            if let Some(Entry::Claim(claim)) = self.ledger.at(list, &marker) {
                unclaimed.retain(|pid| !claim.pids().contains(pid));
            }
        }
        if unclaimed.is_empty() {
            return Ok(true);
        }
        self.are_linked()
    }

    /// Has every claim its links? Those that are missing are made, once.
    pub(crate) fn are_linked(&self) -> Result<bool> {
        if let Some(are_linked) = self.links.get() {
            return Ok(are_linked);
        }
        let are_linked = self.relink()?;
        self.links.set(Some(are_linked));
        Ok(are_linked)
    }

    /// Makes the links to a claim that are missing.
    pub(crate) fn link(&self, claim: &Claim) -> Result<()> {
        match self.ensure_current(claim) {
            Ok(()) => self.ledger.link(claim),
            // It will be freed.
            Err(_) if self.life_of(claim)? == Life::Gone => Ok(()),
            old => old,
        }
    }

    /// Refuses a claim of which no list exists: an old copy, from before its list was renamed. It
    /// must not get links, for the lack of them is what shows it.
    fn ensure_current(&self, claim: &Claim) -> Result<()> {
        for list in &claim.lists {
            if self.directory.has_list(&claim.pool, list)? {
                return Ok(());
            }
        }
        ensure!(
            claim.lists.is_empty(),
            Refusal::new(
                format!(
                    "the claim of {} names lists that pool {} does not have: {}",
                    claim.shown(),
                    Shown(&claim.pool),
                    claim.lists.join(" and ")
                ),
                "stop it: then `pinfold reconcile` frees what it holds"
            )
        );
        Ok(())
    }

    /// Gives every claim its links again; `false` if one got none, or time ran out.
    fn relink(&self) -> Result<bool> {
        for id in self.ledger.ids()? {
            if Instant::now() >= self.until {
                log::warn!("there was no time to link all claims: `pinfold reconcile` does");
                return Ok(false);
            }
            for claim in self.ledger.of_id(&id)?.iter().filter_map(Entry::claim) {
                if let Err(error) = self.link(claim) {
                    warn_held(claim, &error);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Drops the pids of processes that are gone and that no claim names.
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

    /// Who owns a list; what cannot be told counts as living. Frees nothing, but refreshes a claim
    /// whose owner lives on without its recorded processes.
    pub(crate) fn owners_of(&self, pool: &str, list: &str) -> Result<Owners> {
        let tasks = self.directory.tasks(pool, list)?;
        let mut claimed = Vec::new();
        let mut dead = Owners::Dead;
        let is_shown = |claim: &Claim| claim.pids().iter().all(|pid| tasks.contains(pid));
        for entry in self.ledger.on_list(list)? {
            let Some(claim) = claim_or_warn(&entry) else {
                return Ok(Owners::Living);
            };
            match self.life_of(claim) {
                Ok(Life::Gone) => {
                    claimed.extend(claim.pids());
                    if claim.is_slow {
                        dead = Owners::Slow;
                    }
                }
                Ok(Life::Recorded) if is_shown(claim) => return Ok(Owners::Living),
                Ok(_) => {
                    if let Err(error) = self.free_or_refresh(claim) {
                        warn_held(claim, &error);
                    }
                    return Ok(Owners::Living);
                }
                Err(_) => return Ok(Owners::Living),
            }
        }
        let mut others = tasks.iter().filter(|pid| !claimed.contains(pid));
        Ok(match others.any(|pid| self.is_pid_alive(*pid)) {
            true => Owners::Living,
            false => dead,
        })
    }

    /// Frees a list that only dead owners hold. Returns whether nobody holds it now.
    ///
    /// # Errors
    /// The list can be changed by others, too; the list or a claim cannot be read.
    pub(crate) fn clear_list(&self, pool: &str, list: &str) -> Result<bool> {
        self.directory.ensure_trusted_list(pool, list)?;
        let entries = self.ledger.on_list(list)?;
        for entry in &entries {
            claim_or_warn(entry);
        }
        if entries.is_empty() && self.directory.tasks(pool, list)?.is_empty() {
            return Ok(true);
        }
        self.reap_list(pool, list, usize::MAX)?;
        Ok(self.ledger.on_list(list)?.is_empty() && self.directory.tasks(pool, list)?.is_empty())
    }

    /// Refuses to go on when the time to look is over: others wait for the lock.
    pub(crate) fn ensure_time_to_look(&self, pool: &str) -> Result<()> {
        ensure!(
            Instant::now() < self.until,
            Refusal::new(
                format!("there was no time to look at all owners of pool {pool}"),
                "`pinfold reconcile` frees what dead ones hold; do it again then"
            )
        );
        Ok(())
    }
}

/// The claim, if it can be read; otherwise warns that it counts as held.
fn claim_or_warn(entry: &Entry) -> Option<&Claim> {
    if let Entry::Unreadable(one) = entry {
        log::warn!("{one}");
    }
    entry.claim()
}

/// All pairs of a list and a pid that a claim held.
pub(crate) fn reclaimed(claim: &Claim) -> Vec<Reclaimed> {
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
