//! Runs other processes for this one, within bounds of time and output; kills those that exceed
//! them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2};

use crate::files;
use crate::limits::Prompt;

/// The most output that is read, in bytes.
const MOST_WORDS: u64 = 1 << 20;
/// How often to check whether a process has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// What a process apart writes when its work has succeeded.
const DONE: &str = "\0";

/// A program's answer.
#[derive(Debug)]
pub struct Answer {
    /// The exit status.
    pub status: ExitStatus,
    /// The text on standard output, or on standard error for [`ask_for_errors`].
    pub out: String,
}

/// Runs a program to its end, without input and with its errors discarded. It gets its own process
/// group, which is killed with it.
///
/// # Errors
/// The program cannot be executed, does not close its output and end within that time, or writes
/// more than a mebibyte or what is not UTF-8.
pub fn ask(command: &mut Command, within: Duration) -> Result<Answer> {
    hear(command.stdout(Stdio::piped()).stderr(Stdio::null()), within)
}

/// Like [`ask`], but reads standard error and discards standard output.
pub fn ask_for_errors(command: &mut Command, within: Duration) -> Result<Answer> {
    hear(command.stdout(Stdio::null()).stderr(Stdio::piped()), within)
}

fn hear(command: &mut Command, within: Duration) -> Result<Answer> {
    let mut child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("execute {}", Path::new(command.get_program()).display()))?;
    let deadline = Instant::now() + within;
    let out = match (child.stdout.take(), child.stderr.take()) {
        (Some(out), _) => files::read_bounded(Prompt::within(out, within), MOST_WORDS),
        (None, Some(out)) => files::read_bounded(Prompt::within(out, within), MOST_WORDS),
        (None, None) => Ok(String::new()),
    };
    let ended = match out {
        Ok(_) => ended_by(&mut child, deadline),
        Err(_) => Ok(None),
    };
    if !matches!(ended, Ok(Some(_))) {
        let group = Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX));
        // The program may have ended by now.
        let _ = killpg(group, Signal::SIGKILL);
        child.wait().context("wait for its end")?;
    }
    let out = out.context("read its answer")?;
    let status = ended.context("wait for its end")?;
    let status = status.with_context(|| format!("it did not end within {} s", within.as_secs()))?;
    Ok(Answer { status, out })
}

/// Does `work` in a forked process without our standard streams: a panic, a signal or a hang there
/// ends only that process. A process that is late is killed, and reaped by a later call: in the
/// kernel it can take any time to end.
///
/// # Errors
/// No process can be made; the work was late, or its process died; the work's own error, or one of
/// more than a mebibyte or not UTF-8.
pub fn apart(work: impl FnOnce() -> Result<()>, within: Duration) -> Result<()> {
    reap_left();
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    let (hear, tell) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    // SAFETY: this process has one thread, so that no lock of its memory is held by another.
    let child = match unsafe { fork() }.context("make a process")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // A reader of our output must not wait for this process.
            let streams = [dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null)];
            if streams.iter().all(nix::Result::is_ok) {
                let words = work().map_or_else(|error| format!("{error:#}"), |()| DONE.to_owned());
                // A parent that does not read all of it has given up.
                let _ = File::from(tell).write_all(words.as_bytes());
            }
            // SAFETY: _exit(2) runs nothing of this program, whose destructors are the parent's.
            unsafe { libc::_exit(0) }
        }
    };
    drop(tell);
    let words = files::read_bounded(Prompt::within(File::from(hear), within), MOST_WORDS);
    let words = match words {
        Ok(words) => words,
        Err(error) => {
            // The process ends when the kernel lets it; nobody waits for it here.
            let _ = kill(child, Signal::SIGKILL);
            left().push(child);
            if error.kind() == io::ErrorKind::TimedOut {
                bail!("it was not done within {:.1} s", within.as_secs_f32());
            }
            return Err(error).context("what became of it cannot be read");
        }
    };
    // The child has closed the pipe, and so is about to end.
    let _ = waitpid(child, None);
    match words.as_str() {
        DONE => Ok(()),
        "" => bail!("the process that was to do it has ended before"),
        error => bail!("{error}"),
    }
}

/// The killed processes that are not reaped yet. Until then their pids are not reused.
fn left() -> MutexGuard<'static, Vec<Pid>> {
    static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps the killed processes that have ended, without waiting for the others.
fn reap_left() {
    left().retain(|child| {
        let ended = waitpid(*child, Some(WaitPidFlag::WNOHANG));
        matches!(ended, Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    });
}

fn ended_by(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_process_apart_is_told() {
        let begun = Instant::now();
        let said = |work: fn() -> Result<()>, within: u64| {
            let done = apart(work, Duration::from_millis(within));
            done.map_or_else(|error| format!("{error:#}"), |()| "done".to_owned())
        };
        let hang = || -> Result<()> {
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        };
        assert_eq!(said(hang, 100), "it was not done within 0.1 s");
        let ended = said(|| std::process::abort(), 60_000);
        assert_eq!(ended, "the process that was to do it has ended before");
        assert_eq!(said(|| bail!("no room"), 60_000), "no room");
        assert_eq!(said(hang, 123), "it was not done within 0.1 s");
        let long = said(|| bail!("x".repeat(2 << 20)), 60_000);
        assert!(
            long.starts_with("what became of it cannot be read: "),
            "{long}"
        );
        // All three were killed, and are reaped in the end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !left().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", left());
            std::thread::sleep(PAUSE);
            reap_left();
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        apart(|| Ok(std::fs::create_dir(&path)?), Duration::from_secs(60)).unwrap();
        assert!(path.metadata().is_ok());
    }
}
