//! Bringing everything in order, everywhere.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::account::noise;
use crate::cgroup::{self, Group, Hierarchy, cpuset};
use crate::claims::{Claim, Entry};
use crate::files;
use crate::placement::end::reap::{Reaped, Reclaimed, reclaimed};
use crate::placement::end::{Fate, Settled};
use crate::placement::{Books, Site};
use crate::process::{self, Process};
use crate::refusal::Refusal;
use crate::topology;

/// How long the lock is held before others get their turn: short beside a start.
const TURN: Duration = Duration::from_millis(10);

/// What a reconciliation did.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// What was freed.
    pub reclaimed: Vec<Reclaimed>,
    /// What could not be done, a sentence each.
    pub problems: Vec<Refusal>,
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

/// The books, opened again and again: whoever waits for the lock gets it in between.
struct Turns<'a> {
    site: &'a Site,
    hierarchy: Hierarchy,
    books: Option<Books<'a>>,
    since: Instant,
    /// Has every claim its links? Found out once, for all turns.
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

    /// The books as they are now: what was read of them before may have changed.
    fn books(&mut self) -> Result<&Books<'a>> {
        if self.since.elapsed() >= TURN {
            if let Some(books) = self.books.take() {
                books.let_others_in();
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

/// Frees what dead owners hold in every pool, confines again what is no longer confined as its
/// claim says, links again what has lost its links, and removes what killed programs left behind. A
/// problem with one claim or pool does not stop the rest, and others get the lock in between.
/// Before that, what each owner has used is read; after it, traces of killed programs are removed,
/// and what those have used that ended is written down.
///
/// # Errors
/// Only what keeps it from beginning: the pool directory, the lock, the ledger.
pub fn reconcile(site: &Site) -> Result<Reconciled> {
    // Of the dead the group can be there still, and until it is removed.
    site.read_owners();
    let mut turns = Turns::begin(site)?;
    let mut report = Reconciled::default();
    let done = bring_in_order(&mut turns, &mut report);
    report.note(done);
    drop(turns);
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
    match turns.books()?.converge_machine() {
        Ok(problems) => report.problems.extend(problems),
        Err(error) => report.note(Err(error)),
    }
    // Links first: what is free is told by them. A claim that is made meanwhile has its own.
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
    for id in turns.books()?.ledger.ids()? {
        let books = turns.books()?;
        for entry in books.ledger.of_id(&id)? {
            if let Entry::Unreadable(one) = entry {
                report.free(books.free_unreadable(&one));
            }
        }
    }
    // Before the lists: thousands of dead owners of one list are freed in as many turns as it
    // takes.
    for id in turns.books()?.ledger.ids()? {
        let books = turns.books()?;
        for entry in books.ledger.of_id(&id)? {
            match entry {
                Entry::Claim(claim) => match books.free_or_confine(&claim) {
                    Ok(Fate::Freed) => report.reclaimed.extend(reclaimed(&claim)),
                    Ok(Fate::Held) => {}
                    Err(error) => report.note(Err(error)),
                },
                // Told of above.
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
    /// Frees the claim of a dead owner; confines a living one again where it is not. One that ends
    /// meanwhile is dead, whatever its end made fail.
    fn free_or_confine(&self, claim: &Claim) -> Result<Fate> {
        let Settled::Held(kept) = self.free_or_refresh(claim)? else {
            return Ok(Fate::Freed);
        };
        let confined = self
            .keep_confined(&kept)
            .and_then(|()| self.keep_off_still(&kept));
        match confined {
            Err(_) if !self.life_of(&kept)?.is_alive() => self.free_if_dead(&kept),
            confined => confined.map(|()| Fate::Held),
        }
    }

    /// A list can have been removed since the pool was read.
    fn reap_if_there(&self, pool: &str, list: &str) -> Result<Option<Reaped>> {
        match self.directory.has_list(pool, list)? {
            true => self.reap_uncounted(pool, list, usize::MAX).map(Some),
            false => Ok(None),
        }
    }

    /// Lets go of the lock, and whoever waits for it have it.
    fn let_others_in(self) {
        let Books { lock, view, .. } = self;
        lock.hand_on(view.host);
    }

    /// Confines an owner as its claim says where it is not any more: version 1 drops a CPU that
    /// goes offline from every cpuset for good, and moves the processes of one that has none left
    /// to a group above (kernel: cgroup-v1/cpusets.rst). CPUs that are offline are waited for.
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
            self.set_cpus(&group, &cpus, &claim.mems)?;
        }
        self.bring_back(claim, &group)
    }

    /// The owner's processes that the kernel moved to a group above its own: those that the claim
    /// records, and with them whatever else there is the owner's.
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

    /// Is a process the owner's? In the other hierarchies of version 1 a runtime puts it into a
    /// group of the same path; in a group of ours it is a descendant of the recorded one.
    fn belongs(&self, pid: i32, recorded: i32, group: &Group) -> Result<bool> {
        Ok(cgroup::is_in_any(self.host, pid, group.path())?
            || process::descends_from(self.host, pid, recorded)?)
    }

    /// Removes groups of ours that hold nobody and that no claim names, of the holders of the lock
    /// with this key, and their parent when it is empty: their maker was killed before it wrote its
    /// claim.
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

/// Moves a process into a group, unless one of them has ended in this moment.
fn adopt_if_there(group: &Group, pid: i32) -> Result<()> {
    match group.adopt(pid) {
        Err(error) if files::says_gone(&error) => Ok(()),
        adopted => adopted,
    }
}
