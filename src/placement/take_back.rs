//! Taking CPU lists back: restore the group, drop the owner from `tasks`, remove the record; in that order, so
//! that a claim stays until there is nothing left to undo. Each can be done twice.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::life::{Life, awaited_group};
use super::{Books, at_most};
use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, systemd};
use crate::claims::{Before, Claim, ClaimedGroup};
use crate::cpulist::CpuSet;

/// How long systemd may take while others wait for the lock: well below the 10 s of a hook.
const TOLD_UNDER_LOCK: Duration = Duration::from_secs(4);

impl Books<'_> {
    /// Gives back what a claim holds if its owner is gone: is it?
    pub(super) fn free_if_gone(&self, claim: &Claim) -> Result<bool> {
        Ok(self.life_of(claim)? == Life::Gone && self.give_back(claim)?)
    }

    /// The same for an earlier owner of an id: what is left of it is not the trouble of the one that has the id now.
    pub(super) fn free_earlier(&self, claim: &Claim) {
        if let Err(error) = self.free_if_gone(claim) {
            log::warn!("{} counts as held: {error:#}", claim.shown());
        }
    }

    /// Gives back all that a dead owner's claim holds. `false`, and the claim stays, where a process has entered
    /// its group since it was looked at: a fork of the owner's that was slow to get there.
    pub(super) fn give_back(&self, claim: &Claim) -> Result<bool> {
        // An error that passes is not to leave our mask to the next container of that path. One that stays is told, and
        // holds nothing up.
        let restored = self.restore_group(claim);
        if let Err(error) = restored.or_else(|_| self.restore_group(claim)) {
            log::warn!("{}: {error:#}", claim.shown());
        }
        if let Some((group, claimed)) = self.group_of(claim)? {
            if claimed.made || group.is_populated()? {
                self.keep_confined(claim)?;
                return Ok(false);
            }
        }
        // Nobody is in the group, whatever is in its files: the list is free.
        self.drop_record(claim).map(|()| true)
    }

    /// Takes back all that a claim holds, whoever is in its group.
    pub(super) fn take_back(&self, claim: &Claim) -> Result<()> {
        self.restore_group(claim)?;
        self.drop_record(claim)
    }

    /// Undoes a start that failed: its process, if it lives, goes back to where it was.
    pub(super) fn undo(&self, claim: &Claim) -> Result<()> {
        if let Some((group, claimed)) = self.group_of(claim)? {
            if let Some(from) = &claimed.moved_from {
                let from = self.hierarchy.group(from)?;
                for pid in group.pids()? {
                    // It may have died in this moment; one that cannot go back keeps the group, and the claim.
                    if let Err(error) = from.adopt(pid) {
                        log::info!("{error:#}");
                    }
                }
            }
        }
        self.take_back(claim)
    }

    /// The group that a claim names, if it is still that very one, and what the claim says of it.
    pub(super) fn group_of<'c>(
        &self,
        claim: &'c Claim,
    ) -> Result<Option<(Group, &'c ClaimedGroup)>> {
        let Some(claimed) = &claim.cgroup else {
            return Ok(None);
        };
        let group = self.hierarchy.group(&claimed.path)?;
        let is_same = claim.boot_id == self.boot_id && group.inode()? == Some(claimed.inode);
        Ok(is_same.then_some((group, claimed)))
    }

    /// That group, where it confines its processes.
    pub(super) fn confined_group_of(&self, claim: &Claim) -> Result<Option<Group>> {
        let found = self.group_of(claim)?;
        Ok(found.and_then(|(group, claimed)| claimed.confined.then_some(group)))
    }

    pub(super) fn restore_group(&self, claim: &Claim) -> Result<()> {
        let Some((group, claimed)) = self.group_of(claim)? else {
            self.forget_supervised(claim);
            return self.restore_awaited(claim);
        };
        if claimed.made {
            let path = group.path();
            ensure!(group.remove()?, "the cgroup {path} still holds processes");
            return Ok(());
        }
        let Before { cpus, mems } = &claimed.before;
        let mems = Some(mems.as_str()).filter(|_| !claim.mems.is_empty());
        // The unit may be gone already.
        let none = match claim.is_supervised() {
            true => cpus.parse()?,
            false => CpuSet::new(),
        };
        if let Err(error) = systemd::tell(
            self.host,
            &group,
            &none,
            mems.map(|_| &none),
            self.told_at_most(),
        ) {
            log::info!("{error:#}");
        }
        cpuset::restore(&group, cpus, mems)
    }

    /// systemd keeps a service's CPUs for its next start, which is not to be confined to what its last one owned.
    fn forget_supervised(&self, claim: &Claim) {
        let supervised = claim.cgroup.as_ref().filter(|_| claim.is_supervised());
        let is_of_this_boot = claim.boot_id == self.boot_id;
        let Some(claimed) = supervised.filter(|_| is_of_this_boot) else {
            return;
        };
        let told = self.hierarchy.group(&claimed.path).and_then(|group| {
            let cpus = claimed.before.cpus.parse()?;
            let mems: CpuSet = claimed.before.mems.parse()?;
            let mems = Some(&mems).filter(|_| !claim.mems.is_empty());
            systemd::tell_for_later(self.host, &group, &cpus, mems, self.told_at_most())
        });
        if let Err(error) = told {
            log::info!("{error:#}");
        }
    }

    /// The group that a runtime confined for a reservation and left, unless another owner has it by now.
    fn restore_awaited(&self, claim: &Claim) -> Result<()> {
        let group = awaited_group(claim, &self.hierarchy)?;
        let Some(group) = group.filter(|_| claim.boot_id == self.boot_id) else {
            return Ok(());
        };
        let inode = group.inode()?;
        if inode.is_some_and(|inode| self.ledger.on_cgroup(inode).is_some()) {
            return Ok(());
        }
        let Masks { cpus, mems } = cpuset::inherited(&group)?;
        let mems = Some(mems.as_str()).filter(|_| !claim.mems.is_empty());
        cpuset::restore(&group, &cpus, mems)
    }

    /// Gives the group of a claim these CPUs, and makes sure that it has, and keeps, them.
    pub(super) fn set_cpus(&self, group: &Group, cpus: &CpuSet, mems: &CpuSet) -> Result<()> {
        let mems = Some(mems).filter(|mems| !mems.is_empty());
        let scope = cpuset::scope_in_the_way(group, cpus)?;
        cpuset::confine(group, cpus, mems)?;
        let unit = scope.as_ref().unwrap_or(group);
        systemd::tell(self.host, unit, cpus, mems, self.told_at_most()).map(drop)
    }

    /// How long systemd may take now.
    pub(super) fn told_at_most(&self) -> Duration {
        at_most(TOLD_UNDER_LOCK, self.deadline)
    }

    /// Drops a claim from `tasks`, and then from the ledger.
    pub(super) fn drop_record(&self, claim: &Claim) -> Result<()> {
        self.change_tasks(claim, &claim.pids(), &[])?;
        self.ledger.remove(claim)
    }
}
