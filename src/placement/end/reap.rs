//! Freeing what dead owners hold: of one claim, and of one list.

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

/// How the owners of a list are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// One lives, as far as can be told.
    Living,
    /// All are dead.
    Dead,
    /// The same; but giving back waited in vain before.
    Slow,
}

/// What was freed of one list.
pub(crate) struct Reaped {
    pub(crate) freed: Vec<Reclaimed>,
    /// Was every owner looked at?
    pub(crate) is_whole: bool,
}

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
    /// Frees the claim if its owner is dead. Otherwise brings it up to date: those of the owner's
    /// processes that live stand for it in `tasks`, or one of the others in its group, so that
    /// other tools see the owner too.
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
        if living.is_empty() {
            match self.life_of(claim)? {
                Life::Survived(Some(survivor)) => living.push(survivor),
                // It was there a moment ago, or is of another pid namespace: the next one to look
                // sees.
                _ => return Ok(Settled::Held(Box::new(claim.clone()))),
            }
            // Until `tasks` has the new number, the claim knows both: neither is ever taken for a
            // stranger's.
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
        Ok(Settled::Held(Box::new(after)))
    }

    /// Frees what dead owners hold of one list, of at most so many owners, and for as long as there
    /// is time to look. A claim that makes trouble counts as held, and does not stop the rest.
    pub(crate) fn reap_list(&self, pool: &str, list: &str, most: usize) -> Result<Reaped> {
        let reaped = self.reap_uncounted(pool, list, most)?;
        if !reaped.freed.is_empty() {
            self.tally.count_reclaimed();
        }
        Ok(reaped)
    }

    /// The same for who counts lists over several openings of the books.
    pub(crate) fn reap_uncounted(&self, pool: &str, list: &str, most: usize) -> Result<Reaped> {
        let mut freed = BTreeSet::new();
        let mut claimed = BTreeSet::new();
        let mut is_whole = true;
        let tasks = self.directory.tasks(pool, list)?;
        let mut is_clear = self.links_are_whole(list, &tasks)?;
        let mut markers = self.ledger.markers_on(list)?;
        // The dead first: of thousands not all are looked at.
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
                // Who stands for it now, and who did: `tasks` was read before.
                Ok(Settled::Held(kept)) => claimed.extend([kept.pids(), claim.pids()].concat()),
                Err(error) => {
                    warn_held(claim, &error);
                    claimed.extend(claim.pids());
                }
            }
        }
        // Any of these pids may be the one that a claim stands for which cannot be read, or was not
        // looked at.
        if is_clear && is_whole {
            freed.extend(self.drop_dead_pids(pool, list, &claimed)?);
        }
        self.directory.remove_leftovers(&self.lock, pool, list)?;
        Ok(Reaped {
            freed: freed.into_iter().collect(),
            is_whole,
        })
    }

    /// Do the links from a list lead to every claim that has it? A dead pid that none of them
    /// explains may be that of one whose link is lost: then, once, every claim gets its links
    /// again.
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
        if let Some(are_whole) = self.links.get() {
            return Ok(are_whole);
        }
        let are_whole = self.relink()?;
        self.links.set(Some(are_whole));
        Ok(are_whole)
    }

    /// Makes the links to a claim where they are missing.
    pub(crate) fn link(&self, claim: &Claim) -> Result<()> {
        match self.ensure_current(claim) {
            Ok(()) => self.ledger.link(claim),
            // It is about to be freed.
            Err(_) if self.life_of(claim)? == Life::Gone => Ok(()),
            old => old,
        }
    }

    /// A claim that was put back from before its list got another name is not to be made to look
    /// like a true one: the links that it lacks tell.
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

    /// Gives every claim its links again; `false` where one did not get them, or there was no time.
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

    /// Who owns a list? What cannot be told counts as alive. Nothing is freed; but where one lives
    /// on whose recorded process is dead, another of its processes stands for it in `tasks` from
    /// now on.
    pub(crate) fn owners_of(&self, pool: &str, list: &str) -> Result<Owners> {
        let tasks = self.directory.tasks(pool, list)?;
        let mut claimed = Vec::new();
        let mut dead = Owners::Dead;
        let is_shown = |claim: &Claim| claim.pids().iter().all(|pid| tasks.contains(pid));
        for entry in self.ledger.on_list(list)? {
            let Some(claim) = told(&entry) else {
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

    /// Frees a list, if only dead owners hold it: is it nobody's now?
    ///
    /// # Errors
    /// Also a list that others can change.
    pub(crate) fn clear_list(&self, pool: &str, list: &str) -> Result<bool> {
        self.directory.ensure_trusted_list(pool, list)?;
        let entries = self.ledger.on_list(list)?;
        for entry in &entries {
            told(entry);
        }
        if entries.is_empty() && self.directory.tasks(pool, list)?.is_empty() {
            return Ok(true);
        }
        self.reap_list(pool, list, usize::MAX)?;
        Ok(self.ledger.on_list(list)?.is_empty() && self.directory.tasks(pool, list)?.is_empty())
    }

    /// Others wait while a start looks for what dead owners hold.
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

/// A claim; of one that cannot be read it is said that it counts as held.
fn told(entry: &Entry) -> Option<&Claim> {
    if let Entry::Unreadable(one) = entry {
        log::warn!("{one}");
    }
    entry.claim()
}

/// What a claim held, list by list and pid by pid.
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
