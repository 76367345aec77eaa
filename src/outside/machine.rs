//! The machine's records: read as they are, or held under their lock and written.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Error, Result};

use super::Outside;
use super::converge::{self, Write};
use super::obstacle::{self, Obstacle};
use super::records::{Owner, Records, Target};
use crate::cgroup::{Group, Hierarchy, partition};
use crate::cpulist::CpuSet;
use crate::files::{self, Durability};
use crate::host::Host;
use crate::limits;
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;

/// The machine's records while their lock is held.
pub(super) struct Machine<'a> {
    host: &'a Host,
    hierarchy: &'a Hierarchy,
    pub(super) records: Records,
    /// Recorded owners whose group was gone when the records were read.
    gone: Vec<Owner>,
    /// The text of the records' file; `None` where there is no file.
    written: Option<String>,
    // Closing the file unlocks it.
    _lock: File,
}

/// The directory of this room's files, the same for all pool directories.
pub(super) fn directory(host: &Host) -> PathBuf {
    host.machine_dir()
}

pub(super) fn records_path(host: &Host) -> PathBuf {
    directory(host).join("changes")
}

pub(super) fn ensure_directory(host: &Host) -> Result<()> {
    let path = directory(host);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.with_context(|| format!("make {}", path.display()))?;
    files::ensure_trusted_way(&path, || host.unknown_root())
}

/// Reads the records without the lock; others may change them meanwhile.
///
/// # Errors
/// The records cannot be read.
pub(super) fn read(host: &Host) -> Result<Records> {
    let boot_id = process::boot_id(host)?;
    match files::read_text_if_there(&records_path(host))? {
        Some(text) => Records::parse(&text, &boot_id),
        None => Ok(Records::none(&boot_id)),
    }
}

/// A write that failed.
pub(super) struct Failure {
    /// The path of the group that was written to.
    pub(super) group: String,
    pub(super) error: Error,
}

