//! Who is on which CPU, by looking again and again at all threads in `/proc`: for machines and
//! users without a trace. A thread that comes and goes between two looks is not seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::people::{self, People, Who};
use super::runs::Runs;
use super::trace::Ran;
use crate::cgroup::cpuacct::ticks;
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::process;

/// How often all threads are looked at, at most.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause lasts so many times as long as a look took: we are not to be the noise.
const LEAST_REST: u32 = 4;

/// All threads, looked at again and again.
#[derive(Debug)]
pub(super) struct Samples<'a> {
    host: &'a Host,
    cpus: CpuSet,
    threads: HashMap<i32, Look>,
    looked: Option<Instant>,
    /// How many looks there were.
    pub(super) looks: u64,
    pub(super) pause: Duration,
}

/// What a look at a thread told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    start: u64,
    cpu: u32,
    /// The time that it has run, and whether that is exact.
    ran: (Duration, Exactness),
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exactness {
    /// `schedstat` (kernel: Documentation/scheduler/sched-stats.rst).
    Nanoseconds,
    /// Clock ticks.
    Ticks,
}

impl<'a> Samples<'a> {
    pub(super) fn new(host: &'a Host, cpus: &CpuSet) -> Samples<'a> {
        Samples {
            host,
            cpus: cpus.clone(),
            threads: HashMap::new(),
            looked: None,
            looks: 0,
            pause: PAUSE,
        }
    }

    /// Looks at all threads, and counts those that had a CPU since the last look.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub(super) fn look(&mut self, runs: &mut Runs, people: &mut People<'_>) -> Result<()> {
        let began = Instant::now();
        let since = self.looked.map(|looked| began.duration_since(looked));
        self.looked = Some(began);
        self.looks += 1;
        for pid in people::processes(self.host)? {
            for tid in people::threads(self.host, pid)? {
                self.look_at((pid, tid), since, runs, people)?;
            }
        }
        let number = self.looks;
        self.threads.retain(|_, look| look.number == number);
        self.pause = PAUSE.max(began.elapsed() * LEAST_REST);
        Ok(())
    }

    fn look_at(
        &mut self,
        (pid, tid): (i32, i32),
        since: Option<Duration>,
        runs: &mut Runs,
        people: &mut People<'_>,
    ) -> Result<()> {
        let file = |name: &str| self.host.proc_pid(pid, &format!("task/{tid}/{name}"));
        let stat = files::read_record_if_there(&file("stat"))?;
        let Some(seen) = stat.and_then(|stat| process::thread_in(&stat)) else {
            return Ok(());
        };
        let is_here = self.cpus.contains(seen.cpu);
        let exact = match is_here {
            true => files::read_record_if_there(&file("schedstat"))?,
            false => None,
        };
        let exact = exact.and_then(|text| text.split(' ').next()?.parse().ok());
        let ran = match exact {
            Some(nanoseconds) => (Duration::from_nanos(nanoseconds), Exactness::Nanoseconds),
            None => (ticks(seen.ticks)?, Exactness::Ticks),
        };
        let now = Look {
            start: seen.start,
            cpu: seen.cpu,
            ran,
            number: self.looks,
        };
        let before = self.threads.insert(tid, now);
        let before = before.filter(|before| before.start == now.start);
        if before.is_none() {
            runs.forget(tid);
        }
        if let Some(time) = time_here(before, now, since, seen.is_running).filter(|_| is_here) {
            let who = people.look(tid)?;
            let name = seen.name;
            runs.add(&Ran { tid, name }, seen.cpu, time, || {
                who.unwrap_or(Who::Unknown)
            });
        }
        Ok(())
    }
}

