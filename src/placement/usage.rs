//! What owners use: read while their groups are there, recorded once they have ended. Nothing here
//! is done under the lock, and no failure here fails anything else.

use std::cell::{Cell, LazyCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::{Books, Site, at_most};
use crate::account::{Accounts, Times};
use crate::cgroup::{Hierarchy, cpuset};
use crate::child;
use crate::claims::{Claim, Ended, Entry, Ledger, OwnerKind};
use crate::counters;
use crate::files;
use crate::pools::Lock;
use crate::process;
use crate::usage::{Log, Record, Sample, Samples};

/// How many ended owners are accounted for by whoever ends one: somebody waits for that.
const AT_ONCE: usize = 64;

/// How long that may take: a file system that hangs must not hold up a release.
const WITHIN: Duration = Duration::from_secs(3);

/// How long it may take to account for all, where nobody waits.
const ALL_WITHIN: Duration = Duration::from_secs(60);

/// How long to wait for another process that accounts for owners. One that a file system blocks is
/// not worth a longer wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many may wait to be accounted for if that cannot be done. Above that the oldest are dropped
/// until half of this is left.
const MOST_WAITING: usize = 4096;

/// Reads the usage of a container whose group a runtime is about to remove. A container without a
/// claim costs one look.
///
/// # Errors
/// The ledger cannot be looked at.
pub fn read_before_end(site: &Site, id: &str) -> Result<()> {
    if let Some(ledger) = Ledger::open_if_there(&site.run_dir)? {
        if ledger.knows(id)? {
            site.read_owner(&ledger, &cpuset::hierarchy(&site.host)?, id);
        }
    }
    Ok(())
}

/// Records the usage of owners that ended, of at most `most` of them.
///
/// # Errors
/// The log cannot be written: they wait for the next call.
pub fn account(site: &Site, most: usize) -> Result<()> {
    let Some(log) = &site.usage else {
        return Ok(());
    };
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(());
    };
    if ledger.names_of_ended()?.is_empty() {
        return Ok(());
    }
    let _alone = ledger.lock_ended(PATIENCE)?;
    let names = ledger.names_of_ended()?;
    let accounted = write_down(site, log, &ledger, &names[..names.len().min(most)]);
    if accounted.is_err() && names.len() > MOST_WAITING {
        forget_oldest(&ledger, &Samples::of(&site.run_dir), &names)?;
    }
    accounted
}

fn write_down(site: &Site, log: &Log, ledger: &Ledger, names: &[String]) -> Result<()> {
    let samples = Samples::of(&site.run_dir);
    let boot_id = process::boot_id(&site.host)?;
    // Owners that another process recorded before it let go of the log are gone from here on.
    let mut writer = log.writer(&site.host)?;
    for one in ended_of(ledger, names) {
        if site
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            break;
        }
        match &one.claim {
            Ok(claim) => {
                // The time at which an owner of an earlier boot ended is unknown.
                let end = (claim.boot_id == boot_id).then_some(one.at);
                let sample = samples.of_owner(&one.name);
                writer.add(&Record::new(claim, end, sample.as_ref()))?;
            }
            Err(reason) => log::warn!("an owner that ended is not accounted for: {reason}"),
        }
        ledger.forget(&one)?;
        samples.forget(&one.name)?;
    }
    Ok(())
}

/// Drops the oldest ended owners: the run directory is in memory, and must not grow without bound.
fn forget_oldest(ledger: &Ledger, samples: &Samples, names: &[String]) -> Result<()> {
    let mut ended = ended_of(ledger, names);
    ended.truncate(names.len() - MOST_WAITING / 2);
    log::warn!("{} owners that ended are never accounted for", ended.len());
    ended.iter().try_for_each(|one| {
        ledger.forget(one)?;
        samples.forget(&one.name)
    })
}

/// The ended owners of these names that can be looked at, the oldest first.
fn ended_of(ledger: &Ledger, names: &[String]) -> Vec<Ended> {
    let of_name = |name: &String| match ledger.ended(name) {
        Ok(ended) => ended,
        Err(error) => {
            log::warn!("an owner that ended is not accounted for: {error:#}");
            None
        }
    };
    let mut ended: Vec<Ended> = names.iter().filter_map(of_name).collect();
    ended.sort_by_key(|one| one.at);
    ended
}

/// Reads the usage of every owner, and keeps it for the owner's end if a log is wanted.
///
/// # Errors
/// The ledger, the machine's hierarchies or its counters cannot be read. An owner that cannot be
/// read is left out, with a warning.
pub fn readings(site: &Site) -> Result<Vec<(Claim, Sample)>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(Vec::new());
    };
    let entries = ledger.all()?;
    if site.usage.is_some() {
        if let Err(error) = site.forget_unowned_samples(&ledger, &entries) {
            log::info!("forget what nobody has used: {error:#}");
        }
    }
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let accounts = Accounts::of(&site.host);
    let times = accounts.times()?;
    let reader = UsageReader {
        site,
        hierarchy: cpuset::hierarchy(&site.host)?,
        samples: Samples::of(&site.run_dir),
        boot_id: process::boot_id(&site.host)?,
    };
    let mut readings = Vec::new();
    for entry in &entries {
        let claim = match entry {
            Entry::Claim(claim) => &**claim,
            Entry::Unreadable(one) => {
                log::warn!("what one owner uses is left out: {one}");
                continue;
            }
        };
        match reader.read(claim, |_| Some(times.clone()), &accounts) {
            Ok(sample) => readings.extend(sample.map(|sample| (claim.clone(), sample))),
            Err(error) => log::warn!("what {} uses is left out: {error:#}", claim.shown()),
        }
    }
    Ok(readings)
}

