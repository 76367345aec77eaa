//! Taking CPU lists back: tell systemd, restore the group, drop the owner from `tasks`, remove the
//! record; in that order, so that a claim stays until there is nothing left to undo: where anything
//! fails, the list stays held, and whoever needs it next, or `reconcile`, tries again. A group that
//! is gone is restored by that; of a service systemd keeps the CPUs all the same, and has to be
//! told. Each can be done twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, systemd};
use crate::claims::{Before, Claim, ClaimedGroup};
use crate::cpulist::CpuSet;
use crate::placement::end::{Fate, warn_held};
use crate::placement::life::{Life, awaited_group};
use crate::placement::{Books, at_most};

/// What has failed sooner than this is tried once more; what took longer has waited for somebody.
const BRIEFLY: Duration = Duration::from_secs(1);

/// How long systemd may take while others wait for the lock: well below the 10 s of a hook.
const TOLD_UNDER_LOCK: Duration = Duration::from_secs(4);

impl Books<'_> {
    /// Frees the claim if its owner is dead.
    pub(crate) fn free_if_dead(&self, claim: &Claim) -> Result<Fate> {
        match self.life_of(claim)? {
            Life::Recorded => Ok(Fate::Held),
            // Its lists can be another's by now: whoever is in its group is let out.
            _ if claim.lists.is_empty() => self.evict(claim).map(|()| Fate::Freed),
            Life::Survived(_) => Ok(Fate::Held),
            Life::Gone => self.free_dead(claim),
        }
    }

    /// The same for an earlier owner of an id: what fails is not the trouble of the one that has
    /// the id now.
    pub(crate) fn free_earlier_if_dead(&self, claim: &Claim) {
        if let Err(error) = self.free_if_dead(claim) {
            warn_held(claim, &error);
        }
    }

    /// Frees the claim of an owner that is dead. It stays where a process has entered its group
    /// since it was looked at: a fork of the owner's that was slow to get there.
    ///
    /// # Errors
    /// The group still has our mask, or systemd still knows it: the claim stays, or the next
    /// container of that path would run on what is somebody else's.
    pub(crate) fn free_dead(&self, claim: &Claim) -> Result<Fate> {
        // An error that passes is not to hold the list up.
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
                return Ok(Fate::Held);
            }
        }
        restored.with_context(|| {
            format!(
                "{} is gone and still holds {} of pool {}, until its cgroup is restored (`pinfold reconcile` tries again) or removed",
                claim.shown(),
                claim.lists.join(" and "),
                claim.pool
            )
        })?;
        self.drop_record(claim).map(|()| Fate::Freed)
    }

    /// Whoever looks for CPUs next is to try others first.
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

    /// Frees the lists of a dead owner of which not all can be undone. The claim stays without
    /// them, so that the rest is still undone once it can be.
    ///
    /// # Errors
    /// A process that could still run on them.
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

    /// Frees the claim, whoever is in its group: its owner has ended, and another may be there.
    pub(crate) fn evict(&self, claim: &Claim) -> Result<()> {
        self.restore_group(claim)?;
        self.drop_record(claim)
    }

    /// Undoes a start that failed: its process, if it lives, goes back to where it was.
    pub(crate) fn undo_start(&self, claim: &Claim) -> Result<()> {
        if let Some((group, claimed)) = self.group_of(claim)? {
            if let Some(from) = &claimed.moved_from {
                let from = self.hierarchy.group(from)?;
                for pid in group.pids()? {
                    // It may have died in this moment; one that cannot go back keeps the group, and
                    // the claim.
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

    /// The group that a claim names, if it is still that very one, and what the claim says of it.
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

    /// That group, where it confines its processes.
    pub(crate) fn confined_group_of(&self, claim: &Claim) -> Result<Option<Group>> {
        let found = self.group_of(claim)?;
        Ok(found.and_then(|(group, claimed)| claimed.confined.then_some(group)))
    }

    /// Takes a claim's mask off its group, and lets systemd know.
    ///
    /// # Errors
    /// Any of that is not done. Past an error it goes on with the rest.
    pub(crate) fn restore_group(&self, claim: &Claim) -> Result<()> {
        self.restore(claim, Some(&claim.cpus))
    }

    /// The same for one that was released by force: systemd was told of other CPUs since.
    pub(crate) fn restore_released(&self, claim: &Claim) -> Result<()> {
        self.restore(claim, None)
    }

    fn restore(&self, claim: &Claim, told: Option<&CpuSet>) -> Result<()> {
        // Before its mask goes: until then nobody but it has the CPUs.
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
        // What an operator has set since is the group's now; our own mask is not that.
        if matches!(untold, Ok(false)) && !has_cpus_of(&group, claim)? {
            return Ok(());
        }
        let Before { cpus, mems } = &claimed.before;
        let mems = Some(mems.as_str()).filter(|_| !claim.mems.is_empty());
        let restored = cpuset::restore(&group, cpus, mems, || self.exclusive_where_isolated());
        untold.map(drop).and(restored)
    }

    /// systemd keeps a service's CPUs for its next start, which is not to be confined to what its
    /// last one owned.
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

    /// Lets systemd know of a unit what it knew before a claim; `false` where somebody has told it
    /// something else since. `told` is what it was told for the claim, where that is known.
    pub(crate) fn untell(
        &self,
        claim: &Claim,
        unit: &Group,
        told: Option<&CpuSet>,
    ) -> Result<bool> {
        let none = Before::default();
        // A container's unit is its own, and has no CPUs but ours: whoever chose some was refused.
        let (before, told) = match &claim.cgroup {
            Some(claimed) if claim.is_supervised() => (&claimed.before, told),
            _ => (&none, None),
        };
        let (cpus, mems): (CpuSet, CpuSet) = (before.cpus.parse()?, before.mems.parse()?);
        let former = systemd::Former {
            cpus: &cpus,
            mems: Some(&mems).filter(|_| !claim.mems.is_empty()),
            settings: &claim.unit_settings,
            told,
        };
        systemd::untell(self.host, unit, &former, self.told_at_most())
    }

    /// The group that a runtime confined for a reservation and left, unless another owner has it by
    /// now.
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
        cpuset::restore(&group, &cpus, mems, || self.exclusive_where_isolated())
    }

    /// Gives the group of a claim these CPUs, and makes sure that it has, and keeps, them.
    pub(crate) fn set_cpus(&self, group: &Group, cpus: &CpuSet, mems: &CpuSet) -> Result<()> {
        let mems = Some(mems).filter(|mems| !mems.is_empty());
        let scope = cpuset::scope_in_the_way(group, cpus)?;
        cpuset::confine(group, cpus, mems)?;
        let unit = scope.as_ref().unwrap_or(group);
        let patience = at_most(TOLD_UNDER_LOCK, self.deadline);
        systemd::tell(self.host, unit, cpus, mems, patience).map(drop)
    }

    /// How long systemd may take to forget a claim now: all that are freed in one go are bounded,
    /// too.
    pub(crate) fn told_at_most(&self) -> Duration {
        at_most(TOLD_UNDER_LOCK.min(self.time_to_look()), self.deadline)
    }

    /// What is left of the time to look for what dead owners hold.
    pub(crate) fn time_to_look(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Drops the claim of an owner that has ended from `tasks`, and then from the ledger.
    pub(crate) fn drop_record(&self, claim: &Claim) -> Result<()> {
        self.change_tasks(claim, &claim.pids(), &[])?;
        self.ledger.end(claim)
    }
}

/// Has a group a mask, and is that of a claim's CPUs alone?
fn has_cpus_of(group: &Group, claim: &Claim) -> Result<bool> {
    let own: CpuSet = cpuset::masks(group)?.unwrap_or_default().cpus.parse()?;
    Ok(!own.is_empty() && own.is_subset(&claim.cpus))
}
