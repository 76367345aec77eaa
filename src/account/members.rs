//! Reads what `/proc` tells of one owner's processes and threads, again and again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cgroup::cpuacct::{self, CpuTime};
use crate::cgroup::{Group, Roll};
use crate::files::{self, SteadyFile};
use crate::host::Host;
use crate::process;

/// The most threads of an owner whose context switches are read: each thread costs a reading.
const MOST_THREADS: u64 = 256;

/// How often an owner's threads are listed and their moves between CPUs read: that takes ten times
/// as long as everything else that is read.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// How many turns the owners' listings are divided over, by pid, so that they don't all fall into
/// one reading.
const TURNS: u32 = 10;

/// What an owner's threads did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Switches {
    /// Context switches, voluntary or not, since each thread was first read.
    pub(super) switches: u64,
    /// Moves between CPUs per second, between the last two listings; `None` if the kernel does not
    /// say.
    pub(super) migrations: Option<f64>,
}

/// An owner's processes and threads, with their open files.
#[derive(Debug)]
pub(super) struct Members {
    pid: i32,
    roll: Option<Roll>,
    stats: BTreeMap<i32, SteadyFile>,
    looks: u32,
    looked: Instant,
    threads: BTreeMap<(i32, String), Thread>,
    switched: u64,
    migrations: Option<f64>,
    has_all: bool,
}

/// A thread's open files, and what they said last.
#[derive(Debug)]
struct Thread {
    switches: SteadyFile,
    form: SwitchesFile,
    /// Its context switches at the last reading; `None` before the first one.
    switched: Option<u64>,
    sched: SteadyFile,
    /// Its moves between CPUs at the last listing; `None` if the kernel does not say.
    moves: Option<u64>,
}

/// The file that counts a thread's context switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SwitchesFile {
    /// `schedstat` (kernel: Documentation/scheduler/sched-stats.rst): how often the thread got a
    /// CPU, which is as often as it left one. By far the shortest file.
    Schedstat,
    /// `status` (proc_pid_status(5)), if the kernel has no `schedstat`.
    Status,
}

impl Members {
    /// The processes of a group; without a group, the process `pid` alone.
    pub(super) fn of(pid: i32, group: Option<Group>) -> Members {
        Members {
            pid,
            roll: group.map(Roll::of),
            stats: BTreeMap::new(),
            looks: 0,
            looked: Instant::now(),
            threads: BTreeMap::new(),
            switched: 0,
            migrations: None,
            has_all: false,
        }
    }

    /// The CPU time of the processes that exist now, added up; `None` if there is none.
    pub(super) fn usage(&mut self, host: &Host) -> Result<Option<CpuTime>> {
        let pids = self.pids()?;
        self.stats.retain(|pid, _| pids.binary_search(pid).is_ok());
        let mut sum: Option<CpuTime> = None;
        for pid in pids {
            let stat = self.stats.entry(pid);
            let stat = stat.or_insert_with(|| SteadyFile::new(host.proc_pid(pid, "stat")));
            let text = stat.read()?;
            let Some((user, system)) = text.and_then(|text| process::ticks_in(&text)) else {
                continue;
            };
            let (user, system) = (cpuacct::ticks(user)?, cpuacct::ticks(system)?);
            let before = sum.unwrap_or_default();
            sum = Some(CpuTime {
                total: before.total + user + system,
                user: before.user + user,
                system: before.system + system,
            });
        }
        Ok(sum)
    }

    /// What the threads did; `None` if there are too many to read each.
    pub(super) fn switches(&mut self, host: &Host) -> Result<Option<Switches>> {
        // Both of the first two readings list the threads: the caller may make no third one.
        let turn = LOOK_AGAIN * (self.pid.unsigned_abs() % TURNS) / TURNS;
        let due = match self.looks {
            0 | 1 => Duration::ZERO,
            2 => turn,
            _ => LOOK_AGAIN,
        };
        if self.looked.elapsed() >= due {
            self.has_all = self.look(host)?;
        }
        if !self.has_all {
            return Ok(None);
        }
        for thread in self.threads.values_mut() {
            self.switched += thread.switches()?;
        }
        Ok(Some(Switches {
            switches: self.switched,
            migrations: self.migrations,
        }))
    }

    /// Lists the threads and reads their moves; `false` if there are too many of them.
    fn look(&mut self, host: &Host) -> Result<bool> {
        let length = self.looked.elapsed();
        self.looked = Instant::now();
        self.looks = self.looks.saturating_add(1);
        let pids = self.pids()?;
        let mut count = 0;
        for pid in &pids {
            // The directory has a link for each thread (kernel: fs/proc/base.c,
            // `proc_task_getattr`).
            let dir = files::metadata_if_there(&host.proc_pid(*pid, "task"))?;
            count += dir.map_or(0, |dir| dir.nlink().saturating_sub(2));
            if count > MOST_THREADS {
                self.threads.clear();
                self.migrations = None;
                return Ok(false);
            }
        }
        let mut known = std::mem::take(&mut self.threads);
        let (mut moved, mut is_told) = (0, false);
        for pid in pids {
            for name in files::names_in(&host.proc_pid(pid, "task"))? {
                let thread = known.remove(&(pid, name.clone()));
                let mut thread = match thread {
                    Some(thread) => thread,
                    None => Thread::of(host, pid, &name)?,
                };
                if let Some(more) = thread.moves()? {
                    moved += more;
                    is_told = true;
                }
                self.threads.insert((pid, name), thread);
            }
        }
        let seconds = length.as_secs_f64();
        self.migrations = (is_told && seconds > 0.0).then(|| moved as f64 / seconds);
        Ok(true)
    }

