//! One claim: what it records of an owner, and its form on disk.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cpulist::{self, CpuSet};
use crate::isolation::Wanted;
use crate::isolation::tuning::Tuning;
use crate::names::Names;
use crate::process::Process;

/// The version of the claims that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The kind of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKind {
    /// A container; its first process is the owner.
    Container,
    /// A command that `isolate` runs; the owner is `isolate` itself.
    Process,
    /// A runtime that is about to make a container. The container's claim will replace this one.
    Reservation,
}

/// The record of one owner. Unknown fields are ignored: what a reader has to understand comes with
/// another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The version of this format: [`VERSION`].
    pub version: u32,
    /// The container's id, or `isolate-<pid>`.
    pub id: String,
    /// Container, process or reservation.
    pub kind: OwnerKind,
    /// The names that people use for the owner.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// The nonce that identifies a reservation; `None` in other claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The path of the group that the runtime will make for a reservation, where it is known. A
    /// killed runtime can leave that group, confined, with a process in it that our hook has never
    /// seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited: Option<String>,
    /// The boot that it was made in. In another boot it means nothing.
    pub boot_id: String,
    /// The process it was made for. It names the claim's file, and never changes.
    pub owner: Process,
    /// The processes that are in `tasks` for the owner now.
    pub processes: Vec<Process>,
    /// The pool of its CPU lists.
    pub pool: String,
    /// The directory names of its CPU lists, by first CPU. Empty where the lists were freed by
    /// force and what was changed for the owner is still to be undone.
    pub lists: Vec<String>,
    /// Were the lists asked for by their CPUs? Then each further device of the container adds its
    /// own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_exact: bool,
    /// All CPUs of the lists, in the kernel's format.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
    /// The memory nodes that the owner is confined to; `None` where they are not confined, which is
    /// an empty text in the file.
    #[serde(with = "cpulist::as_text_or_empty")]
    pub mems: Option<CpuSet>,
    /// The owner's group; `None` in a reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<ClaimedGroup>,
    /// How others are kept off its CPUs; written before that is done. In a reservation: how they
    /// will be kept off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Wanted>,
    /// What of the machine is set for it; written before that is done.
    #[serde(default, skip_serializing_if = "Tuning::is_none")]
    pub tuning: Tuning,
    /// Did it ask for nothing, and was given CPUs of the configuration's default pool?
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_default: bool,
    /// Names of the settings that others had given its supervisor, a unit, at run time: they stay
    /// when the owner ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unit_settings: Vec<String>,
    /// Did freeing it once take long and fail, as when systemd did not answer? Then it is the last
    /// to be tried again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_slow: bool,
    /// When it was made, in seconds since the epoch.
    pub since: u64,
}

/// The group of an owner, and how to undo what was changed in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimedGroup {
    /// Its path as the kernel names it.
    pub path: String,
    /// Its inode. A later group of the same path has another.
    pub inode: u64,
    /// Did we make it? Then it is removed when the owner ends.
    pub made: bool,
    /// Is it confined to the claim's CPUs? Otherwise it only tells which processes are the owner's.
    pub confined: bool,
    /// The values of its files before; empty where it had none.
    pub before: Before,
    /// The path of the group that the owner was moved out of; `None` if it was not moved.
    pub moved_from: Option<String>,
}

/// The values of a group's files before we wrote them, as read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// `cpuset.cpus`.
    pub cpus: String,
    /// `cpuset.mems`.
    pub mems: String,
}

impl Claim {
    /// The owner as a sentence names it.
    pub fn shown(&self) -> String {
        self.names.with_id(&self.id)
    }

    /// The group, if it is confined to the claim's CPUs.
    pub fn confining_group(&self) -> Option<&ClaimedGroup> {
        self.cgroup.as_ref().filter(|group| group.confined)
    }

    /// Is the owner a command in the group of its supervisor, a unit?
    pub fn is_supervised(&self) -> bool {
        let group = self.cgroup.as_ref();
        self.kind == OwnerKind::Process && group.is_some_and(|group| !group.made)
    }

    /// Does this process of the owner run outside of its group, by design? `isolate` does, beside
    /// its command; and so does a runtime that holds a reservation.
    pub fn is_beside(&self, process: Process) -> bool {
        match self.kind {
            OwnerKind::Container => false,
            OwnerKind::Process | OwnerKind::Reservation => process == self.owner,
        }
    }

    /// The pids that are in `tasks` for the owner.
    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    pub(super) fn file_name(&self) -> String {
        format!("{}.json", self.process_name())
    }

    fn process_name(&self) -> String {
        format!("{}-{}", self.owner.pid, self.owner.start)
    }

    /// The owner's name in the ledger, `<id>@<pid>-<start>`: unique within a boot.
    pub fn marker_name(&self) -> String {
        format!("{}@{}", self.id, self.process_name())
    }
}

/// Fields that are false are not written.
fn is_false(value: &bool) -> bool {
    !value
}

/// Is this a claim of a newer version?
pub(super) fn is_newer(text: &str) -> bool {
    let claim: Result<serde_json::Value, _> = serde_json::from_str(text);
    let version = claim.ok().and_then(|claim| claim.get("version")?.as_u64());
    version.is_some_and(|version| version > u64::from(VERSION))
}

/// What ends a claim on disk, around its check sum: the CRC-32 of the claim without it, in eight
/// hexadecimal digits.
const SUM_BEGINS: &str = ",\"sum\":\"";
const SUM_ENDS: &str = "\"}";

/// A claim's form on disk. The check sum makes any flipped bit show.
pub(super) fn print(claim: &Claim) -> Result<String> {
    let text = serde_json::to_string(claim).context("write a claim")?;
    let sum = crc32fast::hash(text.as_bytes());
    let open = text.strip_suffix('}').unwrap_or(&text);
    Ok(format!("{open}{SUM_BEGINS}{sum:08x}{SUM_ENDS}"))
}

/// Checks the sum and removes it. A claim that an earlier version of this program wrote has none.
fn without_sum(text: &str) -> Result<Cow<'_, str>> {
    let ended = text.strip_suffix(SUM_ENDS);
    let summed = ended.and_then(|rest| rest.rsplit_once(SUM_BEGINS));
    let Some((open, sum)) = summed else {
        return Ok(Cow::Borrowed(text));
    };
    let text = format!("{open}}}");
    ensure!(
        sum == format!("{:08x}", crc32fast::hash(text.as_bytes())),
        "its check sum is not that of its content: it was damaged, or changed by hand"
    );
    Ok(Cow::Owned(text))
}

pub(super) fn parse(text: &str) -> Result<Claim> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text)?;
    if version != VERSION {
        bail!("it is of version {version}, and this program knows {VERSION}");
    }
    Ok(serde_json::from_str(&without_sum(text)?)?)
}
