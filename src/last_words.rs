//! What a process says when a signal ends it: the alarm that bounds its time, a resource limit, or
//! whoever stops it. Otherwise a container fails with a signal's number, and nobody knows whose.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, SigmaskHow, Signal, raise,
    sigaction, sigprocmask,
};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::host::Host;
use crate::limits::HOOK_SECONDS;
use crate::system_log::{self, Severity};
use crate::text::one_line;

/// The signals from outside that end a process by default (signal(7)). Left out are those after
/// which nothing can be said, such as SIGKILL and SIGSEGV.
pub const ENDING: [Signal; 9] = [
    Signal::SIGALRM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
    Signal::SIGVTALRM,
];

/// The signals by which a service manager, a terminal or a person stops a service.
const STOPPING: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// How many seconds after the alarm the kernel ends a process whose handler cannot run: a process
/// that waits for a disk takes no handled signal.
const BACKSTOP: i64 = 2;

/// The longest message, in bytes.
const MOST_BYTES: usize = 600;

/// What the message says of a hook's alarm.
const AFTER: &str = " after 20 s: something that it waited for hangs";
const _: () = assert!(HOOK_SECONDS == 20);

/// What to do about the rest of a start, an end, or a command.
const TAKEN_BACK: &str =
    "what it left is taken back when the pool is next needed, or by pinfold reconcile";

/// What to do about a change of the pools, which nothing takes back.
const DO_AGAIN: &str = "look how far it came (pinfold pool show), and do it again";

/// Everything that the handler needs, made beforehand: a handler may not allocate
/// (signal-safety(7)).
struct Words {
    who: String,
    /// What to say of an alarm.
    after: &'static str,
    /// What to do about what the process leaves.
    left: &'static str,
    socket: libc::sockaddr_un,
    kernel: CString,
}

static WORDS: OnceLock<Words> = OnceLock::new();

/// Reports from now on a signal or a panic that ends this hook or the shim, on stderr and in the
/// system log; `who` is the sentence's subject. A write beyond the limit on the size of files fails
/// (setrlimit(2), `RLIMIT_FSIZE`). Ignored signals stay ignored. The alarm gets a backstop.
///
/// # Errors
/// The kernel refuses.
pub fn arrange(host: &Host, who: &str) -> Result<()> {
    if !tell(host, who, (AFTER, TAKEN_BACK), &ENDING)? {
        return Ok(());
    }
    // An engine may have blocked some of them.
    let handled: SigSet = ENDING.into_iter().collect();
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&handled), None).context("unblock signals")?;
    back_the_alarm()
}

/// Like [`arrange`], for a command, which has no alarm and keeps its signal mask. What it leaves is
/// taken back by whoever needs it next.
///
/// # Errors
/// The kernel refuses.
pub fn arrange_for_command(host: &Host, who: &str) -> Result<()> {
    tell(host, who, ("", TAKEN_BACK), &ENDING).map(drop)
}

/// Like [`arrange_for_command`], for a command that changes the pools.
///
/// # Errors
/// The kernel refuses.
pub fn arrange_for_change(host: &Host, who: &str) -> Result<()> {
    tell(host, who, ("", DO_AGAIN), &ENDING).map(drop)
}

/// Like [`arrange_for_command`], for a service: the signals that stop it are its usual end, and are
/// not reported.
///
/// # Errors
/// The kernel refuses.
pub fn arrange_for_service(host: &Host, who: &str) -> Result<()> {
    let is_a_stop = |signal: &Signal| STOPPING.contains(signal);
    let others: Vec<Signal> = ENDING.into_iter().filter(|one| !is_a_stop(one)).collect();
    tell(host, who, ("", TAKEN_BACK), &others).map(drop)
}

/// Arranges the report for these signals; returns whether none was arranged before.
fn tell(
    host: &Host,
    who: &str,
    (after, left): (&'static str, &'static str),
    signals: &[Signal],
) -> Result<bool> {
    survive_file_limit()?;
    let (socket, kernel) = host.system_logs();
    let words = Words {
        who: one_line(who),
        after,
        left,
        socket: address(&socket),
        kernel: CString::new(kernel.as_os_str().as_bytes()).unwrap_or_default(),
    };
    if WORDS.set(words).is_err() {
        return Ok(false);
    }
    for signal in signals {
        handle(*signal, say_and_end, SaFlags::SA_RESETHAND)?;
    }
    tell_of_panics(host.clone());
    Ok(true)
}

