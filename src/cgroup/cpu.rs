//! The CPU controller: how long a group was throttled by its bandwidth limit (kernel:
//! Documentation/scheduler/sched-bwc.rst and cgroup-v2.rst, "CPU Interface Files").

use std::time::Duration;

use anyhow::Result;

use super::{Group, Hierarchy, Mounts, Version, values};
use crate::files::SteadyFile;

/// The hierarchy of this controller.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy("cpu")
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
