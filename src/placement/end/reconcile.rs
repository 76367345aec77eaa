//! Putting a whole site in order.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::account::noise;
use crate::cgroup::{self, Group, Hierarchy, cpuset};
use crate::claims::{Claim, Entry};
use crate::files;
use crate::outside::BrokenPartition;
use crate::placement::end::reap::{Reaped, Reclaimed, reclaimed};
use crate::placement::end::{Fate, Settled};
use crate::placement::{Books, Site};
use crate::process::{self, Process};
use crate::refusal::Refusal;
use crate::topology;

/// How long the lock is held before others get it: short beside a start.
const TURN: Duration = Duration::from_millis(10);

/// What was done.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// The lists that were freed, by pid.
    pub reclaimed: Vec<Reclaimed>,
    /// What could not be done.
    pub problems: Vec<Refusal>,
    /// The partitions that could not be made again; `None` where that is not known.
    pub broken: Option<Vec<BrokenPartition>>,
}

impl Reconciled {
    fn free(&mut self, result: Result<Vec<Reclaimed>>) {
        match result {
            Ok(reclaimed) => self.reclaimed.extend(reclaimed),
            Err(error) => self.note(Err(error)),
        }
    }

    fn reap(&mut self, result: Result<Option<Reaped>>) {
        let reaped = match result {
            Ok(Some(reaped)) => reaped,
            Ok(None) => return,
            Err(error) => return self.note(Err(error)),
        };
        self.reclaimed.extend(reaped.freed);
        if !reaped.is_whole {
            let what = "there was no time to look at all owners of a list";
            self.problems.push(Refusal::new(what, "do it again"));
        }
    }

    fn note(&mut self, result: Result<()>) {
        self.problems
            .extend(result.err().map(|error| Refusal::of(&error)));
    }
}

/// The books, closed and opened again after each turn: whoever waits for the lock gets it in
/// between.
struct Turns<'a> {
    site: &'a Site,
    hierarchy: Hierarchy,
    books: Option<Books<'a>>,
    since: Instant,
    /// Has every claim its links? Found out once for all turns.
    links: Option<bool>,
}

impl<'a> Turns<'a> {
    fn begin(site: &'a Site) -> Result<Turns<'a>> {
        let hierarchy = cpuset::hierarchy(&site.host)?;
        let books = site.open_books(hierarchy.clone())?;
        Ok(Turns {
            site,
            hierarchy,
            books: Some(books),
            since: Instant::now(),
            links: None,
        })
    }

    /// The open books. What was read in an earlier turn may have changed.
    fn books(&mut self) -> Result<&Books<'a>> {
        if self.since.elapsed() >= TURN {
            if let Some(books) = self.books.take() {
                books.yield_lock();
            }
        }
        let books = match self.books.take() {
            Some(books) => books,
            None => {
                let books = self.site.open_books(self.hierarchy.clone())?;
                books.links.set(self.links);
                self.since = Instant::now();
                books
            }
        };
        Ok(self.books.insert(books))
    }
}

/// Frees what dead owners hold in all pools, confines owners again that no longer are, restores
/// lost links, and removes what killed programs left. A problem with one claim or pool does not
/// stop the rest. Others get the lock in between. Before all that the usage of every owner is read;
/// afterwards traces of killed programs are removed, and the usage of ended owners is recorded.
///
/// # Errors
/// What keeps it from beginning: the pool directory, the lock or the ledger.
pub fn reconcile(site: &Site) -> Result<Reconciled> {
    // A dead owner's group may still be there until it is freed.
    site.read_owners();
    let mut turns = Turns::begin(site).inspect_err(|_| {
        // Pools that are gone are a reason to let the host in again.
        site.confine_host_or_warn();
    })?;
    let mut report = Reconciled::default();
    let done = bring_in_order(&mut turns, &mut report);
    report.note(done);
    drop(turns);
    match site.confine_host() {
        Ok(problems) => report.problems.extend(problems),
        Err(error) => report.note(Err(error)),
    }
    report.note(noise::remove_leftovers(&site.host));
    site.account_for_all();
    site.prune_last_lists();
    report.reclaimed.sort();
    report.reclaimed.dedup();
    // KCM's order.
    report.reclaimed.sort_by_key(|one| one.pid);
    let lists = report.reclaimed.iter().map(|one| (&one.pool, &one.cpus));
    let lists: BTreeSet<_> = lists.collect();
    site.count(None, lists.len() as u64);
    Ok(report)
}

