//! What the first to take the lock does after a boot, or after the lock was replaced: records of
//! earlier boots are voided, those of the former lock are taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::life::{Life, Pids};
use super::{Books, Site};
use crate::claims::{Claim, Entry, Ledger};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::placement::end::warn_held;
use crate::pools::PoolDirectory;
use crate::process;
use crate::refusal::Refusal;
use crate::text::one_line;
use crate::topology;

/// How long to wait for those who still use the former lock.
const LEAVING: Duration = Duration::from_secs(2);

/// How long to free and refresh the owners of the former lock, while others wait.
const SETTLING: Duration = Duration::from_secs(1);

/// The boot that a record is of, as far as the time of its file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// This one.
    Ours,
    /// This one, if the clock was set since; or an earlier one.
    Unknown,
    /// An earlier one, unless the clock was set back and forth.
    Earlier,
}

/// Tells from the time of a file in which boot it was written. In seconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    boot_time: i64,
    earliest: i64,
}

impl Clock {
    pub(crate) fn of(host: &Host) -> Result<Clock> {
        let boot_time = process::boot_time(host)?;
        // Without a known earliest time the clock may have shown any.
        let earliest = process::earliest_time(host)?.unwrap_or(i64::MIN);
        Ok(Clock {
            boot_time,
            earliest: earliest.min(boot_time),
        })
    }

    fn age(self, recorded: i64) -> Age {
        match recorded {
            _ if recorded >= self.boot_time => Age::Ours,
            _ if recorded >= self.earliest => Age::Unknown,
            _ => Age::Earlier,
        }
    }

    /// Does a pid that was in `tasks` at the time `recorded` still count? `cpus` are those of all
    /// lists that it is in. Recorded in this boot it counts; if the boot is unknown it counts while
    /// a process has it. Recorded in an earlier boot it counts only if that process is confined to
    /// those CPUs: whatever it is, it uses them.
    pub(crate) fn counts(
        self,
        host: &Host,
        pid: i32,
        cpus: &CpuSet,
        recorded: i64,
    ) -> Result<bool> {
        match self.age(recorded) {
            Age::Ours => Ok(true),
            // Every CPU has kernel threads that are confined to it, and one can have a number of an
            // earlier boot.
            _ if process::is_kernel_thread(host, pid)? => Ok(false),
            Age::Unknown => process::pid_is_alive(host, pid),
            Age::Earlier => {
                Ok(process::pid_is_alive(host, pid)? && is_confined_to(host, pid, cpus)?)
            }
        }
    }
}

/// Which pids in `tasks` count, although written in an earlier boot.
struct Earlier<'a> {
    clock: Clock,
    /// The pids of live claims.
    keep: &'a BTreeSet<i32>,
    cpus_of: &'a BTreeMap<i32, CpuSet>,
}

