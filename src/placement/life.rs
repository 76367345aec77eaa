//! Who is alive: the one answer that release, reap, reconcile and choice use.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;

use super::View;
use crate::cgroup::{Group, Hierarchy, Version, cpuset};
use crate::claims::Claim;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::process::{self, Process};

/// Is a claim's owner alive?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// A process that the claim records can still run.
    Recorded,
    /// None can, but its cgroup, or the one that its reservation awaits, holds a process; `None` if
    /// all there are of other pid namespaces or cannot be looked at.
    Survived(Option<Process>),
    /// No process of it is left, or it is of an earlier boot.
    Gone,
}

impl Life {
    pub(crate) fn is_alive(self) -> bool {
        self != Life::Gone
    }
}

/// Do pids mean here what they mean to who wrote them down? In another pid namespace a process has
/// another number or none, so that a pid tells nobody's end there.
#[derive(Debug, Default)]
pub(crate) struct Pids {
    recorded: Option<String>,
    /// The file that names it.
    mark: PathBuf,
    tell: OnceCell<bool>,
}

impl Pids {
    /// Those of the namespace that the mark of this boot names; a mark without one was written by
    /// an earlier version, for which all pids meant the same.
    pub(crate) fn of(recorded: Option<&str>, mark: PathBuf) -> Pids {
        Pids {
            recorded: recorded.map(str::to_owned),
            mark,
            tell: OnceCell::new(),
        }
    }

    /// Can a pid tell that somebody has ended? Looked up once, and only when a process is missing.
    pub(crate) fn tell(&self, host: &Host) -> bool {
        let Some(recorded) = &self.recorded else {
            return true;
        };
        *self.tell.get_or_init(|| {
            let own = process::pid_namespace(host);
            let is_machines = own.as_deref() == Some(process::FIRST_PIDS);
            let tell = own.as_ref() == Some(recorded)
                || (is_machines && process::has_pid_namespace_ended(host, recorded));
            if !tell {
                log::warn!(
                    "whoever is known by a pid alone counts as alive here: the pids are of another \
                     pid namespace, as {} says: {}",
                    self.mark.display(),
                    match is_machines {
                        true => "run this in that container, or end it",
                        false => "run this there, or on the machine itself",
                    }
                );
            }
            tell
        })
    }
}

/// An owner is alive while a recorded process (same pid and start time) has a thread that can run,
/// or while its cgroup (same path and inode), or a group below it, holds any process.
///
/// In another pid namespace one may live of whom nothing is seen: a claim without a group is known
/// by its pids alone; a group of version 1 seems empty where its processes have no pid (kernel:
/// kernel/cgroup/cgroup-v1.c, `pidlist_array_load`); and whoever is in another cgroup namespace,
/// too, does not see the group (cgroup_namespaces(7)).
pub(crate) fn life_of(
    claim: &Claim,
    host: &Host,
    hierarchy: &Hierarchy,
    boot_id: &str,
    pids: &Pids,
) -> Result<Life> {
    if claim.boot_id != boot_id {
        return Ok(Life::Gone);
    }
    for process in &claim.processes {
        if process.is_alive(host)? {
            return Ok(Life::Recorded);
        }
    }
    let group = match &claim.cgroup {
        Some(claimed) => {
            let group = hierarchy.group(&claimed.path)?;
            let is_same = group.inode()? == Some(claimed.inode);
            is_same.then_some(group)
        }
        None => awaited_group(claim, hierarchy)?,
    };
    let life = match &group {
        Some(group) => survivors_in(group, host).unwrap_or_else(|error| {
            // An error frees nobody.
            log::warn!("{} counts as alive: {error:#}", claim.shown());
            Life::Survived(None)
        }),
        None => Life::Gone,
    };
    let is_its = claim.cgroup.is_some() && group.is_some();
    let is_seen = is_its && hierarchy.version == Version::V2;
    Ok(match life == Life::Gone && !is_seen && !pids.tell(host) {
        true => Life::Survived(None),
        false => life,
    })
}

/// Is any process in a group, or in one below it?
fn survivors_in(group: &Group, host: &Host) -> Result<Life> {
    let mut life = Life::Gone;
    let mut looked = Ok(());
    group.look_for(|pids| {
        life = Life::Survived(None);
        for pid in pids {
            match Process::with_pid(host, pid) {
                Ok(None) => continue,
                Ok(Some(process)) => life = Life::Survived(Some(process)),
                Err(error) => looked = Err(error),
            }
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    looked.map(|()| life)
}

/// The group that a runtime has made and confined for a reservation whose hook has not come yet.
/// Its mask identifies it: CPUs of the claim and no others. It may lack some, as a CPU may be
/// offline by now, or a shared list have grown.
pub(crate) fn awaited_group(claim: &Claim, hierarchy: &Hierarchy) -> Result<Option<Group>> {
    let Some(path) = &claim.awaited else {
        return Ok(None);
    };
    let group = hierarchy.group(path)?;
    let own = cpuset::masks(&group)?.unwrap_or_default().cpus;
    let is_it = own
        .parse()
        .is_ok_and(|own: CpuSet| !own.is_empty() && own.is_subset(&claim.cpus));
    Ok(is_it.then_some(group))
}

impl View<'_> {
    /// [`life_of`] a claim of this view; alive if the machine does not tell.
    pub(crate) fn life_of(&self, claim: &Claim) -> Result<Life> {
        if !self.tells_lives {
            return Ok(Life::Survived(None));
        }
        life_of(claim, self.host, &self.hierarchy, &self.boot_id, &self.pids)
    }

    /// As [`Pids::tell`].
    pub(crate) fn pids_tell(&self) -> bool {
        self.pids.tell(self.host)
    }

    /// Does the process of a pid in `tasks` exist? A pid without a claim was written by another
    /// tool, and owns the list as long. One that cannot be looked at counts as alive.
    pub(crate) fn is_pid_alive(&self, pid: i32) -> bool {
        if !self.tells_lives {
            return true;
        }
        let is_alive = process::pid_is_alive(self.host, pid).unwrap_or_else(|error| {
            log::warn!("process {pid} counts as alive: {error:#}");
            true
        });
        is_alive || !self.pids_tell()
    }
}
