//! Checks whether the claims are true. Changes nothing.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cgroup::{Group, Hierarchy, cpuset};
use crate::claims::{Claim, Entry, Ledger};
use crate::placement::Site;
use crate::placement::boot::pids_of;
use crate::placement::keeper::{let_through, shown_group};
use crate::placement::life::{Pids, life_of};
use crate::placement::look::survey::steadily;
use crate::pools::PoolDirectory;
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;

/// What mends most problems.
const RECONCILE: &str = "`pinfold reconcile`";

/// The time before the last look: longer than a start holds the lock.
const LATER: Duration = Duration::from_millis(50);

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub struct Audit {
    /// How many owners live.
    pub owners: usize,
    /// What is not as a claim says.
    pub remarks: Vec<Refusal>,
}

/// Compares every claim with the machine: does its owner live, is it confined to the claim's CPUs,
/// do other tools see it in `tasks`? Is any group of ours in no claim? Looks without the lock,
/// until two looks in a row see the same; reports what a later look sees again.
///
/// # Errors
/// The pool directory or the ledger cannot be looked at.
pub fn audit(site: &Site) -> Result<Audit> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    agreed(|| look(site, &directory))
}

/// The problems that two looks agree on: on a busy machine owners who start and end are halfway for
/// longer.
fn agreed(look: impl Fn() -> Result<Audit>) -> Result<Audit> {
    let before = steadily(&look)?.seen;
    if before.remarks.is_empty() {
        return Ok(before);
    }
    sleep(LATER);
    let mut now = look()?;
    now.remarks.retain(|remark| before.remarks.contains(remark));
    Ok(now)
}

fn look(site: &Site, directory: &PoolDirectory) -> Result<Audit> {
    let mut audit = Audit::default();
    let Some(mut ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(audit);
    };
    let hierarchy = cpuset::hierarchy(&site.host)?;
    let boot_id = process::boot_id(&site.host)?;
    let mark = ledger.boot_mark()?.unwrap_or_default();
    if mark.starts_with(&format!("{boot_id} ")) {
        ledger.expect_boot(&boot_id);
    }
    let look = ClaimAudit {
        pids: pids_of(&mark, &boot_id, &ledger),
        site,
        boot_id,
        directory,
        hierarchy,
        ledger,
    };
    for entry in look.ledger.all()? {
        match entry {
            Entry::Claim(claim) => match look.at(&claim) {
                Ok(remark) => audit.count(remark),
                Err(error) => {
                    let error = error.context(Shown(&claim.shown()).to_string());
                    audit.remarks.push(Refusal::of(&error));
                }
            },
            Entry::Unreadable(one) => audit.remarks.push(one.refusal()),
        }
    }
    audit.remarks.extend(look.unclaimed_groups()?);
    Ok(audit)
}

/// The claims whose owner lives; looks without the lock.
///
/// # Errors
/// A claim cannot be read, or whether its owner lives cannot be told.
pub fn live_claims(site: &Site) -> Result<Vec<Claim>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(Vec::new());
    };
    let entries = ledger.all()?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let hierarchy = cpuset::hierarchy(&site.host)?;
    let boot_id = process::boot_id(&site.host)?;
    let mark = ledger.boot_mark()?.unwrap_or_default();
    let pids = pids_of(&mark, &boot_id, &ledger);
    let mut alive = Vec::new();
    for entry in entries {
        match entry {
            Entry::Claim(claim) => {
                if life_of(&claim, &site.host, &hierarchy, &boot_id, &pids)?.is_alive() {
                    alive.push(*claim);
                }
            }
            Entry::Unreadable(one) => bail!(one.refusal()),
        }
    }
    Ok(alive)
}

impl Audit {
    fn count(&mut self, remark: Option<Refusal>) {
        match remark {
            Some(remark) => self.remarks.push(remark),
            None => self.owners += 1,
        }
    }
}

struct ClaimAudit<'a> {
    site: &'a Site,
    boot_id: String,
    directory: &'a PoolDirectory,
    hierarchy: Hierarchy,
    ledger: Ledger,
    pids: Pids,
}

