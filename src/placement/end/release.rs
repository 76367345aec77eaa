//! Ending the owners of one id: the dead ones, or by force all of them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::cgroup::cpuset;
use crate::claims::{Claim, Entry, Ledger};
use crate::cpulist::CpuSet;
use crate::files;
use crate::outside;
use crate::placement::end::{Fate, Settled};
use crate::placement::life::{Life, awaited_group};
use crate::placement::{Books, Site, at_most};
use crate::pools::Kind;
use crate::process::{self, Process};
use crate::refusal::Refusal;
use crate::text::Shown;

/// How long to wait for the other threads of a process whose first thread has ended: when runc
/// deletes a container that it killed, the last threads can still be there. The runtime waits for
/// us meanwhile.
const ENDING: Duration = Duration::from_millis(100);

/// The time between two looks at those threads.
const PAUSE: Duration = Duration::from_millis(5);

/// What became of the claims of one id.
#[derive(Debug, Default)]
pub struct Release {
    /// Claims whose lists are free again.
    pub freed: Vec<Claim>,
    /// Claims that stay, because their owner lives.
    pub kept: Vec<Claim>,
    /// What could not be freed, or looked at.
    pub problems: Vec<Refusal>,
}

/// Frees what the dead owners of this id hold. An unknown id and a live owner are success: a second
/// create of a running id fails, and its poststop must not free the running one.
///
/// # Errors
/// What keeps it from beginning: the pool directory, the lock or the ledger.
pub fn release(site: &Site, id: &str) -> Result<Release> {
    let mut outcome = release_once(site, id)?;
    let kept = outcome.kept.iter().flat_map(|claim| &claim.processes);
    let is_ending = |process: &&Process| process::is_ending(&site.host, process.pid);
    let ending: Vec<&Process> = kept.filter(is_ending).collect();
    // The lock is free while this waits. If the second try fails, the first one counts.
    if !has_ended_soon(site, &ending) {
        return Ok(outcome);
    }
    match release_once(site, id) {
        // The second try meets the same problems again.
        Ok(mut again) => {
            again.freed.append(&mut outcome.freed);
            Ok(again)
        }
        Err(_) => Ok(outcome),
    }
}

/// Waits for processes that are ending; returns whether all ended.
fn has_ended_soon(site: &Site, ending: &[&Process]) -> bool {
    let until = Instant::now() + at_most(ENDING, site.deadline);
    let is_there = |process: &&Process| process.is_alive(&site.host).unwrap_or(true);
    while !ending.is_empty() && Instant::now() < until {
        if !ending.iter().any(is_there) {
            return true;
        }
        sleep(PAUSE);
    }
    false
}

fn release_once(site: &Site, id: &str) -> Result<Release> {
    let Some(books) = books_if_known(site, id)? else {
        return Ok(Release::default());
    };
    let mut outcome = Release::default();
    for entry in books.ledger.of_id(id)? {
        match entry {
            Entry::Claim(claim) => match books.free_or_refresh(&claim) {
                Ok(Settled::Freed) => outcome.freed.push(*claim),
                Ok(Settled::Held(kept)) => outcome.kept.push(*kept),
                Err(error) => outcome.problems.push(Refusal::of(&error)),
            },
            Entry::Unreadable(one) => outcome.problems.push(one.refusal()),
        }
    }
    site.close(books);
    site.note_ends(&outcome.freed);
    Ok(outcome)
}

/// Frees the lists of this id even if their owner lives. A live owner is first moved off them: it
/// gets the CPUs that its parents allow, without those of exclusive pools; where that leaves none,
/// without those that anybody owns.
///
/// The lists of a dead owner are freed even if what was changed for it cannot be undone now: its
/// claim then stays, without lists, until it can be. A live owner that has nowhere else to run, or
/// whose group cannot be changed, is a problem, and keeps its lists.
///
/// # Errors
/// As [`release`].
pub fn force_release(site: &Site, id: &str) -> Result<Release> {
    let Some(books) = books_if_known(site, id)? else {
        return Ok(Release::default());
    };
    let mut outcome = Release::default();
    for entry in books.ledger.of_id(id)? {
        match entry {
            Entry::Claim(claim) => match books.force_free(&claim) {
                Ok(()) => outcome.freed.push(*claim),
                Err(error) => outcome.problems.push(Refusal::of(&error)),
            },
            Entry::Unreadable(one) => outcome.problems.push(one.refusal()),
        }
    }
    site.close(books);
    Ok(outcome)
}

/// Opens the books if the id has a claim; other ids cost no lock.
fn books_if_known<'a>(site: &'a Site, id: &str) -> Result<Option<Books<'a>>> {
    match Ledger::open_if_there(&site.run_dir)? {
        Some(ledger) if ledger.knows(id)? => {
            let hierarchy = cpuset::hierarchy(&site.host)?;
            site.read_owner(&ledger, &hierarchy, id);
            site.open_books(hierarchy).map(Some)
        }
        _ => Ok(None),
    }
}

