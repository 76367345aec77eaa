//! An instance of the kernel's tracer for this program alone. Whatever ends the program, it goes:
//! by the program itself, else by a process that waits for its end, else by whoever next looks
//! ([`super::remove_leftovers`]).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, read, setsid,
};

use super::tracefs::{self, Tracefs};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::process::Process;

/// The room for events of each CPU that is watched, and of each other one, where forks are alone;
/// in KiB.
const ROOM: usize = 4096;
const LITTLE_ROOM: usize = 128;
/// The room of all that are watched together, in KiB.
const MOST_ROOM: usize = 128 << 10;

/// The longest filter, in bytes: the kernel takes less than a page.
const MOST_FILTER: usize = 3500;

/// How much is read at once, in bytes.
const PIECE: usize = 64 << 10;

/// How long the process that waits for our end tries to remove the instance: the kernel closes our
/// files one after another.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The CPUs of one owner, and those of its threads whose coming and going is not to be told.
#[derive(Debug)]
pub(super) struct Quiet {
    pub(super) cpus: CpuSet,
    pub(super) threads: Vec<i32>,
}

/// An instance that traces.
#[derive(Debug)]
pub(super) struct Instance {
    dir: PathBuf,
    record: PathBuf,
    _tracefs: Tracefs,
    /// Its end is our end.
    alive: Option<OwnedFd>,
    watcher: Pid,
    pipe: Option<File>,
    piece: Vec<u8>,
}

