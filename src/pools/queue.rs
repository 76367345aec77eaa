//! The order in which those who wait for the lock get it. Each takes a ticket, and waits for
//! whoever has the ticket before.
//!
//! The kernel wakes the first who waits for a flock(2), but does not pass the lock to it: somebody
//! who comes at that moment is ahead of all who wait. So they wait in a file of our own, each with
//! one byte locked (`F_OFD_SETLKW`, fcntl_locking(2)), and only the first of them waits for the
//! lock itself. This only keeps the order: the lock alone keeps others out. The byte of a process
//! that is killed is unlocked. Where the file cannot be used, all wait in the kernel's queue, as
//! other tools do.

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

/// The file's mode: whoever can write it can make all others wait.
const MODE: u32 = 0o600;

/// A place in the queue. Dropping it lets the next one go on.
#[derive(Debug)]
pub(super) struct Ticket {
    file: File,
    number: i64,
}

/// Does anybody wait in the queue? `false` where that cannot be told.
///
/// Whether others can change the file is not checked: nothing is written, and its content is not
/// used. If a file of somebody else's pretends a queue, that is found out before a ticket is taken.
pub(super) fn is_waited_in(queue: &Path) -> bool {
    let file = files::open_regular(queue);
    file.is_ok_and(|file| matches!(is_locked(&file), Ok(true)))
}

impl Ticket {
    /// Takes the next ticket, waiting at most `patience` while somebody else takes one.
    ///
    /// # Errors
    /// The file cannot be made or used.
    pub(super) fn take(queue: &Path, patience: Duration) -> Result<Ticket> {
        let file = files::open_or_make_regular(queue, MODE)?;
        let alarm = Alarm::after(patience)?;
        let attempt = || -> Result<i64> {
            // While this is locked, nobody else takes a ticket.
            file.lock_exclusive()?;
            // The file's length is the number of tickets. With no ticket in use it starts again at
            // 0.
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

    /// Waits at most `patience` until the ticket before this one is dropped. Its holder may have
    /// been stopped.
    ///
    /// # Errors
    /// The wait was too long, or the file cannot be used.
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

/// Is any byte of the file locked?
fn is_locked(file: &File) -> Result<bool> {
    let mut all = byte(0, libc::F_WRLCK);
    all.l_len = 0;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut all))?;
    Ok(i32::from(all.l_type) != libc::F_UNLCK)
}

/// Describes a lock on one byte, for fcntl(2).
fn byte(number: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number,
        l_len: 1,
        // A lock of an open file description has no pid (fcntl_locking(2)).
        l_pid: 0,
    }
}