fn is_confined_to(host: &Host, pid: i32, cpus: &CpuSet) -> Result<bool> {
    match process::affinity(pid) {
        Ok(affinity) => Ok(affinity.is_subset(cpus) && affinity != topology::online(host)?),
        Err(error) if crate::files::is_gone(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Says that the lock of a pool directory was replaced since its claims were made, and who still
/// uses the former one; `None` if it was not.
///
/// # Errors
/// The mark, the lock or the table of locks cannot be looked at.
pub fn replaced_lock(site: &Site, directory: &PoolDirectory) -> Result<Option<String>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(None);
    };
    let mark = ledger.boot_mark()?.unwrap_or_default();
    let words: Vec<&str> = lines_of(&mark).0.splitn(3, ' ').collect();
    let [boot_id, key, path] = words.as_slice() else {
        return Ok(None);
    };
    let is_ours = *boot_id == process::boot_id(&site.host)? && Path::new(path) == directory.path();
    if !is_ours || *key == directory.lock_key()? {
        return Ok(None);
    }
    let lock = directory.lock_path();
    let user = directory.user_of_former(&site.host, key)?;
    let user = user.map_or(String::new(), |user| {
        format!(", and {user} still uses the former one")
    });
    Ok(Some(format!(
        "{} was replaced since its claims were made{user}",
        lock.display()
    )))
}

/// What a mark says of the boot, the lock and the directory, and the pid namespace, which a mark of
/// an earlier version has not.
fn lines_of(mark: &str) -> (&str, Option<&str>) {
    let mark = mark.trim_end();
    match mark.rsplit_once('\n') {
        Some((line, pids)) if pids.starts_with("pid:[") => (line, Some(pids)),
        _ => (mark, None),
    }
}

/// The pids that a mark is of; those of an earlier boot mean nothing any more.
pub(crate) fn pids_of(mark: &str, boot_id: &str, ledger: &Ledger) -> Pids {
    let (line, pids) = lines_of(mark);
    let of_boot = line
        .strip_prefix(boot_id)
        .filter(|rest| rest.starts_with(' '));
    Pids::of(pids.filter(|_| of_boot.is_some()), ledger.boot_mark_path())
}

impl Books<'_> {
    /// Compares the mark `boot` with this boot and this lock, and renews it. If it is of another
    /// boot, or missing, what is in `tasks` from before this boot is voided.
    pub(crate) fn begin_boot(&mut self, site: &Site) -> Result<()> {
        let ours = format!("{} {} ", self.boot_id, self.lock.key());
        let before = self.ledger.boot_mark()?.unwrap_or_default();
        self.view.pids = pids_of(&before, &self.boot_id, &self.ledger);
        if !before.starts_with(&ours) {
            let (line, pids) = lines_of(&before);
            let pids = match line.strip_prefix(&format!("{} ", self.boot_id)) {
                Some(other) => {
                    self.view.ledger.expect_boot(&self.view.boot_id);
                    self.take_over(other, site)?;
                    pids.map(str::to_owned)
                }
                None => {
                    self.forget_earlier_boots()?;
                    process::pid_namespace(self.host)
                }
            };
            self.view.pids = Pids::of(pids.as_deref(), self.ledger.boot_mark_path());
            let directory = self.directory.path().display();
            let pids = pids.map_or(String::new(), |pids| format!("{pids}\n"));
            self.ledger
                .write_boot_mark(&format!("{ours}{directory}\n{pids}"))?;
        }
        self.view.ledger.expect_boot(&self.view.boot_id);
        Ok(())
    }

    /// Takes over claims that were made under another lock. `other` is the rest of the mark: that
    /// lock's key and its pool directory. If that is this directory, its lock was replaced, and all
    /// owners are still ours. Otherwise the claims are refused if any is unreadable or has a live
    /// owner.
    fn take_over(&self, other: &str, site: &Site) -> Result<()> {
        let (key, path) = other.split_once(' ').unwrap_or((other, ""));
        let is_same = Path::new(path) == self.directory.path();
        if is_same {
            self.wait_for_former(key)?;
        }
        let mut owners = Vec::new();
        for entry in self.ledger.all()? {
            self.ensure_time_left()?;
            match entry {
                Entry::Claim(claim) => {
                    let is_elsewhere = self.is_alive_elsewhere(&claim, is_same)?;
                    ensure!(
                        !is_elsewhere || !is_same,
                        Refusal::new(
                            format!(
                                "the lock of {} was replaced, and {} runs on {} of pool {}, which \
                                 is not there any more",
                                self.directory.path().display(),
                                claim.shown(),
                                claim.lists.join(" and "),
                                claim.pool
                            ),
                            "stop it, or put the pool back"
                        )
                    );
                    if is_elsewhere {
                        return self.refuse_other_claims(other, site);
                    }
                    owners.push(claim);
                }
                Entry::Unreadable(_) if is_same => {}
                Entry::Unreadable(_) => return self.refuse_other_claims(other, site),
            }
        }
        // Dead owners are freed as long as there is time; the rest when their lists are needed.
        let until = Instant::now() + SETTLING;
        for claim in owners.iter().take_while(|_| Instant::now() < until) {
            if let Err(error) = self.free_or_refresh(claim) {
                warn_held(claim, &error);
            }
        }
        if is_same {
            log::warn!(
                "the lock of {} was replaced: the new one serves from now on; leave that file \
                 alone (rsync --exclude)",
                self.directory.path().display()
            );
            self.remove_unclaimed_groups_of(key)?;
        }
        Ok(())
    }

    fn refuse_other_claims(&self, other: &str, site: &Site) -> Result<()> {
        let what = format!(
            "{} holds the claims of another pool directory ({})",
            site.run_dir.display(),
            one_line(other)
        );
        let remedy = format!("give {} another --run-dir", self.directory.path().display());
        bail!(Refusal::new(what, remedy))
    }

    /// Is the owner alive and unknown to this directory: the claim is of another directory, or none
    /// of its lists exists? It could not be kept apart from others.
    fn is_alive_elsewhere(&self, claim: &Claim, is_same: bool) -> Result<bool> {
        // What cannot be told counts as held.
        if !self.life_of(claim).map_or(true, Life::is_alive) {
            return Ok(false);
        }
        let mut has_any = false;
        for list in &claim.lists {
            has_any |= self.directory.has_list(&claim.pool, list)?;
        }
        Ok(!is_same || !has_any)
    }

    /// Waits for those who hold the former lock or wait for it: they do not know that it was
    /// replaced.
    fn wait_for_former(&self, key: &str) -> Result<()> {
        let started = Instant::now();
        while let Some(user) = self.directory.user_of_former(self.host, key)? {
            ensure!(
                started.elapsed() < LEAVING,
                Refusal::new(
                    format!(
                        "the lock of {} was replaced, and {user} still uses the former one",
                        self.directory.path().display()
                    ),
                    "let that finish"
                )
            );
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Refuses to go on when a hook's time is over: the next caller continues, and what is done
    /// stays done.
    fn ensure_time_left(&self) -> Result<()> {
        ensure!(
            self.deadline.is_none() || Instant::now() < self.until,
            Refusal::new(
                "there was no time to look at all that was recorded before",
                "`pinfold reconcile` does; start it again then"
            )
        );
        Ok(())
    }

    fn forget_earlier_boots(&self) -> Result<()> {
        let mut keep = BTreeSet::new();
        for claim in self.ledger.all()?.iter().filter_map(Entry::claim) {
            self.ensure_time_left()?;
            if claim.boot_id != self.boot_id {
                self.ledger.end(claim)?;
            // What cannot be told counts as held.
            } else if self.life_of(claim).map_or(true, Life::is_alive) {
                keep.extend(claim.pids());
            }
        }
        let clock = Clock::of(self.host)?;
        for pool in self.directory.pool_names()? {
            let cpus_of = self.cpus_by_pid(&pool)?;
            for list in self.directory.list_names(&pool)? {
                self.ensure_time_left()?;
                let earlier = Earlier {
                    clock,
                    keep: &keep,
                    cpus_of: &cpus_of,
                };
                // A `tasks` that cannot be read or written counts as held, and does not stop the
                // rest.
                if let Err(error) = self.forget_earlier_tasks(&pool, &list, &earlier) {
                    log::warn!("{error:#}");
                }
            }
        }
        Ok(())
    }

    /// The CPUs of all lists of a pool that each pid is in: one owner can have several. A list that
    /// cannot be read is left out; its own turn reports it.
    fn cpus_by_pid(&self, pool: &str) -> Result<BTreeMap<i32, CpuSet>> {
        let mut cpus_of: BTreeMap<i32, CpuSet> = BTreeMap::new();
        for list in self.directory.list_names(pool)? {
            self.ensure_time_left()?;
            let (Ok(cpus), Ok(tasks)) = (list.parse(), self.directory.tasks(pool, &list)) else {
                continue;
            };
            for pid in tasks {
                cpus_of.entry(pid).or_default().extend(&cpus);
            }
        }
        Ok(cpus_of)
    }

    fn forget_earlier_tasks(&self, pool: &str, list: &str, earlier: &Earlier<'_>) -> Result<()> {
        let Earlier {
            clock,
            keep,
            cpus_of,
        } = earlier;
        let Some(recorded) = self.directory.recorded_at(pool, list)? else {
            return Ok(());
        };
        let age = clock.age(recorded);
        if age == Age::Ours {
            return Ok(());
        }
        let before = match self.directory.tasks(pool, list) {
            Ok(pids) => pids,
            Err(error) if age == Age::Earlier && is_damaged(&error) => {
                return self.directory.put_tasks(&self.lock, pool, list, &[]);
            }
            Err(error) => return Err(error),
        };
        let none = CpuSet::new();
        let mut after = Vec::new();
        for pid in &before {
            let cpus = cpus_of.get(pid).unwrap_or(&none);
            if keep.contains(pid) || clock.counts(self.host, *pid, cpus, recorded)? {
                after.push(*pid);
            }
        }
        for pid in after.iter().filter(|pid| !keep.contains(pid)) {
            log::warn!(
                "process {pid} keeps {list} of pool {pool}: it is recorded before the time of \
                 boot, and that may have been moved by setting the clock"
            );
        }
        if after == before {
            return Ok(());
        }
        self.directory.put_tasks(&self.lock, pool, list, &after)
    }
}

/// Was the file read, but holds no pids? A file that could not be read may hold anybody's.
fn is_damaged(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_none_or(|error| error.kind() == io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_pids_it_is_of() {
        let (line, pids) = ("b 4-5 /etc/a b", "pid:[4026531836]");
        let both = format!("{line}\n{pids}\n");
        for (mark, told) in [
            (both.as_str(), (line, Some(pids))),
            // That of an earlier version.
            ("b 4-5 /etc/a b\n", (line, None)),
            ("b 4-5 /etc/a\nb\n", ("b 4-5 /etc/a\nb", None)),
            ("", ("", None)),
        ] {
            assert_eq!(lines_of(mark), told, "{mark:?}");
        }
        // Those of an earlier boot mean nothing any more.
        for (boot, is_same) in [("b", false), ("c", true), ("", true)] {
            let host = Host::new("/");
            let mark = "b 4-5 /etc\npid:[1]\n";
            let ledger = Ledger::open_to_read(Path::new("/nowhere")).unwrap();
            assert_eq!(pids_of(mark, boot, &ledger).tell(&host), is_same, "{boot}");
        }
    }

    #[test]
    fn a_record_is_of_an_earlier_boot_only_where_the_clock_cannot_have_been_set() {
        let steady = Clock {
            boot_time: 100,
            earliest: 100,
        };
        let stepped = Clock {
            boot_time: 100,
            earliest: 20,
        };
        for (clock, recorded, age) in [
            (steady, 100, Age::Ours),
            (steady, 99, Age::Earlier),
            (stepped, 100, Age::Ours),
            (stepped, 99, Age::Unknown),
            (stepped, 20, Age::Unknown),
            (stepped, 19, Age::Earlier),
        ] {
            assert_eq!(clock.age(recorded), age, "{clock:?} {recorded}");
        }
    }
}
