//! How owners used their CPUs, and who else used these.
//!
//! A [`Meter`] reads the kernel's account of one owner. A [`Reading`] is what all meters show at
//! one moment, and an [`Interval`] is what happened between two readings. A [`Mark`] is what one
//! meter showed, kept for a later process.

mod interval;
mod machine;
pub(crate) mod mark;
mod members;
mod meter;
pub(crate) mod noise;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use interval::{Interval, Share};
pub use machine::Times;
pub use mark::{Mark, Noise};
pub use meter::{Depth, Meter};

use crate::cgroup::cpuacct::{self, CpuTime};
use crate::cgroup::{Group, Hierarchy, Mounts, Version, cpu, cpuset};
use crate::cpulist::CpuSet;
use crate::files::{self, SteadyFile};
use crate::host::Host;

/// The cgroup hierarchies that keep accounts; `None` for one that is not mounted.
#[derive(Debug)]
pub struct Accounts<'a> {
    host: &'a Host,
    cpuset: Option<Hierarchy>,
    cpuacct: Option<Hierarchy>,
    cpu: Option<Hierarchy>,
    /// The CPUs that the machine can have; read when they are first asked for.
    possible: OnceCell<Option<CpuSet>>,
}

/// The meters of all owners, which are read together, again and again.
#[derive(Debug)]
pub struct Meters<'a> {
    accounts: &'a Accounts<'a>,
    stat: SteadyFile,
    /// One for each owner.
    pub all: Vec<Meter>,
}

/// A figure of an owner's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// The CPU time of a group. If it is missing, the times of processes are added up.
    Usage,
    /// How long a bandwidth limit kept the owner from running.
    Throttling,
    /// How long the owner waited for a CPU.
    Pressure,
}

/// How an owner's CPU time is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel counted it for a group that holds the owner alone.
    Group,
    /// Added up over the processes that exist, to a clock tick each. A process that has ended is no
    /// longer in the sum.
    Processes,
    /// Added up over a command and those of its descendants that were waited for (getrusage(2)).
    Waited,
}

/// What one meter shows: totals since the owner began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Account {
    /// The CPU time.
    pub usage: CpuTime,
    /// How the CPU time is known.
    pub source: Source,
    /// Its part on the owner's own CPUs; `None` if the kernel does not count each CPU by itself, as
    /// in version 2.
    pub on_its_cpus: Option<Duration>,
    /// How long a bandwidth limit kept the owner from running, added up over CPUs; `None` if the
    /// kernel does not say.
    pub throttled: Option<Duration>,
    /// How long at least one of its processes waited for a CPU (pressure stall information,
    /// `some`); `None` if the kernel does not say.
    pub waited: Option<Duration>,
    /// Context switches of its threads since each was first read; `None` if they were not asked
    /// for, or there are too many threads.
    pub switches: Option<u64>,
    /// The threads' moves between CPUs per second, over the last twenty seconds or so; `None` as
    /// for `switches`, and if the kernel does not say.
    pub migrations: Option<f64>,
}

/// What all meters showed at one moment.
#[derive(Debug)]
pub struct Reading {
    at: Instant,
    cpus: BTreeMap<u32, Times>,
    accounts: Vec<Option<Account>>,
}

