//! Processes: whether a recorded one still runs, which CPUs it may use, and who started it; and
//! this boot.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::kill;
use nix::sys::time::TimeVal;
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

use crate::cpulist::{CpuSet, LARGEST_CPU};
use crate::files;
use crate::host::Host;

/// A process by its pid and start time, which no other process has during one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The pid in the host's pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start: u64,
}

impl Process {
    /// The process that has this pid now; `None` where there is none, or where all its threads have
    /// ended.
    pub fn with_pid(host: &Host, pid: i32) -> Result<Option<Process>> {
        let path = host.proc_pid(pid, "stat");
        let Some(text) = files::read_record_if_there(&path)? else {
            return Ok(None);
        };
        let stat = Stat::parse(&text).with_context(|| {
            format!(
                "read {}: not in the form of proc_pid_stat(5)",
                path.display()
            )
        })?;
        Ok((!stat.is_dead()).then_some(Process {
            pid,
            start: stat.start,
        }))
    }

    /// When the process started, in seconds since the epoch. `boot_time` is when the machine
    /// started, in the same unit.
    pub fn started_at(&self, boot_time: i64) -> Option<i64> {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok()??;
        let seconds = self.start.checked_div(ticks.try_into().ok()?)?;
        boot_time.checked_add(seconds.try_into().ok()?)
    }

    /// Does this process still exist, with a thread that can run?
    pub fn is_alive(&self, host: &Host) -> Result<bool> {
        match Process::with_pid(host, self.pid)? {
            Some(now) => Ok(now == *self),
            None => is_hidden(host, self.pid),
        }
    }
}

/// Does a process with this pid exist, with a thread that can run?
pub fn pid_is_alive(host: &Host, pid: i32) -> Result<bool> {
    match Process::with_pid(host, pid)? {
        Some(_) => Ok(true),
        None => is_hidden(host, pid),
    }
}

/// Has the first thread of a process ended (proc_pid_stat(5), state Z or X)? The other threads
/// mostly end at once after it. `false` where `stat` cannot be read.
pub fn is_ending(host: &Host, pid: i32) -> bool {
    let stat = files::read_if_there(&host.proc_pid(pid, "stat")).ok();
    let stat = stat.flatten().and_then(|text| Stat::parse(&text));
    stat.is_some_and(|stat| matches!(stat.state, 'Z' | 'X'))
}

/// Does the process exist although `/proc` hides it (`hidepid=`, proc(5))? A hidden process counts
/// as alive.
fn is_hidden(host: &Host, pid: i32) -> Result<bool> {
    if !host.is_running_root() || files::metadata_if_there(&host.proc_pid(pid, "stat"))?.is_some() {
        return Ok(false);
    }
    let is_there = kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
    if is_there {
        log::warn!("process {pid} counts as alive: it is there, and /proc does not show it");
    }
    Ok(is_there)
}

/// The flag of a thread of the kernel (kernel: include/linux/sched.h).
/// A thread that ends (`PF_EXITING`, the kernel's include/linux/sched.h).
const PF_EXITING: u32 = 0x0000_0004;
const PF_KTHREAD: u32 = 0x0020_0000;

/// Is this a thread of the kernel (proc_pid_stat(5), field 9: `PF_KTHREAD`)? No tool ever gave one
/// CPUs.
pub fn is_kernel_thread(host: &Host, pid: i32) -> Result<bool> {
    let stat = files::read_if_there(&host.proc_pid(pid, "stat"))?;
    let stat = stat.and_then(|text| Stat::parse(&text));
    Ok(stat.is_some_and(|stat| stat.flags & PF_KTHREAD != 0))
}

/// The name that a process gives itself (proc_pid_comm(5)): never show it raw.
pub fn name(host: &Host, pid: i32) -> Option<String> {
    let name = files::read_if_there(&host.proc_pid(pid, "comm")).ok()??;
    Some(name.trim_end().to_owned())
}

/// Is it one of root's (proc_pid_status(5), `Uid`), in the pid namespace that we have, where both
/// can be seen (namespaces(7))? What is not can have any name and say anything: a user's process,
/// or a container's.
pub fn is_the_machines(host: &Host, pid: i32) -> bool {
    let status = files::read_if_there(&host.proc_pid(pid, "status"));
    let status = status.ok().flatten().unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let is_roots = |uids: &str| uids.split_ascii_whitespace().all(|uid| uid == "0");
    let namespace = |pid| std::fs::read_link(host.proc_pid(pid, "ns/pid"));
    let is_elsewhere = || match (namespace(std::process::id() as i32), namespace(pid)) {
        (Ok(ours), Ok(its)) => ours != its,
        _ => false,
    };
    uids.is_some_and(is_roots) && !is_elsewhere()
}