impl<'a> Machine<'a> {
    /// Takes the lock, waiting for `outside.patience` at most, and reads the records. Owners whose
    /// group is gone are dropped from them.
    pub(super) fn open(outside: &Outside<'a>) -> Result<Machine<'a>> {
        let Outside {
            host,
            hierarchy,
            patience,
        } = *outside;
        ensure_directory(host)?;
        let path = directory(host).join("lock");
        let lock = files::open_or_make_regular(&path, 0o600)?;
        files::lock_within(&lock, patience).map_err(|error| {
            Error::new(error).context(Refusal::new(
                format!("lock {}", path.display()),
                "another start, or `pinfold reconcile`, takes long: do it again",
            ))
        })?;
        let path = records_path(host);
        let boot_id = process::boot_id(host)?;
        let written = files::read_text_if_there(&path)?;
        let records = match &written {
            Some(text) => Records::parse(text, &boot_id)
                .with_context(|| format!("read {}", path.display()))?,
            None => Records::none(&boot_id),
        };
        let mut machine = Machine {
            host,
            hierarchy,
            records,
            gone: Vec::new(),
            written,
            _lock: lock,
        };
        let mut living = Vec::new();
        for owner in std::mem::take(&mut machine.records.owners) {
            match hierarchy.group(&owner.group)?.inode()? == Some(owner.inode) {
                true => living.push(owner),
                false => machine.gone.push(owner),
            }
        }
        machine.records.owners = living;
        Ok(machine)
    }

    /// The paths of the groups that were changed for the owner with this group inode, including an
    /// owner whose group is gone.
    pub(super) fn groups_of(&self, inode: u64) -> Vec<String> {
        let owners = self.records.owners.iter().chain(&self.gone);
        let owners = owners.filter(|owner| owner.inode == inode);
        owners
            .flat_map(|owner| owner.above.iter().chain([&owner.group]).cloned())
            .collect()
    }

    /// Is everybody else kept off the owner's CPUs? CPUs of it that are offline do not count: its
    /// partition stays valid without them, and has them again once they are online.
    pub(super) fn keeps_off(&self, owner: &Owner) -> Result<bool> {
        let group = self.hierarchy.group(&owner.group)?;
        let cpus = owner.cpus.intersection(&topology::online(self.host)?);
        partition::stands(&group, owner.kind.word(), &cpus)
    }

    pub(super) fn forget(&mut self, is_over: impl Fn(&Owner) -> bool) {
        self.records.owners.retain(|owner| !is_over(owner));
    }

    /// What is in the way of a partition for `owner`, as far as it can be told before a write.
    pub(super) fn obstacle(&self, group: &Group, owner: &Owner) -> Result<Option<Obstacle>> {
        let others = self.records.owners.iter();
        let others = others.filter(|other| other.group != owner.group);
        let kept = others.fold(CpuSet::new(), |mut kept, other| {
            kept.extend(&other.cpus);
            kept
        });
        let asked = obstacle::Asked {
            group,
            cpus: &owner.cpus,
            kind: owner.kind,
            kept: &kept,
        };
        obstacle::before(self.host, &asked)
    }

    /// Is the owner's partition broken, and can it be made again because nothing is in its way?
    pub(super) fn may_heal(&self, owner: &Owner) -> Result<bool> {
        let group = self.hierarchy.group(&owner.group)?;
        if self.keeps_off(owner)? {
            return Ok(false);
        }
        Ok(self.obstacle(&group, owner)?.is_none()
            && partition::in_the_way(&group, &owner.cpus)?.is_empty())
    }

    /// Writes what the live owners want; returns the writes that failed. A partition is made or
    /// healed only for the owners that `makes` accepts.
    ///
    /// # Errors
    /// The records cannot be written. If that happens before the first write, nothing is changed.
    pub(super) fn converge(&mut self, makes: impl Fn(&Owner) -> bool) -> Result<Vec<Failure>> {
        let plan = converge::plan(&self.records, &|target| self.now(target), &makes);
        for Write { target, value } in &plan.foreign {
            log::warn!(
                "{target:?} holds {} and not what it was given: it is left as it is",
                Shown(value)
            );
        }
        self.records.changes = plan.changes;
        self.save()?;
        let failed = self.carry_out(&plan.writes);
        self.records.changes = converge::still_changed(&self.records, &|target| self.now(target));
        self.save()?;
        Ok(failed)
    }

    /// Writes in order, and returns the writes that failed. Below a group whose write failed only
    /// `member` is still written: a partition made there would be invalid at once.
    fn carry_out(&self, writes: &[Write]) -> Vec<Failure> {
        let mut failed: Vec<Failure> = Vec::new();
        for Write { target, value } in writes {
            let group = target.group();
            let is_below = |above: &str| group == above || group.starts_with(&format!("{above}/"));
            if failed.iter().any(|above| is_below(&above.group)) && value != partition::MEMBER {
                continue;
            }
            if let Err(error) = self.put(target, value) {
                let group = group.to_owned();
                failed.push(Failure { group, error });
            }
        }
        failed
    }

    fn put(&self, target: &Target, value: &str) -> Result<()> {
        let group = self.hierarchy.group(target.group())?;
        match target {
            Target::Exclusive(_) => partition::set_exclusive(&group, value),
            Target::Partition(path) => {
                let mut owners = self.records.owners.iter();
                if let Some(owner) = owners.find(|owner| owner.group == *path) {
                    partition::set_mask(&group, &owner.cpus)?;
                }
                limits::as_admin(|| partition::set_kind(&group, value))
            }
        }
    }

    /// The current value of a target; `None` where its group is gone, and where it cannot be read,
    /// so that it is not written either.
    fn now(&self, target: &Target) -> Option<String> {
        let group = self.hierarchy.group(target.group()).ok()?;
        let now = match target {
            Target::Exclusive(_) => partition::exclusive(&group),
            Target::Partition(_) => partition::state(&group),
        };
        now.unwrap_or_else(|error| {
            log::warn!("{error:#}");
            None
        })
    }

    fn save(&mut self) -> Result<()> {
        let text = self.records.print()?;
        let is_new = self.written.is_none() && self.records == Records::none(&self.records.boot_id);
        if is_new || self.written.as_ref() == Some(&text) {
            return Ok(());
        }
        files::replace(
            &records_path(self.host),
            text.as_bytes(),
            0o600,
            Durability::Crash,
        )?;
        self.written = Some(text);
        Ok(())
    }
}
