//! What keeps a hook within bounds: its time, and its capabilities.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};

/// How long a hook may take as a whole, in seconds: below the `timeout` of the shipped hook files.
pub const HOOK_SECONDS: u32 = 20;

const TOO_LONG: &str =
    "pinfold: the hook took longer than 20 s and gave up: is its standard input still open?\n";

/// Ends this process with status 1 after [`HOOK_SECONDS`], saying so. Whatever it is doing then: every
/// step of a hook can be its last.
pub fn bound_time() -> Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(give_up),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler calls only write(2) and _exit(2), which are async-signal-safe (signal-safety(7)).
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("bound the hook's time")?;
    // An engine may have left it blocked.
    let alarm = SigSet::from(Signal::SIGALRM);
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alarm), None).context("bound the hook's time")?;
    nix::unistd::alarm::set(HOOK_SECONDS);
    Ok(())
}

extern "C" fn give_up(_signal: libc::c_int) {
    // SAFETY: both are plain system calls, on a live constant.
    unsafe {
        libc::write(
            libc::STDERR_FILENO,
            TOO_LONG.as_ptr().cast(),
            TOO_LONG.len(),
        );
        libc::_exit(1);
    }
}

/// Gives up every capability but two (capabilities(7)): `CAP_SYS_NICE`, to set the affinity of, and move,
/// a process of a user namespace; and `CAP_DAC_OVERRIDE`, to write a cgroup that belongs to its root.
pub fn drop_capabilities() -> Result<()> {
    let attempt = || -> Result<(), caps::errors::CapsError> {
        let had = caps::read(None, CapSet::Permitted)?;
        let needed = [Capability::CAP_SYS_NICE, Capability::CAP_DAC_OVERRIDE];
        let kept: CapsHashSet = needed.into_iter().filter(|one| had.contains(one)).collect();
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    attempt().context("drop capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_two_capabilities_are_left() {
        // Capabilities belong to a thread: the other tests keep theirs.
        let left = std::thread::spawn(|| {
            drop_capabilities().unwrap();
            let left = |set| caps::read(None, set).unwrap();
            (
                left(CapSet::Effective),
                left(CapSet::Permitted),
                left(CapSet::Inheritable),
            )
        });
        let (effective, permitted, inheritable) = left.join().unwrap();
        assert!(effective.len() <= 2 && permitted.len() <= 2 && inheritable.is_empty());
        assert!(!permitted.contains(&Capability::CAP_SYS_ADMIN));
    }
}
