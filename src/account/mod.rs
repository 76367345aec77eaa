//! What owners did with their CPUs, and who else was there.
//!
//! A [`Meter`] knows where the kernel keeps one owner's account; a [`Reading`] is what all meters
//! show at one moment, and [`Interval`] is what happened between two of them. A [`Mark`] is what
//! one meter showed, for who comes later.

mod interval;
mod machine;
mod mark;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use interval::{Interval, Share};
pub use machine::Times;
pub use mark::{Mark, Noise, OfCpus};

use crate::cgroup::cpuacct::{self, Usage};
use crate::cgroup::{Group, Hierarchy, Version, cpu, cpuset, pressure};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::process::{self, Switches};

/// The hierarchies that keep accounts, where they are mounted.
#[derive(Debug)]
pub struct Accounts<'a> {
    host: &'a Host,
    cpuset: Option<Hierarchy>,
    cpuacct: Option<Hierarchy>,
    cpu: Option<Hierarchy>,
}

/// Where the account of one owner is.
#[derive(Debug)]
pub struct Meter {
    /// Its CPUs.
    pub cpus: CpuSet,
    pid: i32,
    confines: Option<Group>,
    usage: Option<Group>,
    throttled: Option<Group>,
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
    pub usage: Usage,
    /// How that is known.
    pub source: Source,
    /// How long a bandwidth limit kept it from running, added up over CPUs; `None` where the kernel
    /// does not say.
    pub throttled: Option<Duration>,
    /// How long a process of its waited for a CPU (pressure stall information); `None` where the
    /// kernel does not say.
    pub waited: Option<Duration>,
    /// How often its threads gave up a CPU or lost it, and moved between CPUs; only where that was
    /// asked for.
    pub switches: Option<Switches>,
}

/// What all meters showed at one moment.
#[derive(Debug)]
pub struct Reading {
    at: Instant,
    cpus: BTreeMap<u32, Times>,
    accounts: Vec<Option<Account>>,
}

impl Meter {
    /// Is the group that it reads the account of still there, and is nobody in it? Then nothing is
    /// added to that any more.
    ///
    /// # Errors
    /// A group that cannot be looked at.
    pub fn is_final(&self) -> Result<bool> {
        let Some(usage) = &self.usage else {
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

    /// Is any other process in the owner's group than this one?
    ///
    /// # Errors
    /// A group that cannot be looked at.
    pub fn holds_others_than(&self, pid: i32) -> Result<bool> {
        let Some(group) = &self.confines else {
            return Ok(false);
        };
        Ok(group.all_pids()?.iter().any(|other| *other != pid))
    }

    /// One that knows of a process alone.
    pub fn of_process(pid: i32, cpus: &CpuSet) -> Meter {
        Meter {
            cpus: cpus.clone(),
            pid,
            confines: None,
            usage: None,
            throttled: None,
        }
    }
}

impl Accounts<'_> {
    /// Finds the hierarchies.
    pub fn of(host: &Host) -> Accounts<'_> {
        Accounts {
            host,
            cpuset: cpuset::hierarchy(host).ok(),
            cpuacct: cpuacct::hierarchy(host).ok(),
            cpu: cpu::hierarchy(host).ok(),
        }
    }

