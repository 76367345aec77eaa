//! Giving CPU lists to an owner: choose, record, confine, verify; and undoing all of it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Books;
use super::life::Life;
use crate::cgroup::Group;
use crate::cgroup::cpuset::{self, Bound, Masks};
use crate::choose::{Offer, Reach, Refusal, choose};
use crate::claims::{Before, Claim, ClaimedGroup, Entry, OwnerKind, VERSION};
use crate::cpulist::CpuSet;
use crate::pools::{Kind, Pool, TasksChange};
use crate::process::{self, Process};
use crate::request::{Mems, Request};
use crate::topology;

/// Somebody who asks for CPUs, with everything about it that can be known without the lock.
pub(super) struct Applicant<'a> {
    /// The container's id, or `isolate-<pid>`.
    pub(super) id: &'a str,
    pub(super) kind: OwnerKind,
    pub(super) process: Process,
    pub(super) request: &'a Request,
    pub(super) place: Place,
    /// What the machine can run on now.
    pub(super) online: CpuSet,
}

/// Where an owner is confined.
pub(super) enum Place {
    /// In its own group, which only its first process is in.
    Own(Group),
    /// In a group that we make; it is moved there out of another.
    Moved { to: Group, from: Group },
    /// In a group that we make, which its processes enter by themselves; confined there, or only kept together.
    Entered { group: Group, confined: bool },
}

impl Place {
    fn group(&self) -> &Group {
        match self {
            Place::Own(group) | Place::Moved { to: group, .. } | Place::Entered { group, .. } => {
                group
            }
        }
    }
}

