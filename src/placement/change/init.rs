//! Makes the pool directory, or replaces its pools, unless anybody owns CPUs in it.

use anyhow::{Result, bail, ensure};

use crate::cgroup::cpuset;
use crate::claims::{Entry, Ledger};
use crate::files;
use crate::placement::look::survey::trial;
use crate::placement::{Site, View};
use crate::pools::make::{FoundPools, has_planned_kinds, is_as_planned};
use crate::pools::plan::PlannedPool;
use crate::pools::{Pool, PoolDirectory};
use crate::refusal::Refusal;

/// What `init` did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    New,
    /// It already was as planned.
    AlreadyThere,
    /// It was incomplete, for this reason, and was completed.
    Completed(String),
    /// Its pools were replaced.
    Replaced,
}

/// What to do with other pools that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    Keep,
    /// Replace them, if nobody owns CPUs in them.
    Replace,
}

/// Makes the pool directory as planned.
///
/// # Errors
/// Anybody owns CPUs in it; other pools are to be kept; the directory cannot be written.
pub fn init(site: &Site, plan: &[PlannedPool], existing: Existing) -> Result<Made> {
    let made = make(site, plan, existing)?;
    site.confine_host_or_warn();
    Ok(made)
}

fn make(site: &Site, plan: &[PlannedPool], existing: Existing) -> Result<Made> {
    let directory = PoolDirectory::begin(&site.conf_dir)?;
    let lock = directory.lock(&site.host, site.patience)?;
    let made = decide(&directory, plan, existing)?;
    if made == Made::AlreadyThere {
        return Ok(made);
    }
    if made == Made::New && Ledger::open_if_there(&site.run_dir)?.is_none() {
        return directory.put_pools(&lock, plan).map(|()| made);
    }
    let books = site.books(directory, lock, cpuset::hierarchy(&site.host)?)?;
    books.refuse_live_owners()?;
    books.directory.put_pools(&books.lock, plan)?;
    Ok(made)
}

/// What [`init`] would do. Changes nothing, and does not wait for the lock.
///
/// # Errors
/// As [`init`]; but a captured tree need not be writable.
pub fn try_init(site: &Site, plan: &[PlannedPool], existing: Existing) -> Result<Made> {
    let Some(directory) = PoolDirectory::begun(&site.conf_dir)? else {
        if site.host.is_running_root() {
            PoolDirectory::ensure_can_begin(&site.conf_dir)?;
        }
        return Ok(Made::New);
    };
    let made = trial(site, &directory, || {
        let made = decide(&directory, plan, existing)?;
        let has_claims = Ledger::open_if_there(&site.run_dir)?.is_some();
        if made != Made::AlreadyThere && (made != Made::New || has_claims) {
            site.view(&directory)?.refuse_live_owners()?;
        }
        Ok(made)
    })?;
    if site.host.is_running_root() && made != Made::AlreadyThere {
        PoolDirectory::ensure_can_begin(&site.conf_dir)?;
    }
    Ok(made)
}

/// Removes the pool directory; one that is not there is success.
///
/// # Errors
/// Live owners; dead owners with claims, whose groups nobody could restore afterwards; something
/// cannot be removed.
pub fn unmake(site: &Site) -> Result<()> {
    let Some(directory) = PoolDirectory::begun(&site.conf_dir)? else {
        return Ok(());
    };
    if directory.is_empty()? {
        return files::remove_empty_directory(&site.conf_dir).map(drop);
    }
    let lock = directory.lock(&site.host, site.patience)?;
    let books = site.books(directory, lock, cpuset::hierarchy(&site.host)?)?;
    books.refuse_live_owners()?;
    let left = books.ledger.all()?.len();
    ensure!(
        left == 0,
        Refusal::new(
            format!(
                "{left} owners that are gone have claims on {} still",
                site.conf_dir.display()
            ),
            "free what they hold: `pinfold reconcile`"
        )
    );
    books.directory.remove(&books.lock)?;
    drop(books);
    site.confine_host_or_warn();
    Ok(())
}

fn decide(directory: &PoolDirectory, plan: &[PlannedPool], existing: Existing) -> Result<Made> {
    let path = directory.path().display();
    Ok(match directory.found()? {
        FoundPools::Nothing => Made::New,
        FoundPools::Pools(pools) if is_as_planned(&pools, plan) => Made::AlreadyThere,
        FoundPools::Pools(pools)
            if has_planned_kinds(&pools, plan) && directory.is_part_of(plan)? =>
        {
            Made::Completed("some of its pools or CPU lists are missing".to_owned())
        }
        FoundPools::Pools(pools) if existing == Existing::Keep => bail!(Refusal::new(
            format!("{path} has other pools already: {}", names(&pools)),
            "change them while containers run with `pinfold pool add`, `pinfold pool resize` and \
             `pinfold pool remove`, or replace them all: add --force"
        )),
        FoundPools::Pools(_) => Made::Replaced,
        FoundPools::HalfMade(reason)
            if existing == Existing::Keep && !directory.is_part_of(plan)? =>
        {
            bail!(Refusal::new(
                format!(
                    "{path} cannot be used, and is not just a part of what was asked for: {reason}"
                ),
                "replace it: add --force"
            ))
        }
        FoundPools::HalfMade(reason) => Made::Completed(reason),
    })
}

fn names(pools: &[Pool]) -> String {
    let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    names.join(", ")
}

fn owned(owner: &str, path: &str) -> Refusal {
    Refusal::new(
        format!("{owner} owns CPUs in {path}"),
        "stop it first (`pinfold describe` shows it), or change the pools around it with \
         `pinfold pool`",
    )
}

impl View<'_> {
    fn refuse_live_owners(&self) -> Result<()> {
        let path = self.directory.path().display();
        for pid in self.directory.all_numbers_in_tasks()? {
            if self.is_pid_alive(pid) {
                bail!(owned(&format!("process {pid}"), &path.to_string()));
            }
        }
        for entry in self.ledger.all()? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)?.is_alive() => {
                    bail!(owned(&claim.shown(), &path.to_string()));
                }
                Entry::Claim(_) => {}
                Entry::Unreadable(one) => bail!(one.refusal()),
            }
        }
        Ok(())
    }
}