impl Instance {
    /// Makes one that is ready to trace.
    ///
    /// # Errors
    /// The kernel has no tracer, or does not let us.
    pub(super) fn make(host: &Host, cpus: &CpuSet, quiet: &[Quiet]) -> Result<Instance> {
        let tracefs = Tracefs::open(host)?;
        tracefs::remove_unrecorded(host, &tracefs)?;
        let own = Process::with_pid(host, std::process::id() as i32)?;
        let name = tracefs::name(own.context("this process is not in /proc")?);
        let dir = tracefs.instance(&name);
        let record = tracefs::record(host, &name)?;
        let watched = watch_over(&dir, &record);
        let (alive, watcher) = watched.inspect_err(|_| drop(files::remove(&record)))?;
        let mut instance = Instance {
            dir,
            record,
            _tracefs: tracefs,
            alive: Some(alive),
            watcher,
            pipe: None,
            piece: vec![0; PIECE],
        };
        let dir = &instance.dir;
        std::fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
        instance.prepare(cpus, quiet)?;
        let pipe = instance.dir.join("trace_pipe");
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&pipe);
        instance.pipe = Some(opened.with_context(|| format!("open {}", pipe.display()))?);
        Ok(instance)
    }

    fn prepare(&self, cpus: &CpuSet, quiet: &[Quiet]) -> Result<()> {
        self.write("tracing_on", "0")?;
        self.write("trace_clock", "mono")?;
        // A new instance has the options of the trace that everybody shares, and these change what
        // a line looks like, or drop what is new. A kernel that does not know one refuses it.
        for option in [
            "context-info",
            "nobin",
            "nofields",
            "nohex",
            "nolatency-format",
            "noraw",
            "overwrite",
        ] {
            match files::write_kernel(&self.dir.join("trace_options"), option) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                written => written.with_context(|| format!("set the trace's {option}"))?,
            }
        }
        self.write("buffer_size_kb", &LITTLE_ROOM.to_string())?;
        let room = (MOST_ROOM / cpus.len().max(1)).clamp(LITTLE_ROOM, ROOM);
        for cpu in cpus.iter() {
            self.write(
                &format!("per_cpu/cpu{cpu}/buffer_size_kb"),
                &room.to_string(),
            )?;
        }
        if let Some(filter) = filter(cpus, quiet) {
            self.write("events/sched/sched_switch/filter", &filter)?;
        }
        self.write("events/sched/sched_switch/enable", "1")?;
        self.write("events/sched/sched_process_fork/enable", "1")?;
        // Without it whoever enters a cgroup and is gone at once counts by its parent.
        let moves = "events/cgroup/cgroup_attach_task/enable";
        if files::metadata_if_there(&self.dir.join(moves))?.is_some() {
            self.write(moves, "1")?;
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        files::write_kernel(&path, value)
            .with_context(|| format!("write {value:?} to {}", path.display()))
    }

    /// Begins, or ends, the trace.
    pub(super) fn trace(&self, is_on: bool) -> Result<()> {
        self.write("tracing_on", if is_on { "1" } else { "0" })
    }

    /// Hands over what was traced, until there is no more, or it is `until`.
    pub(super) fn read(&mut self, until: Instant, mut found: impl FnMut(&[u8])) -> Result<()> {
        let pipe = self.pipe.as_mut().context("the trace is over")?;
        loop {
            match pipe.read(&mut self.piece) {
                // Of a trace that is over there is no more.
                Ok(0) => return Ok(()),
                Ok(length) => found(&self.piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read the trace"),
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Tells of all threads on these CPUs from now on, the owners' own too.
    ///
    /// # Errors
    /// It cannot be set.
    pub(super) fn leave_out_nobody(&self, cpus: &CpuSet) -> Result<()> {
        let filter = filter(cpus, &[]).unwrap_or_else(|| "0".to_owned());
        self.write("events/sched/sched_switch/filter", &filter)
    }

    /// Removes it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(super) fn remove(mut self) -> Result<()> {
        self.pipe = None;
        let removed = tracefs::remove(&self.dir)?;
        ensure!(removed, "{} is in use", self.dir.display());
        files::remove(&self.record)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.pipe = None;
        // What is there still is the watcher's to remove; it ends then.
        self.alive = None;
        let _ = waitpid(self.watcher, None);
    }
}

/// Starts a process that removes the instance once this one has ended, however that is, and its end
/// of the pipe with it.
fn watch_over(instance: &Path, record: &Path) -> Result<(OwnedFd, Pid)> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    let (hear, alive) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    // SAFETY: this process has one thread, so that no lock of its memory is held by another.
    match unsafe { fork() }.context("make a process")? {
        ForkResult::Parent { child } => Ok((alive, child)),
        ForkResult::Child => {
            drop(alive);
            // What ends our process group and our terminal ends it not, and no reader of our output
            // waits for it. Where this fails it watches all the same.
            let _ = setsid();
            let _ = (dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null));
            while read(&hear, &mut [0]) == Err(nix::errno::Errno::EINTR) {}
            let deadline = Instant::now() + PATIENCE;
            loop {
                match tracefs::remove(instance) {
                    Ok(true) => break drop(files::remove(record)),
                    _ if Instant::now() >= deadline => break,
                    _ => sleep(PAUSE),
                }
            }
            // SAFETY: _exit(2) runs nothing of this program, whose destructors are the parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Which changes from one thread to another are told (kernel: Documentation/trace/events.rst,
/// "Event filtering"): those on these CPUs, but for those among an owner's own threads and nobody.
/// `None` where that takes too many words: then all are.
fn filter(cpus: &CpuSet, quiet: &[Quiet]) -> Option<String> {
    let each = quiet.iter().map(|quiet| {
        let others = |side: &str| {
            let threads = [0].iter().chain(&quiet.threads);
            let others = threads.map(|tid| format!("{side}_pid!={tid}"));
            others.collect::<Vec<_>>().join("&&")
        };
        let (before, after) = (others("prev"), others("next"));
        format!("(({})&&(({before})||({after})))", on(&quiet.cpus))
    });
    let each = each.collect::<Vec<_>>().join("||");
    let is_fit = |filter: &String| (1..=MOST_FILTER).contains(&filter.len());
    Some(each)
        .filter(is_fit)
        .or_else(|| Some(on(cpus)).filter(is_fit))
}

/// Only on these CPUs.
fn on(cpus: &CpuSet) -> String {
    let list = cpus.to_string();
    let ranges = list.split(',').map(|range| match range.split_once('-') {
        Some((from, to)) => format!("(CPU>={from}&&CPU<={to})"),
        None => format!("CPU=={range}"),
    });
    ranges.collect::<Vec<_>>().join("||")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_cpus_and_leaves_out_their_owner() {
        let set = |text: &str| text.parse::<CpuSet>().unwrap();
        let quiet = |cpus: &str, threads: &[i32]| Quiet {
            cpus: set(cpus),
            threads: threads.to_vec(),
        };
        assert_eq!(
            filter(&set("4-5,7"), &[quiet("4-5", &[70]), quiet("7", &[])]).unwrap(),
            "(((CPU>=4&&CPU<=5))&&((prev_pid!=0&&prev_pid!=70)||(next_pid!=0&&next_pid!=70)))\
             ||((CPU==7)&&((prev_pid!=0)||(next_pid!=0)))"
        );
        let many: Vec<i32> = (10_000..10_200).collect();
        let told = filter(&set("4-5"), &[quiet("4-5", &many)]);
        assert_eq!(told.unwrap(), "(CPU>=4&&CPU<=5)");
        let far: CpuSet = (0..4000).map(|cpu| 2 * cpu).collect();
        assert_eq!(filter(&far, &[quiet(&far.to_string(), &[])]), None);
    }
}
