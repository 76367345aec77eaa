//! The machine's records: which owners keep others off which CPUs, and what was changed for them
//! outside of their own masks. The file lies below `/run`, so it ends with the boot, as the
//! kernel's state does.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::knobs::{Knob, Turned};
use crate::cgroup::{Group, Hierarchy};
use crate::cpulist::{self, CpuSet};
use crate::isolation::Kind;
use crate::isolation::tuning::Tuning;
use crate::refusal::{OrRefuse, Refusal};

/// The version of the records that is written, and the only one that is understood.
const VERSION: u32 = 1;

/// The content of the records' file, for all pool directories of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    version: u32,
    /// The boot id. In another boot nothing of these records is true.
    pub(super) boot_id: String,
    /// The owners that keep others off. Each has its own CPUs, so there are never more owners than
    /// CPUs.
    pub(super) owners: Vec<Owner>,
    /// The files that may not hold what was found there.
    pub(super) changes: Vec<Change>,
    /// For whom something of the machine's own is set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tuned: Vec<Tuned>,
    /// What of that may not be as it was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) turned: Vec<Turned>,
    /// The units of which systemd was told that they have no limit of CPU time, or is about to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) lifted: Vec<Lifted>,
    /// The interrupts that were there before new ones had to keep away from some CPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) irqs: Vec<u32>,
}

/// A group in the hierarchy of the CPU controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitedGroup {
    /// Its path.
    pub path: String,
    /// Its inode: a later group of the same path has another.
    pub inode: u64,
}

impl LimitedGroup {
    /// The group, if it is still the same.
    pub(super) fn group_in(&self, hierarchy: &Hierarchy) -> Result<Option<Group>> {
        let group = hierarchy.group(&self.path)?;
        let is_same = group.inode()? == Some(self.inode);
        Ok(is_same.then_some(group))
    }
}

/// A unit's limit of CPU time, before systemd was told that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lifted {
    /// The unit's group.
    pub(super) group: LimitedGroup,
    /// What systemd knew, in microseconds a second; the largest number where there was no limit.
    pub(super) found: u64,
    /// Does systemd know that there is none? Until then whoever looks has to tell it.
    #[serde(default)]
    pub(super) is_told: bool,
}

/// An owner for whom something of the machine's own is set. It lives while its group is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// Its group's path, in the hierarchy of cpusets.
    pub group: String,
    /// Its group's inode.
    pub inode: u64,
    /// Its CPUs.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
    /// What is set.
    pub tuning: Tuning,
    /// The groups whose limit of CPU time is its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limited: Vec<LimitedGroup>,
    /// The directory of its claim.
    pub run_dir: PathBuf,
}

/// An owner whose CPUs nobody else shall have. It counts as alive while a group with this path and
/// inode exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The path of its group.
    pub group: String,
    /// The inode of its group.
    pub inode: u64,
    /// The paths of the groups above its group, topmost first, without the root.
    pub above: Vec<String>,
    /// Its CPUs.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
    /// The kind of its partition.
    pub kind: Kind,
    /// The run directory that holds its claim.
    pub run_dir: PathBuf,
}

impl Owner {
    /// Is `group` the owner's group, or above it?
    pub fn is_at_or_below(&self, group: &str) -> bool {
        self.group == group || self.above.iter().any(|above| above == group)
    }
}

/// A file that was changed, and what is needed to change it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    /// The file.
    pub(super) target: Target,
    /// The value before our first change.
    pub(super) found: String,
    /// The values that we wrote or may have written. While a write is under way these are the last
    /// one and the next one.
    pub(super) ours: Vec<String>,
}

/// What a file that is changed for owners holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    /// The file is gone, and with it what was changed: the kernel said so.
    Gone,
    /// It could not be read, for whatever other reason. It may be as we left it: what is recorded
    /// of it stays as it is, and nothing is written.
    Unread,
    /// Its text.
    Holds(String),
}

/// A file that is changed, given by the path of its group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Target {
    /// `cpuset.cpus.exclusive`: the CPUs that a group keeps from the groups beside it.
    Exclusive(String),
    /// `cpuset.cpus.partition`: the kind of partition that a group is.
    Partition(String),
}

impl Target {
    /// The path of the group.
    pub(super) fn group(&self) -> &str {
        match self {
            Target::Exclusive(group) | Target::Partition(group) => group,
        }
    }
}

impl Records {
    /// The records of a boot in which nothing was changed yet.
    pub(super) fn none(boot_id: &str) -> Records {
        Records {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            owners: Vec::new(),
            changes: Vec::new(),
            tuned: Vec::new(),
            turned: Vec::new(),
            lifted: Vec::new(),
            irqs: Vec::new(),
        }
    }

    /// Parses the text of the records' file. Records of another boot are taken as empty.
    ///
    /// # Errors
    /// The text is damaged, or was written by another version of this program.
    pub(super) fn parse(text: &str, boot_id: &str) -> Result<Records> {
        let read = serde_json::from_str::<Records>(text).context("it is not in this form");
        let read = read.and_then(|records| {
            anyhow::ensure!(records.version == VERSION, "it is of another version");
            Ok(records)
        });
        let records = read.or_refuse(|| {
            Refusal::new(
                "what was changed on this machine cannot be read",
                "remove the file, and run `pinfold reconcile`: it goes by what the claims say; \
                 only interrupts, limits of CPU time and power settings can stay as they are until \
                 a reboot",
            )
        })?;
        Ok(match records.boot_id == boot_id {
            true => records,
            false => Records::none(boot_id),
        })
    }

    /// The text of the records' file.
    ///
    /// # Errors
    /// No case is known.
    pub(super) fn print(&self) -> Result<String> {
        serde_json::to_string(self).context("write what was changed on this machine")
    }

    /// These interrupts are there now: before new ones have to keep away all of them are
    /// remembered, and nothing any more once they need not.
    pub(super) fn note_irqs(&mut self, there: Vec<u32>) {
        let is_changed = self.turned.iter().any(|one| one.knob == Knob::NewIrqs);
        let is_wanted = self.tuned.iter().any(|tuned| tuned.tuning.irqs_away);
        match (is_changed, is_wanted) {
            (true, _) => self.irqs.retain(|number| there.contains(number)),
            (false, true) => self.irqs = there,
            (false, false) => self.irqs.clear(),
        }
    }

    /// What systemd knew of a group's limit, if that was asked.
    pub(super) fn lifted_of(&self, group: &LimitedGroup) -> Option<&Lifted> {
        self.lifted.iter().find(|lifted| lifted.group == *group)
    }

    /// Does an owner want this group to have no limit?
    pub(super) fn lifts(&self, group: &LimitedGroup) -> bool {
        let mut tuned = self.tuned.iter();
        tuned.any(|tuned| tuned.tuning.quota_lifted && tuned.limited.contains(group))
    }

    /// All CPUs that owners keep others off.
    pub(super) fn cpus(&self) -> CpuSet {
        self.owners.iter().map(|owner| &owner.cpus).collect()
    }
}
