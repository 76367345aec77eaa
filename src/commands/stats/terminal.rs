//! The terminal while it is ours: a screen of its own, keys as they are typed, no cursor, and lines
//! cut at its edge.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
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
        // From here on, whatever fails: it is given back. A panic ends a release build right where
        // it happens, and its message is not for the screen of ours.
        let terminal = Terminal { out };
        give_back_in_panic(terminal.out.try_clone().context("open the terminal")?);
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

/// Gives the terminal back before a panic says anything.
fn give_back_in_panic(out: File) {
    let terminal = ManuallyDrop::new(Terminal { out });
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal.give_back();
        before(info);
    }));
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::termios::tcgetattr;
    use std::io::Read;
    use std::process::Command;

    /// What the next test runs on a terminal: it panics, and nothing is dropped.
    #[test]
    #[ignore = "runs on a terminal of the next test's"]
    fn panics() {
        std::mem::forget(Terminal::take().unwrap());
        let _ = std::thread::spawn(|| panic!("said on the screen that was there before")).join();
        // SAFETY: nothing is left to be done.
        unsafe { libc::_exit(0) };
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let of_child = || pty.slave.try_clone().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("commands::stats::terminal::tests::panics")
            .stdin(of_child())
            .stdout(of_child())
            .stderr(of_child())
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
        let mut shown = vec![0; 4096];
        let length = File::from(pty.master).read(&mut shown).unwrap();
        let shown = String::from_utf8_lossy(&shown[..length]).into_owned();
        let place = |text: &str| {
            shown
                .find(text)
                .unwrap_or_else(|| panic!("{text:?}: {shown:?}"))
        };
        assert!(place("\x1b[?1049h") < place("\x1b[?1049l"), "{shown:?}");
        assert!(
            place("\x1b[?1049l") < place("said on the screen"),
            "{shown:?}"
        );
    }
}