impl ClaimAudit<'_> {
    /// What is wrong with a claim, if anything.
    fn at(&self, claim: &Claim) -> Result<Option<Refusal>> {
        let owner = claim.shown();
        let id = Shown(&owner);
        let lists = claim.lists.join(" and ");
        if claim.lists.is_empty() {
            let what = format!("what was changed for {id}, which was released, is not undone");
            return Ok(Some(Refusal::new(what, RECONCILE)));
        }
        let host = &self.site.host;
        let life = life_of(claim, host, &self.hierarchy, &self.boot_id, &self.pids)?;
        if !life.is_alive() {
            let what = format!("{id} holds {lists} of {} and is gone", claim.pool);
            return Ok(Some(Refusal::new(what, RECONCILE)));
        }
        if let Some(claimed) = claim.confining_group() {
            let group = self.hierarchy.group(&claimed.path)?;
            if group.inode()? == Some(claimed.inode) {
                let cpus = cpuset::effective_cpus(&group)?.unwrap_or_default();
                // The group may have been removed since.
                if cpus != claim.cpus && group.inode()? == Some(claimed.inode) {
                    let what = format!("{id} holds the CPUs {} and may run on {cpus}", claim.cpus);
                    return self.not_confined(claim, &group, what).map(Some);
                }
            }
        }
        for list in &claim.lists {
            let tasks = self.directory.tasks(&claim.pool, list)?;
            if !claim.pids().iter().any(|pid| tasks.contains(pid)) {
                let what = format!(
                    "{id} holds {list} of {}, and other tools do not see it in tasks",
                    claim.pool
                );
                return Ok(Some(Refusal::new(what, RECONCILE)));
            }
        }
        Ok(None)
    }

    /// Why an owner has other CPUs than its claim's: they are offline, a group above does not allow
    /// them, or another tool changed the group's.
    fn not_confined(&self, claim: &Claim, group: &Group, what: String) -> Result<Refusal> {
        let bound = cpuset::bound(group)?;
        let lacks = claim.cpus.difference(&bound.cpus);
        let online = topology::online(&self.site.host)?;
        Ok(if lacks.is_empty() {
            Refusal::new(what, RECONCILE)
        } else if lacks.is_disjoint(&online) {
            let remedy = format!("put the CPUs {lacks} online, and then `pinfold reconcile`");
            Refusal::new(what, remedy)
        } else {
            let keeper = shown_group(&bound.group());
            let what = format!("{what}: {keeper} allows only the CPUs {}", bound.cpus);
            Refusal::new(what, let_through(&self.site.host, &bound, &lacks))
        })
    }

    /// Our groups that no claim names: their maker was killed.
    fn unclaimed_groups(&self) -> Result<Vec<Refusal>> {
        let mut remarks = Vec::new();
        for group in self
            .hierarchy
            .parent_for(&self.directory.lock_key()?)?
            .children()?
        {
            let claim = group
                .inode()?
                .and_then(|inode| self.ledger.on_cgroup(inode));
            if claim.is_none() {
                let what = format!("the cgroup {} is left over", Shown(group.path()));
                remarks.push(Refusal::new(what, RECONCILE));
            }
        }
        Ok(remarks)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What is reported if the looks see these numbers, one after the other.
    fn reported(looks: impl Fn(usize) -> Vec<usize>) -> (Audit, usize) {
        let count = Cell::new(0);
        let audit = agreed(|| {
            count.set(count.get() + 1);
            let remarks = looks(count.get()).into_iter();
            Ok(Audit {
                owners: count.get(),
                remarks: remarks
                    .map(|number| Refusal::new(number.to_string(), RECONCILE))
                    .collect(),
            })
        });
        (audit.unwrap(), count.get())
    }

    #[test]
    fn only_what_two_looks_agree_on_is_reported() {
        let (steady, looks) = reported(|_| vec![7]);
        assert_eq!((steady.remarks.len(), looks), (1, 11));
        // Each look sees another problem that passes, and one that stays.
        let (unsteady, _) = reported(|look| vec![look, 100]);
        let told: Vec<&str> = unsteady
            .remarks
            .iter()
            .map(|remark| remark.what.as_str())
            .collect();
        assert_eq!(told, ["100"]);
        let (unsteady, looks) = reported(|look| vec![look]);
        assert_eq!(unsteady.remarks, []);
        assert_eq!(unsteady.owners, looks, "what is told of owners is the last");
    }
}
