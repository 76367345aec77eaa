//! The CPU controller: how long a group was kept from running by its bandwidth limit (kernel:
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

/// The account of one group, which is read again and again.
#[derive(Debug)]
pub struct Counter {
    version: Version,
    stat: SteadyFile,
}

impl Counter {
    /// That of a group, there or not.
    pub fn of(group: &Group) -> Counter {
        Counter {
            version: group.version(),
            stat: SteadyFile::new(group.dir().join("cpu.stat")),
        }
    }

    /// How long the group's processes were throttled since it was made, added up over CPUs; `None`
    /// where it is gone, or the controller is off there.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn throttled(&mut self) -> Result<Option<Duration>> {
        let text = self.stat.read()?;
        Ok(text.and_then(|text| throttled_in(self.version, &text)))
    }
}

/// The same, where the text of the group's `cpu.stat` is known.
pub fn throttled_in(version: Version, stat: &str) -> Option<Duration> {
    match version {
        Version::V1 => values::number(stat, "throttled_time").map(Duration::from_nanos),
        Version::V2 => values::number(stat, "throttled_usec").map(Duration::from_micros),
    }
}
