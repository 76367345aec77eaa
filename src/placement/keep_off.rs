//! Keeping others off an owner's CPUs, if its pool asks for it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Books, at_most};
use crate::cgroup::Version;
use crate::claims::Claim;
use crate::isolation::{Options, Wanted};
use crate::outside::{self, Obstacle, Outside};
use crate::pools::{Kind, OfferedPool};
use crate::refusal::Refusal;

/// How long to wait, under the lock, for others who change the machine: one partition takes the
/// kernel up to 1.5 s.
const PATIENCE: Duration = Duration::from_secs(5);

impl Books<'_> {
    /// How a pool wants others kept off what it is about to give.
    pub(crate) fn isolation_of(&self, pool: &OfferedPool) -> Result<Option<Wanted>> {
        match pool.kind {
            Kind::Exclusive => self.wanted(&pool.name, pool.options.clone()),
            Kind::Shared => Ok(None),
        }
    }

    /// How a pool wants others kept off what it has given already.
    pub(crate) fn isolation_now(&self, pool: &str) -> Result<Option<Wanted>> {
        if self.directory.pool(pool)?.kind == Kind::Shared {
            return Ok(None);
        }
        let said = self.directory.options(pool)?;
        self.wanted(pool, said)
    }

    /// What a pool's options ask for; the configuration's come first. An unknown word is an error
    /// only if isolation is needed.
    fn wanted(&self, pool: &str, said: Options) -> Result<Option<Wanted>> {
        let options = match self.options.get(pool) {
            Some(first) => first.or(said),
            None => said,
        };
        match options.wanted(pool) {
            Err(refusal) if options.is_needed(pool).is_ok_and(|is_needed| !is_needed) => {
                log::warn!("{refusal}");
                Ok(None)
            }
            wanted => Ok(wanted?),
        }
    }

    /// Keeps others off a confined owner, if its pool asks for it, or else says why that cannot be.
    /// The claim records it before it is done. Can be repeated.
    ///
    /// # Errors
    /// It cannot be done, and is needed.
    pub(crate) fn keep_off(&self, claim: &mut Claim, wanted: Option<Wanted>) -> Result<()> {
        let (Some(wanted), true) = (wanted, claim.confining_group().is_some()) else {
            return Ok(());
        };
        // If something stays changed, the claim keeps saying so, and the owner's end undoes it.
        let mut is_as_before = true;
        let obstacle = match self.obstacle_of(claim)? {
            Some(obstacle) => Some(obstacle),
            None => match self.try_to_keep_off(claim, wanted) {
                // The owner can do without.
                Err(error) if !wanted.is_needed => {
                    is_as_before = self.let_in(claim).is_ok();
                    Some(Obstacle::of(&error))
                }
                other => other?,
            },
        };
        let Some(obstacle) = obstacle else {
            return Ok(());
        };
        if is_as_before && claim.isolation.take().is_some() {
            self.ledger.write(claim)?;
        }
        let what = format!(
            "others can run on {} of pool {}, which {} has by its mask alone: {}",
            claim.cpus,
            claim.pool,
            claim.shown(),
            obstacle.what
        );
        if wanted.is_needed {
            let remedy = format!(
                "{}; or `pinfold pool set {} isolation-needed=no`",
                obstacle.remedy, claim.pool
            );
            bail!(Refusal::new(what, remedy));
        }
        if outside::is_news(self.host, &obstacle) {
            log::warn!("{what}: {}", obstacle.remedy);
        }
        Ok(())
    }

    /// What on this machine keeps it from being done for any owner.
    fn obstacle_of(&self, claim: &Claim) -> Result<Option<Obstacle>> {
        let Some((group, _)) = self.group_of(claim)? else {
            bail!("the cgroup of {} is gone", claim.shown());
        };
        outside::obstacle(self.host, &group)
    }

    fn try_to_keep_off(&self, claim: &mut Claim, wanted: Wanted) -> Result<Option<Obstacle>> {
        let (group, _) = self.group_of(claim)?.context("its cgroup is gone")?;
        let run_dir = self.run_dir.to_owned();
        let owner = outside::owner_of(&group, &claim.cpus, wanted.kind, run_dir)?;
        if claim.isolation != Some(wanted) {
            claim.isolation = Some(wanted);
            self.ledger.write(claim)?;
        }
        self.outside().keep_off(&owner)
    }

    /// Keeps others off an owner again whose claim says so, if the machine's records of it were
    /// lost.
    pub(crate) fn keep_off_again(&self, claim: &Claim) -> Result<()> {
        let (Some(wanted), Some(group)) = (claim.isolation, &claim.cgroup) else {
            return Ok(());
        };
        let owners = outside::owners(self.host);
        let is_known = owners.iter().any(|owner| owner.inode == group.inode);
        if is_known || claim.confining_group().is_none() {
            return Ok(());
        }
        match self.try_to_keep_off(&mut claim.clone(), wanted)? {
            None => Ok(()),
            Some(obstacle) => bail!(Refusal::new(
                format!(
                    "others can run on {} of {}: {}",
                    claim.cpus,
                    claim.shown(),
                    obstacle.what
                ),
                obstacle.remedy
            )),
        }
    }

    /// No longer keeps others off a claim's CPUs.
    ///
    /// # Errors
    /// They are still kept off.
    pub(crate) fn let_in(&self, claim: &Claim) -> Result<()> {
        match &claim.cgroup {
            Some(group) if claim.isolation.is_some() && claim.boot_id == self.boot_id => {
                self.let_in_at(group.inode)
            }
            _ => Ok(()),
        }
    }

    /// The same for the owner whose group has this inode.
    pub(crate) fn let_in_at(&self, inode: u64) -> Result<()> {
        self.outside().let_in(inode)
    }

    /// Brings what is changed on the machine in line with its owners, of all pool directories.
    /// Returns problems.
    ///
    /// # Errors
    /// What keeps it from beginning.
    pub(crate) fn converge_machine(&self) -> Result<Vec<Refusal>> {
        if self.hierarchy.version == Version::V1 {
            return Ok(Vec::new());
        }
        let mut claimed = BTreeSet::new();
        for owner in outside::owners(self.host) {
            if self.ledger.on_cgroup(owner.inode).is_some() {
                claimed.insert(owner.inode);
            }
        }
        self.outside()
            .converge(self.run_dir, |inode| claimed.contains(&inode))
    }

    fn outside(&self) -> Outside<'_> {
        Outside {
            host: self.host,
            hierarchy: &self.hierarchy,
            patience: at_most(PATIENCE.min(self.time_to_look()), self.deadline),
        }
    }
}
