//! The CPU accounting controller: how much CPU time a group's processes have used (kernel:
//! Documentation/admin-guide/cgroup-v1/cpuacct.rst and cgroup-v2.rst, "CPU Interface Files").

use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use super::{Group, Hierarchy, Mounts, Version, values};
use crate::files::SteadyFile;

/// The CPU time of all processes that are or were in a group, and in those below it, since the
/// group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In all; the kernel counts nanoseconds (version 1) or microseconds.
    pub total: Duration,
    /// Outside the kernel. On version 1 in clock ticks, a hundredth of a second each.
    pub user: Duration,
    /// Inside it, the same.
    pub system: Duration,
}

/// The account of one group, which is read again and again.
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

/// What a group has used, as its files tell.
#[derive(Debug, Default)]
pub struct Readings {
    /// In all.
    pub usage: CpuTime,
    /// On each CPU that the machine can have, by number: version 1 alone tells; elsewhere empty.
    pub each_cpu: Vec<Duration>,
    /// Version 2: the text of `cpu.stat`, where other controllers' figures are as well.
    pub stat: Option<String>,
}

/// The hierarchy that keeps this account: on version 1 often another than that of cpusets.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy("cpuacct")
}

impl Counter {
    /// That of a group, there or not.
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

    /// Whose it is.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// What the group has used in all; `None` where it is gone. Version 2 tells the parts as well.
    ///
    /// # Errors
    /// Files that cannot be read, or are not in the kernel's form.
    pub fn total(&mut self) -> Result<Option<Readings>> {
        match &mut self.files {
            Files::V1 {
                each_cpu, total, ..
            } => {
                // The total is the sum of these.
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

    /// The same with the times outside and inside the kernel.
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

/// Numbers of nanoseconds with spaces between them; none of a file that is not there.
fn nanoseconds(name: &str, text: Option<String>) -> Result<Vec<Duration>> {
    let text = text.unwrap_or_default();
    let numbers = text.split_whitespace().map(str::parse);
    let numbers: Vec<u64> = numbers
        .collect::<Result<_, _>>()
        .with_context(|| format!("read {name}: not in the kernel's form"))?;
    Ok(numbers.into_iter().map(Duration::from_nanos).collect())
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

    /// The counter of the group `/a` on a machine that mounts this.
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
        // Its files come and go together: this one alone tells of nothing.
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