/// The CPUs that a process's first thread may use, read from `/proc` (proc_pid_status(5),
/// `Cpus_allowed_list`), so that it works on a captured machine too. `None` where the process is
/// gone or `status` cannot be read.
pub fn allowed_cpus(host: &Host, pid: i32) -> Option<CpuSet> {
    let status = files::read_if_there(&host.proc_pid(pid, "status")).ok()??;
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().parse().ok()
}

/// The signals that this process ignores, signal 1 in the lowest bit (proc_pid_status(5),
/// `SigIgn`); 0 where `status` cannot be read.
pub fn ignored_signals(host: &Host) -> u64 {
    let path = host.proc_pid(std::process::id() as i32, "status");
    let status = files::read(&path).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// A process's parent; `None` where the process does not exist or `stat` cannot be read.
pub fn parent(host: &Host, pid: i32) -> Option<i32> {
    let stat = files::read_record_if_there(&host.proc_pid(pid, "stat")).ok()??;
    Stat::parse(&stat).map(|stat| stat.parent)
}

/// Longest command line that is read, in bytes.
const MOST_COMMAND_LINE: u64 = 64 << 10;

/// The program and the arguments of a process (proc_pid_cmdline(5)): the process can change them,
/// so never show them raw. A single empty word where the command line is longer than 64 KiB or
/// cannot be read.
pub fn command_line(host: &Host, pid: i32) -> Vec<OsString> {
    let file = File::open(host.proc_pid(pid, "cmdline"));
    let text = file.and_then(|file| files::read_record(file, MOST_COMMAND_LINE));
    // No engine's command line is anything but UTF-8.
    let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
    let words = text.strip_suffix('\0').unwrap_or(&text).split('\0');
    words.map(OsString::from).collect()
}

/// Most ancestors of a process that are looked at.
const MOST_ANCESTORS: usize = 64;

/// Is a process a descendant of another? `false` where an ancestor between them has ended: the
/// kernel gave its children another parent.
pub fn descends_from(host: &Host, pid: i32, ancestor: i32) -> Result<bool> {
    let mut pid = pid;
    for _ in 0..MOST_ANCESTORS {
        let stat = files::read_if_there(&host.proc_pid(pid, "stat"))?;
        let Some(stat) = stat.and_then(|text| Stat::parse(&text)) else {
            return Ok(false);
        };
        if stat.parent == ancestor {
            return Ok(true);
        }
        pid = stat.parent;
    }
    Ok(false)
}

/// The CPU time of a process's threads, outside the kernel and inside it, in clock ticks, from the
/// text of `/proc/<pid>/stat` (proc_pid_stat(5), fields 14 and 15); `None` where the text is not in
/// that format.
pub fn ticks_in(stat: &str) -> Option<(u64, u64)> {
    Stat::parse(stat).map(|stat| (stat.user, stat.system))
}

/// What is seen of a thread at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenThread {
    /// The name that it gives itself: never show it raw.
    pub name: String,
    /// Is it a thread of the kernel?
    pub is_kernels: bool,
    /// Does it run, or wait for a CPU?
    pub is_running: bool,
    /// Does it end, or has it ended? Then its cgroup on version 1 is shown as the root.
    pub is_ending: bool,
    /// Its CPU time, in clock ticks.
    pub ticks: u64,
    /// When it started, in clock ticks since the machine did.
    pub start: u64,
    /// The CPU that it ran on last.
    pub cpu: u32,
}

/// A thread by the text of its `stat` (proc_pid_stat(5)); `None` where the text is not in that
/// format.
pub fn thread_in(stat: &str) -> Option<SeenThread> {
    let (head, tail) = stat.rsplit_once(')')?;
    let seen = Stat::parse(stat)?;
    Some(SeenThread {
        name: head.split_once('(')?.1.to_owned(),
        is_kernels: seen.flags & PF_KTHREAD != 0,
        is_running: seen.state == 'R',
        is_ending: matches!(seen.state, 'Z' | 'X') || seen.flags & PF_EXITING != 0,
        ticks: seen.user.checked_add(seen.system)?,
        start: seen.start,
        // Field 39; the first behind the name is 3.
        cpu: tail.split_ascii_whitespace().nth(36)?.parse().ok()?,
    })
}

/// The CPU time, outside the kernel and inside it, of the children that this process has waited
/// for, and of their descendants (getrusage(2), `RUSAGE_CHILDREN`).
///
/// # Errors
/// The kernel refuses the call.
pub fn usage_of_waited() -> io::Result<(Duration, Duration)> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |value: TimeVal| {
        let seconds = Duration::from_secs(value.tv_sec().unsigned_abs());
        seconds + Duration::from_micros(value.tv_usec().unsigned_abs())
    };
    Ok((time(usage.user_time()), time(usage.system_time())))
}

