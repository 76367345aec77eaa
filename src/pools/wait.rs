//! A time limit for a system call that blocks.

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

/// The signal of the timer. Nothing else here uses it: `isolate` does not pass it on, and by
/// default it does nothing (signal(7)).
const SIGNAL: Signal = Signal::SIGURG;

/// The time between two signals. A timer can go off just before the system call that it shall
/// interrupt begins, so it goes off again.
const AGAIN: Duration = Duration::from_millis(20);

/// Interrupts this thread's system calls (EINTR, signal(7)) once a time is over, and then again and
/// again until it is dropped.
pub(super) struct Alarm {
    timer: Option<Timer>,
    blocked: SigSet,
}

impl Alarm {
    pub(super) fn after(time: Duration) -> Result<Alarm> {
        handle().context("bound the wait for the lock")?;
        let attempt = || {
            // The process that started us may have left the signal blocked.
            let own = SigSet::from(SIGNAL);
            let blocked = own.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
            let event = SigEvent::new(SigevNotify::SigevThreadId {
                signal: SIGNAL,
                thread_id: gettid().as_raw(),
                si_value: 0,
            });
            let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)?;
            // A time of zero would disarm the timer.
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
        // The timer goes first: a signal that comes after the mask is restored may be blocked, and
        // would still be pending in a program that this process executes.
        drop(self.timer.take());
        if let Err(error) = self.blocked.thread_set_mask() {
            log::warn!("restore the signal mask: {error}");
        }
    }
}

extern "C" fn do_nothing(_: c_int) {}

/// Sets a handler that does nothing, so that the signal only interrupts. It is set once for the
/// whole process, because another thread may be waiting too. A program executed later has the
/// default action again (execve(2)).
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
