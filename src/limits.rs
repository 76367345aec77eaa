//! Bounds a hook's time, its capabilities, and what it inherits.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::sys::stat::{Mode, umask};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// How long a hook may take as a whole, in seconds: below the `timeout` of the shipped hook files.
pub const HOOK_SECONDS: u32 = 20;

/// How long the state may take to arrive: runtimes write it at once.
const PROMPTLY: Duration = Duration::from_secs(8);

/// How long a hook may wait for others in all: the rest of its time is for reporting why it gave
/// up.
const WAITING: Duration = Duration::from_secs(HOOK_SECONDS as u64 - 3);

/// Does what Rust's runtime does first, but for its handler of stack overflows: opens `/dev/null`
/// as each closed standard stream, whose number the next opened file would get, and makes a write
/// that nobody reads an error.
pub fn begin() {
    let mut streams =
        [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO].map(|fd| libc::pollfd {
            fd,
            events: 0,
            revents: 0,
        });
    // SAFETY: poll(2) gets a live array with its length; open(2) and signal(2) get constants;
    // abort(3) ends this. The lowest free number is that of the closed stream.
    unsafe {
        let told = libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0);
        let is_closed = |stream: &libc::pollfd| stream.revents & libc::POLLNVAL != 0;
        for _ in streams
            .iter()
            .filter(|stream| told > 0 && is_closed(stream))
        {
            if libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) < 0 {
                // What is written to that stream would go into a file of ours.
                libc::abort();
            }
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// The time bound of a process that becomes another program, which must not inherit it.
#[derive(Debug)]
pub struct TimeBound {
    /// When all waiting has to be over.
    pub deadline: Instant,
    action: SigAction,
    mask: SigSet,
}

impl TimeBound {
    /// Like [`bound_time`], until [`TimeBound::end`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start() -> Result<TimeBound> {
        let mask = SigSet::thread_get_mask().context("look at the signal mask")?;
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of ours.
        let action = unsafe { sigaction(Signal::SIGALRM, &default) };
        let action = action.context("look at the action of SIGALRM")?;
        let deadline = bound_time()?;
        Ok(TimeBound {
            deadline,
            action,
            mask,
        })
    }

    /// Removes the bound: exec keeps an alarm, an ignored signal and the mask (execve(2)).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn end(self) -> Result<()> {
        nix::unistd::alarm::cancel();
        // SAFETY: the former action runs no code of ours.
        unsafe { sigaction(Signal::SIGALRM, &self.action) }.context("restore SIGALRM")?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None).context("restore the signals")
    }
}

/// Has SIGALRM end this process after [`HOOK_SECONDS`], should a system call hang. Returns when all
/// waiting has to be over, a little earlier.
pub fn bound_time() -> Result<Instant> {
    let deadline = Instant::now() + WAITING;
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("bound the hook's time")?;
    // An engine may have blocked the signal.
    let alarm = SigSet::from(Signal::SIGALRM);
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alarm), None).context("bound the hook's time")?;
    nix::unistd::alarm::set(HOOK_SECONDS);
    Ok(deadline)
}

/// A reader that fails if its source does not reach its end in time.
#[derive(Debug)]
pub struct Prompt<R> {
    source: R,
    within: Duration,
    deadline: Instant,
}

impl<R> Prompt<R> {
    /// Gives the source 8 seconds from now.
    pub fn new(source: R) -> Prompt<R> {
        Prompt::within(source, PROMPTLY)
    }

    /// Gives the source the time `within`.
    pub fn within(source: R, within: Duration) -> Prompt<R> {
        let deadline = Instant::now() + within;
        Prompt {
            source,
            within,
            deadline,
        }
    }
}

impl<R: Read + AsFd> Read for Prompt<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut watched = [PollFd::new(self.source.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, timeout)? == 0 {
            let message = format!(
                "it did not end within {} s: is its writing end still open?",
                self.within.as_secs()
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        self.source.read(buffer)
    }
}

/// Keeps descriptors that a runtime left open from the programs that we start, and the runtime's
/// umask from the files that we make.
pub fn leave_nothing_inherited() {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing. Before Linux 5.11 it fails,
    // and the descriptors are inherited.
    unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
}

/// Gives up every capability but two (capabilities(7)): `CAP_SYS_NICE`, to move a user namespace's
/// process and set its affinity, and `CAP_DAC_OVERRIDE`, to write a cgroup that the namespace's
/// root owns. `CAP_SYS_ADMIN` is kept too, but not in effect until [`as_admin`] needs it. All sets
/// change in one system call; with the crate `caps` each takes two.
pub fn drop_capabilities() -> Result<()> {
    let dropped = match keep(CapabilitySet::all()) {
        // Some are missing already: keep those that are there.
        Err(Errno::PERM) => capabilities(None).and_then(|had| keep(had.permitted)),
        other => other,
    };
    dropped.context("drop capabilities")
}

/// Keeps of these capabilities those that a hook needs.
fn keep(had: CapabilitySet) -> rustix::io::Result<()> {
    let effective = CapabilitySet::SYS_NICE | CapabilitySet::DAC_OVERRIDE;
    let sets = CapabilitySets {
        effective: had & effective,
        permitted: had & (effective | CapabilitySet::SYS_ADMIN),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}

/// Does something with `CAP_SYS_ADMIN` in effect, where this process may: the kernel asks it of
/// whoever makes a partition whose parent is none (kernel/cgroup/cpuset.c,
/// `remote_partition_enable`).
///
/// # Errors
/// The capabilities cannot be changed, or what is done fails.
pub fn as_admin<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    let admin = Capability::CAP_SYS_ADMIN;
    if has_admin(CapSet::Effective)? || !may_be_admin()? {
        return act();
    }
    caps::raise(None, CapSet::Effective, admin).context("raise a capability")?;
    let done = act();
    caps::drop(None, CapSet::Effective, admin).context("lower a capability")?;
    done
}

/// Can [`as_admin`] do something with `CAP_SYS_ADMIN`?
///
/// # Errors
/// The kernel does not show the capabilities.
pub fn may_be_admin() -> Result<bool> {
    has_admin(CapSet::Permitted)
}

fn has_admin(set: CapSet) -> Result<bool> {
    let has = caps::has_cap(None, set, Capability::CAP_SYS_ADMIN);
    has.context("look at the capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_two_capabilities_are_in_effect() {
        // Capabilities belong to a thread: the other tests keep theirs.
        let left = |first: CapabilitySet| {
            std::thread::spawn(move || {
                let had = capabilities(None).unwrap().permitted & first;
                let sets = CapabilitySets {
                    effective: had,
                    permitted: had,
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, sets).unwrap();
                drop_capabilities().unwrap();
                let raised = as_admin(|| Ok(capabilities(None)?.effective)).unwrap();
                (had, raised, capabilities(None).unwrap())
            })
        };
        let both = CapabilitySet::SYS_NICE | CapabilitySet::DAC_OVERRIDE;
        let three = both | CapabilitySet::SYS_ADMIN;
        let without_nice = CapabilitySet::all() - CapabilitySet::SYS_NICE;
        for first in [CapabilitySet::all(), without_nice, CapabilitySet::empty()] {
            let (had, raised, left) = left(first).join().unwrap();
            assert_eq!(raised, had & three);
            assert_eq!(left.permitted, had & three);
            assert_eq!(
                (left.effective, left.inheritable),
                (had & both, CapabilitySet::empty())
            );
        }
    }
}
