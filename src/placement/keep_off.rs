//! Keeping everybody else off an owner's CPUs, where its pool says so.

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

/// How long others who change the machine are waited for while others wait for us: one partition
/// takes the kernel up to a second and a half.
const PATIENCE: Duration = Duration::from_secs(5);

impl Books<'_> {
    /// What a pool that is about to give says; the configuration says it first.
    pub(crate) fn isolation_of(&self, pool: &OfferedPool) -> Result<Option<Wanted>> {
        match pool.kind {
            Kind::Exclusive => self.understood(&pool.name, pool.options.clone()),
            Kind::Shared => Ok(None),
        }
    }

    /// The same of a pool that has given already.
    pub(crate) fn isolation_now(&self, pool: &str) -> Result<Option<Wanted>> {
        if self.directory.pool(pool)?.kind == Kind::Shared {
            return Ok(None);
        }
        let said = self.directory.options(pool)?;
        self.understood(pool, said)
    }

    /// A word that nobody knows matters where isolation is needed.
    fn understood(&self, pool: &str, said: Options) -> Result<Option<Wanted>> {
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

    /// Keeps everybody else off an owner that is confined, as its pool wants it, or says why that
    /// cannot be; done twice it is done once. The claim says that it may be so before it is.
    ///
    /// # Errors
    /// It cannot be, and is needed.
    pub(crate) fn keep_off(&self, claim: &mut Claim, wanted: Option<Wanted>) -> Result<()> {
        let (Some(wanted), true) = (wanted, claim.confining_group().is_some()) else {
            return Ok(());
        };
        // Where something stays changed for it the claim says so, and its end takes that back.
        let mut is_as_before = true;
        let obstacle = match self.at_once(claim)? {
            Some(obstacle) => Some(obstacle),
            None => match self.kept_off(claim, wanted) {
                // It can do without.
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

    /// What is in the way on this machine, whoever asks.
    fn at_once(&self, claim: &Claim) -> Result<Option<Obstacle>> {
        let Some((group, _)) = self.group_of(claim)? else {
            bail!("the cgroup of {} is gone", claim.shown());
        };
        outside::obstacle(self.host, &group)
    }

    fn kept_off(&self, claim: &mut Claim, wanted: Wanted) -> Result<Option<Obstacle>> {
        let (group, _) = self.group_of(claim)?.context("its cgroup is gone")?;
        let run_dir = self.run_dir.to_owned();
        let owner = outside::owner_of(&group, &claim.cpus, wanted.kind, run_dir)?;
        if claim.isolation != Some(wanted) {
            claim.isolation = Some(wanted);
            self.ledger.write(claim)?;
        }
        self.outside().keep_off(&owner)
    }

    /// An owner whose claim says that everybody else is kept off, and of whom the machine's records
    /// know nothing: they were lost.
    pub(crate) fn keep_off_still(&self, claim: &Claim) -> Result<()> {
        let (Some(wanted), Some(group)) = (claim.isolation, &claim.cgroup) else {
            return Ok(());
        };
        let owners = outside::owners(self.host);
        let is_known = owners.iter().any(|owner| owner.inode == group.inode);
        if is_known || claim.confining_group().is_none() {
            return Ok(());
        }
        match self.kept_off(&mut claim.clone(), wanted)? {
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

    /// Lets everybody have the CPUs of a claim again, as far as they were kept off.
    ///
    /// # Errors
    /// They still are.
    pub(crate) fn let_in(&self, claim: &Claim) -> Result<()> {
        match &claim.cgroup {
            Some(group) if claim.isolation.is_some() && claim.boot_id == self.boot_id => {
                self.let_in_at(group.inode)
            }
            _ => Ok(()),
        }
    }

    /// The same for whoever's group has this inode.
    pub(crate) fn let_in_at(&self, inode: u64) -> Result<()> {
        self.outside().let_in(inode)
    }

    /// Brings in order what was changed for owners on the machine, whoever's they are: problems, a
    /// sentence each.
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
