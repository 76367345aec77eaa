//! Reads what each CPU of the machine did, for everybody (proc_stat(5)).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup::cpuacct::ticks;
use crate::files::SteadyFile;

/// Totals of one CPU since boot. The kernel reports them in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Idle time, including that in which a process waited for a disk (`iowait`).
    pub idle: Duration,
    /// Hardware interrupts. A kernel without `CONFIG_IRQ_TIME_ACCOUNTING` counts only those that a
    /// clock tick meets.
    pub irq: Duration,
    /// Software interrupts, counted likewise.
    pub softirq: Duration,
    /// The time in which a hypervisor ran somebody else.
    pub steal: Duration,
    /// All of these and the time in which processes ran. It stands still while the CPU is offline.
    pub counted: Duration,
}

/// How many fields of a CPU's line don't overlap: the later ones, the time of guests, are contained
/// in the first two.
const FIELDS: usize = 8;

/// Reads the counters of each online CPU, by number.
pub(super) fn times(stat: &mut SteadyFile) -> Result<BTreeMap<u32, Times>> {
    // Read to its end, because another file system may stand in for the kernel's, such as lxcfs.
    let text = stat.read_list()?.context("there is no /proc/stat")?;
    // The CPUs' lines come first. The interrupts' line after them can be long.
    let lines = text.lines().take_while(|line| line.starts_with("cpu"));
    let lines = lines.filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
    let mut all = BTreeMap::new();
    for (number, fields) in lines.filter(|(number, _)| !number.is_empty()) {
        let read = || -> Option<(u32, Times)> {
            let fields: Vec<u64> = fields
                .split_whitespace()
                .map(|field| field.parse().ok())
                .collect::<Option<_>>()?;
            let field = |index: usize| ticks(fields.get(index).copied().unwrap_or_default()).ok();
            let counted = fields
                .iter()
                .take(FIELDS)
                .try_fold(0u64, |sum, field| sum.checked_add(*field));
            let times = Times {
                idle: field(3)? + field(4)?,
                irq: field(5)?,
                softirq: field(6)?,
                steal: field(7)?,
                counted: ticks(counted?).ok()?,
            };
            Some((number.parse().ok()?, times))
        };
        let (number, times) = read().context("read /proc/stat: not in the form of proc_stat(5)")?;
        all.insert(number, times);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;

    #[test]
    fn reads_the_lines_of_cpus_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let put = |text: &str| {
            files::replace(&path, text.as_bytes(), 0o444, files::Durability::Crash).unwrap();
        };
        let times = || times(&mut SteadyFile::new(path.clone()));
        put(
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 50 1000 20 3 4 5 0 0\ncpu7 1 2 3 4\n\
             intr 77 0 1\nctxt 5\n",
        );
        let all = times().unwrap();
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [0, 7]);
        let hundredths = |count: u64| Duration::from_millis(10 * count);
        assert_eq!(all[&0].idle, hundredths(1020));
        assert_eq!(all[&0].softirq, hundredths(4));
        assert_eq!(all[&0].steal, hundredths(5));
        assert_eq!(all[&0].counted, hundredths(1182));
        // Older kernels have fewer columns.
        assert_eq!(all[&7].irq, Duration::ZERO);
        put("cpu0 1 x 3 4\n");
        assert!(times().is_err());
    }
}