fn bring_in_order(turns: &mut Turns<'_>, report: &mut Reconciled) -> Result<()> {
    // Links first, because they tell which lists are free, and whose CPUs others are kept off. A
    // claim that is made meanwhile has them.
    let mut are_linked = true;
    for id in turns.books()?.ledger.ids()? {
        let books = turns.books()?;
        for claim in books.ledger.of_id(&id)?.iter().filter_map(Entry::claim) {
            let linked = books.link(claim);
            are_linked &= linked.is_ok();
            report.note(linked);
        }
    }
    turns.links = Some(are_linked);
    turns.books()?.links.set(Some(are_linked));
    match turns.books()?.converge_machine() {
        Ok(converged) => {
            report.problems.extend(converged.problems);
            report.broken = Some(converged.broken);
        }
        Err(error) => report.note(Err(error)),
    }
    for id in turns.books()?.ledger.ids()? {
        let books = turns.books()?;
        for entry in books.ledger.of_id(&id)? {
            if let Entry::Unreadable(one) = entry {
                report.free(books.free_unreadable(&one));
            }
        }
    }
    // Claims before lists: thousands of dead owners of one list then take as many turns as they
    // need.
    for id in turns.books()?.ledger.ids()? {
        let books = turns.books()?;
        for entry in books.ledger.of_id(&id)? {
            match entry {
                Entry::Claim(claim) => match books.free_or_confine(&claim) {
                    Ok(Fate::Freed) => report.reclaimed.extend(reclaimed(&claim)),
                    Ok(Fate::Held) => {}
                    Err(error) => report.note(Err(error)),
                },
                // Handled above.
                Entry::Unreadable(_) => {}
            }
        }
        report.note(books.ledger.remove_leftovers_of_id(&id));
    }
    for pool in turns.books()?.directory.pool_names()? {
        match turns.books()?.directory.pool(&pool) {
            Ok(pool) => {
                for list in &pool.lists {
                    let books = turns.books()?;
                    report.reap(books.reap_if_there(&pool.name, &list.name));
                }
            }
            Err(error) => report.note(Err(error)),
        }
    }
    for list in turns.books()?.ledger.lists()? {
        report.note(turns.books()?.ledger.remove_leftovers_of_list(&list));
    }
    let books = turns.books()?;
    report.note(books.ledger.remove_leftovers());
    report.note(books.directory.remove_unfinished_pools(&books.lock));
    report.note(books.remove_unclaimed_groups_of(&books.lock.key()));
    Ok(())
}

impl Books<'_> {
    /// Frees the claim of a dead owner, or confines a living one again. An owner that ends
    /// meanwhile is freed, whatever failed because of that.
    fn free_or_confine(&self, claim: &Claim) -> Result<Fate> {
        let Settled::Held(kept) = self.free_or_refresh(claim)? else {
            return Ok(Fate::Freed);
        };
        let confined = self
            .keep_confined(&kept)
            .and_then(|()| self.keep_off_again(&kept));
        match confined {
            Err(_) if !self.life_of(&kept)?.is_alive() => self.free_if_dead(&kept),
            confined => confined.map(|()| Fate::Held),
        }
    }

    /// A list may have been removed since the pool was read.
    fn reap_if_there(&self, pool: &str, list: &str) -> Result<Option<Reaped>> {
        match self.directory.has_list(pool, list)? {
            true => self.reap_uncounted(pool, list, usize::MAX).map(Some),
            false => Ok(None),
        }
    }

    /// Releases the lock, and lets those who wait have it first.
    fn yield_lock(self) {
        let Books { lock, view, .. } = self;
        lock.hand_on(view.host);
    }

    /// Confines an owner again where it no longer is. On version 1 a CPU that goes offline leaves
    /// every cpuset for good, and a cpuset without CPUs loses its processes to a group above
    /// (kernel: cgroup-v1/cpusets.rst). An owner whose CPUs are all offline is left until they are
    /// back.
    pub(crate) fn keep_confined(&self, claim: &Claim) -> Result<()> {
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
            self.set_cpus(&group, &cpus, claim.mems.as_ref())?;
        }
        self.bring_back(claim, &group)
    }

    /// Moves an owner's processes back that the kernel moved to a group above: those that the claim
    /// records, and the others there that are the owner's.
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

    /// Is a process the owner's? On version 1 its runtime put it into groups of the same path in
    /// other hierarchies; in a group of ours it descends from the recorded process.
    fn belongs(&self, pid: i32, recorded: i32, group: &Group) -> Result<bool> {
        Ok(cgroup::is_in_any(self.host, pid, group.path())?
            || process::descends_from(self.host, pid, recorded)?)
    }

    /// Removes our groups under this lock key that hold no process and that no claim names: their
    /// maker was killed before it wrote its claim. Removes their parent if that is empty then.
    pub(crate) fn remove_unclaimed_groups_of(&self, key: &str) -> Result<()> {
        let parent = self.hierarchy.parent_for(key)?;
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

/// Moves a process into a group, unless either is gone by now.
fn adopt_if_there(group: &Group, pid: i32) -> Result<()> {
    match group.adopt(pid) {
        Err(error) if files::says_gone(&error) => Ok(()),
        adopted => adopted,
    }
}
