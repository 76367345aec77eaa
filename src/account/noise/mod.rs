//! Who ran on owned CPUs besides their owners: threads of other processes, threads of the kernel,
//! and interrupts.
//!
//! The kernel's own trace tells each change from one thread to another; without one, all threads
//! are looked at in `/proc` again and again.

mod instance;
mod interrupts;
mod people;
mod runs;
mod samples;
pub mod trace;
mod tracefs;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use self::instance::{Instance, Quiet};
use self::interrupts::Table;
use self::people::{People, Who};
use self::runs::{Run, Runs, Thread};
use self::samples::Samples;
use self::trace::{Event, TraceText};
use crate::cgroup::{Hierarchy, cpuset};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::process;

pub use self::interrupts::Interrupts;
pub use self::people::ensure_all_are_shown;
pub use self::tracefs::remove_leftovers;

/// How often a trace is read.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest time that one reading of a trace takes before a signal is looked for.
const LONG: Duration = Duration::from_millis(200);

/// Of owners of the same CPUs with more threads than that all are traced: a filter cannot name so
/// many.
const MOST_QUIET: usize = 48;

/// An owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Its CPUs.
    pub cpus: CpuSet,
    /// The path of the cgroup that tells which processes are its own.
    pub group: Option<String>,
    /// The process that stands for it.
    pub pid: i32,
}

/// How it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// By the kernel's trace, which misses nobody.
    Trace,
    /// By samples, which miss whoever comes and goes between two of them.
    Samples,
}

impl Means {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Means::Trace => "trace",
            Means::Samples => "samples",
        }
    }
}

/// What was measured.
#[derive(Debug)]
pub struct Noise {
    /// How.
    pub means: Means,
    /// How long.
    pub length: Duration,
    /// The CPUs.
    pub cpus: CpuSet,
    /// Threads of processes that are none of the owner's, the longest first.
    pub foreign: Vec<Runner>,
    /// Threads of the kernel.
    pub kernel: Vec<Runner>,
    /// Interrupts by their sources.
    pub interrupts: Vec<Interrupts>,
    /// Soft interrupts by their kinds.
    pub soft_interrupts: Vec<Interrupts>,
    /// Of how many events the kernel had no room for, at least.
    pub lost: u64,
}

/// Threads of the same name and cgroup.
#[derive(Debug, PartialEq, Eq)]
pub struct Runner {
    /// The name: text of others.
    pub name: String,
    /// The cgroup, where it is known.
    pub group: Option<String>,
    /// The first of them, by its number.
    pub tid: i32,
    /// How many they are.
    pub threads: usize,
    /// The CPUs on which they were not to be.
    pub cpus: CpuSet,
    /// How long they ran there.
    pub time: Duration,
    /// How often they came, or were seen there.
    pub times: u64,
}

/// A measurement that goes on.
#[derive(Debug)]
pub struct Watch<'a> {
    host: &'a Host,
    cpus: CpuSet,
    people: People<'a>,
    runs: Runs,
    way: Way<'a>,
    began: Instant,
    counts: [Table; 2],
    /// The owners' threads that the trace leaves out.
    quiet: BTreeSet<i32>,
    lost: u64,
    /// Why there is no trace.
    why: Option<String>,
}

#[derive(Debug)]
enum Way<'a> {
    Trace(Box<Instance>, TraceText),
    Samples(Samples<'a>),
}