/// The fields of `/proc/<pid>/stat` that are used.
struct Stat {
    state: char,
    parent: i32,
    flags: u32,
    user: u64,
    system: u64,
    threads: u64,
    start: u64,
}

impl Stat {
    /// Parses `stat`. The program's name, in parentheses, can hold any character: fields are
    /// counted after the last parenthesis.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        // The numbers are how many fields to skip before each.
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            flags: fields.nth(4)?.parse().ok()?,
            user: fields.nth(4)?.parse().ok()?,
            system: fields.next()?.parse().ok()?,
            threads: fields.nth(4)?.parse().ok()?,
            start: fields.nth(1)?.parse().ok()?,
        })
    }

    /// Has every thread ended? A first thread that has ended is a zombie while other threads still
    /// run.
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// The first pid namespace (kernel: include/linux/proc_ns.h, `PROC_PID_INIT_INO`), as
/// [`pid_namespace`] has it: there every process of the machine has a number.
pub const FIRST_PIDS: &str = "pid:[4026531836]";

/// The pid namespace of this process; `None` where `/proc` does not tell, because it is captured or
/// of a namespace that has not this process.
pub fn pid_namespace(host: &Host) -> Option<String> {
    let target = std::fs::read_link(host.own_pid_namespace()).ok()?;
    target.into_os_string().into_string().ok()
}

/// Is no process in this pid namespace, told from the first one, which shows all of them?
pub fn has_pid_namespace_ended(host: &Host, namespace: &str) -> bool {
    let Ok(names) = files::names_in(&host.processes()) else {
        return false;
    };
    let mut pids = names.iter().filter_map(|name| name.parse().ok());
    // One that has ended has no link any more.
    !pids.any(
        |pid: i32| match std::fs::read_link(host.proc_pid(pid, "ns/pid")) {
            Ok(target) => target == Path::new(namespace),
            Err(error) => !files::is_gone(&error),
        },
    )
}

/// The id of this boot.
pub fn boot_id(host: &Host) -> Result<String> {
    Ok(files::read_record_of(&host.boot_id())?.trim().to_owned())
}

/// A random UUID from the kernel.
pub fn nonce(host: &Host) -> Result<String> {
    Ok(files::read_record_of(&host.random_uuid())?
        .trim()
        .to_owned())
}

/// When this boot started, in seconds since the epoch; changes when the clock is set.
pub fn boot_time(host: &Host) -> Result<i64> {
    let path = host.proc_stat();
    let text = files::read(&path)?;
    let time = text.lines().find_map(|line| line.strip_prefix("btime "));
    time.and_then(|time| time.trim().parse().ok())
        .with_context(|| format!("read {}: no btime line", path.display()))
}

/// The earliest time that the clock is known to have shown in this boot, in seconds since the
/// epoch: the oldest entry of `/run`, which every boot creates anew. `None` where nothing tells the
/// time.
///
/// After the clock was set forward, files are older than the boot seems to be ([`boot_time`]).
pub fn earliest_time(host: &Host) -> Result<Option<i64>> {
    let mut earliest: Option<i64> = None;
    for dir in host.boots_own_directories() {
        let Some(own) = files::entry_if_there(&dir)? else {
            continue;
        };
        for name in files::names_in(&dir)? {
            // An entry that cannot be looked at, such as a mount whose server is gone, could be of
            // any time.
            let Ok(metadata) = files::entry_if_there(&dir.join(name)) else {
                return Ok(None);
            };
            // A mounted file system can be of any time.
            let times = metadata.filter(|entry| entry.dev() == own.dev());
            let time = times.map(|entry| entry.ctime());
            earliest = [earliest, time].into_iter().flatten().min();
        }
    }
    Ok(earliest)
}

/// A CPU mask that holds every CPU of any kernel.
type Mask = [u64; MASK_WORDS];

const MASK_WORDS: usize = (LARGEST_CPU as usize + 1) / 64;

