//! Reads the account of one owner.

use anyhow::Result;

use super::members::Members;
use super::{Account, Source};
use crate::cgroup::{Group, Version, cpu, cpuacct, pressure};
use crate::cpulist::CpuSet;
use crate::host::Host;

/// The files in which the kernel keeps one owner's account. They stay open between readings.
#[derive(Debug)]
pub struct Meter {
    /// The owner's CPUs.
    pub cpus: CpuSet,
    pub(super) pid: i32,
    pub(super) confines: Option<Group>,
    pub(super) usage: Option<cpuacct::Counter>,
    pub(super) throttled: Option<cpu::Counter>,
    pressure: Option<pressure::Counter>,
    members: Members,
}

/// How much is read of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The CPU time, and its parts in user and in kernel mode.
    Usage,
    /// The CPU time as a whole, throttling and pressure.
    Rates,
    /// All of that, context switches and moves between CPUs, for which each thread is read.
    Everything,
}

impl Meter {
    /// A meter that reads these groups; `None` for a group that is not known.
    pub(super) fn new(
        pid: i32,
        cpus: &CpuSet,
        confines: Option<Group>,
        usage: Option<Group>,
        throttled: Option<Group>,
    ) -> Meter {
        // Version 2 has both in one file, which is read only once.
        let has_all = usage.as_ref().is_some_and(|usage| {
            let same = |other: &Group| other.version() == Version::V2 && other.dir() == usage.dir();
            throttled.as_ref().is_some_and(same)
        });
        Meter {
            cpus: cpus.clone(),
            pid,
            usage: usage.map(cpuacct::Counter::of),
            throttled: throttled
                .filter(|_| !has_all)
                .as_ref()
                .map(cpu::Counter::of),
            pressure: confines.as_ref().map(pressure::Counter::of),
            members: Members::of(pid, confines.clone()),
            confines,
        }
    }

    /// A meter that reads a process alone, without groups.
    pub fn of_process(pid: i32, cpus: &CpuSet) -> Meter {
        Meter::new(pid, cpus, None, None, None)
    }

    /// Is the account complete? It is if its group still exists and no process is in it: nothing is
    /// added any more.
    ///
    /// # Errors
    /// A group cannot be looked at.
    pub fn is_final(&self) -> Result<bool> {
        let Some(usage) = self.usage.as_ref().map(cpuacct::Counter::group) else {
            return Ok(false);
        };
        let of_confines = self.confines.as_ref().map(Group::is_populated);
        let is_empty = !usage.is_populated()? && !of_confines.transpose()?.unwrap_or(false);
        Ok(is_empty && usage.inode()?.is_some())
    }

    /// Does it read the account of a group?
    pub fn has_group(&self) -> bool {
        self.usage.is_some()
    }

    /// Is this the meter of this process, on these CPUs, in this group?
    pub fn is_of(&self, pid: i32, cpus: &CpuSet, group: Option<&str>) -> bool {
        let confines = self.confines.as_ref().map(Group::path);
        (self.pid, &self.cpus, confines) == (pid, cpus, group)
    }

    /// Is there a process in the owner's group besides this one?
    ///
    /// # Errors
    /// A group cannot be looked at.
    pub fn holds_others_than(&self, pid: i32) -> Result<bool> {
        let Some(group) = &self.confines else {
            return Ok(false);
        };
        Ok(group.all_pids()?.iter().any(|other| *other != pid))
    }

    /// Reads the owner's totals; `None` if the owner is gone. `possible` gives the CPUs that the
    /// machine can have.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn account(
        &mut self,
        host: &Host,
        possible: impl FnOnce() -> Option<CpuSet>,
        depth: Depth,
    ) -> Result<Option<Account>> {
        let told = match &mut self.usage {
            Some(counter) if depth == Depth::Rates => counter.total()?,
            Some(counter) => counter.whole()?,
            None => None,
        };
        let (told, source) = match told {
            Some(told) => (told, Source::Group),
            None => {
                let Some(usage) = self.members.usage(host)? else {
                    return Ok(None);
                };
                let told = cpuacct::Readings {
                    usage,
                    ..cpuacct::Readings::default()
                };
                (told, Source::Processes)
            }
        };
        let mut account = Account {
            usage: told.usage,
            source,
            on_its_cpus: time_on(&self.cpus, &told.each_cpu, possible),
            throttled: None,
            waited: None,
            switches: None,
            migrations: None,
        };
        if depth == Depth::Usage {
            return Ok(Some(account));
        }
        account.throttled = match (&mut self.throttled, &told.stat) {
            (Some(counter), _) => counter.throttled()?,
            (None, Some(stat)) => cpu::throttled_in(Version::V2, stat),
            (None, None) => None,
        };
        if let Some(counter) = &mut self.pressure {
            account.waited = counter.waited()?;
        }
        if depth == Depth::Everything {
            // A failure to read `/proc` does not hide what the groups tell.
            let told = self.members.switches(host).unwrap_or_else(|error| {
                log::warn!("the context switches of process {}: {error:#}", self.pid);
                None
            });
            account.switches = told.map(|told| told.switches);
            account.migrations = told.and_then(|told| told.migrations);
        }
        Ok(Some(account))
    }
}

/// The time on `cpus`, of the times on each CPU that the machine can have, in ascending order;
/// `None` if the kernel does not tell them, or for other CPUs.
fn time_on(
    cpus: &CpuSet,
    each_cpu: &[std::time::Duration],
    possible: impl FnOnce() -> Option<CpuSet>,
) -> Option<std::time::Duration> {
    if each_cpu.is_empty() {
        return None;
    }
    let possible = possible().filter(|all| all.len() == each_cpu.len())?;
    let times = possible.iter().zip(each_cpu);
    let times = times.filter(|(cpu, _)| cpus.contains(*cpu));
    Some(times.map(|(_, time)| *time).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_told_of_an_owners_cpus_alone() {
        let each = [1, 20, 300, 4000].map(Duration::from_secs);
        for (possible, own, expected) in [
            (Some("0-3"), "1,3", Some(4020)),
            (Some("0-3"), "7", Some(0)),
            // The kernel leaves out numbers that no CPU has.
            (Some("0-1,8-9"), "8", Some(300)),
            (Some("0-4"), "1", None),
            (None, "1", None),
        ] {
            let possible = possible.map(|list| list.parse().unwrap());
            let told = time_on(&own.parse().unwrap(), &each, || possible.clone());
            assert_eq!(
                told,
                expected.map(Duration::from_secs),
                "{possible:?} {own}"
            );
        }
        assert_eq!(time_on(&"0".parse().unwrap(), &[], || None), None);
    }
}
