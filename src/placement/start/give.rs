//! Giving CPU lists to an owner: pick, record, confine, verify.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::Group;
use crate::cgroup::cpuset::{self, Bound, Masks};
use crate::claims::{Before, Claim, ClaimedGroup, OwnerKind, VERSION};
use crate::cpulist::CpuSet;
use crate::isolation::Wanted;
use crate::isolation::tuning::Tuning;
use crate::names::Names;
use crate::placement::Books;
use crate::placement::refusal::chosen_already;
use crate::placement::start::pick::Demand;
use crate::pools::TasksChange;
use crate::process::{self, Process};
use crate::refusal::Refusal;
use crate::request::{Mems, Request};
use crate::topology;

/// An owner that is to get CPUs, with all that can be known without the lock.
pub(crate) struct NewOwner<'a> {
    /// The container's id, or `isolate-<pid>`.
    pub(crate) id: &'a str,
    pub(crate) kind: OwnerKind,
    pub(crate) names: &'a Names,
    pub(crate) process: Process,
    pub(crate) place: Confinement,
}

/// What an owner gets.
pub(crate) struct Grant {
    pub(crate) pool: String,
    /// The directory names of the lists, by first CPU.
    pub(crate) lists: Vec<String>,
    pub(crate) cpus: CpuSet,
    /// Was the list asked for by its CPUs?
    pub(crate) is_exact: bool,
    /// The memory nodes to confine it to; `None` to leave them alone.
    pub(crate) mems: Option<CpuSet>,
    /// How others are kept off the CPUs, if at all.
    pub(crate) isolation: Option<Wanted>,
    /// What else of the machine is to be set for it?
    pub(crate) tuning: Tuning,
    /// Does it ask for nothing?
    pub(crate) by_default: bool,
}

/// Where an owner is confined.
pub(crate) enum Confinement {
    /// In its own group, which holds only its first process.
    Own(Group),
    /// In a group that we make and move it into.
    Moved { to: Group, from: Group },
    /// In a group that we make and its processes enter by themselves; confined, or only grouped.
    Entered { group: Group, confined: bool },
    /// In the group of its supervisor, a unit that holds nobody else. The masks that the unit had
    /// before stay its bound.
    Supervised {
        group: Group,
        before: Masks,
        /// Names of the settings that others gave the unit at run time.
        settings: Vec<String>,
        confined: bool,
    },
}

impl Confinement {
    pub(crate) fn group(&self) -> &Group {
        match self {
            Confinement::Own(group)
            | Confinement::Moved { to: group, .. }
            | Confinement::Entered { group, .. }
            | Confinement::Supervised { group, .. } => group,
        }
    }
}

