//! What another process does for this one: within bounds of time and of words, and ended beyond
//! them.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork};

use crate::files;
use crate::limits::Prompt;

/// The most that it may say, in bytes.
const MOST_WORDS: u64 = 1 << 20;
/// How often it is asked whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// The same of one that takes a millisecond or two.
const BRIEF_PAUSE: Duration = Duration::from_micros(200);

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub out: String,
}

/// Runs a program to its end, without input and without its errors; it has a process group to itself, which ends with it.
///
/// # Errors
/// It cannot be executed; it has not closed its output and ended within that time, or says more than a mebibyte, or what is
/// not UTF-8.
pub fn ask(command: &mut Command, within: Duration) -> Result<Answer> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("execute {}", Path::new(command.get_program()).display()))?;
    let deadline = Instant::now() + within;
    let out = match child.stdout.take() {
        Some(stdout) => files::read_bounded(Prompt::within(stdout, within), MOST_WORDS),
        None => Ok(String::new()),
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
/// a panic, a signal or a hang there ends that process alone. Whether it was done is not told.
///
/// # Errors
/// No process can be made.
pub fn apart(work: impl FnOnce(), within: Duration) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    let deadline = Instant::now() + within;
    // SAFETY: this process has one thread, so that nobody else holds a lock of its memory.
    let child = match unsafe { fork() }.context("make a process")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Whoever reads what this process writes is not to wait for that one.
            let streams = [dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null)];
            if streams.iter().all(nix::Result::is_ok) {
                work();
            }
            // SAFETY: it runs nothing of this program, whose destructors are the parent's.
            unsafe { libc::_exit(0) }
        }
    };
    let goes_on = || waitpid(child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive);
    while goes_on() {
        if Instant::now() >= deadline {
            // It ends when the kernel lets it, and is not waited for.
            let _ = kill(child, Signal::SIGKILL);
            break;
        }
        std::thread::sleep(BRIEF_PAUSE);
    }
    Ok(())
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
    fn what_becomes_of_a_process_apart_is_not_ours() {
        let begun = Instant::now();
        apart(
            || std::thread::sleep(Duration::from_secs(1000)),
            Duration::from_millis(100),
        )
        .unwrap();
        apart(|| std::process::abort(), Duration::from_secs(60)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        apart(
            || std::fs::create_dir(&path).unwrap(),
            Duration::from_secs(60),
        )
        .unwrap();
        assert!(path.metadata().is_ok());
    }
}
