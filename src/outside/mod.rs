//! What is changed on a machine outside of the owners' own masks: partitions, which keep everybody
//! else off their CPUs, and the exclusive CPUs of the groups above that these need. It is recorded
//! before it is changed, for all pool directories of the machine together, and follows from the
//! owners that live: what a killed program leaves half done, the next mends.
//!
//! The machine's lock is taken under a pool directory's, never the other way round.

mod converge;
mod machine;
mod obstacle;
mod records;
mod watch;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

pub use obstacle::{Obstacle, lost_cpus, obstacle};
pub use records::Owner;
pub use watch::wait;

use crate::cgroup::{Group, Hierarchy, Version, partition};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;
use crate::text::Shown;
use machine::{Failure, Machine};

/// A machine, and how long others who change it are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Outside<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The hierarchy of cpusets.
    pub hierarchy: &'a Hierarchy,
    /// How long.
    pub patience: Duration,
}

impl Outside<'_> {
    /// Keeps everybody else off an owner's CPUs; done twice it is done once. What is in the way is
    /// told, and nothing stays changed then.
    ///
    /// # Errors
    /// The records, or a group, cannot be read or written.
    pub fn keep_off(&self, owner: &Owner) -> Result<Option<Obstacle>> {
        let group = self.hierarchy.group(&owner.group)?;
        let mut machine = match Machine::open(self) {
            Err(error) if is_denied(&error) => {
                return Ok(Some(obstacle::denied(&error)));
            }
            opened => opened?,
        };
        let is_known = machine.records.owners.contains(owner);
        if is_known && partition::stands(&group, owner.kind.word(), &owner.cpus)? {
            return Ok(None);
        }
        if let Some(obstacle) = machine.obstacle(&group, owner)? {
            return give_up(machine, owner, obstacle).map(Some);
        }
        machine
            .records
            .owners
            .retain(|other| other.group != owner.group);
        machine.records.owners.push(owner.clone());
        let failed = machine.converge(|other| other.group == owner.group)?;
        // What failed at another owner's group is not this one's trouble.
        if partition::stands(&group, owner.kind.word(), &owner.cpus)? {
            warn_of(&failed);
            return Ok(None);
        }
        let obstacle = obstacle::of_kernel(&group, owner, &failed)?;
        give_up(machine, owner, obstacle).map(Some)
    }

    /// Lets everybody have the CPUs of the owner whose group has this inode, or had it, and
    /// whatever others left.
    ///
    /// # Errors
    /// The records, or a group, cannot be read or written.
    pub fn let_in(&self, inode: u64) -> Result<()> {
        if !is_in_use(self.host)? {
            return Ok(());
        }
        let mut machine = Machine::open(self)?;
        let own = machine.groups_of(inode);
        machine.forget(|owner| owner.inode == inode);
        own_failure(machine.converge(|_| false)?, &own)
    }

    /// Brings the machine in order: what killed programs left, and partitions that broke, once
    /// nothing is in their way any more. Owners of a directory of claims that have none there any
    /// more keep nobody off.
    ///
    /// # Errors
    /// The records cannot be read or written.
    pub fn converge(
        &self,
        run_dir: &std::path::Path,
        is_claimed: impl Fn(u64) -> bool,
    ) -> Result<Vec<Refusal>> {
        if self.hierarchy.version == Version::V1 || !is_in_use(self.host)? {
            return Ok(Vec::new());
        }
        let mut machine = Machine::open(self)?;
        machine.forget(|owner| owner.run_dir == run_dir && !is_claimed(owner.inode));
        let mut problems = Vec::new();
        let mut healed = Vec::new();
        for owner in machine.records.owners.clone() {
            match machine.may_heal(&owner) {
                Ok(true) => healed.push(owner.group),
                Ok(false) => {}
                Err(error) => problems.push(Refusal::of(&error)),
            }
        }
        let failed = machine.converge(|owner| healed.contains(&owner.group))?;
        problems.extend(failed.iter().map(|failed| Refusal::of(&failed.error)));
        for owner in &machine.records.owners {
            if !machine.keeps_off(owner)? {
                let group = self.hierarchy.group(&owner.group)?;
                let what = obstacle::of_kernel(&group, owner, &[])?;
                problems.push(Refusal::new(
                    format!(
                        "others can run on {} of {} again: {}",
                        owner.cpus,
                        Shown(&owner.group),
                        what.what
                    ),
                    what.remedy,
                ));
            }
        }
        Ok(problems)
    }
}

/// Takes back what was changed for an owner whom something is in the way of; nothing where nothing
/// was.
fn give_up(mut machine: Machine<'_>, owner: &Owner, obstacle: Obstacle) -> Result<Obstacle> {
    let own = machine.groups_of(owner.inode);
    machine.forget(|other| other.group == owner.group);
    own_failure(machine.converge(|_| false)?, &own).map(|()| obstacle)
}

/// What failed at an owner's groups; what failed elsewhere is others' trouble, is still recorded,
/// and said.
fn own_failure(failed: Vec<Failure>, own: &[String]) -> Result<()> {
    let (of_owner, of_others): (Vec<_>, Vec<_>) = failed
        .into_iter()
        .partition(|failed| own.contains(&failed.group));
    warn_of(&of_others);
    match of_owner.into_iter().next() {
        Some(failed) => Err(failed.error),
        None => Ok(()),
    }
}

fn warn_of(failed: &[Failure]) {
    failed.iter().for_each(|one| log::warn!("{:#}", one.error));
}

/// The owner whose CPUs are to be its own, from its group.
///
/// # Errors
/// The group is gone.
pub fn owner_of(
    group: &Group,
    cpus: &CpuSet,
    kind: crate::isolation::Kind,
    run_dir: PathBuf,
) -> Result<Owner> {
    let above = partition::ancestors(group);
    Ok(Owner {
        group: group.path().to_owned(),
        inode: group.inode()?.context("the cgroup is gone")?,
        above: above.iter().map(|above| above.path().to_owned()).collect(),
        cpus: cpus.clone(),
        kind,
        run_dir,
    })
}

/// Those who keep others off their CPUs, as was recorded last; none where that cannot be read.
pub fn owners(host: &Host) -> Vec<Owner> {
    let owners = machine::read(host).map(|records| records.owners);
    owners.unwrap_or_default()
}

/// The CPUs that owners keep others off, as was recorded last; none where that cannot be read.
pub fn kept(host: &Host) -> CpuSet {
    let cpus = machine::read(host).map(|records| records.cpus());
    cpus.unwrap_or_default()
}

/// Was anything ever changed in this boot? A machine on which nothing was needs no lock. Who may
/// not look there has changed nothing: podman without root, in a user namespace of its own.
fn is_in_use(host: &Host) -> Result<bool> {
    match files::entry_if_there(&machine::records_path(host)) {
        Err(error) if is_denied(&error) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// Root of a user namespace is root by number, and is denied all the same.
fn is_denied(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
        )
    })
}

/// Is this obstacle, one of the machine as a whole, told for the first time in this boot?
pub fn is_news(host: &Host, obstacle: &Obstacle) -> bool {
    let Some(name) = obstacle.of_machine else {
        return true;
    };
    let mark = machine::directory(host).join(format!("told-{name}"));
    match files::entry_if_there(&mark) {
        Ok(Some(_)) => false,
        // One that cannot be noted is told again.
        _ => {
            let noted = machine::ensure_directory(host)
                .and_then(|()| files::replace(&mark, b"", 0o600, files::Durability::Crash));
            if let Err(error) = noted {
                log::debug!("{error:#}");
            }
            true
        }
    }
}