/// How long a thread has had the CPU that it is on now, between two looks; `None` where it had not.
fn time_here(
    before: Option<Look>,
    now: Look,
    since: Option<Duration>,
    is_running: bool,
) -> Option<Duration> {
    let Some(since) = since else {
        // The first look says who is there.
        return is_running.then_some(Duration::ZERO);
    };
    match before {
        Some(before) if before.ran.1 == now.ran.1 => {
            let time = now.ran.0.saturating_sub(before.ran.0);
            let has_come = before.cpu != now.cpu;
            (is_running || has_come || !time.is_zero()).then(|| time.min(since))
        }
        // It has come from another CPU, where only its ticks were read.
        Some(_) => Some(Duration::ZERO),
        // It is new, and has had no other CPU that is known of.
        None => Some(now.ran.0.min(since)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Durability;

    fn put(root: &std::path::Path, tid: i32, stat: (&str, char, u32), ran: u64, start: u64) {
        let (name, state, cpu) = stat;
        let home = root.join(format!("proc/7/task/{tid}"));
        std::fs::create_dir_all(&home).unwrap();
        let stat = format!(
            "{tid} ({name}) {state} 1 2 3 4 5 0 7 8 9 10 1 2 13 14 15 16 5 0 {start} 0 0 0 0 0 0 \
             0 0 0 0 0 0 0 0 0 17 {cpu} 0 0\n"
        );
        for (file, text) in [("stat", stat), ("schedstat", format!("{ran} 5 1\n"))] {
            crate::files::replace(&home.join(file), text.as_bytes(), 0o444, Durability::Crash)
                .unwrap();
        }
        let process = root.join(format!("proc/{tid}"));
        std::fs::create_dir_all(&process).unwrap();
        let text = std::fs::read(home.join("stat")).unwrap();
        crate::files::replace(&process.join("stat"), &text, 0o444, Durability::Crash).unwrap();
    }

    #[test]
    fn who_ran_on_the_cpus_is_seen_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (root, host) = (dir.path(), Host::new(dir.path()));
        let mut people = People::new(&host, None, Vec::new());
        let mut runs = Runs::default();
        let mut samples = Samples::new(&host, &"4-5".parse().unwrap());
        put(root, 7, ("sleeps", 'S', 4), 1000, 1);
        put(root, 8, ("bu) R (rns", 'R', 5), 1000, 1);
        put(root, 9, ("elsewhere", 'R', 3), 1000, 1);
        put(root, 10, ("comes", 'S', 3), 1000, 1);
        put(root, 11, ("wakes", 'S', 4), 1000, 1);
        put(root, 12, ("another", 'S', 4), 1000, 1);
        samples.look(&mut runs, &mut people).unwrap();
        let long = 1 << 40;
        put(root, 8, ("bu) R (rns", 'R', 5), long, 1);
        put(root, 9, ("elsewhere", 'R', 3), long, 1);
        put(root, 10, ("comes", 'S', 4), 1000, 1);
        put(root, 11, ("wakes", 'S', 4), 1001, 1);
        put(root, 12, ("another", 'S', 4), 0, 2);
        samples.look(&mut runs, &mut people).unwrap();
        let mut told: Vec<_> = runs
            .threads
            .iter()
            .flat_map(|thread| {
                let each = thread.runs.iter();
                each.map(|(cpu, run)| (thread.tid, thread.name.as_str(), *cpu, run.times))
            })
            .collect();
        told.sort_unstable();
        let expected = [
            (8, "bu) R (rns", 5, 2),
            (10, "comes", 4, 1),
            (11, "wakes", 4, 1),
            (12, "another", 4, 1),
        ];
        assert_eq!(told, expected);
        let time = |tid: i32, runs: &mut Runs| {
            let thread = runs.known(tid).unwrap();
            thread.runs.values().next().unwrap().time
        };
        assert_eq!(time(11, &mut runs), Duration::from_nanos(1));
        // No longer than the time between the looks.
        let burned = time(8, &mut runs);
        assert!(
            burned > Duration::ZERO && burned < Duration::from_secs(60),
            "{burned:?}"
        );
    }
}