    /// The pids, in ascending order.
    fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = match &self.roll {
            Some(roll) => roll.pids()?,
            None => vec![self.pid],
        };
        pids.sort_unstable();
        Ok(pids)
    }
}

impl Thread {
    fn of(host: &Host, pid: i32, name: &str) -> Result<Thread> {
        let file = |file: &str| SteadyFile::new(host.proc_pid(pid, &format!("task/{name}/{file}")));
        let mut schedstat = file("schedstat");
        let (switches, form) = match schedstat.read()? {
            Some(_) => (schedstat, SwitchesFile::Schedstat),
            None => (file("status"), SwitchesFile::Status),
        };
        Ok(Thread {
            switches,
            form,
            switched: None,
            sched: file("sched"),
            moves: None,
        })
    }

    /// Its context switches since the last reading; 0 at the first reading, and once it has ended.
    fn switches(&mut self) -> Result<u64> {
        let text = self.switches.read()?.unwrap_or_default();
        let now = switches_in(&text, self.form);
        let before = self.switched.replace(now);
        Ok(before.map_or(0, |before| now.saturating_sub(before)))
    }

    /// Its moves since the last listing; `None` if that is not known.
    fn moves(&mut self) -> Result<Option<u64>> {
        let text = self.sched.read()?.unwrap_or_default();
        let before = std::mem::replace(&mut self.moves, moves_in(&text));
        let both = self.moves.zip(before);
        Ok(both.map(|(now, then)| now.saturating_sub(then)))
    }
}

fn switches_in(text: &str, form: SwitchesFile) -> u64 {
    match form {
        SwitchesFile::Schedstat => {
            let third = text.split_whitespace().nth(2);
            third
                .and_then(|count| count.parse().ok())
                .unwrap_or_default()
        }
        SwitchesFile::Status => {
            let counts = text.lines().filter_map(|line| {
                let (key, count) = line.split_once(':')?;
                let is_one = key.ends_with("voluntary_ctxt_switches");
                is_one.then(|| count.trim().parse::<u64>().ok()).flatten()
            });
            counts.sum()
        }
    }
}

fn moves_in(sched: &str) -> Option<u64> {
    let mut lines = sched.lines().filter_map(|line| line.split_once(':'));
    let (_, count) = lines.find(|(key, _)| key.trim_end() == "se.nr_migrations")?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    #[test]
    fn either_file_of_a_thread_tells_of_its_switches() {
        assert_eq!(
            switches_in("138105229 420467688 387\n", SwitchesFile::Schedstat),
            387
        );
        assert_eq!(switches_in("", SwitchesFile::Schedstat), 0);
        let status = "Name:\tvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t5\n\
            nonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(switches_in(status, SwitchesFile::Status), 12);
        let sched = "sh (7, #threads: 1)\n---\nse.exec_start     :   1.5\n\
            se.nr_migrations      :   3\nnr_switches     :   12\n";
        assert_eq!(moves_in(sched), Some(3));
        assert_eq!(moves_in("sh (7, #threads: 1)\n"), None);
    }

    #[test]
    fn threads_are_counted_as_they_come_and_go_and_too_many_are_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let thread = |name: usize, file: &str, text: &str| {
            let home = dir.path().join(format!("proc/7/task/{name}"));
            std::fs::create_dir_all(&home).unwrap();
            replace(&home.join(file), text.as_bytes(), 0o444, Durability::Crash).unwrap();
        };
        // As at the beginning: each reading lists the threads.
        let mut members = Members::of(7, None);
        let mut read = || {
            members.looks = 1;
            // A replaced file is a new one, unlike the kernel's: open it anew.
            for ((_, name), thread) in &mut members.threads {
                let file = |file| SteadyFile::new(host.proc_pid(7, &format!("task/{name}/{file}")));
                thread.sched = file("sched");
                thread.switches = match thread.form {
                    SwitchesFile::Schedstat => file("schedstat"),
                    SwitchesFile::Status => file("status"),
                };
            }
            members.switches(&host).unwrap()
        };
        assert_eq!(read().map(|told| told.switches), Some(0));
        thread(7, "schedstat", "1 1 10\n");
        thread(7, "sched", "se.nr_migrations : 2\n");
        thread(8, "status", "voluntary_ctxt_switches:\t5\n");
        // What the threads did before the first reading does not count.
        assert_eq!(read().unwrap().switches, 0);
        thread(7, "schedstat", "1 1 17\n");
        thread(8, "status", "voluntary_ctxt_switches:\t8\n");
        assert_eq!(read().unwrap().switches, 10);
        // A thread that ends takes nothing from the sum, and a new one adds nothing.
        std::fs::remove_dir_all(dir.path().join("proc/7/task/8")).unwrap();
        thread(9, "schedstat", "1 1 100\n");
        thread(7, "sched", "se.nr_migrations : 5000000\n");
        let told = read().unwrap();
        assert_eq!(told.switches, 10);
        assert!(told.migrations.unwrap() > 1000.0, "{told:?}");
        for name in 11..11 + MOST_THREADS as usize {
            thread(name, "schedstat", "1 1 1\n");
        }
        assert_eq!(read(), None);
        // The threads are not listed again: there are still too many.
        members.looks = 3;
        assert_eq!(members.switches(&host).unwrap(), None);
    }

    #[test]
    fn the_threads_of_a_real_process_are_there() {
        let host = Host::new("/");
        let mut own = Members::of(std::process::id() as i32, None);
        let before = own.switches(&host).unwrap().unwrap();
        let (tell, told) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || told.recv());
            for _ in 0..50 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let now = own.switches(&host).unwrap().unwrap();
            assert!(now.switches > before.switches, "{before:?} {now:?}");
            drop(tell);
        });
        let usage = own.usage(&host).unwrap().unwrap();
        assert_eq!(usage.total, usage.user + usage.system);
    }
}