impl Accounts<'_> {
    /// Finds the hierarchies.
    pub fn of(host: &Host) -> Accounts<'_> {
        let mounts = Mounts::read(host).ok();
        let mounts = mounts.as_ref();
        Accounts {
            host,
            cpuset: mounts.and_then(|mounts| cpuset::hierarchy_among(mounts).ok()),
            cpuacct: mounts.and_then(|mounts| cpuacct::hierarchy(mounts).ok()),
            cpu: mounts.and_then(|mounts| cpu::hierarchy(mounts).ok()),
            possible: OnceCell::new(),
        }
    }

    /// The figures that this machine cannot give, and why.
    pub fn missing(&self) -> Vec<(Figure, String)> {
        let why = |mounted: Result<Hierarchy>| mounted.err().map(|error| format!("{error:#}"));
        let find = |of: fn(&Mounts<'_>) -> Result<Hierarchy>| {
            why(Mounts::read(self.host).and_then(|mounts| of(&mounts)))
        };
        let no_groups = find(cpuset::hierarchy_among);
        let no_usage = no_groups.or_else(|| find(cpuacct::hierarchy));
        let no_limits = find(cpu::hierarchy);
        let has_pressure = self.cpuset.as_ref().is_none_or(|cpuset| {
            let kept = files::metadata_if_there(&self.host.proc_pressure());
            cpuset.version == Version::V1 || matches!(kept, Ok(Some(_)))
        });
        let no_pressure = (!has_pressure).then(|| {
            "the kernel keeps no account of pressure (start it with the parameter psi=1)".to_owned()
        });
        [
            (Figure::Usage, no_usage),
            (Figure::Throttling, no_limits),
            (Figure::Pressure, no_pressure),
        ]
        .into_iter()
        .filter_map(|(figure, why)| Some((figure, why?)))
        .collect()
    }

    /// Finds the account of an owner. `pid` is a process that stands for the owner, and `group` the
    /// path of its claim's group.
    ///
    /// # Errors
    /// A process or group cannot be looked at.
    pub fn meter(&self, pid: i32, cpus: &CpuSet, group: Option<&str>) -> Result<Meter> {
        let confines = match (&self.cpuset, group) {
            (Some(hierarchy), Some(path)) => Some(hierarchy.group(path)?),
            _ => None,
        };
        let own = |hierarchy: &Option<Hierarchy>| match (hierarchy, &confines) {
            (Some(hierarchy), Some(confines)) => self.own_group(hierarchy, confines, pid),
            _ => Ok(None),
        };
        let (usage, throttled) = (own(&self.cpuacct)?, own(&self.cpu)?);
        Ok(Meter::new(pid, cpus, confines, usage, throttled))
    }

    /// Finds the account of an owner that may have no process any more, by the path of its claim's
    /// group: runtimes make groups of the same path in each hierarchy.
    ///
    /// # Errors
    /// The path is of another cgroup namespace.
    pub fn meter_of_group(&self, cpus: &CpuSet, path: &str) -> Result<Meter> {
        let group = |hierarchy: &Option<Hierarchy>| {
            let hierarchy = hierarchy.as_ref();
            hierarchy.map(|of| of.group(path)).transpose()
        };
        let (confines, usage) = (group(&self.cpuset)?, group(&self.cpuacct)?);
        Ok(Meter::new(0, cpus, confines, usage, None))
    }

    /// What each online CPU has done since boot, by number.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read, or is not in the form of proc_stat(5).
    pub fn times(&self) -> Result<BTreeMap<u32, Times>> {
        machine::times(&mut SteadyFile::new(self.host.proc_stat()))
    }

    /// Reads a meter for keeping, with what its CPUs have done if `times` is given. `None` if the
    /// owner is gone.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn mark(
        &self,
        meter: &mut Meter,
        times: Option<&BTreeMap<u32, Times>>,
    ) -> Result<Option<Mark>> {
        let clock = now()?;
        let account = self.account(meter, Depth::Usage)?;
        Ok(account.map(|account| Mark::new(clock, &account, meter, times)))
    }

    /// The mark of a command and its descendants, for which this process has waited. `user` and
    /// `system` are their times in user and kernel mode.
    ///
    /// # Errors
    /// The clock cannot be read.
    pub fn mark_of_waited(
        &self,
        meter: &Meter,
        (user, system): (Duration, Duration),
        times: &BTreeMap<u32, Times>,
    ) -> Result<Mark> {
        let account = Account {
            usage: CpuTime {
                total: user + system,
                user,
                system,
            },
            source: Source::Waited,
            on_its_cpus: None,
            throttled: None,
            waited: None,
            switches: None,
            migrations: None,
        };
        Ok(Mark::new(now()?, &account, meter, Some(times)))
    }

    /// The group of a hierarchy that holds an owner and nobody else; `None` if the owner shares its
    /// group with others.
    fn own_group(
        &self,
        hierarchy: &Hierarchy,
        confines: &Group,
        pid: i32,
    ) -> Result<Option<Group>> {
        if hierarchy.version == Version::V2 && confines.version() == Version::V2 {
            return Ok(Some(confines.clone()));
        }
        let Some(group) = hierarchy.group_of(self.host, pid)? else {
            return Ok(None);
        };
        // Runtimes make groups of the same path in each hierarchy: this one is the owner's.
        if group.path() == confines.path() {
            return Ok(Some(group));
        }
        if group.path() == "/" {
            return Ok(None);
        }
        // Processes come and go between the two lists. Only who is in the group before and after,
        // and not among the owner's processes, is somebody else.
        let before = group.all_pids()?;
        let own = confines.all_pids()?;
        let mut others = before.iter().filter(|pid| !own.contains(pid)).peekable();
        if others.peek().is_some() {
            let after = group.all_pids()?;
            if others.any(|pid| after.contains(pid)) {
                return Ok(None);
            }
        }
        Ok(Some(group))
    }

    /// Puts meters together, to be read at the same moment.
    pub fn together(&self, all: Vec<Meter>) -> Meters<'_> {
        Meters {
            accounts: self,
            stat: SteadyFile::new(self.host.proc_stat()),
            all,
        }
    }

    /// Reads one owner's totals; `None` if it is gone.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn account(&self, meter: &mut Meter, depth: Depth) -> Result<Option<Account>> {
        meter.account(self.host, || self.possible(), depth)
    }

    /// The CPUs that the machine can have (kernel: Documentation/admin-guide/cputopology.rst).
    fn possible(&self) -> Option<CpuSet> {
        let read = || {
            let text = files::read_if_there(&self.host.sys_cpu("possible")).ok()??;
            crate::cpulist::of_kernel(&text).parse().ok()
        };
        self.possible.get_or_init(read).clone()
    }
}

