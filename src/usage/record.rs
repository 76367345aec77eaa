//! One record: an owner that ended, its CPUs, and how it used them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::Sample;
use crate::account::Source;
use crate::claims::{Claim, OwnerKind};

/// The version of records that this program writes, and the newest that it understands.
const VERSION: u32 = 1;

/// How exact the CPU time of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exactness {
    /// The kernel counted it for the owner's group, and it was read when nobody was left in there.
    Exact,
    /// The time of a command and of those descendants that were waited for.
    Waited,
    /// The last sample's time: what the owner used after that is missing.
    Sampled,
    /// Not known: nothing was read of the owner.
    Unknown,
}

/// An owner that ended, its CPUs, and how it used them. Points in time are RFC 3339 texts, and
/// durations are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// The container's id, or `isolate-<pid>`.
    pub id: String,
    /// Its name, as [`crate::names::Names::title`] gives it.
    pub name: Option<String>,
    /// Container or process.
    pub kind: OwnerKind,
    /// The name of its pool.
    pub pool: String,
    /// Did it ask for nothing, and was in the configuration's default pool?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_default: bool,
    /// The directory names of its CPU lists.
    pub lists: Vec<String>,
    /// The number of CPUs in them.
    pub cpus: usize,
    /// When it was given its CPUs.
    pub start: String,
    /// When its CPUs were free again; `None` if a reboot ended it, nobody knows when.
    pub end: Option<String>,
    /// The CPU time that it used; `None` if it is not known.
    pub cpu_seconds: Option<f64>,
    /// Its part in user mode.
    pub user_seconds: Option<f64>,
    /// Its part in kernel mode.
    pub system_seconds: Option<f64>,
    /// The CPU time that others used on its CPUs while these were watched, interrupts not counted;
    /// `None` if they never were.
    pub noise_seconds: Option<f64>,
    /// How long its CPUs were watched.
    pub watched_seconds: Option<f64>,
    /// How exact the CPU time is.
    pub exactness: Exactness,
    /// When the CPU time was read.
    pub read: Option<String>,
    /// What tells the owner from all others: `<boot id> <pid>-<start>`, with the start in clock
    /// ticks since boot.
    pub owner: String,
}

impl Record {
    /// The record of a claim. `end` is in seconds since the epoch, and `sample` is what was last
    /// read of the owner.
    pub fn new(claim: &Claim, end: Option<i64>, sample: Option<&Sample>) -> Record {
        let mark = sample.map(|sample| &sample.mark);
        let noise = sample.map(|sample| sample.noise);
        let noise = noise.filter(|noise| noise.over > 0.0);
        Record {
            version: VERSION,
            id: claim.id.clone(),
            name: claim.names.title(),
            kind: claim.kind,
            pool: claim.pool.clone(),
            by_default: claim.by_default,
            lists: claim.lists.clone(),
            cpus: claim.cpus.len(),
            start: shown(i64::try_from(claim.since).unwrap_or_default()),
            end: end.map(shown),
            cpu_seconds: mark.map(|mark| rounded(mark.total)),
            user_seconds: mark.map(|mark| rounded(mark.user)),
            system_seconds: mark.map(|mark| rounded(mark.system)),
            noise_seconds: noise.map(|noise| rounded(noise.seconds.max(0.0))),
            watched_seconds: noise.map(|noise| rounded(noise.over)),
            exactness: match sample {
                None => Exactness::Unknown,
                Some(sample) if !sample.is_final => Exactness::Sampled,
                Some(sample) if sample.mark.source == Source::Waited => Exactness::Waited,
                Some(_) => Exactness::Exact,
            },
            read: sample.map(|sample| shown(sample.at)),
            owner: format!(
                "{} {}-{}",
                claim.boot_id, claim.owner.pid, claim.owner.start
            ),
        }
    }

    /// The record as a line of the file.
    pub(super) fn line(&self) -> Result<String> {
        Ok(format!("{}\n", serde_json::to_string(self)?))
    }

    /// Parses a line. Unknown fields are ignored; a newer version is refused.
    pub(super) fn parse(line: &str) -> Result<Record> {
        let record: Record = serde_json::from_str(line)?;
        if record.version > VERSION {
            bail!(
                "it is of version {}, and this program knows {VERSION}",
                record.version
            );
        }
        Ok(record)
    }

    /// The time at which it counts, in seconds since the epoch: its end, or else when it was last
    /// read, or else its start.
    pub fn at(&self) -> i64 {
        let known = self.end.as_ref().or(self.read.as_ref());
        seconds_of(known.unwrap_or(&self.start)).unwrap_or_default()
    }

    /// How long it had its CPUs, in CPU seconds; 0 if its end is not known.
    pub fn owned_seconds(&self) -> f64 {
        let end = self.end.as_ref().and_then(|end| seconds_of(end));
        let span = end.zip(seconds_of(&self.start));
        let span = span.map_or(0, |(end, start)| (end - start).max(0));
        span as f64 * self.cpus as f64
    }
}

/// Rounds to a microsecond: a float has more digits than the kernel can know.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn shown(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let time = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    // humantime knows no year after 9999.
    let most = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.min(most)).to_string()
}

/// Converts a record's time to seconds since the epoch; `None` if it is not such a time.
pub fn seconds_of(text: &str) -> Option<i64> {
    let time: SystemTime = humantime::parse_rfc3339_weak(text).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}