impl Books<'_> {
    /// Frees a claim even if its owner lives.
    fn force_free(&self, claim: &Claim) -> Result<()> {
        let kept = match self.free_or_refresh(claim) {
            Ok(Settled::Freed) => return Ok(()),
            Ok(Settled::Held(kept)) => kept,
            Err(error) => return self.force_free_dead(claim, error),
        };
        let moved = self.move_off(&kept);
        let is_off = moved.and_then(|()| self.ensure_off(&kept));
        // If it ended meanwhile, that may be all that failed.
        if is_off.is_err() && self.free_if_dead(&kept)? == Fate::Freed {
            return Ok(());
        }
        if is_off.is_err() {
            // It keeps its CPUs, so others have to be kept off them again.
            if let Err(error) = self.keep_off_again(&kept) {
                log::warn!("{error:#}");
            }
        }
        is_off.and_then(|()| self.drop_record(&kept))
    }

    /// Frees the lists of a dead owner although `error` kept its changes from being undone.
    fn force_free_dead(&self, claim: &Claim, error: Error) -> Result<()> {
        if claim.lists.is_empty() || self.life_of(claim)? != Life::Gone {
            return Err(error);
        }
        self.free_lists(claim)?;
        let path = claim.cgroup.as_ref().map(|group| group.path.as_str());
        let path = path.or(claim.awaited.as_deref()).unwrap_or_default();
        log::warn!(
            "what was changed for {} is not undone ({}): whoever comes into the cgroup {} runs on \
             {} too, until `pinfold reconcile` has undone it, or the cgroup is removed",
            claim.shown(),
            error.root_cause(),
            Shown(path),
            claim.cpus
        );
        Ok(())
    }

    /// Gives the group of a living owner other CPUs than its claim's.
    fn move_off(&self, claim: &Claim) -> Result<()> {
        // While others are kept off its CPUs the group can have no others.
        self.let_in(claim)?;
        let group = match self.group_of(claim)? {
            Some((group, _)) => Some(group),
            None => awaited_group(claim, &self.hierarchy)?,
        };
        let Some(group) = group else {
            // The survivors have left the group that confined them.
            return Ok(());
        };
        let mut bound = cpuset::bound(&group)?;
        if let Some(claimed) = claim.cgroup.as_ref().filter(|_| claim.is_supervised()) {
            // The unit's operator limits what the unit may use.
            bound = bound.within(&group, &claimed.before.cpus)?;
        }
        let rest = bound.cpus.difference(&claim.cpus);
        let (exclusive, owned) = self.exclusive_cpus()?;
        let shared = rest.difference(&exclusive);
        let outside = if shared.is_empty() {
            rest.difference(&owned)
        } else {
            shared
        };
        if outside.is_empty() {
            let what = format!(
                "{} has nowhere to run but on {}: {} allows no other CPUs that nobody owns",
                claim.shown(),
                claim.cpus,
                bound.group()
            );
            bail!(Refusal::new(what, "stop it instead"));
        }
        self.set_cpus(&group, &outside, None)
    }

    /// Fails if a process of the owner may still run on the claim's CPUs.
    fn ensure_off(&self, claim: &Claim) -> Result<()> {
        let is_inside = |process: &&Process| !claim.is_beside(**process);
        for process in claim.processes.iter().filter(is_inside) {
            if process.is_alive(self.host)? {
                let affinity = match process::affinity(process.pid) {
                    Err(error) if files::is_gone(&error) => continue,
                    other => other.with_context(|| {
                        format!("read the CPU affinity of process {}", process.pid)
                    })?,
                };
                ensure!(
                    affinity.is_disjoint(&claim.cpus),
                    "process {} of {} may still run on {affinity}: stop it instead",
                    process.pid,
                    claim.shown()
                );
            } else if !self.pids_tell() {
                bail!(Refusal::new(
                    format!(
                        "process {} of {} may still run on {}: it is of another pid namespace",
                        process.pid,
                        claim.shown(),
                        claim.cpus
                    ),
                    "run this there, or stop it"
                ));
            }
        }
        Ok(())
    }

    /// The CPUs that restored groups must not name: those of all exclusive pools while any owner
    /// keeps others off its CPUs, or may do so, or the next one may, because a pool says so;
    /// otherwise none. Those of other pool directories' owners are among them.
    pub(crate) fn exclusive_where_isolated(&self) -> Result<CpuSet> {
        if !outside::may_keep_off(self.host) && !self.may_isolate()? {
            return Ok(CpuSet::new());
        }
        let (mut all, _) = self.exclusive_cpus()?;
        all.extend(&outside::kept(self.host));
        Ok(all)
    }

    /// Does any pool want others kept off its CPUs? One whose options cannot be read, or are not
    /// understood, may.
    fn may_isolate(&self) -> Result<bool> {
        let names = self.directory.pool_names()?;
        Ok(names.iter().any(|name| {
            let wanted = self.isolation_now(name);
            wanted.map_or(true, |wanted| wanted.is_some())
        }))
    }

    /// All CPUs of exclusive pools, and those of them that are owned. A pool that cannot be read
    /// counts as exclusive, and its lists as owned.
    fn exclusive_cpus(&self) -> Result<(CpuSet, CpuSet)> {
        let (mut all, mut owned) = (CpuSet::new(), CpuSet::new());
        for name in self.directory.pool_names()? {
            let pool = match self.directory.pool(&name) {
                Ok(pool) => pool,
                Err(error) => {
                    log::warn!("pool {} is spared: {error:#}", Shown(&name));
                    for list in self.directory.list_names(&name)? {
                        if let Ok(cpus) = list.parse() {
                            all.extend(&cpus);
                            owned.extend(&cpus);
                        }
                    }
                    continue;
                }
            };
            for list in pool.lists.iter().filter(|_| pool.kind == Kind::Exclusive) {
                all.extend(&list.cpus);
                if !list.tasks.is_empty() || !self.ledger.on_list(&list.name)?.is_empty() {
                    owned.extend(&list.cpus);
                }
            }
        }
        Ok((all, owned))
    }
}