/// Lets a process's first thread use every CPU that its cpuset allows (sched_setaffinity(2)).
///
/// The kernel intersects the cpuset with the last mask that was set: the mask inherited from the
/// engine would narrow the container, and keep it narrow when its cpuset grows.
pub fn reset_affinity(pid: i32) -> io::Result<()> {
    let every: Mask = [u64::MAX; MASK_WORDS];
    // SAFETY: the kernel reads size_of_val(&every) bytes from a live array. nix has no mask of over
    // 1024 CPUs.
    let result =
        unsafe { libc::sched_setaffinity(pid, size_of_val(&every), every.as_ptr().cast()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Keeps this process's first thread off these CPUs, if it may use others.
pub fn stay_off(cpus: &CpuSet) -> io::Result<()> {
    let others = affinity(0)?.difference(cpus);
    if others.is_empty() {
        return Ok(());
    }
    let mut mask: Mask = [0; MASK_WORDS];
    for cpu in others.iter() {
        mask[(cpu / 64) as usize] |= 1 << (cpu % 64);
    }
    // SAFETY: the kernel reads size_of_val(&mask) bytes from a live array. nix has no mask of over
    // 1024 CPUs.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// The CPUs that a process's first thread may use now (sched_getaffinity(2)).
pub fn affinity(pid: i32) -> io::Result<CpuSet> {
    let mut mask: Mask = [0; MASK_WORDS];
    // SAFETY: the kernel writes at most size_of_val(&mask) bytes to a live array. nix has no mask
    // of over 1024 CPUs.
    let result =
        unsafe { libc::sched_getaffinity(pid, size_of_val(&mask), mask.as_mut_ptr().cast()) };
    Errno::result(result)?;
    Ok(CpuSet::of_words(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_whatever_the_program_is_called() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 5 0 777 0 0";
        for name in ["sh", "a) Z 1 (b", ") R", "\n"] {
            let stat = Stat::parse(&format!("12 ({name}) {tail}")).unwrap();
            assert_eq!(
                (stat.state, stat.threads, stat.start),
                ('S', 5, 777),
                "{name}"
            );
        }
        assert!(Stat::parse("12 (sh) S 1").is_none());
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn threads_of_the_kernel_are_told() {
        let host = Host::new("/");
        assert!(!is_kernel_thread(&host, std::process::id() as i32).unwrap());
        // kthreadd(8), wherever the machine's own processes can be seen.
        if name(&host, 2).as_deref() == Some("kthreadd") {
            assert!(is_kernel_thread(&host, 2).unwrap());
        }
        assert!(!is_kernel_thread(&host, i32::MAX).unwrap());
    }

    #[test]
    fn only_a_zombie_without_threads_is_dead() {
        for (state, threads, dead) in [
            ('Z', 1, true),
            ('Z', 2, false),
            ('X', 1, true),
            ('S', 1, false),
        ] {
            let stat = Stat {
                user: 0,
                system: 0,
                parent: 1,
                flags: 0,
                state,
                threads,
                start: 0,
            };
            assert_eq!(stat.is_dead(), dead, "{state} {threads}");
        }
    }

    #[test]
    fn this_process_is_alive_and_its_number_with_another_start_is_not() {
        let host = Host::new("/");
        let own = Process::with_pid(&host, std::process::id() as i32)
            .unwrap()
            .unwrap();
        assert!(own.is_alive(&host).unwrap());
        let other = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!other.is_alive(&host).unwrap());
    }

    #[test]
    fn a_child_that_nobody_reaped_is_dead() {
        let host = Host::new("/");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        while Process::with_pid(&host, pid).unwrap().is_some() {
            std::thread::yield_now();
        }
        assert!(!pid_is_alive(&host, pid).unwrap());
        child.wait().unwrap();
        assert!(!pid_is_alive(&host, pid).unwrap());
    }

    #[test]
    fn a_thread_is_seen_whatever_it_is_called() {
        let tail = "R 1 2 3 4 5 2097152 7 8 9 10 11 12 13 14 15 16 5 0 777 0 0 0 0 0 0 0 0 0 0 0 0 \
                    0 0 0 17 6 0 0";
        for name in ["sh", "a) Z 1 (b", ") R", "\n"] {
            let expected = SeenThread {
                name: name.to_owned(),
                is_kernels: true,
                is_running: true,
                is_ending: false,
                ticks: 23,
                start: 777,
                cpu: 6,
            };
            assert_eq!(thread_in(&format!("12 ({name}) {tail}")), Some(expected));
        }
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = thread_in(&own).unwrap();
        assert!(!own.is_kernels && own.start > 0);
        for (state, flags, is_ending) in [("S", 0, false), ("S", 4, true), ("Z", 0, true)] {
            let stat = tail.replacen("R", state, 1);
            let stat = stat.replace("2097152", &flags.to_string());
            let seen = thread_in(&format!("12 (sh) {stat}")).unwrap();
            assert_eq!(seen.is_ending, is_ending, "{state} {flags}");
        }
        assert_eq!(thread_in("12 (sh) R 1 2"), None);
    }

    #[test]
    fn a_thread_stays_off_cpus_if_there_are_others() {
        std::thread::spawn(|| {
            let all = affinity(0).unwrap();
            stay_off(&all).unwrap();
            assert_eq!(affinity(0).unwrap(), all);
            let Some(first) = all.first().filter(|_| all.len() > 1) else {
                return;
            };
            let first: CpuSet = std::iter::once(first).collect();
            stay_off(&first).unwrap();
            assert_eq!(affinity(0).unwrap(), all.difference(&first));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn affinity_comes_back_after_a_reset() {
        let all = affinity(0).unwrap();
        reset_affinity(0).unwrap();
        assert!(all.is_subset(&affinity(0).unwrap()));
    }
}
