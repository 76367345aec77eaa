//! `pinfold isolate`: runs a command on CPUs of its own.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, raise, sigaction, sigprocmask,
};
use nix::unistd::Pid;

use super::request;
use crate::cli::IsolateArgs;
use crate::host::Host;
use crate::last_words;
use crate::placement::{CommandPlace, Site, pin_command};
use crate::process;
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::settings::count_refusal;
use crate::text::Shown;

/// Exit codes for a command that cannot be executed, and for one that is not found (podman-run(1),
/// "Exit Status").
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The signals that are passed on to the command.
const PASSED_ON: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

pub(super) fn run(args: &IsolateArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    let request = request(&args.wanted)?;
    last_words::arrange_for_command(&Host::new("/"), "isolate")?;
    let place = pin_command(
        site,
        Path::new(&args.command[0]),
        &request,
        !args.no_affinity,
    )
    .with_context(|| format!("cannot isolate a command on CPUs of pool {}", request.pool))
    .inspect_err(|error| count_refusal(&site.run_dir, Refusal::of(error).reason))?;
    let awaited = awaited(site);
    let code = match start(args, &place, &awaited) {
        Ok(mut child) => {
            if let Err(error) = place.record(site, child.id() as i32) {
                // The command is in a group of its own, so that it is seen without a record.
                log::warn!("record the command's process: {error:#}");
            }
            wait(&mut child, &awaited).map(code_of)
        }
        Err(error) => spawn_failed(args, &error),
    };
    finish(place, site);
    code
}

/// Gives the CPUs back. The command's status matters more than a failure here: what is left is
/// freed when the pool is next needed.
fn finish(place: CommandPlace, site: &Site) {
    let id = place.id().to_owned();
    if let Err(error) = place.end(site) {
        log::warn!("give back what {id} held: {error:#}");
    }
}

/// The signals of [`PASSED_ON`] that we were not started to ignore (nohup(1) means the command
/// too), and SIGCHLD.
fn awaited(site: &Site) -> SigSet {
    let ignored = process::ignored_signals(&site.host);
    let is_ignored = |signal: &Signal| ignored >> (*signal as i32 - 1) & 1 == 1;
    let passed_on = PASSED_ON.into_iter().filter(|signal| !is_ignored(signal));
    passed_on.chain([Signal::SIGCHLD]).collect()
}

/// Starts the command with the signal mask that we were started with; signals for us stay blocked
/// until [`wait`] takes them.
fn start(args: &IsolateArgs, place: &CommandPlace, awaited: &SigSet) -> io::Result<Child> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours. If SIGCHLD were ignored, the kernel would
    // reap the command by itself.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    let mut inherited = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(awaited), Some(&mut inherited))?;
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
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&inherited), None)?;
        Ok(())
    };
    // SAFETY: between fork and exec it only makes system calls, on data that it owns.
    unsafe { command.pre_exec(enter) };
    command.spawn()
}

fn spawn_failed(args: &IsolateArgs, error: &io::Error) -> Result<u8> {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => NOT_FOUND,
        // Entering the group failed, not the command.
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

/// Passes signals on until the command ends. They stay pending in the kernel: none is lost,
/// whatever fails meanwhile.
fn wait(child: &mut Child, awaited: &SigSet) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for the command")? {
            return Ok(status);
        }
        let (signal, code) = next(awaited).context("wait for a signal")?;
        if signal != Signal::SIGCHLD {
            pass_on(child, signal, code);
        }
    }
}

/// The next of these signals and its `si_code`, by sigwaitinfo(2), which nix does not have.
fn next(awaited: &SigSet) -> nix::Result<(Signal, i32)> {
    loop {
        // SAFETY: siginfo_t is plain numbers and pointers, for which zero is valid; the kernel
        // fills it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: both arguments live through the call.
        match Errno::result(unsafe { libc::sigwaitinfo(awaited.as_ref(), &mut info) }) {
            Ok(signal) => return Ok((Signal::try_from(signal)?, info.si_code)),
            // Interrupted, for example by a stop and SIGCONT (signal(7)).
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Passes a signal on to the command, unless it came from the terminal, which sends it to the
/// command as well.
fn pass_on(child: &Child, signal: Signal, code: i32) {
    if code != libc::SI_KERNEL {
        // The command may have ended, but is not reaped: its pid is not reused.
        let _ = kill(Pid::from_raw(child.id() as i32), signal);
    }
    if signal == Signal::SIGTSTP {
        // A shell expects us to stop with the command; if that fails, we go on running.
        let _ = raise(Signal::SIGSTOP);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}
