//! What owners did with their CPUs, and who else was there.
//!
//! A [`Meter`] knows where the kernel keeps one owner's account; a [`Reading`] is what all meters
//! show at one moment, and [`Interval`] is what happened between two of them. A [`Mark`] is what
//! one meter showed, for who comes later.

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

/// The hierarchies that keep accounts, where they are mounted.
#[derive(Debug)]
pub struct Accounts<'a> {
    host: &'a Host,
    cpuset: Option<Hierarchy>,
    cpuacct: Option<Hierarchy>,
    cpu: Option<Hierarchy>,
    /// The CPUs that the machine can have, once somebody has asked.
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

/// What an account tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// The CPU time of a group. Without it that of processes is added up.
    Usage,
    /// How long a bandwidth limit kept it from running.
    Throttling,
    /// How long it waited for a CPU.
    Pressure,
}

/// How an owner's CPU time is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel's account of a group that holds nobody else.
    Group,
    /// Added up over the processes that are there, to a clock tick each; what ended has left the
    /// sum.
    Processes,
    /// Added up over a command and those of its descendants that were waited for (getrusage(2)).
    Waited,
}

impl Source {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Source::Group => "group",
            Source::Processes => "processes",
            Source::Waited => "waited",
        }
    }
}

/// What one meter shows: totals since the owner began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Account {
    /// The CPU time.
    pub usage: CpuTime,
    /// How that is known.
    pub source: Source,
    /// The part of it that was used on the owner's own CPUs, where the kernel tells for each CPU
    /// (version 1).
    pub on_its_cpus: Option<Duration>,
    /// How long a bandwidth limit kept it from running, added up over CPUs; `None` where the kernel
    /// does not say.
    pub throttled: Option<Duration>,
    /// How long a process of its waited for a CPU (pressure stall information); `None` where the
    /// kernel does not say.
    pub waited: Option<Duration>,
    /// How often its threads that are there gave up a CPU or lost it; only where that was asked
    /// for.
    pub switches: Option<u64>,
    /// How often they moved between CPUs lately, a second, where the kernel says.
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

    /// What cannot be told on this machine, and why.
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

    /// Where the account of an owner is: of a process that stands for it, on these CPUs, in the
    /// group of its claim.
    ///
    /// # Errors
    /// A process or group that cannot be looked at.
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

    /// The same of an owner that may have no process any more, in the group of its claim: runtimes
    /// make groups of the same path in each hierarchy.
    ///
    /// # Errors
    /// A path of another cgroup namespace.
    pub fn meter_of_group(&self, cpus: &CpuSet, path: &str) -> Result<Meter> {
        let group = |hierarchy: &Option<Hierarchy>| {
            let hierarchy = hierarchy.as_ref();
            hierarchy.map(|of| of.group(path)).transpose()
        };
        let (confines, usage) = (group(&self.cpuset)?, group(&self.cpuacct)?);
        Ok(Meter::new(0, cpus, confines, usage, None))
    }

    /// What each CPU that is online has done since the machine started.
    ///
    /// # Errors
    /// The machine's own counters cannot be read.
    pub fn times(&self) -> Result<BTreeMap<u32, Times>> {
        machine::times(&mut SteadyFile::new(self.host.proc_stat()))
    }

    /// What a meter shows now, to be kept; with what its CPUs have done, where `times` tells.
    /// `None` where the owner is gone.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn mark(
        &self,
        meter: &mut Meter,
        times: Option<&BTreeMap<u32, Times>>,
    ) -> Result<Option<Mark>> {
        let clock = now()?;
        let account = self.account(meter, Depth::Usage)?;
        Ok(account.map(|account| Mark::new(clock, &account, meter, times)))
    }

    /// The same of a command and its descendants, which this process has waited for: their times
    /// outside the kernel and inside it.
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

    /// The group of a hierarchy that holds an owner and nobody else; none where it shares its group
    /// there with others.
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
        // Runtimes make groups of the same path in each hierarchy.
        if group.path() == confines.path() {
            return Ok(Some(group));
        }
        if group.path() == "/" {
            return Ok(None);
        }
        // Processes come and go between one list and the other: somebody else is who is in it
        // before and after, and not among the owner's.
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

    /// All meters, to be read together.
    pub fn together(&self, all: Vec<Meter>) -> Meters<'_> {
        Meters {
            accounts: self,
            stat: SteadyFile::new(self.host.proc_stat()),
            all,
        }
    }

    /// One owner's totals; `None` where it is gone.
    ///
    /// # Errors
    /// A file that cannot be read.
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
    /// Reads all meters.
    ///
    /// # Errors
    /// The machine's own counters cannot be read.
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

/// The part of the time that is counted of CPUs that are there all the time, at least, and how many
/// seconds it can be less: some times are counted by the clock tick that meets them.
const LEAST_COUNTED: f64 = 0.9;
const UNCOUNTED: f64 = 0.05;

/// How long CPUs were there within a time, in CPU seconds, where the kernel has counted so much of
/// them and their owner has used so much: while one is offline nothing is counted. What the owner
/// used can be what no tick has met.
fn time_online(whole: f64, counted: f64, used: f64) -> f64 {
    match counted + used < LEAST_COUNTED * whole - UNCOUNTED {
        true => counted,
        false => whole,
    }
}

/// How long the machine has run, sleep left out.
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
