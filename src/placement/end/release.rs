//! Taking CPU lists back, by container id.

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

/// How long the other threads of a process are waited for whose first thread has ended: runc
/// deletes a container that it kills before the last of them is gone. The runtime waits for us
/// meanwhile.
const ENDING: Duration = Duration::from_millis(100);

/// Between two looks at whether they are.
const PAUSE: Duration = Duration::from_millis(5);

/// What became of the claims of one id.
#[derive(Debug, Default)]
pub struct Release {
    /// Claims whose lists are free again.
    pub freed: Vec<Claim>,
    /// Claims that stay, because their owner lives.
    pub kept: Vec<Claim>,
    /// What could not be given back, or looked at, a sentence each.
    pub problems: Vec<Refusal>,
}

/// Gives back what every dead owner of this id holds. An unknown id, and a live owner, is success:
/// a second create of a running id fails, and its poststop must not free the running one.
///
/// # Errors
/// What keeps it from beginning: the pool directory, the lock, the ledger.
pub fn release(site: &Site, id: &str) -> Result<Release> {
    let mut outcome = release_once(site, id)?;
    let kept = outcome.kept.iter().flat_map(|claim| &claim.processes);
    let is_ending = |process: &&Process| process::is_ending(&site.host, process.pid);
    let ending: Vec<&Process> = kept.filter(is_ending).collect();
    // The lock is free meanwhile. Where a second look fails, the first one counts.
    if !has_ended_soon(site, &ending) {
        return Ok(outcome);
    }
    match release_once(site, id) {
        // It meets the same problems again.
        Ok(mut again) => {
            again.freed.append(&mut outcome.freed);
            Ok(again)
        }
        Err(_) => Ok(outcome),
    }
}

/// Waits for processes that are ending; did they all?
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

/// Takes the lists of this id from whoever has them. A live owner is first let out: its CPUs become
/// all that its parents allow, without those of exclusive pools; where that leaves none, without
/// those that anybody owns.
///
/// Of a dead owner the lists are freed, too, where what was changed for it cannot be undone now:
/// its claim stays without them until it can be. An owner that lives and has nowhere else to run,
/// or whose group cannot be changed, is a problem, and keeps its lists.
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

/// The lock is taken only for an id that has a claim.
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
    /// Frees a claim, whether its owner lives or not.
    fn force_free(&self, claim: &Claim) -> Result<()> {
        let kept = match self.free_or_refresh(claim) {
            Ok(Settled::Freed) => return Ok(()),
            Ok(Settled::Held(kept)) => kept,
            Err(error) => return self.force_free_dead(claim, error),
        };
        let widened = self.widen(&kept);
        let is_out = widened.and_then(|()| self.ensure_out(&kept));
        // It may have ended meanwhile, and that be all that failed.
        if is_out.is_err() && self.free_if_dead(&kept)? == Fate::Freed {
            return Ok(());
        }
        if is_out.is_err() {
            // It keeps its CPUs, and others are kept off them as before.
            if let Err(error) = self.keep_off_still(&kept) {
                log::warn!("{error:#}");
            }
        }
        is_out.and_then(|()| self.drop_record(&kept))
    }

    /// Frees the lists of a dead owner all the same where not all that was changed for it can be
    /// undone now.
    fn force_free_dead(&self, claim: &Claim, error: Error) -> Result<()> {
        if claim.lists.is_empty() || self.life_of(claim)? != Life::Gone {
            return Err(error);
        }
        self.free_lists(claim)?;
        let path = claim.cgroup.as_ref().map(|group| group.path.as_str());
        let path = path.or(claim.awaited.as_deref()).unwrap_or_default();
        log::warn!(
            "what was changed for {} is not undone ({}): whoever comes into the cgroup {} runs on {} too, until `pinfold reconcile` has undone it, or the cgroup is removed",
            claim.shown(),
            error.root_cause(),
            Shown(path),
            claim.cpus
        );
        Ok(())
    }

    /// Gives the group of a living owner other CPUs than its claim's.
    fn widen(&self, claim: &Claim) -> Result<()> {
        // Until then no other mask has any effect.
        self.let_in(claim)?;
        let group = match self.group_of(claim)? {
            Some((group, _)) => Some(group),
            None => awaited_group(claim, &self.hierarchy)?,
        };
        let Some(group) = group else {
            // Whoever lives on has left the group that confined it.
            return Ok(());
        };
        let mut bound = cpuset::bound(&group)?;
        if let Some(claimed) = claim.cgroup.as_ref().filter(|_| claim.is_supervised()) {
            // What the unit may use at most is its operator's to say.
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
        self.set_cpus(&group, &outside, &CpuSet::new())
    }

    /// No process that stands for the owner may still run on what it gives up.
    fn ensure_out(&self, claim: &Claim) -> Result<()> {
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
            }
        }
        Ok(())
    }

    /// The CPUs that a group is not restored to: those of all exclusive pools, while an owner keeps
    /// others off its own. Else nobody is harmed by them.
    pub(crate) fn exclusive_where_isolated(&self) -> Result<CpuSet> {
        if outside::owners(self.host).is_empty() {
            return Ok(CpuSet::new());
        }
        self.exclusive_cpus().map(|(all, _)| all)
    }

    /// The CPUs of exclusive pools, and those of them that somebody owns. A pool that cannot be
    /// read counts as exclusive, and its lists as owned.
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
