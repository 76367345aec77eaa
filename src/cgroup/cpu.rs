//! The CPU controller: how long a group was kept from running by its bandwidth limit (kernel:
//! Documentation/scheduler/sched-bwc.rst and cgroup-v2.rst, "CPU Interface Files").

use std::time::Duration;

use anyhow::Result;

use super::{Group, Hierarchy, Version, values};
use crate::files;
use crate::host::Host;

/// The hierarchy of this controller.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(host: &Host) -> Result<Hierarchy> {
    Hierarchy::of(host, "cpu")
}

/// How long a group's processes were throttled since it was made, added up over CPUs; `None` where
/// it is gone, or the controller is off there.
///
/// # Errors
/// A file that cannot be read.
pub fn throttled(group: &Group) -> Result<Option<Duration>> {
    let text = files::read_if_there(&group.dir().join("cpu.stat"))?.unwrap_or_default();
    Ok(match group.version() {
        Version::V1 => values::number(&text, "throttled_time").map(Duration::from_nanos),
        Version::V2 => values::number(&text, "throttled_usec").map(Duration::from_micros),
    })
}
