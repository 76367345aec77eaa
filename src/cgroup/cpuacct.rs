//! The CPU accounting controller: how much CPU time a group's processes have used (kernel:
//! Documentation/admin-guide/cgroup-v1/cpuacct.rst and cgroup-v2.rst, "CPU Interface Files").

use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use super::{Group, Hierarchy, Mounts, Version, values};
use crate::files::SteadyFile;

/// The CPU time that processes used in a group and in the groups below it since the group was made,
/// including processes that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// User and system time together. The kernel counts in nanoseconds on version 1, in
    /// microseconds on version 2.
    pub total: Duration,
    /// Time outside the kernel. Version 1 counts it in clock ticks, usually a hundredth of a second
    /// each.
    pub user: Duration,
    /// Time inside the kernel, counted like `user`.
    pub system: Duration,
}

/// Reads a group's CPU time again and again, from files that stay open.
#[derive(Debug)]
pub struct Counter {
    group: Group,
    files: Files,
}

#[derive(Debug)]
enum Files {
    V1 {
        each_cpu: SteadyFile,
        total: SteadyFile,
        parts: SteadyFile,
    },
    V2 {
        stat: SteadyFile,
    },
}

/// What one reading of a group's files told.
#[derive(Debug, Default)]
pub struct Readings {
    /// The time on all CPUs together.
    pub usage: CpuTime,
    /// The time on each CPU, indexed by number, for each that the machine can have. Only version 1
    /// tells it; empty on version 2.
    pub each_cpu: Vec<Duration>,
    /// The text of `cpu.stat`, which holds figures of other controllers too; `None` on version 1.
    pub stat: Option<String>,
}

/// The hierarchy of this controller. On version 1 it is often another than the cpuset controller's.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy("cpuacct")
}

impl Counter {
    /// A counter for a group, which need not exist.
    pub fn of(group: Group) -> Counter {
        let file = |name: &str| SteadyFile::new(group.dir().join(name));
        let files = match group.version() {
            Version::V1 => Files::V1 {
                each_cpu: file("cpuacct.usage_percpu"),
                total: file("cpuacct.usage"),
                parts: file("cpuacct.stat"),
            },
            Version::V2 => Files::V2 {
                stat: file("cpu.stat"),
            },
        };
        Counter { files, group }
    }

    /// The group that is counted.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The total CPU time of the group; `None` where the group is gone. On version 2 user and
    /// system time are there too, on version 1 they are 0: [`Counter::whole`] reads them.
    ///
    /// # Errors
    /// A file cannot be read, or is not in the kernel's form.
    pub fn total(&mut self) -> Result<Option<Readings>> {
        match &mut self.files {
            Files::V1 {
                each_cpu, total, ..
            } => {
                // The total is the sum of these, so its file need not be read.
                let each_cpu = nanoseconds("cpuacct.usage_percpu", each_cpu.read()?)?;
                let total = match &each_cpu[..] {
                    [] => nanoseconds("cpuacct.usage", total.read()?)?,
                    all => vec![all.iter().sum()],
                };
                Ok(total.first().map(|total| Readings {
                    usage: CpuTime {
                        total: *total,
                        ..CpuTime::default()
                    },
                    each_cpu,
                    stat: None,
                }))
            }
            Files::V2 { stat } => {
                let Some(text) = stat.read()? else {
                    return Ok(None);
                };
                let micros = |key| {
                    let number = values::number(&text, key);
                    let number = number.with_context(|| format!("read cpu.stat: no {key}"));
                    number.map(Duration::from_micros)
                };
                Ok(Some(Readings {
                    usage: CpuTime {
                        total: micros("usage_usec")?,
                        user: micros("user_usec")?,
                        system: micros("system_usec")?,
                    },
                    each_cpu: Vec::new(),
                    stat: Some(text),
                }))
            }
        }
    }