/// Makes a write beyond the limit on the size of files fail instead of ending the process. A
/// program that this one becomes or starts has the default action again (execve(2)).
///
/// # Errors
/// The kernel refuses.
pub fn survive_file_limit() -> Result<()> {
    handle(Signal::SIGXFSZ, do_nothing, SaFlags::SA_RESTART)
}

/// Sets a handler, unless the signal is ignored.
fn handle(signal: Signal, handler: extern "C" fn(c_int), flags: SaFlags) -> Result<()> {
    let context = || format!("handle {signal}");
    let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::all());
    // SAFETY: the handlers of this file make only async-signal-safe calls.
    let before = unsafe { sigaction(signal, &action) }.with_context(context)?;
    if matches!(before.handler(), SigHandler::SigIgn) {
        // SAFETY: the former action runs no code.
        unsafe { sigaction(signal, &before) }.with_context(context)?;
    }
    Ok(())
}

extern "C" fn do_nothing(_: c_int) {}

extern "C" fn say_and_end(number: c_int) {
    if let Some(words) = WORDS.get() {
        let mut line = SafeLine::default();
        // The facility daemon, and an error (syslog(3)).
        line.push(b"<27>pinfold: ");
        line.push(words.who.as_bytes());
        line.push(b" was ended by ");
        let signal = Signal::try_from(number);
        line.push(signal.map_or("a signal", Signal::as_str).as_bytes());
        if signal == Ok(Signal::SIGALRM) {
            line.push(words.after.as_bytes());
        }
        line.push(b"; ");
        line.push(words.left.as_bytes());
        line.push(b"\n");
        words.log(line.bytes());
        // stderr comes last, because its reader may not read: the backstop ends that.
        write(libc::STDERR_FILENO, &line.bytes()[4..]);
    }
    // The default action is back, and takes effect when this returns.
    let _ = raise(Signal::try_from(number).unwrap_or(Signal::SIGKILL));
}

impl Words {
    fn log(&self, line: &[u8]) {
        // SAFETY: socket(2), sendto(2), open(2), write(2) and close(2) are async-signal-safe; each
        // gets memory that lives through the call, with its size.
        unsafe {
            let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let socket = libc::socket(libc::AF_UNIX, kind, 0);
            let sent = libc::sendto(
                socket,
                line.as_ptr().cast(),
                line.len(),
                0,
                (&raw const self.socket).cast(),
                size_of::<libc::sockaddr_un>() as libc::socklen_t,
            );
            libc::close(socket);
            if sent < 0 {
                let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
                let kernel = libc::open(self.kernel.as_ptr(), flags);
                write(kernel, line);
                libc::close(kernel);
            }
        }
    }
}

fn write(to: c_int, line: &[u8]) {
    // SAFETY: write(2) is async-signal-safe, and the line lives through the call.
    unsafe { libc::write(to, line.as_ptr().cast(), line.len()) };
}

/// A socket's address; an empty one, at which nobody listens, if the path is too long.
fn address(path: &Path) -> libc::sockaddr_un {
    // SAFETY: an address is plain bytes, for which zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() < address.sun_path.len() {
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
    }
    address
}

/// A line that is built without allocating.
struct SafeLine {
    bytes: [u8; MOST_BYTES],
    length: usize,
}

impl Default for SafeLine {
    fn default() -> SafeLine {
        SafeLine {
            bytes: [0; MOST_BYTES],
            length: 0,
        }
    }
}

impl SafeLine {
    /// Appends a text; cuts off what does not fit.
    fn push(&mut self, text: &[u8]) {
        let free = &mut self.bytes[self.length..];
        let count = text.len().min(free.len());
        free[..count].copy_from_slice(&text[..count]);
        self.length += count;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn tell_of_panics(host: Host) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        let message = one_line(&format!("this is a bug of Pinfold's: {panic}"));
        system_log::send(&host, Severity::Error, &message);
    }));
}

fn back_the_alarm() -> Result<()> {
    let context = "set a timer behind the alarm";
    let signal = SigevNotify::SigevSignal {
        signal: Signal::SIGKILL,
        si_value: 0,
    };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(signal)).context(context)?;
    let at = TimeSpec::new(i64::from(HOOK_SECONDS) + BACKSTOP, 0);
    timer
        .set(Expiration::OneShot(at), TimerSetTimeFlags::empty())
        .context(context)?;
    // The timer runs until the process ends or becomes another program (timer_create(2)).
    std::mem::forget(timer);
    Ok(())
}