impl Books<'_> {
    /// Gives an applicant its CPU lists. The record comes before the kernel: whoever is killed in between
    /// leaves a record whose process is dead. On an error nothing stays changed.
    pub(super) fn give(&self, applicant: &Applicant<'_>) -> Result<Claim> {
        let group = applicant.place.group();
        let bound = cpuset::bound(group)?;
        let before = cpuset::masks(group)?.unwrap_or_default();
        if let Place::Own(group) = &applicant.place {
            refuse_chosen_cpus(group, &before, applicant.request)?;
        }
        let (pool, chosen) = self.choose_lists(applicant, &bound)?;
        let cpus = chosen.iter().fold(CpuSet::new(), |mut cpus, index| {
            cpus.extend(&pool.lists[*index].cpus);
            cpus
        });
        let mems = match applicant.request.mems {
            Mems::Inherit => CpuSet::new(),
            Mems::Local => topology::local_memory_nodes(self.host, &cpus)?,
        };
        let made = !matches!(applicant.place, Place::Own(_));
        if made {
            group.make()?;
        }
        let inode = group.inode()?.context("the cgroup is gone")?;
        let claim = Claim {
            version: VERSION,
            id: applicant.id.to_owned(),
            kind: applicant.kind,
            boot_id: self.boot_id.clone(),
            owner: applicant.process,
            processes: vec![applicant.process],
            pool: pool.name.clone(),
            exclusive: pool.kind == Kind::Exclusive,
            lists: chosen
                .iter()
                .map(|index| pool.lists[*index].name.clone())
                .collect(),
            cpus,
            mems,
            cgroup: ClaimedGroup {
                path: group.path().to_owned(),
                inode,
                made,
                confined: !matches!(
                    applicant.place,
                    Place::Entered {
                        confined: false,
                        ..
                    }
                ),
                before: Before {
                    cpus: before.cpus,
                    mems: before.mems,
                },
                moved_from: match &applicant.place {
                    Place::Moved { from, .. } => Some(from.path().to_owned()),
                    _ => None,
                },
            },
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        };
        let done = self
            .record(&claim)
            .and_then(|()| self.confine(&claim, &applicant.place));
        if let Err(error) = done {
            if let Err(undo) = self.undo(&claim) {
                log::error!("undo the start of {}: {undo:#}", claim.id);
            }
            return Err(error);
        }
        Ok(claim)
    }

    /// The intent first, then the commit that other tools see.
    fn record(&self, claim: &Claim) -> Result<()> {
        self.ledger.write(claim)?;
        self.change_tasks(claim, &[], &claim.pids())
    }

    /// Puts the claim's processes into `tasks` of each of its lists where they are missing: another tool may have
    /// dropped one that it took for dead.
    pub(super) fn ensure_recorded(&self, claim: &Claim) -> Result<()> {
        for list in &claim.lists {
            let tasks = self.directory.tasks(&claim.pool, list)?;
            let mut add = claim.pids();
            add.retain(|pid| !tasks.contains(pid));
            let change = TasksChange {
                pool: &claim.pool,
                list,
                drop: &[],
                add: &add,
            };
            self.directory.change_tasks(&self.lock, &change)?;
        }
        Ok(())
    }

    /// Changes the owners of every list of a claim; goes on past an error, and returns the first.
    pub(super) fn change_tasks(&self, claim: &Claim, drop: &[i32], add: &[i32]) -> Result<()> {
        let mut first_error = Ok(());
        for list in &claim.lists {
            let change = TasksChange {
                pool: &claim.pool,
                list,
                drop,
                add,
            };
            first_error = first_error.and(self.directory.change_tasks(&self.lock, &change));
        }
        first_error
    }

    fn confine(&self, claim: &Claim, place: &Place) -> Result<()> {
        let group = place.group();
        cpuset::enable(group)?;
        if claim.cgroup.made {
            cpuset::inherit(group)?;
        }
        if claim.cgroup.confined {
            let mems = Some(&claim.mems).filter(|mems| !mems.is_empty());
            cpuset::confine(group, &claim.cpus, mems)?;
        }
        let pid = claim.owner.pid;
        match place {
            Place::Entered { .. } => return Ok(()),
            Place::Moved { to, .. } => to.adopt(pid)?,
            Place::Own(_) => {}
        }
        process::reset_affinity(pid)
            .with_context(|| format!("reset the CPU affinity of process {pid}"))?;
        let affinity = process::affinity(pid)
            .with_context(|| format!("read the CPU affinity of process {pid}"))?;
        ensure!(
            affinity == claim.cpus && claim.owner.is_alive(self.host)?,
            "process {pid} may run on the CPUs {affinity} and not just on {}: something else confines it",
            claim.cpus
        );
        Ok(())
    }

    /// Undoes a start that failed: its process, if it lives, goes back to where it was.
    fn undo(&self, claim: &Claim) -> Result<()> {
        let mut moved_back = Ok(());
        if let Some(from) = &claim.cgroup.moved_from {
            let group = self.hierarchy.group(&claim.cgroup.path)?;
            let from = self.hierarchy.group(from)?;
            for pid in group.pids()? {
                moved_back = moved_back.and(from.adopt(pid));
            }
        }
        moved_back.and(self.give_back(claim))
    }

    /// Gives back all that a claim holds: restores its cgroup, drops it from `tasks`, removes the record.
    /// Goes on past an error, and reports them all. Can be done twice.
    pub(super) fn give_back(&self, claim: &Claim) -> Result<()> {
        let mut errors = Vec::new();
        let mut attempt = |result: Result<()>| errors.extend(result.err());
        attempt(self.restore_group(claim));
        attempt(self.drop_record(claim));
        if errors.is_empty() {
            return Ok(());
        }
        let errors: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        Err(anyhow!(
            "give back {} of {}: {}",
            claim.cpus,
            claim.id,
            errors.join("; ")
        ))
    }

    fn restore_group(&self, claim: &Claim) -> Result<()> {
        let group = self.hierarchy.group(&claim.cgroup.path)?;
        if claim.boot_id != self.boot_id || group.inode()? != Some(claim.cgroup.inode) {
            return Ok(());
        }
        if claim.cgroup.made {
            group.remove()?;
            return Ok(());
        }
        let Before { cpus, mems } = claim.cgroup.before.clone();
        let mems = if claim.mems.is_empty() {
            None
        } else {
            Some(mems)
        };
        cpuset::restore(&group, &cpus, mems.as_deref())
    }

    /// Drops a claim from `tasks` and from the ledger.
    pub(super) fn drop_record(&self, claim: &Claim) -> Result<()> {
        let dropped = self.change_tasks(claim, &claim.pids(), &[]);
        dropped.and(self.ledger.remove(claim))
    }

    /// Chooses; where the pool is exhausted, frees what dead owners hold and chooses again.
    fn choose_lists(&self, applicant: &Applicant<'_>, bound: &Bound) -> Result<(Pool, Vec<usize>)> {
        let request = applicant.request;
        let reach = Reach {
            online: applicant.online.clone(),
            allowed: bound.cpus.clone(),
        };
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, request)? {
            Ok(chosen) => return Ok((pool, chosen)),
            Err(Refusal::Exhausted { .. }) => self.reap_pool(&pool).map(drop)?,
            Err(refusal) => bail!(explain(&refusal, &pool, request, bound)),
        }
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, request)? {
            Ok(chosen) => Ok((pool, chosen)),
            Err(refusal) => bail!(explain(&refusal, &pool, request, bound)),
        }
    }

    /// Chooses among the lists that are free in `tasks`, and passes over those that a live claim holds all
    /// the same: another tool may have dropped a pid that it took for dead. Only claims on chosen lists are read.
    fn choose_free(
        &self,
        pool: &Pool,
        reach: &Reach,
        request: &Request,
    ) -> Result<Result<Vec<usize>, Refusal>> {
        let mut offers: Vec<Offer<'_>> = pool
            .lists
            .iter()
            .map(|list| Offer {
                cpus: &list.cpus,
                owners: list.tasks.len(),
            })
            .collect();
        loop {
            let chosen = match choose(pool.kind, &offers, reach, request.size) {
                Ok(chosen) if pool.kind == Kind::Exclusive => chosen,
                other => return Ok(other),
            };
            let mut held = Vec::new();
            for index in &chosen {
                if self.is_held(&pool.lists[*index].name)? {
                    held.push(*index);
                }
            }
            if held.is_empty() {
                return Ok(Ok(chosen));
            }
            for index in held {
                offers[index].owners += 1;
            }
        }
    }

    /// Does any claim hold this list? What dead owners hold of it is freed on the way.
    fn is_held(&self, list: &str) -> Result<bool> {
        let mut held = false;
        for entry in self.ledger.on_list(list)? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)? == Life::Gone => {
                    self.give_back(&claim)?
                }
                Entry::Claim(_) => held = true,
                Entry::Opaque { path, reason } => {
                    log::warn!("the claim {} counts as held: {reason}", path.display());
                    held = true;
                }
            }
        }
        Ok(held)
    }
}

