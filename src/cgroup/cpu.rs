//! The CPU controller: how long a group was throttled by its bandwidth limit (kernel:
//! Documentation/scheduler/sched-bwc.rst and cgroup-v2.rst, "CPU Interface Files").

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Group, Hierarchy, Mounts, Version, values};
use crate::files::{self, SteadyFile};

/// The hierarchy of this controller.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy("cpu")
}

/// The file of a group's bandwidth limit.
pub fn quota_file(group: &Group) -> PathBuf {
    group.dir().join(match group.version() {
        Version::V1 => "cpu.cfs_quota_us",
        Version::V2 => "cpu.max",
    })
}

/// What to write in place of a text of that file, so that there is no limit; `None` where there is
/// none already.
pub fn without_quota(text: &str) -> Option<String> {
    match text.split_once(' ') {
        Some(("max", _)) => None,
        Some((_, period)) => Some(format!("max {period}")),
        None => (text.parse::<u64>().is_ok()).then(|| "-1".to_owned()),
    }
}

/// The groups whose limit is a container's own: its group, and above that the scope that crun makes
/// for nothing else on version 2, and gives the same limit.
///
/// # Errors
/// The scope cannot be looked at.
pub fn own_groups(group: &Group) -> Result<Vec<Group>> {
    let mut own = vec![group.clone()];
    if let Some(scope) = group.parent().filter(|_| group.version() == Version::V2) {
        let is_crun = scope.path().ends_with(".scope") && scope.pids()?.is_empty();
        if is_crun && scope.children()?.len() == 1 {
            own.push(scope);
        }
    }
    Ok(own)
}

/// The limit of a group above this one, with its file, where there is one.
///
/// # Errors
/// It cannot be read.
pub fn quota_above(group: &Group) -> Result<Option<(PathBuf, String)>> {
    let mut next = group.parent();
    while let Some(above) = next {
        let path = quota_file(&above);
        if let Some(text) = files::read_record_if_there(&path)? {
            let text = text.trim();
            if without_quota(text).is_some() {
                return Ok(Some((path, text.to_owned())));
            }
        }
        next = above.parent();
    }
    Ok(None)
}

/// Reads a group's throttled time again and again, from a file that stays open.
#[derive(Debug)]
pub struct Counter {
    version: Version,
    stat: SteadyFile,
}

impl Counter {
    /// A counter for a group, which need not exist.
    pub fn of(group: &Group) -> Counter {
        Counter {
            version: group.version(),
            stat: SteadyFile::new(group.dir().join("cpu.stat")),
        }
    }

    /// How long the group's processes were throttled since the group was made, added up over CPUs;
    /// `None` where the group is gone, or the controller is not enabled for it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn throttled(&mut self) -> Result<Option<Duration>> {
        let text = self.stat.read()?;
        Ok(text.and_then(|text| throttled_in(self.version, &text)))
    }
}

/// The throttled time in the text of a group's `cpu.stat`.
pub fn throttled_in(version: Version, stat: &str) -> Option<Duration> {
    match version {
        Version::V1 => values::number(stat, "throttled_time").map(Duration::from_nanos),
        Version::V2 => values::number(stat, "throttled_usec").map(Duration::from_micros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lifted_in_the_words_of_its_version() {
        for (text, lifted) in [
            ("150000 100000", Some("max 100000")),
            ("max 100000", None),
            ("150000", Some("-1")),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(without_quota(text).as_deref(), lifted, "{text}");
        }
    }
}
