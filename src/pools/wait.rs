//! Bounding a system call that blocks.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::c_int;
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, SigmaskHow, Signal, sigaction,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// Nobody else has a use for it: `isolate` does not pass it on, and by default it does nothing
/// (signal(7)).
const SIGNAL: Signal = Signal::SIGURG;

/// A timer can go off in the moment before the call that it is to interrupt: so it goes off again.
const AGAIN: Duration = Duration::from_millis(20);

/// Interrupts the system calls of this thread (EINTR, signal(7)) after some time, and then again
/// and again until it is dropped.
pub(super) struct Alarm {
    timer: Option<Timer>,
    blocked: SigSet,
}

impl Alarm {
    pub(super) fn after(time: Duration) -> Result<Alarm> {
        handle().context("bound the wait for the lock")?;
        let attempt = || {
            // Whoever started us may have left it blocked.
            let own = SigSet::from(SIGNAL);
            let blocked = own.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
            let event = SigEvent::new(SigevNotify::SigevThreadId {
                signal: SIGNAL,
                thread_id: gettid().as_raw(),
                si_value: 0,
            });
            let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)?;
            // A timer of no time at all is one that never goes off.
            let first = TimeSpec::from_duration(time.max(Duration::from_nanos(1)));
            let every = Expiration::IntervalDelayed(first, TimeSpec::from_duration(AGAIN));
            timer.set(every, TimerSetTimeFlags::empty())?;
            Ok::<_, Errno>(Alarm {
                timer: Some(timer),
                blocked,
            })
        };
        attempt().context("bound the wait for the lock")
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // First: a signal that is blocked would wait for whatever this process becomes.
        drop(self.timer.take());
        if let Err(error) = self.blocked.thread_set_mask() {
            log::warn!("restore the signal mask: {error}");
        }
    }
}

extern "C" fn do_nothing(_: c_int) {}

/// Has the signal do nothing but interrupt, once for the whole process: another thread may be
/// waiting as well. A program that is executed afterwards finds the default action (execve(2)).
fn handle() -> Result<(), Errno> {
    static HANDLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *HANDLED.get_or_init(|| {
        let action = SigAction::new(
            SigHandler::Handler(do_nothing),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing.
        unsafe { sigaction(SIGNAL, &action) }.map(drop)
    })
}