/// One request, one place: whoever made the group has given it CPUs already.
fn refuse_chosen_cpus(group: &Group, before: &Masks, request: &Request) -> Result<()> {
    let chosen = cpuset::chosen(group, before)?;
    let (what, value) = match (chosen.cpus, chosen.mems && request.mems == Mems::Local) {
        (true, _) => ("CPUs", &before.cpus),
        (false, true) => ("memory nodes", &before.mems),
        (false, false) => return Ok(()),
    };
    bail!(
        "pool {}: the container's configuration already sets the {what} {value}: drop that (--cpuset-cpus, --cpuset-mems, resources.cpu), or the pool",
        request.pool
    )
}

/// A refusal as a sentence: the pool, the reason, what to do.
fn explain(refusal: &Refusal, pool: &Pool, request: &Request, bound: &Bound) -> String {
    let (name, size) = (&pool.name, request.size);
    match refusal {
        Refusal::Exhausted { free } => format!(
            "pool {name} is exhausted: {size} asked for, {free} free: stop an owner (pinfold describe shows them), or make the pool larger"
        ),
        Refusal::TooSmall { all } => format!(
            "pool {name} is too small: {size} asked for, and it can give {all} at most: ask for less, or make the pool larger"
        ),
        Refusal::OneListOnly => format!(
            "pool {name} is shared, which gives one CPU list, and {size} asked for: ask for 1, or use pinfold.io/cpus"
        ),
        Refusal::Offline => format!(
            "pool {name}: every CPU list has a CPU that is offline: put CPUs online in /sys/devices/system/cpu, or change the pool"
        ),
        Refusal::NotAllowed => format!(
            "pool {name}: the cgroup {} allows only the CPUs {}, which hold none of its CPU lists: widen that, or use another pool",
            bound.group, bound.cpus
        ),
    }
}
