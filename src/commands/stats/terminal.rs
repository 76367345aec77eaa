//! The terminal while we draw on it: the alternate screen, raw keys, no cursor, and lines cut at
//! the edge.

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

/// How long giving the terminal back waits for one that takes no output, in milliseconds.
const LEAVING: u16 = 1000;

pub(super) struct Terminal {
    /// A separate open file: others who have the terminal open do not become non-blocking.
    out: File,
}

impl Terminal {
    /// Takes the terminal that standard output is.
    pub(super) fn take() -> Result<Terminal> {
        let name = ttyname(io::stdout(), Vec::new()).context("find the terminal")?;
        let out = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())))
            .context("open the terminal")?;
        // Give the terminal back whatever fails from here on. A panic of a release build aborts at
        // once, and its message must not go to the alternate screen.
        let terminal = Terminal { out };
        give_back_in_panic(terminal.out.try_clone().context("open the terminal")?);
        terminal.set_up()?;
        Ok(terminal)
    }

    /// Draws a frame. A signal leaves the frame half drawn, because the terminal may take no more
    /// output.
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

    /// Stops as a shell expects, with the terminal as it was, and takes it again afterwards.
    pub(super) fn lend(&self) -> Result<()> {
        self.give_back();
        let stop = SigSet::from(Signal::SIGTSTP);
        let attempt = || {
            // The whole job stops, as by the signal's default action. If no shell could continue
            // it, the kernel does not stop it (setpgid(2), "orphaned").
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
        // A terminal that is gone or takes no output needs none of this.
        let _ = queue!(words, EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = self.say(&words);
        let _ = disable_raw_mode();
    }

    /// Writes a few bytes; a terminal that takes any has room for them.
    fn say(&self, words: &[u8]) -> nix::Result<()> {
        poll(&mut [self.writable()], PollTimeout::from(LEAVING))?;
        write(&self.out, words).map(drop)
    }

    fn writable(&self) -> PollFd<'_> {
        PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)
    }
}

/// Gives the terminal back before a panic prints its message.
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

    /// The next test runs this on a terminal: it panics, and nothing is dropped.
    #[test]
    #[ignore = "runs on a terminal of the next test's"]
    fn panics() {
        std::mem::forget(Terminal::take().unwrap());
        let _ = std::thread::spawn(|| panic!("said on the screen that was there before")).join();
        // SAFETY: nothing is left to do.
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
