//! Undoing what was done for an owner: tell systemd, restore the group, drop the owner from
//! `tasks`, remove the claim. The claim goes last, so that it stays until there is nothing left to
//! undo: where a step fails the list stays held, and whoever needs it next, or `reconcile`, tries
//! again. Every step can be repeated.
//!
//! A group that is gone needs no restoring. Of a service systemd keeps the CPUs even then, and is
//! told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, systemd};
use crate::claims::{Before, Claim, ClaimedGroup};
use crate::cpulist::CpuSet;
use crate::placement::end::{Fate, warn_held};
use crate::placement::life::{Life, awaited_group};
use crate::placement::{Books, at_most};

/// An attempt that fails sooner than this is repeated once; one that took longer has waited in
/// vain.
const BRIEFLY: Duration = Duration::from_secs(1);

/// How long systemd may take while the lock is held: well below the 10 s that a hook waits for it.
const TOLD_UNDER_LOCK: Duration = Duration::from_secs(4);

impl Books<'_> {
    /// Frees the claim if its owner is dead; returns whether it was freed.
    pub(crate) fn free_if_dead(&self, claim: &Claim) -> Result<Fate> {
        match self.life_of(claim)? {
            Life::Recorded => Ok(Fate::Held),
            // Its lists may be another's by now, so survivors do not keep it: the group is restored
            // under them.
            _ if claim.lists.is_empty() => self.evict(claim).map(|()| Fate::Freed),
            Life::Survived(_) => Ok(Fate::Held),
            Life::Gone => self.free_dead(claim),
        }
    }

    /// [`Books::free_if_dead`] for an earlier owner of a starting owner's id: an error is a
    /// warning, as it must not fail the start.
    pub(crate) fn free_earlier_if_dead(&self, claim: &Claim) {
        if let Err(error) = self.free_if_dead(claim) {
            warn_held(claim, &error);
        }
    }

    /// Frees the claim of an owner found dead. It stays held if a process has entered its group
    /// since: a fork of the owner's that was late.
    ///
    /// # Errors
    /// The group could not be restored, or systemd not told. The claim stays: without it the next
    /// container of that path would run on CPUs that are somebody else's.
    pub(crate) fn free_dead(&self, claim: &Claim) -> Result<Fate> {
        // A passing error must not keep the list.
        let began = Instant::now();
        let restored = match self.restore_group(claim) {
            Err(_) if began.elapsed() < BRIEFLY => self.restore_group(claim),
            other => other,
        };
        if restored.is_err() && began.elapsed() >= BRIEFLY {
            self.note_slow(claim);
        }
        if let Some((group, _)) = self.group_of(claim)? {
            if group.is_populated()? {
                self.keep_confined(claim)?;
                // Its owner lives, whoever else can run there: that is no failure of the end.
                if let Err(error) = self.keep_off_again(claim) {
                    log::warn!("{error:#}");
                }
                return Ok(Fate::Held);
            }
        }
        restored.with_context(|| {
            format!(
                "{} is gone and still holds {} of pool {}, until its cgroup is restored \
                 (`pinfold reconcile` tries again) or removed",
                claim.shown(),
                claim.lists.join(" and "),
                claim.pool
            )
        })?;
        self.drop_record(claim).map(|()| Fate::Freed)
    }

    /// Marks a claim as slow, so that whoever needs CPUs next tries others first.
    fn note_slow(&self, claim: &Claim) {
        let slow = Claim {
            is_slow: true,
            ..claim.clone()
        };
        if !claim.is_slow {
            if let Err(error) = self.ledger.write(&slow) {
                log::warn!("note that {} is slow: {error:#}", claim.shown());
            }
        }
    }

    /// Frees the lists of a dead owner whose group could not be restored. The claim stays without
    /// lists, so that the rest is undone once it can be.
    ///
    /// # Errors
    /// The group holds a process, which could run on them.
    pub(crate) fn free_lists(&self, claim: &Claim) -> Result<()> {
        if let Some((group, _)) = self.group_of(claim)? {
            let path = group.path();
            ensure!(!group.is_populated()?, "the cgroup {path} holds processes");
        }
        self.change_tasks(claim, &claim.pids(), &[])?;
        let rest = Claim {
            lists: Vec::new(),
            ..claim.clone()
        };
        self.ledger.rewrite(claim, &rest)
    }

    /// Frees the claim of an owner that ended, even if other processes are in its group by now.
    pub(crate) fn evict(&self, claim: &Claim) -> Result<()> {
        self.restore_group(claim)?;
        self.drop_record(claim)
    }

    /// Undoes a start that failed. Its process, if it lives, goes back to the group it came from.
    pub(crate) fn undo_start(&self, claim: &Claim) -> Result<()> {
        if let Some((group, claimed)) = self.group_of(claim)? {
            if let Some(from) = &claimed.moved_from {
                let from = self.hierarchy.group(from)?;
                for pid in group.pids()? {
                    // The process may just have ended. One that cannot go back keeps the group, and
                    // so the claim.
                    if let Err(error) = from.adopt(pid) {
                        log::info!("{error:#}");
                    }
                }
            }
        }
        self.restore_group(claim)?;
        self.change_tasks(claim, &claim.pids(), &[])?;
        self.ledger.remove(claim)
    }

    /// The group that a claim names, and what the claim says of it; `None` if that group is gone.
    pub(crate) fn group_of<'c>(
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

    /// The group of a claim, if it is confined to the claim's CPUs.
    pub(crate) fn confined_group_of(&self, claim: &Claim) -> Result<Option<Group>> {
        let found = self.group_of(claim)?;
        Ok(found.and_then(|(group, claimed)| claimed.confined.then_some(group)))
    }

    /// Takes a claim's mask off its group, and tells systemd.
    ///
    /// # Errors
    /// A step failed. The steps after it were tried all the same.
    pub(crate) fn restore_group(&self, claim: &Claim) -> Result<()> {
        self.restore(claim, Some(&claim.cpus))
    }

    /// [`Books::restore_group`] for an owner released by force: systemd was told of other CPUs
    /// since.
    pub(crate) fn restore_released(&self, claim: &Claim) -> Result<()> {
        self.restore(claim, None)
    }

    fn restore(&self, claim: &Claim, told: Option<&CpuSet>) -> Result<()> {
        // Before the mask goes: as long as others are kept off, nobody else can use the CPUs.
        self.let_in(claim)?;
        let Some((group, claimed)) = self.group_of(claim)? else {
            return self
                .forget_supervised(claim, told)
                .and(self.restore_awaited(claim));
        };
        if claimed.made {
            let path = group.path();
            ensure!(group.remove()?, "the cgroup {path} still holds processes");
            return Ok(());
        }
        if !claimed.confined {
            return Ok(());
        }
        let untold = self.untell(claim, &group, told);
        // Other values than ours were set by an operator since, and stay.
        if matches!(untold, Ok(false)) && !has_cpus_of(&group, claim)? {
            return Ok(());
        }
        let Before { cpus, mems } = &claimed.before;
        let mems = Some(mems.as_str()).filter(|_| claim.mems.is_some());
        let restored = cpuset::restore(&group, cpus, mems, || self.exclusive_where_isolated());
        untold.map(drop).and(restored)
    }

    /// Makes systemd forget the CPUs of a service whose group is gone: it would confine the
    /// service's next start to them.
    fn forget_supervised(&self, claim: &Claim, told: Option<&CpuSet>) -> Result<()> {
        let is_of_this_boot = claim.boot_id == self.boot_id;
        match claim.confining_group() {
            Some(claimed) if claim.is_supervised() && is_of_this_boot => {
                let group = self.hierarchy.group(&claimed.path)?;
                self.untell(claim, &group, told).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Gives a unit back the CPUs that systemd knew before a claim; `false` if others have changed
    /// them since. `told` are the CPUs that systemd was told for the claim; `None` if unknown.
    pub(crate) fn untell(
        &self,
        claim: &Claim,
        unit: &Group,
        told: Option<&CpuSet>,
    ) -> Result<bool> {
        let none = Before::default();
        // A container's unit had no CPUs before ours: one with chosen CPUs is refused.
        let (before, told) = match &claim.cgroup {
            Some(claimed) if claim.is_supervised() => (&claimed.before, told),
            _ => (&none, None),
        };
        let (cpus, mems): (CpuSet, CpuSet) = (before.cpus.parse()?, before.mems.parse()?);
        let former = systemd::Former {
            cpus: &cpus,
            mems: Some(&mems).filter(|_| claim.mems.is_some()),
            settings: &claim.unit_settings,
            told,
        };
        systemd::untell(self.host, unit, &former, self.systemd_patience())
    }

    /// Restores the group that a runtime confined for a reservation and left, unless another owner
    /// has it by now.
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
        let mems = Some(mems.as_str()).filter(|_| claim.mems.is_some());
        cpuset::restore(&group, &cpus, mems, || self.exclusive_where_isolated())
    }

    /// Gives a group these CPUs and memory nodes, checks that it has them, and tells systemd so
    /// that it keeps them. No memory nodes: they stay as they are.
    pub(crate) fn set_cpus(
        &self,
        group: &Group,
        cpus: &CpuSet,
        mems: Option<&CpuSet>,
    ) -> Result<()> {
        let scope = cpuset::scope_in_the_way(group, cpus)?;
        cpuset::confine(group, cpus, mems)?;
        let unit = scope.as_ref().unwrap_or(group);
        let patience = at_most(TOLD_UNDER_LOCK, self.deadline);
        systemd::tell(self.host, unit, cpus, mems, patience).map(drop)
    }

    /// How long systemd may take to forget one claim. All claims that are freed in one go share the
    /// time to look.
    pub(crate) fn systemd_patience(&self) -> Duration {
        at_most(TOLD_UNDER_LOCK.min(self.time_to_look()), self.deadline)
    }

    /// What is left of the time to look for dead owners.
    pub(crate) fn time_to_look(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Drops an ended owner from `tasks`, and then removes its claim.
    pub(crate) fn drop_record(&self, claim: &Claim) -> Result<()> {
        self.change_tasks(claim, &claim.pids(), &[])?;
        self.ledger.end(claim)
    }
}

/// Has a group a mask of its own, of none but a claim's CPUs?
fn has_cpus_of(group: &Group, claim: &Claim) -> Result<bool> {
    let own: CpuSet = cpuset::masks(group)?.unwrap_or_default().cpus.parse()?;
    Ok(!own.is_empty() && own.is_subset(&claim.cpus))
}
