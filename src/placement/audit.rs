//! Are the claims true? A look that changes nothing.

use anyhow::{Result, bail};

use super::Site;
use super::life::life_of;
use crate::cgroup::{Hierarchy, cpuset};
use crate::claims::{Claim, Entry, Ledger};
use crate::pools::{Lock, PoolDirectory};
use crate::process;
use crate::text::Shown;

/// What was found.
#[derive(Debug, Default)]
pub struct Audit {
    /// How many owners live.
    pub owners: usize,
    /// What is not as a claim says, a sentence each.
    pub remarks: Vec<String>,
}

/// Holds every claim against the machine: does its owner live, is it confined to the claim's CPUs, do other tools see it? And
/// is there a group of ours that no claim explains?
///
/// # Errors
/// The pool directory or the claims cannot be looked at at all; or somebody holds the lock too long.
pub fn audit(site: &Site) -> Result<Audit> {
    let directory = PoolDirectory::open(&site.conf_dir)?;
    let lock = directory.lock(&site.host, site.patience).ok();
    let mut audit = Audit::default();
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(audit);
    };
    let hierarchy = Hierarchy::discover(&site.host)?;
    let look = Look {
        site,
        boot_id: process::boot_id(&site.host)?,
        directory,
        hierarchy,
        ledger,
    };
    for entry in look.ledger.all()? {
        match entry {
            Entry::Claim(claim) => match look.at(&claim) {
                Ok(remark) => audit.count(remark),
                Err(error) => audit
                    .remarks
                    .push(format!("{}: {error:#}", Shown(&claim.shown()))),
            },
            Entry::Opaque { path, reason } => audit.remarks.push(format!(
                "the claim {} counts as held: {reason}",
                path.display()
            )),
        }
    }
    if let Some(lock) = lock {
        audit.remarks.extend(look.unclaimed_groups(&lock)?);
    }
    Ok(audit)
}

/// The claims whose owner lives; looked at without the lock.
///
/// # Errors
/// A claim that cannot be read, or of whose owner it cannot be told whether it lives.
pub fn live_claims(site: &Site) -> Result<Vec<Claim>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(Vec::new());
    };
    let entries = ledger.all()?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let hierarchy = Hierarchy::discover(&site.host)?;
    let boot_id = process::boot_id(&site.host)?;
    let mut alive = Vec::new();
    for entry in entries {
        match entry {
            Entry::Claim(claim) => {
                if life_of(&claim, &site.host, &hierarchy, &boot_id)?.is_alive() {
                    alive.push(*claim);
                }
            }
            Entry::Opaque { path, reason } => {
                bail!("the claim {} cannot be read: {reason}", path.display())
            }
        }
    }
    Ok(alive)
}

impl Audit {
    fn count(&mut self, remark: Option<String>) {
        match remark {
            Some(remark) => self.remarks.push(remark),
            None => self.owners += 1,
        }
    }
}

struct Look<'a> {
    site: &'a Site,
    boot_id: String,
    directory: PoolDirectory,
    hierarchy: Hierarchy,
    ledger: Ledger,
}

impl Look<'_> {
    /// What is wrong with a claim, if anything is.
    fn at(&self, claim: &Claim) -> Result<Option<String>> {
        let owner = claim.shown();
        let id = Shown(&owner);
        let lists = claim.lists.join(" and ");
        if !life_of(claim, &self.site.host, &self.hierarchy, &self.boot_id)?.is_alive() {
            return Ok(Some(format!(
                "{id} holds {lists} of {} and is gone",
                claim.pool
            )));
        }
        if let Some(claimed) = claim.confining_group() {
            let group = self.hierarchy.group(&claimed.path)?;
            if group.inode()? == Some(claimed.inode) {
                let cpus = cpuset::effective_cpus(&group)?.unwrap_or_default();
                // It may have ended since it was looked for.
                if cpus != claim.cpus && group.inode()? == Some(claimed.inode) {
                    return Ok(Some(format!(
                        "{id} holds the CPUs {} and may run on {cpus}",
                        claim.cpus
                    )));
                }
            }
        }
        for list in &claim.lists {
            let tasks = self.directory.tasks(&claim.pool, list)?;
            if !claim.pids().iter().any(|pid| tasks.contains(pid)) {
                return Ok(Some(format!(
                    "{id} holds {list} of {}, and other tools do not see it in tasks",
                    claim.pool
                )));
            }
        }
        Ok(None)
    }

    /// Groups that we made and that no claim names: their maker was killed.
    fn unclaimed_groups(&self, lock: &Lock) -> Result<Vec<String>> {
        let mut remarks = Vec::new();
        for group in self.hierarchy.parent_for(&lock.key()?)?.children()? {
            let claim = group
                .inode()?
                .and_then(|inode| self.ledger.on_cgroup(inode));
            if claim.is_none() {
                remarks.push(format!("the cgroup {} is left over", Shown(group.path())));
            }
        }
        Ok(remarks)
    }
}