impl Books<'_> {
    /// Gives a new owner what it asks for. On an error nothing stays changed.
    pub(crate) fn give(&self, new_owner: &NewOwner<'_>, demand: &Demand<'_>) -> Result<Claim> {
        let group = new_owner.place.group();
        let bound = self.bound_of(&new_owner.place)?;
        let before = match &new_owner.place {
            Confinement::Supervised { before, .. } => before.clone(),
            _ => cpuset::masks(group)?.unwrap_or_default(),
        };
        if let Confinement::Own(group) = &new_owner.place {
            refuse_chosen_cpus(group, &before, demand.request)?;
        }
        let grant = self.pick_grant(demand, &bound)?;
        self.grant(new_owner, grant, before, None)
    }

    /// The CPUs that the groups above a place allow.
    pub(crate) fn bound_of(&self, place: &Confinement) -> Result<Bound> {
        let group = place.group();
        match place {
            Confinement::Supervised { group, before, .. } => {
                cpuset::bound(group)?.within(group, &before.cpus)
            }
            // The masks of our own parent groups are set anew when this group is made: they do not
            // bind.
            _ if group
                .parent()
                .is_some_and(|above| above.is_parent_of_ours()) =>
            {
                cpuset::bound(&self.hierarchy.parent_of_ours()?)
            }
            _ => cpuset::bound(group),
        }
    }

    /// The memory nodes near these CPUs; `None` where the kernel knows no nodes.
    ///
    /// # Errors
    /// The kernel does not tell which they are.
    pub(crate) fn local_memory_nodes(&self, cpus: &CpuSet) -> Result<Option<CpuSet>> {
        let nodes = topology::local_memory_nodes(self.host, cpus)?;
        Ok((!nodes.is_empty()).then_some(nodes))
    }

    /// Picks lists for a demand.
    pub(crate) fn pick_grant(&self, demand: &Demand<'_>, bound: &Bound) -> Result<Grant> {
        let picked = self.pick(demand, bound)?;
        let cpus = picked.cpus();
        let mems = match demand.request.mems {
            Mems::Inherit => None,
            Mems::Local => self.local_memory_nodes(&cpus)?,
        };
        Ok(Grant {
            lists: picked.names(),
            is_exact: demand.request.exact.is_some(),
            isolation: picked.isolation,
            tuning: picked.tuning,
            by_default: demand.request.by_default,
            pool: picked.pool.name,
            cpus,
            mems,
        })
    }

    /// Gives a new owner its grant, and removes `instead_of`, the claim that held it. The claim is
    /// written before the kernel is changed: a kill in between leaves a claim whose process is
    /// dead. On an error nothing stays changed.
    pub(crate) fn grant(
        &self,
        new_owner: &NewOwner<'_>,
        grant: Grant,
        before: Masks,
        instead_of: Option<&Claim>,
    ) -> Result<Claim> {
        let place = &new_owner.place;
        let group = place.group();
        let made = !matches!(place, Confinement::Own(_) | Confinement::Supervised { .. });
        if made {
            group.make()?;
        }
        let inode = group.inode()?.context("the cgroup is gone")?;
        let claimed = ClaimedGroup {
            path: group.path().to_owned(),
            inode,
            made,
            confined: !matches!(
                place,
                Confinement::Entered {
                    confined: false,
                    ..
                } | Confinement::Supervised {
                    confined: false,
                    ..
                }
            ),
            before: Before {
                cpus: before.cpus,
                mems: before.mems,
            },
            moved_from: match place {
                Confinement::Moved { from, .. } => Some(from.path().to_owned()),
                _ => None,
            },
        };
        let isolation = grant.isolation;
        let tuning = grant.tuning.clone();
        let mut claim = self.claim(new_owner.kind, new_owner.id, new_owner.process, grant);
        claim.cgroup = Some(claimed);
        let names = instead_of.map_or(new_owner.names, |former| &former.names);
        claim.names.clone_from(names);
        if let Confinement::Supervised { settings, .. } = place {
            claim.unit_settings.clone_from(settings);
        }
        // Whoever is killed before it is set is given it when the claim is next looked at.
        claim.tuning = tuning.clone();
        let done = self
            .record(&claim, instead_of)
            .and_then(|()| self.confine(&claim, place))
            .and_then(|()| self.keep_off(&mut claim, isolation));
        self.undo_on_error(done, &claim)?;
        self.tune(&mut claim, &tuning);
        Ok(claim)
    }

    /// A claim of an owner that has no group yet.
    pub(crate) fn claim(&self, kind: OwnerKind, id: &str, owner: Process, grant: Grant) -> Claim {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Claim {
            version: VERSION,
            id: id.to_owned(),
            kind,
            names: Names::default(),
            nonce: None,
            awaited: None,
            boot_id: self.boot_id.clone(),
            owner,
            processes: vec![owner],
            lists: grant.lists,
            is_exact: grant.is_exact,
            pool: grant.pool,
            cpus: grant.cpus,
            mems: grant.mems,
            cgroup: None,
            isolation: None,
            tuning: Tuning::default(),
            by_default: grant.by_default,
            unit_settings: Vec::new(),
            is_slow: false,
            since: now.map_or(0, |now| now.as_secs()),
        }
    }

    /// Takes the start back if it failed; returns `done`.
    pub(crate) fn undo_on_error(&self, done: Result<()>, claim: &Claim) -> Result<()> {
        if done.is_err() {
            if let Err(undo) = self.undo_start(claim) {
                log::error!("undo the start of {}: {undo:#}", claim.shown());
            }
        }
        done
    }

    /// Writes the claim, which is the intent; then `tasks`, which other tools see. Removes
    /// `instead_of` last, so that each pid in `tasks` has a claim all the time.
    pub(crate) fn record(&self, claim: &Claim, instead_of: Option<&Claim>) -> Result<()> {
        self.ledger.write(claim)?;
        let before = instead_of.map(Claim::pids).unwrap_or_default();
        self.change_tasks(claim, &before, &claim.pids())?;
        // Somebody who took a new lock before this claim was written may have chosen the same
        // lists.
        self.lock.ensure_in_place()?;
        instead_of.map_or(Ok(()), |former| self.ledger.remove(former))
    }

    /// Adds the claim's pids that are missing from the `tasks` of its lists, and drops `others`.
    /// Another tool may have dropped a pid that it took for dead.
    pub(crate) fn record_instead_of(&self, others: &[i32], claim: &Claim) -> Result<()> {
        let own = claim.pids();
        let others: Vec<i32> = others
            .iter()
            .copied()
            .filter(|pid| !own.contains(pid))
            .collect();
        for list in &claim.lists {
            // While a list is renamed, its claims name the old and the new one.
            if claim.lists.len() > 1 && !self.directory.has_list(&claim.pool, list)? {
                continue;
            }
            let tasks = self.directory.tasks(&claim.pool, list)?;
            let mut add = claim.pids();
            add.retain(|pid| !tasks.contains(pid));
            let change = TasksChange {
                pool: &claim.pool,
                list,
                drop: &others,
                add: &add,
            };
            self.directory.change_tasks(&self.lock, &change)?;
        }
        Ok(())
    }

    /// Changes the `tasks` of every list of a claim. Goes on past an error, and returns the first.
    pub(crate) fn change_tasks(&self, claim: &Claim, drop: &[i32], add: &[i32]) -> Result<()> {
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

    /// Confines an owner as its claim says, and checks it. Can be repeated.
    pub(crate) fn confine(&self, claim: &Claim, place: &Confinement) -> Result<()> {
        let group = place.group();
        cpuset::enable(group)?;
        if claim.cgroup.as_ref().is_some_and(|group| group.made) {
            cpuset::inherit(group)?;
        }
        if claim.confining_group().is_some() {
            cpuset::confine(group, &claim.cpus, claim.mems.as_ref())?;
        }
        let pid = claim.owner.pid;
        match place {
            // The command resets its own affinity before it begins.
            Confinement::Entered { .. } | Confinement::Supervised { .. } => return Ok(()),
            Confinement::Moved { to, .. } => to.adopt(pid)?,
            Confinement::Own(_) => {}
        }
        process::reset_affinity(pid)
            .with_context(|| format!("reset the CPU affinity of process {pid}"))?;
        let affinity = process::affinity(pid)
            .with_context(|| format!("read the CPU affinity of process {pid}"))?;
        ensure!(claim.owner.is_alive(self.host)?, gone(pid));
        ensure!(
            affinity == claim.cpus,
            "process {pid} may run on the CPUs {affinity} and not just on {}: something else \
             confines it",
            claim.cpus
        );
        Ok(())
    }
}

/// Refuses a container whose group was already given CPUs, or memory nodes, by whoever made it.
fn refuse_chosen_cpus(group: &Group, before: &Masks, request: &Request) -> Result<()> {
    if let Some(cpus) = cpuset::chosen_cpus(group, before)? {
        bail!(chosen_already("CPUs", &cpus));
    }
    if request.mems == Mems::Local {
        if let Some(mems) = cpuset::chosen_mems(group, before)? {
            bail!(chosen_already("memory nodes", &mems));
        }
    }
    Ok(())
}

/// The refusal of a start whose process has ended meanwhile.
pub(crate) fn gone(pid: i32) -> Refusal {
    let what = format!("process {pid} is gone, for whoever started it has given up, or killed it");
    Refusal::new(what, "start it again")
}