impl<'a> Watch<'a> {
    /// Begins to watch CPUs that these owners have. Only where [`ensure_all_are_shown`] agrees does
    /// it see everybody.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn begin(host: &'a Host, cpus: &CpuSet, owners: &[Owned]) -> Result<Watch<'a>> {
        if let Err(error) = process::stay_off(cpus) {
            log::warn!("this cannot stay off the CPUs {cpus}: {error}");
        }
        let hierarchy = cpuset::hierarchy(host).ok();
        let quiet = quiet(host, hierarchy.as_ref(), cpus, owners);
        let stand_ins = owners.iter().filter(|owner| owner.group().is_none());
        let stand_ins = stand_ins.map(|owner| owner.pid).collect();
        let mut people = People::new(host, hierarchy, stand_ins);
        let traced = Instance::make(host, cpus, &quiet);
        let traced = traced.and_then(|instance| instance.trace(true).map(|()| instance));
        let (way, why) = match traced {
            Ok(instance) => {
                // Whoever runs from now on was there, or was made while forks are traced.
                people.look_at_all()?;
                (Way::Trace(Box::new(instance), TraceText::default()), None)
            }
            Err(error) => {
                let samples = Samples::new(host, cpus);
                (Way::Samples(samples), Some(format!("{error:#}")))
            }
        };
        let counts = counts(host)?;
        let (clock, began) = (now()?, Instant::now());
        let mut watch = Watch {
            host,
            cpus: cpus.clone(),
            people,
            runs: Runs::from(clock),
            way,
            began,
            counts,
            lost: 0,
            quiet: quiet.into_iter().flat_map(|quiet| quiet.threads).collect(),
            why,
        };
        watch.go_on()?;
        Ok(watch)
    }

    /// Why there is no trace, where there is none.
    pub fn why_no_trace(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Since when it goes on.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Reads what happened; returns when that is to be done again, at the latest.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn go_on(&mut self) -> Result<Duration> {
        match &mut self.way {
            Way::Trace(..) => {
                self.read_trace(Instant::now() + LONG)?;
                Ok(PAUSE)
            }
            Way::Samples(samples) => {
                samples.look(&mut self.runs, &mut self.people)?;
                Ok(samples.pause)
            }
        }
    }

    fn read_trace(&mut self, until: Instant) -> Result<()> {
        let Way::Trace(instance, text) = &mut self.way else {
            return Ok(());
        };
        let (runs, people, lost, cpus) =
            (&mut self.runs, &mut self.people, &mut self.lost, &self.cpus);
        let (quiet, mut is_outdated) = (&self.quiet, false);
        instance.read(until, |piece| {
            text.read(piece, |event| match event {
                Event::Switch {
                    cpu,
                    at,
                    before,
                    after,
                } => {
                    if cpus.contains(cpu) {
                        runs.switch(cpu, at, (&before, &after), |tid| people.known(tid));
                    }
                }
                Event::Fork { parent, child } => {
                    is_outdated |= quiet.contains(&child);
                    people.fork(parent, child);
                    runs.forget(child);
                }
                Event::Move {
                    tid,
                    hierarchy,
                    group,
                } => {
                    if people.moved(tid, hierarchy, &group) {
                        is_outdated |= quiet.contains(&tid);
                        if let Some(thread) = runs.known(tid) {
                            thread.who = people.known(tid);
                        }
                        // The event tells of a process's first thread alone.
                        for thread in &mut runs.threads {
                            thread.is_looked_at = false;
                        }
                    }
                }
                Event::Lost(count) => *lost = lost.saturating_add(count.unwrap_or(1)),
            });
        })?;
        // Somebody else has the number of an owner's thread, or an owner's thread has left it.
        if is_outdated {
            instance.leave_out_nobody(&self.cpus)?;
            self.quiet.clear();
        }
        // A new process can be in another cgroup than its maker from its first moment on.
        for place in 0..self.runs.threads.len() {
            if self.runs.threads[place].is_looked_at {
                continue;
            }
            self.runs.threads[place].is_looked_at = true;
            let tid = self.runs.threads[place].tid;
            if !self.runs.is_current(place) {
                continue;
            }
            if let Some(who) = self.people.look(tid)? {
                self.runs.threads[place].who = who;
            }
        }
        Ok(())
    }

    /// Ends it; only these CPUs count, and `owners` are those that have had any of them meanwhile.
    ///
    /// # Errors
    /// It cannot be read, or what was made for it cannot be removed.
    pub fn end(mut self, cpus: &CpuSet, owners: &[Owned]) -> Result<Noise> {
        let (clock, length) = (now()?, self.began.elapsed());
        // Before the trace ends, which interrupts these CPUs.
        let later = counts(self.host)?;
        if let Way::Trace(instance, _) = &self.way {
            instance.trace(false)?;
        } else {
            self.go_on()?;
        }
        self.read_trace(Instant::now() + Duration::from_secs(3600))?;
        let means = match self.way {
            Way::Trace(instance, text) => {
                if !text.is_whole() {
                    self.lost = self.lost.saturating_add(1);
                }
                instance.remove()?;
                Means::Trace
            }
            Way::Samples(_) => Means::Samples,
        };
        if means == Means::Trace {
            // Whoever had a CPU all the time never came to it.
            let silent: CpuSet = self.runs.silent(self.cpus.iter()).into_iter().collect();
            let mut there = Runs::default();
            Samples::new(self.host, &silent).look(&mut there, &mut self.people)?;
            for thread in there.threads {
                for cpu in thread.runs.into_keys() {
                    let (tid, name) = (thread.tid, thread.name.clone());
                    let who = thread.who.clone();
                    let ran = trace::Ran { tid, name };
                    self.runs.add(&ran, cpu, length, || who);
                }
            }
        }
        self.runs.end(clock);
        let own = std::process::id() as i32;
        let threads = self.runs.threads.iter().filter(|one| one.tid != own);
        let (kernel, users): (Vec<_>, Vec<_>) =
            threads.partition(|thread| thread.who == Who::Kernel);
        let [interrupts, soft_interrupts] =
            [0, 1].map(|place| later[place].since(&self.counts[place], cpus));
        let is_owners = |thread: &Thread, cpu: u32| {
            let mut here = owners.iter().filter(|owner| owner.cpus.contains(cpu));
            here.any(|owner| owner.has(&thread.who))
        };
        Ok(Noise {
            means,
            length,
            foreign: sum(users, |thread, cpu| {
                cpus.contains(cpu) && !is_owners(thread, cpu)
            }),
            kernel: sum(kernel, |_, cpu| cpus.contains(cpu)),
            interrupts,
            soft_interrupts,
            lost: self.lost,
            cpus: cpus.clone(),
        })
    }
}