impl Meters<'_> {
    /// Reads all meters. An owner whose files cannot be read is logged, and counts as gone.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read, or is not in the form of proc_stat(5).
    pub fn read(&mut self, depth: Depth) -> Result<Reading> {
        let at = Instant::now();
        let cpus = machine::times(&mut self.stat)?;
        let accounts = self.all.iter_mut().map(|meter| {
            let account = self.accounts.account(meter, depth);
            account.unwrap_or_else(|error| {
                log::warn!("the account of process {}: {error:#}", meter.pid);
                None
            })
        });
        Ok(Reading {
            at,
            accounts: accounts.collect(),
            cpus,
        })
    }
}

/// The least part of a CPU's time that the kernel counts while the CPU is online: some times are
/// counted only by the clock tick that meets them.
const LEAST_COUNTED: f64 = 0.9;
/// The CPU seconds that can be missing beyond that.
const UNCOUNTED: f64 = 0.05;

/// How long some CPUs were online, in CPU seconds: `whole`, the time of all of them, or less if one
/// was offline. `counted` is what the kernel has counted of them, which stands still while a CPU is
/// offline. `used` is what their owner has used, which no tick may have met.
fn time_online(whole: f64, counted: f64, used: f64) -> f64 {
    match counted + used < LEAST_COUNTED * whole - UNCOUNTED {
        true => counted,
        false => whole,
    }
}

/// The time since boot without sleep.
fn now() -> Result<Duration> {
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(clock.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_told_with_the_reason() {
        let cpuset = "31 30 0:27 / /cpuset rw - cgroup cgroup rw,cpuset\n";
        let cpuacct = "32 30 0:28 / /acct rw - cgroup cgroup rw,cpuacct\n";
        let cpu = "33 30 0:29 / /cpu rw - cgroup cgroup rw,cpu\n";
        let two = "34 30 0:30 / /two rw - cgroup2 cgroup2 rw\n";
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        use Figure::{Pressure, Throttling, Usage};
        type Case<'a> = (&'a [&'a str], Option<&'a str>, &'a [(Figure, &'a str)]);
        let cases: [Case<'_>; 6] = [
            (&[cpuset, cpuacct, cpu], None, &[]),
            (&[cpuset, cpu], None, &[(Usage, "hierarchy with cpuacct")]),
            (
                &[cpuset, cpuacct],
                None,
                &[(Throttling, "hierarchy with cpu")],
            ),
            (&[two], Some(psi), &[]),
            (&[two], None, &[(Pressure, "psi=1")]),
            (
                &[],
                None,
                &[(Usage, "with cpuset"), (Throttling, "with cpu")],
            ),
        ];
        for (mounts, pressure, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let put = |file: &str, text: &str| {
                let path = dir.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let crash = files::Durability::Crash;
                files::replace(&path, text.as_bytes(), 0o444, crash).unwrap();
            };
            put("proc/1/mountinfo", &mounts.concat());
            if let Some(pressure) = pressure {
                put("proc/pressure/cpu", pressure);
            }
            let host = Host::new(dir.path());
            let missing = Accounts::of(&host).missing();
            assert_eq!(missing.len(), expected.len(), "{mounts:?}: {missing:?}");
            for ((figure, why), (expected, part)) in missing.iter().zip(expected) {
                assert!(
                    figure == expected && why.contains(part),
                    "{figure:?}: {why}"
                );
            }
        }
    }
}
