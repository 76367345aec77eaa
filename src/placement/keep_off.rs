//! Keeping everybody else off an owner's CPUs, and interrupts away from them, where its pool says
//! so.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Books, at_most};
use crate::cgroup::{Group, Mounts, cpu};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::isolation::tuning::{Key, Tuning, Words};
use crate::isolation::{self, ALLOW, ISOLATION, NEEDED, Options, Wanted};
use crate::outside::{self, Claimed, Converged, LimitedGroup, Obstacle, Outside, Owner, Tuned};
use crate::pools::{Kind, OfferedPool};
use crate::refusal::{Reason, Refusal};
use crate::text::Shown;

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
        let said = self.directory.options_of(pool, [ISOLATION, NEEDED])?;
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

    /// How an option of a pool is changed.
    fn how_to_say(&self, pool: &str, key: &str, value: &str) -> String {
        isolation::how_to_say(self.options.get(pool), pool, key, value)
    }

    /// What else is to be set for the owners of a pool that is about to give. What nobody
    /// understands is not. What the container asks for itself counts first.
    ///
    /// # Errors
    /// The pool does not allow that, or nobody understands it.
    pub(crate) fn tuning_of(
        &self,
        pool: &OfferedPool,
        asked: &BTreeMap<&'static str, String>,
    ) -> Result<Tuning> {
        let options = match (pool.kind, self.options.get(&pool.name)) {
            (Kind::Shared, _) => Options::default(),
            (Kind::Exclusive, Some(first)) => first.or(pool.options.clone()),
            (Kind::Exclusive, None) => pool.options.clone(),
        };
        let mut own = Words::default();
        for (key, word) in asked {
            if !options.allows(key) {
                let name = &pool.name;
                let allowed = options.allowing(Some(*key));
                let remedy = match pool.kind {
                    Kind::Exclusive => format!(
                        "drop the annotation, or allow it: {}",
                        self.how_to_say(name, ALLOW, &allowed)
                    ),
                    Kind::Shared => "drop the annotation".to_owned(),
                };
                let what = format!(
                    "it asks for {key}={}, and pool {name} allows no {key}",
                    Shown(word)
                );
                bail!(Refusal::new(what, remedy).because(Reason::Rules));
            }
            if let Some(key) = Key::by_name(key) {
                key.check(word).map_err(|remedy| {
                    let what = format!("it asks for {}={}", key.name(), Shown(word));
                    Refusal::new(what, remedy).because(Reason::Request)
                })?;
                own.say(key, word);
            }
        }
        let unknown_allow = options.unknown_allow(&pool.name);
        let (tuning, unknown) = own.or(options.tuning).tuning(&pool.name);
        let unknown = unknown.into_iter().chain(unknown_allow);
        unknown.for_each(|refusal| log::warn!("{refusal}"));
        Ok(tuning)
    }

    /// Sets for an owner what its pool wants of the machine; done twice it is done once. The claim
    /// says that it may be so before it is. What cannot be set is said, and no start fails of it.
    pub(crate) fn tune(&self, claim: &mut Claim, wanted: &Tuning) {
        if wanted.is_none() {
            return;
        }
        match self.tuned(claim, wanted) {
            Ok(obstacles) => {
                let news = obstacles.iter();
                for obstacle in news.filter(|one| outside::is_news(self.host, one)) {
                    log::warn!("{} of pool {}: {obstacle}", claim.shown(), claim.pool);
                }
            }
            Err(error) => log::warn!("{}: {error:#}", claim.shown()),
        }
    }

    fn tuned(&self, claim: &mut Claim, wanted: &Tuning) -> Result<Vec<Obstacle>> {
        let (group, _) = self.group_of(claim)?.context("its cgroup is gone")?;
        if claim.tuning != *wanted {
            claim.tuning = wanted.clone();
            self.ledger.write(claim)?;
        }
        let limited = match wanted.quota_lifted {
            true => self.limited(claim),
            false => Ok(Vec::new()),
        };
        // The rest is set whatever becomes of the limit.
        let limited = limited.unwrap_or_else(|error| {
            log::debug!("{error:#}");
            Vec::new()
        });
        let no_limit = (wanted.quota_lifted && limited.is_empty()).then(outside::no_own_limit);
        let tuning = Tuning {
            quota_lifted: !limited.is_empty(),
            ..wanted.clone()
        };
        let tuned = self.outside().tune(&Tuned {
            limited,
            group: group.path().to_owned(),
            inode: group.inode()?.context("its cgroup is gone")?,
            cpus: claim.cpus.clone(),
            tuning,
            run_dir: self.run_dir.to_owned(),
        });
        tuned.map(|obstacles| obstacles.into_iter().chain(no_limit).collect())
    }

    /// The groups whose limit of CPU time is a container's own: on version 1 that of the same path
    /// in another hierarchy. A command's is that of whoever runs it.
    fn limited(&self, claim: &Claim) -> Result<Vec<LimitedGroup>> {
        let own = claim.cgroup.as_ref();
        let own = own.filter(|group| claim.kind == OwnerKind::Container && !group.made);
        let Some(own) = own else {
            return Ok(Vec::new());
        };
        let hierarchy = cpu::hierarchy(&Mounts::read(self.host)?)?;
        let group = hierarchy.group_of(self.host, claim.owner.pid)?;
        let Some(group) = group.filter(|group| group.path() == own.path) else {
            return Ok(Vec::new());
        };
        let mut limited = Vec::new();
        for group in cpu::own_groups(&group)? {
            if let Some(inode) = group.inode()? {
                let path = group.path().to_owned();
                limited.push(LimitedGroup { path, inode });
            }
        }
        Ok(limited)
    }

    /// Keeps others off a confined owner, if its pool asks for it, or else says why that cannot be.
    /// The claim records it before it is done. Can be repeated. Where the machine's records can be
    /// neither read nor made nothing is done, and the claim says what it said.
    ///
    /// # Errors
    /// It cannot be done, and is needed.
    pub(crate) fn keep_off(&self, claim: &mut Claim, wanted: Option<Wanted>) -> Result<()> {
        let Some(wanted) = wanted else {
            return Ok(());
        };
        if claim.confining_group().is_none() {
            return self.do_without(claim, wanted, &outside::not_confined());
        }
        if self.is_kept_above(claim, wanted)? {
            return self.forget_unless_changed(claim);
        }
        // If something stays changed, the claim keeps saying so, and the owner's end undoes it.
        let mut is_as_before = true;
        let obstacle = match self.obstacle_of(claim, wanted)? {
            Some(obstacle) => Some(obstacle),
            None => match self.try_to_keep_off(claim, wanted) {
                // The owner can do without.
                Err(error) if !wanted.is_needed => {
                    is_as_before = claim.isolation.is_none() || self.let_in(claim).is_ok();
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
        self.do_without(claim, wanted, &obstacle)
    }

    /// Says why others can run on an owner's CPUs; refuses that where it must not be.
    fn do_without(&self, claim: &Claim, wanted: Wanted, obstacle: &Obstacle) -> Result<()> {
        let by = match claim.confining_group() {
            Some(_) => "by its mask alone",
            None => "in the books alone",
        };
        let what = format!(
            "others can run on {} of pool {}, which {} has {by}: {}",
            claim.cpus,
            claim.pool,
            claim.shown(),
            obstacle.what
        );
        if wanted.is_needed {
            let remedy = format!(
                "{}; or {}",
                obstacle.remedy,
                self.how_to_say(&claim.pool, NEEDED, "no")
            );
            bail!(Refusal::new(what, remedy));
        }
        if outside::is_news(self.host, obstacle) {
            log::warn!("{what}: {}", obstacle.remedy);
        }
        Ok(())
    }

    /// Is its group in a partition that keeps others off already? Then the kernel need not be able
    /// to make another.
    fn is_kept_above(&self, claim: &Claim, wanted: Wanted) -> Result<bool> {
        let group = self.living_group(claim)?;
        outside::is_kept_above(self.host, &group, &claim.cpus, wanted.kind)
    }

    /// A claim whose owner others are kept off without us says nothing of it, so that nothing is
    /// undone later; unless it was we before, or may have been.
    fn forget_unless_changed(&self, claim: &mut Claim) -> Result<()> {
        let group = claim.confining_group();
        let is_changed = group.is_some_and(|group| outside::may_be_owner(self.host, group.inode));
        if !is_changed && claim.isolation.take().is_some() {
            self.ledger.write(claim)?;
        }
        Ok(())
    }

    /// What keeps it from being done here, as far as it is known without the machine's lock.
    fn obstacle_of(&self, claim: &Claim, wanted: Wanted) -> Result<Option<Obstacle>> {
        let group = self.living_group(claim)?;
        outside::obstacle_here(self.host, &group, &claim.cpus, wanted.kind)
    }

    fn living_group(&self, claim: &Claim) -> Result<Group> {
        match self.group_of(claim)? {
            Some((group, _)) => Ok(group),
            None => bail!("the cgroup of {} is gone", claim.shown()),
        }
    }

    fn try_to_keep_off(&self, claim: &mut Claim, wanted: Wanted) -> Result<Option<Obstacle>> {
        let (group, _) = self.group_of(claim)?.context("its cgroup is gone")?;
        let run_dir = self.run_dir.to_owned();
        let owner = outside::owner_of(&group, &claim.cpus, wanted.kind, run_dir)?;
        self.outside().keep_off(&owner, || {
            let former = claim.isolation.replace(wanted);
            if former != Some(wanted) {
                self.ledger.write(claim)?;
            }
            Ok(former.is_some())
        })
    }

    /// Keeps others off an owner again whose claim says so, and sets what it says, if the machine's
    /// records of it were lost. The one is done whatever becomes of the other.
    pub(crate) fn keep_off_again(&self, claim: &Claim) -> Result<()> {
        let tuned = self.tune_still(claim);
        self.isolate_still(claim)?;
        tuned
    }

    fn isolate_still(&self, claim: &Claim) -> Result<()> {
        let (Some(wanted), Some(group)) = (claim.isolation, &claim.cgroup) else {
            return Ok(());
        };
        let owners = outside::owners(self.host);
        let is_known = owners.iter().any(|owner| owner.inode == group.inode);
        let is_confined = claim.confining_group().is_some();
        if is_known || !is_confined || self.is_kept_above(claim, wanted)? {
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

    /// Sets again what the claim says is set for it, if the machine's records of it were lost.
    fn tune_still(&self, claim: &Claim) -> Result<()> {
        let Some(group) = claim.cgroup.as_ref().filter(|_| !claim.tuning.is_none()) else {
            return Ok(());
        };
        let tuned = outside::tuned(self.host);
        if tuned.iter().any(|tuned| tuned.inode == group.inode) {
            return self.lift_still(group.inode);
        }
        self.tuned(&mut claim.clone(), &claim.tuning)?;
        self.lift_still(group.inode)
    }

    /// Has systemd know of the lifted limits of the owner whose group has this inode, if that was
    /// not done.
    fn lift_still(&self, inode: u64) -> Result<()> {
        match self.outside().is_lift_untold(inode) {
            true => self
                .outside()
                .lift_in_systemd(inode, self.systemd_patience()),
            false => Ok(()),
        }
    }

    /// No longer keeps others off a claim's CPUs, and sets nothing for it any more.
    ///
    /// # Errors
    /// They are still kept off.
    pub(crate) fn let_in(&self, claim: &Claim) -> Result<()> {
        let is_changed = claim.isolation.is_some() || !claim.tuning.is_none();
        match &claim.cgroup {
            Some(group) if is_changed && claim.boot_id == self.boot_id => {
                match self
                    .outside()
                    .let_in(group.inode, self.said(claim)?.as_ref())
                {
                    // What is left is recorded with what the machine has else, and nobody runs
                    // there who should not.
                    Err(error) if claim.isolation.is_none() => {
                        log::warn!("{error:#}");
                        Ok(())
                    }
                    done => done,
                }
            }
            _ => Ok(()),
        }
    }

    /// The same for the owner whose group has this inode.
    pub(crate) fn let_in_at(&self, inode: u64) -> Result<()> {
        self.outside().let_in(inode, None)
    }

    /// The owner that others are kept off for, as its claim says.
    fn said(&self, claim: &Claim) -> Result<Option<Owner>> {
        let (Some(wanted), Some(claimed)) = (claim.isolation, &claim.cgroup) else {
            return Ok(None);
        };
        let group = self.hierarchy.group(&claimed.path)?;
        let run_dir = self.run_dir.to_owned();
        let kind = wanted.kind;
        let owner = outside::former_owner(&group, claimed.inode, &claim.cpus, kind, run_dir);
        Ok(Some(owner))
    }

    /// Brings what is changed on the machine in line with its owners, of all pool directories.
    /// Whoever has no claim any more is forgotten, unless some claim lacks its
    /// links: it may be that one's.
    ///
    /// # Errors
    /// What keeps it from beginning.
    pub(crate) fn converge_machine(&self) -> Result<Converged> {
        let are_linked = self.are_linked()?;
        let is_claimed = |inode| !are_linked || self.ledger.on_cgroup(inode).is_some();
        self.outside().converge(self.run_dir, is_claimed)
    }

    pub(super) fn outside(&self) -> Outside<'_> {
        Outside {
            host: self.host,
            hierarchy: &self.hierarchy,
            patience: at_most(PATIENCE.min(self.time_to_look()), self.deadline),
            claims: Some(self),
        }
    }
}

impl Claimed for Books<'_> {
    fn isolated(&self) -> Result<Vec<Owner>> {
        let mut owners = Vec::new();
        for id in self.ledger.ids()? {
            for claim in self.ledger.of_id(&id)?.iter().filter_map(Entry::claim) {
                if claim.boot_id == self.boot_id {
                    owners.extend(self.said(claim)?);
                }
            }
        }
        Ok(owners)
    }
}
