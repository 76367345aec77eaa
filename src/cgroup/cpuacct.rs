//! The CPU accounting controller: how much CPU time a group's processes have used (kernel:
//! Documentation/admin-guide/cgroup-v1/cpuacct.rst and cgroup-v2.rst, "CPU Interface Files").

use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use super::{Group, Hierarchy, Version, values};
use crate::files;
use crate::host::Host;

/// The CPU time of all processes that are or were in a group, and in those below it, since the
/// group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In all; the kernel counts nanoseconds (version 1) or microseconds.
    pub total: Duration,
    /// Outside the kernel. On version 1 in clock ticks, a hundredth of a second each.
    pub user: Duration,
    /// Inside it, the same.
    pub system: Duration,
}

/// The hierarchy that keeps this account: on version 1 often another than that of cpusets.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(host: &Host) -> Result<Hierarchy> {
    Hierarchy::of(host, "cpuacct")
}

/// What a group has used; `None` where it is gone.
///
/// # Errors
/// Files that cannot be read, or are not in the kernel's form.
pub fn usage(group: &Group) -> Result<Option<Usage>> {
    match group.version() {
        Version::V1 => {
            let total = files::read_if_there(&group.dir().join("cpuacct.usage"))?;
            let parts = files::read_if_there(&group.dir().join("cpuacct.stat"))?;
            let (Some(total), Some(parts)) = (total, parts) else {
                return Ok(None);
            };
            let total = total.trim().parse().map(Duration::from_nanos);
            Ok(Some(Usage {
                total: total.with_context(|| format!("read cpuacct.usage of {}", group.path()))?,
                user: ticks(values::number(&parts, "user").unwrap_or_default())?,
                system: ticks(values::number(&parts, "system").unwrap_or_default())?,
            }))
        }
        Version::V2 => {
            let Some(text) = files::read_if_there(&group.dir().join("cpu.stat"))? else {
                return Ok(None);
            };
            let micros = |key| {
                let number = values::number(&text, key);
                let number = number.with_context(|| format!("read cpu.stat: no {key}"));
                number.map(Duration::from_micros)
            };
            Ok(Some(Usage {
                total: micros("usage_usec")?,
                user: micros("user_usec")?,
                system: micros("system_usec")?,
            }))
        }
    }
}

/// So many clock ticks (sysconf(3), `_SC_CLK_TCK`), in which the kernel also counts in `/proc/stat`
/// (proc_stat(5)).
///
/// # Errors
/// The C library does not say how long one is.
pub fn ticks(count: u64) -> Result<Duration> {
    let a_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100).max(1);
    Ok(Duration::from_secs_f64(count as f64 / a_second as f64))
}