    /// What cannot be told on this machine, and why: a sentence each.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.cpuacct.is_none() {
            missing.push(
                "no CPU accounting is mounted: CPU time is added up over processes, and what ended has left the sum (mount cgroup2, or cgroup with the option cpuacct)"
                    .to_owned(),
            );
        }
        if self.cpu.is_none() {
            missing.push(
                "no CPU controller is mounted: throttling is not known (mount cgroup2, or cgroup with the option cpu)"
                    .to_owned(),
            );
        }
        missing
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
        Ok(Meter {
            cpus: cpus.clone(),
            pid,
            usage: own(&self.cpuacct)?,
            throttled: own(&self.cpu)?,
            confines,
        })
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
        Ok(Meter {
            cpus: cpus.clone(),
            pid: 0,
            confines: group(&self.cpuset)?,
            usage: group(&self.cpuacct)?,
            throttled: None,
        })
    }

    /// What each CPU that is online has done since the machine started.
    ///
    /// # Errors
    /// The machine's own counters cannot be read.
    pub fn times(&self) -> Result<BTreeMap<u32, Times>> {
        machine::times(self.host)
    }

    /// What a meter shows now, to be kept; with what its CPUs have done, where `times` tells.
    /// `None` where the owner is gone.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn mark(
        &self,
        meter: &Meter,
        times: Option<&BTreeMap<u32, Times>>,
    ) -> Result<Option<Mark>> {
        let clock = now()?;
        let account = self.account(meter, false)?;
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
            usage: Usage {
                total: user + system,
                user,
                system,
            },
            source: Source::Waited,
            throttled: None,
            waited: None,
            switches: None,
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
        let own = confines.all_pids()?;
        let others = group.all_pids()?;
        Ok(others.iter().all(|pid| own.contains(pid)).then_some(group))
    }

    /// Reads all meters; of threads only what is asked for, for there can be thousands of them.
    ///
    /// # Errors
    /// The machine's own counters cannot be read.
    pub fn read(&self, meters: &[Meter], with_switches: bool) -> Result<Reading> {
        let at = Instant::now();
        let cpus = machine::times(self.host)?;
        let accounts = meters.iter().map(|meter| {
            let account = self.account(meter, with_switches);
            account.unwrap_or_else(|error| {
                log::info!("the account of process {}: {error:#}", meter.pid);
                None
            })
        });
        Ok(Reading {
            at,
            accounts: accounts.collect(),
            cpus,
        })
    }

    /// One owner's totals; `None` where it is gone.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn account(&self, meter: &Meter, with_switches: bool) -> Result<Option<Account>> {
        let of_group = match &meter.usage {
            Some(group) => cpuacct::usage(group)?.map(|usage| (usage, Source::Group)),
            None => None,
        };
        let pids = || match &meter.confines {
            Some(group) => group.all_pids(),
            None => Ok(vec![meter.pid]),
        };
        let (usage, source) = match of_group {
            Some(known) => known,
            None => match self.sum_over(&pids()?)? {
                Some(usage) => (usage, Source::Processes),
                None => return Ok(None),
            },
        };
        Ok(Some(Account {
            usage,
            source,
            throttled: match &meter.throttled {
                Some(group) => cpu::throttled(group)?,
                None => None,
            },
            waited: match &meter.confines {
                Some(group) => pressure::cpu(group)?,
                None => None,
            },
            switches: match with_switches {
                true => Some(self.switches_of(&pids()?)?),
                false => None,
            },
        }))
    }

    fn sum_over(&self, pids: &[i32]) -> Result<Option<Usage>> {
        let mut sum: Option<Usage> = None;
        for pid in pids {
            let Some((user, system)) = process::cpu_ticks(self.host, *pid)? else {
                continue;
            };
            let (user, system) = (cpuacct::ticks(user)?, cpuacct::ticks(system)?);
            let before = sum.unwrap_or_default();
            sum = Some(Usage {
                total: before.total + user + system,
                user: before.user + user,
                system: before.system + system,
            });
        }
        Ok(sum)
    }

    fn switches_of(&self, pids: &[i32]) -> Result<Switches> {
        let mut sum = Switches::default();
        for pid in pids {
            let of_process = process::switches(self.host, *pid)?;
            sum.switches += of_process.switches;
            sum.migrations = match (sum.migrations, of_process.migrations) {
                (Some(one), Some(other)) => Some(one + other),
                (one, other) => one.or(other),
            };
        }
        Ok(sum)
    }
}

/// How long the machine has run, sleep left out.
fn now() -> Result<Duration> {
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(clock.into())
}
