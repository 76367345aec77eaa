//! The order in which those who wait for the lock get it: each takes a ticket, and waits for
//! whoever has the one before.
//!
//! The kernel wakes the first who waits for a flock(2), but does not hand it over: whoever comes in
//! the moment of the waking is before all who wait. So they wait in a file of our own, a locked
//! byte each (`F_OFD_SETLKW`, fcntl_locking(2)), and only the first of them waits for the lock
//! itself. This is a courtesy: the lock alone keeps others out. Whoever is killed lets go of its
//! byte; where the file cannot be used, all wait in the kernel's queue, as other tools do.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fs2::FileExt;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::wait::Alarm;
use crate::files;

/// The file's mode: whoever can write it can have all others wait.
const MODE: u32 = 0o600;

/// A place in the queue. Dropping it lets the next one go on.
#[derive(Debug)]
pub(super) struct Ticket {
    file: File,
    number: i64,
}

/// Does anybody wait, as far as can be told?
///
/// The way to the file is not looked at before: nothing is written or believed of what is in it,
/// and whoever is sent to wait by a file of somebody else's finds that out before it takes a
/// ticket.
pub(super) fn is_waited_in(queue: &Path) -> bool {
    let file = files::open_regular(queue);
    file.is_ok_and(|file| matches!(is_locked(&file), Ok(true)))
}

impl Ticket {
    /// Takes the next ticket, waiting at most `patience` for whoever is taking one.
    ///
    /// # Errors
    /// The file cannot be made or used.
    pub(super) fn take(queue: &Path, patience: Duration) -> Result<Ticket> {
        let file = files::open_or_make_regular(queue, MODE)?;
        let alarm = Alarm::after(patience)?;
        let attempt = || -> Result<i64> {
            // Until it is unlocked, nobody else takes a ticket.
            file.lock_exclusive()?;
            // The file is as long as there are tickets, and empty again after the last of them.
            let number = match is_locked(&file)? {
                true => i64::try_from(file.metadata()?.len())?,
                false => 0,
            };
            file.set_len(u64::try_from(number)? + 1)?;
            let own = byte(number, libc::F_WRLCK);
            fcntl(&file, FcntlArg::F_OFD_SETLK(&own))?;
            FileExt::unlock(&file)?;
            Ok(number)
        };
        let number = attempt().with_context(|| format!("queue in {}", queue.display()))?;
        drop(alarm);
        Ok(Ticket { file, number })
    }

    /// Waits until whoever has the ticket before it goes on or ends, but at most `patience`: it may
    /// have been stopped.
    pub(super) fn wait(&self, patience: Duration) -> Result<()> {
        if self.number == 0 {
            return Ok(());
        }
        let _alarm = Alarm::after(patience)?;
        let before = byte(self.number - 1, libc::F_RDLCK);
        match fcntl(&self.file, FcntlArg::F_OFD_SETLKW(&before)) {
            Ok(_) => Ok(()),
            Err(Errno::EINTR) => bail!("nobody went on in the queue for the lock"),
            Err(error) => Err(io::Error::from(error)).context("wait in the queue for the lock"),
        }
    }
}

/// Is any byte locked?
fn is_locked(file: &File) -> Result<bool> {
    let mut all = byte(0, libc::F_WRLCK);
    all.l_len = 0;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut all))?;
    Ok(i32::from(all.l_type) != libc::F_UNLCK)
}

/// The lock of one byte.
fn byte(number: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number,
        l_len: 1,
        // Open file descriptions have no pid (fcntl_locking(2)).
        l_pid: 0,
    }
}