impl Site {
    /// Closes the books, then accounts for the owners that ended under them. A start leaves that to
    /// others: a container waits for it, and the log may be on a slow file system.
    pub(crate) fn close(&self, books: Books<'_>) {
        let has_ended = books.ledger.has_ended();
        drop(books);
        if has_ended {
            self.account_apart(AT_ONCE, at_most(WITHIN, self.deadline));
        }
    }

    /// Counts a wait for the lock, and lists of dead owners that were freed.
    pub(crate) fn count(&self, waited: Option<Duration>, reclaimed: u64) {
        if waited.is_none() && reclaimed == 0 {
            return;
        }
        // Whoever waited in vain for the lock has not checked the directory yet.
        let counted = files::ensure_trusted_way(&self.run_dir, || self.host.unknown_root());
        let counted = counted.and_then(|()| {
            counters::count(&self.run_dir, |counters| {
                if let Some(waited) = waited {
                    counters.lock_waits += 1;
                    counters.lock_wait_seconds += waited.as_secs_f64();
                }
                counters.reclaimed_lists += reclaimed;
            })
        });
        if let Err(error) = counted {
            log::info!("{error:#}");
        }
    }

    /// Accounts for all owners that ended.
    pub(crate) fn account_for_all(&self) {
        self.account_apart(usize::MAX, at_most(ALL_WITHIN, self.deadline));
    }

    /// Accounts for ended owners in a process apart: the log can be on a file system that hangs,
    /// and a process that waits for one cannot be killed.
    fn account_apart(&self, most: usize, within: Duration) {
        if let Err(error) = child::apart(|| account(self, most), within) {
            log::warn!("owners that ended are not accounted for yet: {error:#}");
        }
    }

    pub(crate) fn read_owners(&self) {
        if self.usage.is_none() {
            return;
        }
        if let Err(error) = readings(self) {
            log::info!("what owners use: {error:#}");
        }
    }

    /// Drops samples whose owner ended and was accounted for. While a claim cannot be read, any
    /// sample may be its owner's.
    fn forget_unowned_samples(&self, ledger: &Ledger, entries: &[Entry]) -> Result<()> {
        if entries.iter().any(|entry| entry.claim().is_none()) {
            return Ok(());
        }
        let samples = Samples::of(&self.run_dir);
        let claims = entries.iter().filter_map(Entry::claim);
        let known = claims.map(Claim::marker_name);
        let known: BTreeSet<String> = known.chain(ledger.names_of_ended()?).collect();
        for name in samples.names()? {
            if !known.contains(&name) {
                samples.forget(&name)?;
            }
        }
        Ok(())
    }

    /// Reads the usage of the owners of one id whose groups are still there.
    pub(crate) fn read_owner(&self, ledger: &Ledger, hierarchy: &Hierarchy, id: &str) {
        if self.usage.is_none() {
            return;
        }
        let read = || -> Result<()> {
            // Made only when needed: most have no group any more when their end comes.
            let accounts = LazyCell::new(|| Accounts::of(&self.host));
            let mut reader = None;
            for claim in ledger.of_id(id)?.iter().filter_map(Entry::claim) {
                if !has_group(claim, hierarchy)? {
                    continue;
                }
                let reader = match &mut reader {
                    Some(reader) => reader,
                    none => none.insert(UsageReader {
                        site: self,
                        hierarchy: hierarchy.clone(),
                        samples: Samples::of(&self.run_dir),
                        boot_id: process::boot_id(&self.host)?,
                    }),
                };
                // The CPUs' times are read only if an earlier sample has them to compare with.
                let times = |before: Option<&Sample>| {
                    before?.mark.cpus.as_ref()?;
                    accounts.times().ok()
                };
                reader.read_or_log(claim, times, &accounts);
            }
            Ok(())
        };
        if let Err(error) = read() {
            log::info!("what {id} has used: {error:#}");
        }
    }

