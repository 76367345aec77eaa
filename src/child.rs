//! What another process does for this one: within bounds of time and of words, and ended beyond
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

/// The most that it may say, in bytes.
const MOST_WORDS: u64 = 1 << 20;
/// How often it is asked whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// What a process apart says when all is done.
const DONE: &str = "\0";

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output, or to standard error where that was asked for.
    pub out: String,
}

/// Runs a program to its end, without input and without its errors; it has a process group to itself, which ends with it.
///
/// # Errors
/// It cannot be executed; it has not closed its output and ended within that time, or says more than a mebibyte, or what is
/// not UTF-8.
pub fn ask(command: &mut Command, within: Duration) -> Result<Answer> {
    hear(command.stdout(Stdio::piped()).stderr(Stdio::null()), within)
}

/// The same, to hear what it writes to standard error, and nothing else.
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
        // It can have ended by now.
        let _ = killpg(group, Signal::SIGKILL);
        child.wait().context("wait for its end")?;
    }
    let out = out.context("read its answer")?;
    let status = ended.context("wait for its end")?;
    let status = status.with_context(|| format!("it did not end within {} s", within.as_secs()))?;
    Ok(Answer { status, out })
}

/// Does something in a process apart, which has this one's memory and none of its standard streams:
/// a panic, a signal or a hang there ends that process alone. One that was not done in time is
/// killed, and reaped by a later call: in the kernel's hands it can take any time to end.
///
/// # Errors
/// No process can be made; it was not done within that time, or came to an end of its own; what it
/// failed with, or that this is more than a mebibyte or not UTF-8.
pub fn apart(work: impl FnOnce() -> Result<()>, within: Duration) -> Result<()> {
    reap_left();
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    let (hear, tell) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    // SAFETY: this process has one thread, so that nobody else holds a lock of its memory.
    let child = match unsafe { fork() }.context("make a process")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Whoever reads what this process writes is not to wait for that one.
            let streams = [dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null)];
            if streams.iter().all(nix::Result::is_ok) {
                let words = work().map_or_else(|error| format!("{error:#}"), |()| DONE.to_owned());
                // Whoever does not hear all of it has given up.
                let _ = File::from(tell).write_all(words.as_bytes());
            }
            // SAFETY: it runs nothing of this program, whose destructors are the parent's.
            unsafe { libc::_exit(0) }
        }
    };
    drop(tell);
    let words = files::read_bounded(Prompt::within(File::from(hear), within), MOST_WORDS);
    let words = match words {
        Ok(words) => words,
        Err(error) => {
            // It ends when the kernel lets it, and is not waited for.
            let _ = kill(child, Signal::SIGKILL);
            left().push(child);
            if error.kind() == io::ErrorKind::TimedOut {
                bail!("it was not done within {:.1} s", within.as_secs_f32());
            }
            return Err(error).context("what became of it cannot be read");
        }
    };
    // It has closed the pipe, and so is at its end.
    let _ = waitpid(child, None);
    match words.as_str() {
        DONE => Ok(()),
        "" => bail!("the process that was to do it has ended before"),
        error => bail!("{error}"),
    }
}

/// The processes apart that were killed and have not been reaped yet. Until then their pids are
/// nobody else's.
fn left() -> MutexGuard<'static, Vec<Pid>> {
    static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps those of them that have ended, and waits for none.
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
        // All three were killed, and none stays.
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
