//! One record: an owner, what it had, and what it did with that.

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
    /// It is the kernel's account of its group, read when nobody was in it any more.
    Exact,
    /// It is that of the command and those of its descendants that were waited for.
    Waited,
    /// It is what the last sample showed: what came after that is missing.
    Sampled,
    /// Nobody has looked.
    Unknown,
}

/// What an owner that ended had, and what it did with that. Times are RFC 3339 texts, and spans are
/// in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// The container's id, or `isolate-<pid>`.
    pub id: String,
    /// What people call it, as [`crate::names::Names::title`] has it.
    pub name: Option<String>,
    /// Container or process.
    pub kind: OwnerKind,
    /// The pool.
    pub pool: String,
    /// The directory names of its CPU lists.
    pub lists: Vec<String>,
    /// How many CPUs those are.
    pub cpus: usize,
    /// When it was given them.
    pub start: String,
    /// When they were free again; `None` where it ended with a boot, nobody knows when.
    pub end: Option<String>,
    /// The CPU time that it used.
    pub cpu_seconds: Option<f64>,
    /// Outside the kernel.
    pub user_seconds: Option<f64>,
    /// Inside it.
    pub system_seconds: Option<f64>,
    /// The CPU time that others used on its CPUs, interrupts not counted, while those were watched.
    pub noise_seconds: Option<f64>,
    /// How long that was.
    pub watched_seconds: Option<f64>,
    /// How exact the CPU time is.
    pub exactness: Exactness,
    /// When it was read.
    pub read: Option<String>,
    /// The boot, the process and its start, which tell the owner from all others.
    pub owner: String,
}

impl Record {
    /// Of a claim, and the last that was read of its owner. `end` is in seconds since the epoch.
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

    /// A line of the file.
    pub(super) fn line(&self) -> Result<String> {
        Ok(format!("{}\n", serde_json::to_string(self)?))
    }

    /// Reads a line. Fields that are not known are passed over.
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

    /// When it counts: its end, or else the last that is known of it. In seconds since the epoch.
    pub fn at(&self) -> i64 {
        let known = self.end.as_ref().or(self.read.as_ref());
        seconds_of(known.unwrap_or(&self.start)).unwrap_or_default()
    }

    /// How long it had its CPUs, in CPU seconds; none where its end is not known.
    pub fn owned_seconds(&self) -> f64 {
        let end = self.end.as_ref().and_then(|end| seconds_of(end));
        let span = end.zip(seconds_of(&self.start));
        let span = span.map_or(0, |(end, start)| (end - start).max(0));
        span as f64 * self.cpus as f64
    }
}

/// To a microsecond: a float has more digits than the kernel means.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn shown(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let time = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    // The library has no years of five digits.
    let most = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.min(most)).to_string()
}

/// A time of a record, in seconds since the epoch.
pub fn seconds_of(text: &str) -> Option<i64> {
    let time: SystemTime = humantime::parse_rfc3339_weak(text).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}