    /// Reads the usage of a command and its descendants. `began` is the sample from before it
    /// began.
    pub(crate) fn read_command(&self, claim: &Claim, began: Option<&Sample>) -> Option<Sample> {
        self.usage.as_ref()?;
        let read = || -> Result<Sample> {
            let accounts = Accounts::of(&self.host);
            let times = accounts.times()?;
            let path = claim.cgroup.as_ref().map(|group| group.path.as_str());
            let mut meter = accounts.meter(claim.owner.pid, &claim.cpus, path)?;
            // A unit's group holds us as well.
            let is_final = began.is_some() && !meter.holds_others_than(claim.owner.pid)?;
            let mark = match meter.has_group() {
                true => accounts.mark(&mut meter, Some(&times))?,
                false => None,
            };
            let mark = match mark {
                Some(mark) => mark,
                None => {
                    let waited_for = process::usage_of_waited()?;
                    accounts.mark_of_waited(&meter, waited_for, &times)?
                }
            };
            Ok(Sample::after(began, now(), mark, is_final))
        };
        match read() {
            Ok(sample) => Some(sample),
            Err(error) => {
                log::info!("what {} uses: {error:#}", claim.shown());
                None
            }
        }
    }

    /// Keeps the usage of a command that has ended.
    pub(crate) fn keep_end_of_command(&self, claim: &Claim, began: Option<&Sample>) {
        let Some(sample) = began.and_then(|began| self.read_command(claim, Some(began))) else {
            return;
        };
        let samples = Samples::of(&self.run_dir);
        if let Err(error) = samples.keep(&claim.marker_name(), &sample) {
            log::info!("what {} has used: {error:#}", claim.shown());
        }
    }
}

/// Counts, when the books are closed, whatever closes them.
#[derive(Debug)]
pub(crate) struct Tally<'a> {
    site: &'a Site,
    /// How long the lock was waited for; `None` if it was free.
    waited: Option<Duration>,
    /// How many lists of dead owners were freed.
    reclaimed: Cell<u64>,
}

impl<'a> Tally<'a> {
    pub(crate) fn of(site: &'a Site, lock: &Lock) -> Tally<'a> {
        Tally {
            site,
            waited: lock.waited(),
            reclaimed: Cell::new(0),
        }
    }

    pub(crate) fn count_reclaimed(&self) {
        self.reclaimed.set(self.reclaimed.get() + 1);
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.site.count(self.waited, self.reclaimed.get());
    }
}

/// Is the group that a claim names still there?
fn has_group(claim: &Claim, hierarchy: &Hierarchy) -> Result<bool> {
    let Some(claimed) = &claim.cgroup else {
        return Ok(false);
    };
    Ok(hierarchy.group(&claimed.path)?.inode()? == Some(claimed.inode))
}

struct UsageReader<'a> {
    site: &'a Site,
    hierarchy: Hierarchy,
    samples: Samples,
    boot_id: String,
}

impl UsageReader<'_> {
    fn read_or_log(
        &self,
        claim: &Claim,
        times: impl FnOnce(Option<&Sample>) -> Option<BTreeMap<u32, Times>>,
        accounts: &Accounts<'_>,
    ) -> Option<Sample> {
        self.read(claim, times, accounts).unwrap_or_else(|error| {
            log::info!("what {} uses: {error:#}", claim.shown());
            None
        })
    }

    /// Reads an owner's usage now, or else returns the last sample; `None` without any.
    fn read(
        &self,
        claim: &Claim,
        times: impl FnOnce(Option<&Sample>) -> Option<BTreeMap<u32, Times>>,
        accounts: &Accounts<'_>,
    ) -> Result<Option<Sample>> {
        if claim.kind == OwnerKind::Reservation || claim.boot_id != self.boot_id {
            return Ok(None);
        }
        let host = &self.site.host;
        let name = claim.marker_name();
        let before = self.samples.of_owner(&name);
        let is_done = before.as_ref().is_some_and(|before| before.is_final);
        let Some(group) = claim.cgroup.as_ref().filter(|_| !is_done) else {
            return Ok(before);
        };
        match has_group(claim, &self.hierarchy) {
            Ok(true) => {}
            // An earlier sample is better than an error.
            Err(error) if before.is_none() => return Err(error),
            Ok(false) | Err(_) => return Ok(before),
        }
        let mut living = None;
        for process in claim.processes.iter().rev() {
            if process.is_alive(host)? {
                living = Some(process.pid);
                break;
            }
        }
        let mut meter = match living {
            Some(pid) => accounts.meter(pid, &claim.cpus, Some(&group.path))?,
            None => accounts.meter_of_group(&claim.cpus, &group.path)?,
        };
        // In this order: what is read of an empty group is final.
        let is_final = living.is_none() && meter.is_final()?;
        let Some(mark) = accounts.mark(&mut meter, times(before.as_ref()).as_ref())? else {
            return Ok(before);
        };
        // A sum over processes shrinks when one ends.
        if before
            .as_ref()
            .is_some_and(|before| before.mark.total > mark.total)
        {
            return Ok(before);
        }
        let sample = Sample::after(before.as_ref(), now(), mark, is_final);
        // Another process may have read later than we did, and written earlier.
        let last = self.samples.of_owner(&name);
        let is_later = |last: &Sample| last.is_final || last.mark.clock > sample.mark.clock;
        if let Some(last) = last.filter(is_later) {
            return Ok(Some(last));
        }
        if self.site.usage.is_some() {
            if let Err(error) = self.samples.keep(&name, &sample) {
                log::info!("{error:#}");
            }
        }
        Ok(Some(sample))
    }
}

/// The time, in seconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or_default()
    })
}
