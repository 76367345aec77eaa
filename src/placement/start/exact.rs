//! Giving a container the very list that it asks for, and further ones to a container that has one:
//! each device of a container has a hook of its own, and together they make one claim.

use anyhow::{Result, bail};

use crate::cgroup::cpuset::Bound;
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::outside;
use crate::placement::Books;
use crate::placement::keeper::{let_through, shown_group};
use crate::placement::start::give::{Confinement, Grant};
use crate::placement::start::pick::{Demand, Picked};
use crate::pools::{Kind, OfferedPool, TasksChange};
use crate::refusal::{Reason, Refusal};
use crate::request::Request;
use crate::text::Shown;

/// Does a container that has this claim ask for another list beside its own?
pub(crate) fn asks_for_more(claim: &Claim, request: &Request) -> bool {
    let other = |cpus: &CpuSet| !cpus.is_subset(&claim.cpus);
    claim.is_exact && claim.pool == request.pool && request.exact.as_ref().is_some_and(other)
}

impl Books<'_> {
    /// Picks the list of just these CPUs. Where only dead owners hold it, it is freed.
    ///
    /// # Errors
    /// The pool has no such list, somebody who lives holds it, or it cannot be used here.
    pub(crate) fn pick_exact(
        &self,
        mut pool: OfferedPool,
        cpus: &CpuSet,
        demand: &Demand<'_>,
        bound: &Bound,
    ) -> Result<Picked> {
        let mut lists = pool.lists.iter();
        let Some(place) = lists.position(|list| list.cpus == *cpus) else {
            let what = format!("the pool has no CPU list {cpus} any more, or never had it");
            let remedy = "ask for one that it has: `pinfold describe` shows them";
            bail!(Refusal::new(what, remedy).because(Reason::Unfit));
        };
        let name = &pool.lists[place].name;
        let offline = cpus.difference(&demand.online);
        if !offline.is_empty() {
            let what = format!("of its CPU list {cpus}, {offline} is offline");
            let remedy = "put it online, or ask for another list";
            bail!(Refusal::new(what, remedy).because(Reason::Unfit));
        }
        let isolation = self.isolation_of(&pool)?;
        let tuning = self.tuning_of(&pool, &demand.request.tuning)?;
        let mut allowed = bound.cpus.clone();
        if isolation.is_some() {
            // CPUs that dead owners still keep from others are allowed once those are freed.
            allowed.extend(&outside::kept(self.host));
        }
        let lacks = cpus.difference(&allowed);
        if !lacks.is_empty() {
            let keeper = shown_group(&bound.group());
            let what = format!(
                "{keeper} allows only the CPUs {}, and not all of its CPU list {cpus}",
                bound.cpus
            );
            let remedy = let_through(self.host, bound, &lacks);
            bail!(Refusal::new(what, remedy).because(Reason::Unfit));
        }
        self.ensure_time_to_look(&pool.name)?;
        if pool.kind == Kind::Exclusive && !self.clear_list(&pool.name, name)? {
            self.ensure_time_to_look(&pool.name)?;
            let holder = self.holder_of(&pool.name, name)?;
            let what = format!("its CPU list {cpus} is owned by {holder}");
            let remedy = "wait until that has ended, or ask for another list";
            bail!(Refusal::new(what, remedy).because(Reason::Exhausted));
        }
        if pool.kind == Kind::Shared {
            self.reap_shared(&mut pool)?;
        }
        Ok(Picked {
            isolation,
            tuning,
            chosen: vec![place],
            pool,
        })
    }

    /// Who holds a list that could not be cleared, for a sentence.
    fn holder_of(&self, pool: &str, list: &str) -> Result<String> {
        let entries = self.ledger.on_list(list)?;
        let mut claims = entries.iter().filter_map(Entry::claim);
        if let Some(claim) = claims.next() {
            return Ok(Shown(&claim.shown()).to_string());
        }
        if let Some(Entry::Unreadable(one)) = entries.first() {
            return Ok(format!(
                "whoever has the claim {}, which cannot be read",
                one.path.display()
            ));
        }
        let tasks = self.directory.tasks(pool, list)?;
        let alive = tasks.iter().find(|pid| self.is_pid_alive(**pid));
        Ok(match alive.or(tasks.first()) {
            Some(pid) => format!("process {pid}"),
            None => "somebody who has just ended".to_owned(),
        })
    }

    /// Adds a further list to the claim of a container that starts, and confines it to all of them.
    /// Each step leaves the container within what its claim names: the claim grows before the mask,
    /// and shrinks after it. On an error the container has what it had.
    pub(crate) fn give_more(
        &self,
        before: &Claim,
        demand: &Demand<'_>,
        place: &Confinement,
    ) -> Result<Claim> {
        self.ensure_same_group(before, place)?;
        if self.directory.pool(&before.pool)?.kind == Kind::Shared {
            let what = format!(
                "it has {} of the pool already, which is shared and gives one CPU list",
                before.cpus
            );
            bail!(Refusal::new(what, "ask for one list of it").because(Reason::Unfit));
        }
        let grant = self.pick_grant(demand, &self.bound_of(place)?)?;
        let mut after = with_lists(before, &grant);
        let done = self.become_wider(before, &mut after, grant, place);
        self.narrow_on_error(done, before, &after)?;
        Ok(after)
    }

    /// Takes back what was added to a claim if that failed; returns `done`.
    pub(crate) fn narrow_on_error(
        &self,
        done: Result<()>,
        before: &Claim,
        after: &Claim,
    ) -> Result<()> {
        if done.is_err() {
            if let Err(undo) = self.narrow(before, after) {
                log::error!("undo what was added to {}: {undo:#}", before.shown());
            }
        }
        done
    }

    fn become_wider(
        &self,
        before: &Claim,
        after: &mut Claim,
        grant: Grant,
        place: &Confinement,
    ) -> Result<()> {
        self.ledger.write(after)?;
        self.record_instead_of(&[], after)?;
        // As in a first start: somebody may have come by another lock.
        self.lock.ensure_in_place()?;
        // A partition has the CPUs that it was made with: it is made anew. Nothing of the container
        // runs meanwhile.
        if before.isolation.is_some() {
            self.let_in(before)?;
        }
        self.confine(after, place)?;
        self.keep_off(after, grant.isolation)?;
        self.tune(after, &grant.tuning);
        Ok(())
    }

    /// Takes back what was added to a claim: the mask first, so that the container never runs on
    /// CPUs that its claim does not name, and the claim last.
    ///
    /// # Errors
    /// A step failed: the claim keeps the lists, until the container has ended.
    fn narrow(&self, before: &Claim, after: &Claim) -> Result<()> {
        if after.isolation.is_some() {
            self.let_in(after)?;
        }
        if let Some(group) = self.confined_group_of(before)? {
            self.set_cpus(&group, &before.cpus, None)?;
        }
        let mut kept = before.clone();
        if let Err(error) = self.keep_off(&mut kept, before.isolation) {
            log::warn!("{error:#}");
        }
        self.tune(&mut kept, &before.tuning);
        for list in after.lists.iter().filter(|list| !kept.lists.contains(list)) {
            let change = TasksChange {
                pool: &after.pool,
                list,
                drop: &after.pids(),
                add: &[],
            };
            self.directory.change_tasks(&self.lock, &change)?;
        }
        self.ledger.rewrite(after, &kept)
    }
}

/// The claim with the lists of a grant, ordered by first CPU. Such a claim confines no memory
/// nodes: a device asks for none.
fn with_lists(before: &Claim, grant: &Grant) -> Claim {
    let mut after = before.clone();
    after.cpus.extend(&grant.cpus);
    after.lists.extend(grant.lists.iter().cloned());
    after.lists.sort_by_cached_key(|name| {
        let cpus: CpuSet = name.parse().unwrap_or_default();
        cpus.first()
    });
    after
}
