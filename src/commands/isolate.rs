//! `pinfold isolate`: running a command on CPUs of its own.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::Pid;
use signal_hook::consts::signal::{
    SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1,
    SIGUSR2, SIGVTALRM, SIGWINCH,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::emulate_default_handler;
use signal_hook::low_level::siginfo::{Cause, Origin};

use super::{Settings, request};
use crate::cli::Isolate;
use crate::placement::{CommandPlace, Site, pin_command};
use crate::process;
use crate::text::Shown;

/// The command cannot be executed, and it is not found: podman-run(1), "Exit Status".
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What is passed on to the command.
const PASSED_ON: [i32; 13] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO,
    SIGWINCH, SIGTSTP, SIGCONT,
];

pub(super) fn run(args: &Isolate, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    let request = request(&args.wanted)?;
    let place = pin_command(
        site,
        Path::new(&args.command[0]),
        &request,
        !args.no_affinity,
    )
    .with_context(|| format!("cannot isolate a command on CPUs of pool {}", request.pool))?;
    let code = match start(args, &place, &passed_on(site)) {
        Ok((mut child, signals)) => {
            if let Err(error) = place.record(site, child.id() as i32) {
                // It is in a group of its own, so that it is seen all the same.
                log::warn!("record the command's process: {error:#}");
            }
            wait(&mut child, signals).map(code_of)
        }
        Err(error) => spawn_failed(args, &error),
    };
    finish(place, site);
    code
}

/// The command's own status matters more than ours: what is left is freed when the pool is next needed.
fn finish(place: CommandPlace, site: &Site) {
    let id = place.id().to_owned();
    if let Err(error) = place.finish(site) {
        log::warn!("give back what {id} held: {error:#}");
    }
}

/// Those of [`PASSED_ON`] that we were not started to ignore: nohup(1) means the command too.
fn passed_on(site: &Site) -> Vec<i32> {
    let ignored = process::ignored_signals(&site.host);
    let is_ignored = |signal: &i32| ignored >> (signal - 1) & 1 == 1;
    PASSED_ON
        .into_iter()
        .filter(|signal| !is_ignored(signal))
        .collect()
}

fn start(
    args: &Isolate,
    place: &CommandPlace,
    passed_on: &[i32],
) -> io::Result<(Child, SignalsInfo<WithOrigin>)> {
    let signals = SignalsInfo::new(passed_on.iter().chain(&[SIGCHLD]))?;
    // Whoever started us may have left some of them blocked.
    let awaited = passed_on.iter().chain(&[SIGCHLD]);
    let awaited: SigSet = awaited
        .filter_map(|signal| Signal::try_from(*signal).ok())
        .collect();
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&awaited), None)?;
    let procs = match &place.procs_file {
        Some(path) => Some(OpenOptions::new().write(true).open(path)?),
        None => None,
    };
    let confined = !args.no_affinity;
    let mut command = Command::new(&args.command[0]);
    command
        .args(&args.command[1..])
        .env("KCM_CPUS_ASSIGNED", place.lists.join(","))
        .env("KCM_CPUS_ASSIGNED_MASK", place.cpus.to_hex_mask());
    let enter = move || {
        if let Some(mut procs) = procs.as_ref() {
            procs.write_all(b"0")?;
        }
        if confined {
            process::reset_affinity(0)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only makes the system calls write and sched_setaffinity, on what it owns.
    unsafe { command.pre_exec(enter) };
    Ok((command.spawn()?, signals))
}

fn spawn_failed(args: &Isolate, error: &io::Error) -> Result<u8> {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => NOT_FOUND,
        // Entering the group failed: nothing about the command.
        Some(libc::ENODEV | libc::ENOSPC | libc::EINVAL | libc::EBUSY) | None => {
            let message = error.to_string();
            return Err(anyhow::anyhow!(message)).context("start the command");
        }
        Some(_) => CANNOT_EXECUTE,
    };
    let name = args.command[0].to_string_lossy();
    log::error!("execute {}: {error}", Shown(&name));
    Ok(code)
}

/// Passes signals on until the command ends.
fn wait(child: &mut Child, mut signals: SignalsInfo<WithOrigin>) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait().context("wait for the command")? {
        return Ok(status);
    }
    for origin in &mut signals {
        if origin.signal == SIGCHLD {
            if let Some(status) = child.try_wait().context("wait for the command")? {
                return Ok(status);
            }
        } else {
            pass_on(child, &origin);
        }
    }
    child.wait().context("wait for the command")
}

/// What the terminal sends, it sends to the command as well: only what was sent to us alone is passed on.
fn pass_on(child: &Child, origin: &Origin) {
    if origin.cause != Cause::Kernel {
        let signal = Signal::try_from(origin.signal);
        // It may have ended in this moment, and is not reaped: the number is still its own.
        let _ = signal.map(|signal| kill(Pid::from_raw(child.id() as i32), signal));
    }
    if origin.signal == SIGTSTP {
        // Stopping with it is what a shell expects; a failure leaves us running.
        let _ = emulate_default_handler(SIGTSTP);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}