impl Owned {
    /// Its cgroup, unless that is everybody's.
    fn group(&self) -> Option<&str> {
        let group = self.group.as_deref()?.trim_end_matches('/');
        (!group.is_empty()).then_some(group)
    }

    fn has(&self, who: &Who) -> bool {
        let Who::User { group, kin } = who else {
            return false;
        };
        match (self.group(), group) {
            (Some(own), Some(group)) => {
                let below = group.strip_prefix(own);
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            }
            _ => *kin == Some(self.pid),
        }
    }
}

/// The threads of owners, by their CPUs.
fn quiet(
    host: &Host,
    hierarchy: Option<&Hierarchy>,
    cpus: &CpuSet,
    owners: &[Owned],
) -> Vec<Quiet> {
    let mut all: BTreeMap<String, Quiet> = BTreeMap::new();
    for owner in owners {
        let cpus = owner.cpus.intersection(cpus);
        if cpus.is_empty() {
            continue;
        }
        let of_cpus = all.entry(cpus.to_string()).or_insert_with(|| Quiet {
            cpus,
            threads: Vec::new(),
        });
        // What cannot be told is traced.
        let pids = match (hierarchy, owner.group()) {
            (Some(hierarchy), Some(group)) => hierarchy
                .group(group)
                .and_then(|group| group.all_pids())
                .unwrap_or_default(),
            _ => vec![owner.pid],
        };
        let threads = pids.iter().map(|pid| people::threads(host, *pid));
        let threads = threads.flat_map(Result::unwrap_or_default);
        of_cpus.threads.extend(threads);
    }
    let quiet = all.into_values().map(|mut quiet| {
        if quiet.threads.len() > MOST_QUIET {
            quiet.threads.clear();
        }
        quiet
    });
    quiet.collect()
}

/// Sums threads up by name and cgroup, as far as they are where they count.
fn sum<'a>(
    threads: impl IntoIterator<Item = &'a Thread>,
    counts: impl Fn(&Thread, u32) -> bool,
) -> Vec<Runner> {
    let mut all: BTreeMap<(&str, Option<&str>), Runner> = BTreeMap::new();
    for thread in threads {
        let runs = thread.runs.iter().filter(|(cpu, _)| counts(thread, **cpu));
        let runs: Vec<(&u32, &Run)> = runs.collect();
        if runs.is_empty() {
            continue;
        }
        let group = match &thread.who {
            Who::User { group, .. } => group.as_deref(),
            Who::Kernel | Who::Unknown => None,
        };
        let runner = all.entry((&thread.name, group)).or_insert_with(|| Runner {
            name: thread.name.clone(),
            group: group.map(str::to_owned),
            tid: thread.tid,
            threads: 0,
            cpus: CpuSet::new(),
            time: Duration::ZERO,
            times: 0,
        });
        runner.threads += 1;
        for (cpu, run) in runs {
            runner.cpus.insert(*cpu);
            runner.time += run.time;
            runner.times += run.times;
        }
    }
    let mut all: Vec<Runner> = all.into_values().collect();
    all.sort_by_key(|runner| std::cmp::Reverse(runner.time));
    all
}

/// The counts of interrupts and of soft interrupts.
fn counts(host: &Host) -> Result<[Table; 2]> {
    let [hard, soft] = host.interrupt_counts();
    let read = |path| -> Result<Table> {
        let text = files::read_if_there(path)?;
        Ok(Table::parse(&text.unwrap_or_default()))
    };
    Ok([read(&hard)?, read(&soft)?])
}

/// The clock of the trace.
fn now() -> Result<Duration> {
    let clock = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(clock.into())
}
