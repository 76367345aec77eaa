//! What is recorded of a machine: who keeps others off which CPUs, and what was changed for that
//! outside of the owners' own masks. It lies below `/run`, and dies with the boot as the kernel's
//! state does.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cpulist::{self, CpuSet};
use crate::isolation::Kind;
use crate::refusal::{OrRefuse, Refusal};

/// The version of the records that this program writes, and the only one that it understands.
const VERSION: u32 = 1;

/// Everything, of all pool directories of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    version: u32,
    /// The boot: after another nothing of it is so.
    pub(super) boot_id: String,
    /// Who keeps others off, each of its own CPUs: never more than there are CPUs.
    pub(super) owners: Vec<Owner>,
    /// What may not be as it was found.
    pub(super) changes: Vec<Change>,
}

/// An owner whose CPUs nobody else is to have. It lives while its group is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Its group's path.
    pub group: String,
    /// Its group's inode.
    pub inode: u64,
    /// The groups above, topmost first, without the root.
    pub above: Vec<String>,
    /// Its CPUs.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
    /// The partition.
    pub kind: Kind,
    /// The directory of its claim.
    pub run_dir: PathBuf,
}

impl Owner {
    /// Is a group this owner's, or above it?
    pub fn is_at_or_below(&self, group: &str) -> bool {
        self.group == group || self.above.iter().any(|above| above == group)
    }
}

/// One thing that is changed, and how to change it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    /// Which.
    pub(super) target: Target,
    /// What was there before the first change.
    pub(super) found: String,
    /// What we have written, or may have: before a write both the last and the next.
    pub(super) ours: Vec<String>,
}

/// What is changed on a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Target {
    /// The CPUs that a group keeps from those beside it: `cpuset.cpus.exclusive`.
    Exclusive(String),
    /// What kind of partition a group is: `cpuset.cpus.partition`.
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
    /// Those of a boot in which nothing was changed yet.
    pub(super) fn none(boot_id: &str) -> Records {
        Records {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            owners: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// What a file says; of another boot it says nothing.
    ///
    /// # Errors
    /// It is damaged, or of another version of this program.
    pub(super) fn parse(text: &str, boot_id: &str) -> Result<Records> {
        let read = serde_json::from_str::<Records>(text).context("it is not in this form");
        let read = read.and_then(|records| {
            anyhow::ensure!(records.version == VERSION, "it is of another version");
            Ok(records)
        });
        let records = read.or_refuse(|| {
            Refusal::new(
                "what was changed on this machine cannot be read",
                "remove the file, and reboot at the next occasion: cgroups may keep CPUs from others \
                 until then",
            )
        })?;
        Ok(match records.boot_id == boot_id {
            true => records,
            false => Records::none(boot_id),
        })
    }

    /// The file's text.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn print(&self) -> Result<String> {
        serde_json::to_string(self).context("write what was changed on this machine")
    }

    /// All CPUs that owners keep others off.
    pub(super) fn cpus(&self) -> CpuSet {
        let mut cpus = CpuSet::new();
        self.owners
            .iter()
            .for_each(|owner| cpus.extend(&owner.cpus));
        cpus
    }
}
