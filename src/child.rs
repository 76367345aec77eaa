//! Another program that is asked something: within bounds of time and of words, and ended beyond them.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::files;
use crate::limits::Prompt;

/// The most that it may say, in bytes.
const MOST_WORDS: u64 = 1 << 20;
/// How often it is asked whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);

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

fn ended_by(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(PAUSE);
    }
}
