//! One claim: what is recorded of an owner, and its form on disk.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cpulist::{self, CpuSet};
use crate::isolation::Wanted;
use crate::names::Names;
use crate::process::Process;

/// The version of claims that this program writes, and the newest that it understands.
pub const VERSION: u32 = 1;

/// What kind of owner a claim records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnerKind {
    /// A container's root process.
    Container,
    /// A process that `isolate` runs.
    Process,
    /// The process of a runtime that is about to make a container, which then takes over.
    Reservation,
}

/// The record of one owner. Fields that a reader does not know are passed over: what it has to
/// understand comes with another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The version of this format: [`VERSION`].
    pub version: u32,
    /// The container's id, or `isolate-<pid>`.
    pub id: String,
    /// Container, process or reservation.
    pub kind: OwnerKind,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// What tells this reservation from all others; nothing else has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The path of the group that the runtime makes for a reservation, where it is known. A runtime
    /// that is killed can leave it confined, with a process in it that our hook has never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited: Option<String>,
    /// The boot it was made in: after another it means nothing.
    pub boot_id: String,
    /// The process it was made for. It names the claim's file, and never changes.
    pub owner: Process,
    /// The processes that stand for the owner in `tasks` now.
    pub processes: Vec<Process>,
    /// The pool.
    pub pool: String,
    /// The directory names of its CPU lists, by first CPU; none where it was released by force, and
    /// what it changed is still to be undone.
    pub lists: Vec<String>,
    /// All CPUs of these lists, in the kernel's format.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
    /// The memory nodes it was confined to, in the kernel's format; empty where they were left
    /// alone.
    #[serde(with = "cpulist::as_text")]
    pub mems: CpuSet,
    /// The group that confines it; a reservation has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<ClaimedGroup>,
    /// How everybody else is kept off its CPUs, or was to be when that was recorded; of a
    /// reservation, how everybody is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Wanted>,
    /// The settings that its supervisor, a unit, was given at run time before, by systemd's names:
    /// they stay at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unit_settings: Vec<String>,
    /// Did giving it back once wait for somebody in vain, for systemd say? Then it is the last to
    /// be tried again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_slow: bool,
    /// When it was made, in seconds since the epoch.
    pub since: u64,
}

/// The group that confines an owner, and how to undo what was done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimedGroup {
    /// Its path as the kernel names it.
    pub path: String,
    /// Its inode: a later group of the same path has another.
    pub inode: u64,
    /// Did we make it? Then it is removed at release.
    pub made: bool,
    /// Is it confined to the claim's CPUs, or only there to tell which processes are the owner's?
    pub confined: bool,
    /// The values of its files before; empty where it had none.
    pub before: Before,
    /// The path of the group that the owner was moved out of.
    pub moved_from: Option<String>,
}

/// What a group's two files held before we wrote them, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// `cpuset.cpus`.
    pub cpus: String,
    /// `cpuset.mems`.
    pub mems: String,
}

impl Claim {
    /// The owner as a sentence calls it.
    pub fn shown(&self) -> String {
        self.names.with_id(&self.id)
    }

    /// The group, where it confines its processes to the claim's CPUs.
    pub fn confining_group(&self) -> Option<&ClaimedGroup> {
        self.cgroup.as_ref().filter(|group| group.confined)
    }

    /// Is it a command in the group of its supervisor, a unit?
    pub fn is_supervised(&self) -> bool {
        let group = self.cgroup.as_ref();
        self.kind == OwnerKind::Process && group.is_some_and(|group| !group.made)
    }

    /// Does a process that stands for the owner run elsewhere, by design? `isolate` does, beside
    /// its command, and a runtime that holds a reservation.
    pub fn is_beside(&self, process: Process) -> bool {
        match self.kind {
            OwnerKind::Container => false,
            OwnerKind::Process | OwnerKind::Reservation => process == self.owner,
        }
    }

    /// The pids that stand for the owner in `tasks`.
    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    pub(super) fn file_name(&self) -> String {
        format!("{}.json", self.process_name())
    }

    fn process_name(&self) -> String {
        format!("{}-{}", self.owner.pid, self.owner.start)
    }

    /// What tells the owner from all others of this boot, as the name of a file.
    pub fn marker_name(&self) -> String {
        format!("{}@{}", self.id, self.process_name())
    }
}

/// What is usually so is not written.
fn is_false(value: &bool) -> bool {
    !value
}

/// Is this a claim of a program that knows more than this one?
pub(super) fn is_newer(text: &str) -> bool {
    let claim: Result<serde_json::Value, _> = serde_json::from_str(text);
    let version = claim.ok().and_then(|claim| claim.get("version")?.as_u64());
    version.is_some_and(|version| version > u64::from(VERSION))
}

/// How a claim on disk ends: the CRC-32 of all that would be there without this, in eight
/// hexadecimal digits.
const SUM_BEGINS: &str = ",\"sum\":\"";
const SUM_ENDS: &str = "\"}";

/// A claim's form on disk. One flipped bit in it, anywhere, and it is no claim any more.
pub(super) fn print(claim: &Claim) -> Result<String> {
    let text = serde_json::to_string(claim).context("write a claim")?;
    let sum = crc32fast::hash(text.as_bytes());
    let open = text.strip_suffix('}').unwrap_or(&text);
    Ok(format!("{open}{SUM_BEGINS}{sum:08x}{SUM_ENDS}"))
}

/// Takes the sum away; a claim of an earlier version of this program has none.
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
