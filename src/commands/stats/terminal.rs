//! The terminal while it is ours: a screen of its own, keys as they are typed, no cursor, and lines
//! cut at its edge.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use crossterm::cursor::{Hide, Show};
use crossterm::queue;
use crossterm::terminal::{
    DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode,
};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::{Pid, write};
use rustix::termios::ttyname;

/// How long a terminal that takes nothing is waited for when it is given back, in milliseconds.
const LEAVING: u16 = 1000;

pub(super) struct Terminal {
    /// Opened once more: nobody who has it open besides finds that it does not block.
    out: File,
}

impl Terminal {
    /// Takes the one that standard output is.
    pub(super) fn take() -> Result<Terminal> {
        let name = ttyname(io::stdout(), Vec::new()).context("find the terminal")?;
        let out = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())))
            .context("open the terminal")?;
        // From here on, whatever fails: it is given back.
        let terminal = Terminal { out };
        terminal.set_up()?;
        Ok(terminal)
    }

    /// Draws a frame; one that is overtaken by a signal is left half drawn, for the terminal may
    /// take nothing any more.
    pub(super) fn draw(&self, frame: &[u8], signals: BorrowedFd<'_>) -> Result<()> {
        let mut left = frame;
        while !left.is_empty() {
            match write(&self.out, left) {
                Ok(count) => left = &left[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let signals = PollFd::new(signals, PollFlags::POLLIN);
                    let mut watched = [signals, self.writable()];
                    match poll(&mut watched, PollTimeout::NONE) {
                        Ok(_) if watched[0].any() == Some(true) => return Ok(()),
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error).context("wait for the terminal"),
                    }
                }
                Err(error) => return Err(error).context("draw on the terminal"),
            }
        }
        Ok(())
    }

    /// Stops as the shell expects it, with the terminal as it was, and takes it again afterwards.
    pub(super) fn lend(&self) -> Result<()> {
        self.give_back();
        let stop = SigSet::from(Signal::SIGTSTP);
        let attempt = || {
            // The whole job stops, as it does where nobody awaits the signal; where no shell could
            // continue it, the kernel lets it go on (setpgid(2), "orphaned").
            kill(Pid::from_raw(0), Signal::SIGTSTP)?;
            sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&stop), None)?;
            sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), None)
        };
        attempt().context("stop")?;
        self.set_up()
    }

    fn set_up(&self) -> Result<()> {
        enable_raw_mode().context("read keys as they are typed")?;
        let mut words = Vec::new();
        queue!(words, EnterAlternateScreen, Hide, DisableLineWrap)?;
        self.say(&words).context("take the terminal")
    }

    fn give_back(&self) {
        let mut words = Vec::new();
        // One that is gone, or takes nothing, needs nothing.
        let _ = queue!(words, EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = self.say(&words);
        let _ = disable_raw_mode();
    }

    /// Writes few bytes, for which a terminal that takes any has room.
    fn say(&self, words: &[u8]) -> nix::Result<()> {
        poll(&mut [self.writable()], PollTimeout::from(LEAVING))?;
        write(&self.out, words).map(drop)
    }

    fn writable(&self) -> PollFd<'_> {
        PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.give_back();
    }
}