    /// The same as [`Counter::total`], with user and system time on version 1 too.
    ///
    /// # Errors
    /// As [`Counter::total`].
    pub fn whole(&mut self) -> Result<Option<Readings>> {
        let told = self.total()?;
        let Files::V1 { parts, .. } = &mut self.files else {
            return Ok(told);
        };
        let Some(mut told) = told else {
            return Ok(None);
        };
        let Some(parts) = parts.read()? else {
            return Ok(None);
        };
        let part = |name| ticks(values::number(&parts, name).unwrap_or_default());
        told.usage.user = part("user")?;
        told.usage.system = part("system")?;
        Ok(Some(told))
    }
}

/// Parses numbers of nanoseconds with spaces between them; empty where the file is not there.
fn nanoseconds(name: &str, text: Option<String>) -> Result<Vec<Duration>> {
    let text = text.unwrap_or_default();
    let numbers = text.split_whitespace().map(str::parse);
    let numbers: Vec<u64> = numbers
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {name}: not in the kernel's form"))?;
    Ok(numbers.into_iter().map(Duration::from_nanos).collect())
}

/// The length of `count` clock ticks (sysconf(3), `_SC_CLK_TCK`). The kernel counts in them in
/// `/proc/stat` too (proc_stat(5)).
///
/// # Errors
/// The C library does not tell the length of a tick.
pub fn ticks(count: u64) -> Result<Duration> {
    let a_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100).max(1);
    Ok(Duration::from_secs_f64(count as f64 / a_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};
    use crate::host::Host;
    use std::path::Path;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        replace(&path, text.as_bytes(), 0o444, Durability::Crash).unwrap();
    }

    /// A counter for the group `/a`, on a machine whose mountinfo is `mount`.
    fn counter(root: &Path, mount: &str) -> Counter {
        put(root, "proc/1/mountinfo", mount);
        let host = Host::new(root);
        Counter::of(
            hierarchy(&Mounts::read(&host).unwrap())
                .unwrap()
                .group("/a")
                .unwrap(),
        )
    }

    const V1: &str = "31 30 0:27 / /acct rw - cgroup cgroup rw,cpuacct";
    const V2: &str = "31 30 0:27 / /two rw - cgroup2 cgroup2 rw";

    #[test]
    fn version_1_tells_each_cpu_and_ticks() {
        let dir = tempfile::tempdir().unwrap();
        let read = || counter(dir.path(), V1).whole();
        assert!(read().unwrap().is_none());
        put(dir.path(), "acct/a/cpuacct.stat", "user 150\nsystem 7\n");
        // A group has all of its files or none: this file alone does not make a group.
        assert!(read().unwrap().is_none());
        put(dir.path(), "acct/a/cpuacct.usage", "1600000000\n");
        let told = read().unwrap().unwrap();
        assert_eq!(told.usage.total, Duration::from_millis(1600));
        assert!(told.each_cpu.is_empty());
        let each = "1500000000 0 100000001 \n";
        put(dir.path(), "acct/a/cpuacct.usage_percpu", each);
        let told = read().unwrap().unwrap();
        assert_eq!(told.usage.total, Duration::from_nanos(1_600_000_001));
        assert_eq!(told.usage.user, Duration::from_millis(1500));
        assert_eq!(told.usage.system, Duration::from_millis(70));
        let each = [1_500_000_000, 0, 100_000_001].map(Duration::from_nanos);
        assert_eq!(told.each_cpu, each);
        put(dir.path(), "acct/a/cpuacct.usage_percpu", "1 x\n");
        assert!(read().is_err());
    }

    #[test]
    fn version_2_tells_all_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let read = || counter(dir.path(), V2).whole();
        assert!(read().unwrap().is_none());
        let text = "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_throttled 0\nthrottled_usec 77\n";
        put(dir.path(), "two/a/cpu.stat", text);
        let told = read().unwrap().unwrap();
        assert_eq!(told.usage.total, Duration::from_micros(9));
        assert_eq!(
            (told.each_cpu, told.stat.as_deref()),
            (Vec::new(), Some(text))
        );
        put(dir.path(), "two/a/cpu.stat", "usage_usec 9\n");
        assert!(read().is_err());
    }
}
