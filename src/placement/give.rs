//! Giving CPU lists to an owner: pick, record, confine, verify.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::Books;
use crate::cgroup::Group;
use crate::cgroup::cpuset::{self, Masks};
use crate::choose::Want;
use crate::claims::{Before, Claim, ClaimedGroup, OwnerKind, VERSION};
use crate::cpulist::CpuSet;
use crate::pools::TasksChange;
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
    /// What that is on this machine.
    pub(super) want: Want,
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
    pub(super) fn group(&self) -> &Group {
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
        let bound = match &applicant.place {
            Place::Own(group) => cpuset::bound(group)?,
            // What our own parents have now is theirs for no longer than until this group is made.
            _ => cpuset::bound(&self.hierarchy.parent_of_ours()?)?,
        };
        let before = cpuset::masks(group)?.unwrap_or_default();
        if let Place::Own(group) = &applicant.place {
            refuse_chosen_cpus(group, &before, applicant.request)?;
        }
        let picked = self.pick(
            applicant.request,
            &applicant.want,
            &applicant.online,
            &bound,
        )?;
        let cpus = picked.cpus();
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
            lists: picked.names(),
            pool: picked.pool.name,
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
        self.undo_on_error(done, &claim)?;
        Ok(claim)
    }

    /// On an error nothing stays changed.
    pub(super) fn undo_on_error(&self, done: Result<()>, claim: &Claim) -> Result<()> {
        if done.is_err() {
            if let Err(undo) = self.undo(claim) {
                log::error!("undo the start of {}: {undo:#}", claim.id);
            }
        }
        done
    }

    /// The intent first, then the commit that other tools see.
    fn record(&self, claim: &Claim) -> Result<()> {
        self.ledger.write(claim)?;
        self.change_tasks(claim, &[], &claim.pids())
    }

    /// Puts the claim's processes into `tasks` of each of its lists where they are missing, for another tool may have
    /// dropped one that it took for dead; and drops others.
    pub(super) fn record_instead_of(&self, others: &[i32], claim: &Claim) -> Result<()> {
        for list in &claim.lists {
            // A claim whose list is being renamed names both.
            if claim.lists.len() > 1 && !self.directory.has_list(&claim.pool, list) {
                continue;
            }
            let tasks = self.directory.tasks(&claim.pool, list)?;
            let mut add = claim.pids();
            add.retain(|pid| !tasks.contains(pid));
            let change = TasksChange {
                pool: &claim.pool,
                list,
                drop: others,
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

    /// Confines an owner as its claim says, and makes sure of it; doing it twice is doing it once.
    pub(super) fn confine(&self, claim: &Claim, place: &Place) -> Result<()> {
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
        ensure!(claim.owner.is_alive(self.host)?, gone(pid));
        ensure!(
            affinity == claim.cpus,
            "process {pid} may run on the CPUs {affinity} and not just on {}: something else confines it",
            claim.cpus
        );
        Ok(())
    }
}

/// The process that was to be confined has ended meanwhile.
pub(super) fn gone(pid: i32) -> String {
    format!("process {pid} is gone: whoever started it has given up, or killed it; start it again")
}

/// One request, one place: whoever made the group has given it CPUs already.
fn refuse_chosen_cpus(group: &Group, before: &Masks, request: &Request) -> Result<()> {
    let chosen = cpuset::chosen(group, before)?;
    let (what, value) = match (chosen.cpus, chosen.mems) {
        (Some(cpus), _) => ("CPUs", cpus),
        (None, Some(mems)) if request.mems == Mems::Local => ("memory nodes", mems),
        _ => return Ok(()),
    };
    bail!(
        "its configuration already sets the {what} {value}: drop that (--cpuset-cpus, --cpuset-mems, resources.cpu), or the pool"
    )
}
