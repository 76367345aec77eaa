//! The program that tests run as a container's first process.
//!
//! Its very first act is `sched_getaffinity`; it writes what it saw as one line, `affinity: 0-1,4`,
//! and then does what its arguments say, in order:
//!
//! ```text
//! --out FILE   write lines to FILE instead of standard output (must come first)
//! --print-env NAME   write `NAME=value`, or `NAME unset`
//! --print-args A B C   write each remaining argument as one line, verbatim, and exit 0
//! --when-told  write a line, and go on when SIGUSR1 comes
//! --orphan     fork a descendant that starts a session of its own and waits until it is killed
//! --threads N  start N threads that wait for ever, then end the leader thread alone
//! --wait       wait until killed; SIGTERM exits 0
//! --duty N     use N milliseconds of CPU time out of every 20, until killed; SIGTERM exits 0
//! --burn       use the CPU until killed; SIGTERM exits 0
//! --exit N     exit with status N
//! ```
//!
//! Built by the tests themselves with `rustc`, statically, so that it runs in an empty root file
//! system.

#![no_main]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::fmt::Write as _;
use std::io::Write as _;

const MASK_WORDS: usize = 128;
const SIGTERM: c_int = 15;
const SIGUSR1: c_int = 10;
const SIG_BLOCK: c_int = 0;
const CLOCK_PROCESS_CPUTIME_ID: c_int = 2;
/// Room for a `sigset_t` of any C library.
type SignalSet = [u64; 16];
#[cfg(target_arch = "x86_64")]
const SYS_EXIT: c_long = 60;
#[cfg(not(target_arch = "x86_64"))]
const SYS_EXIT: c_long = 93;

unsafe extern "C" {
    fn sched_getaffinity(pid: c_int, size: usize, mask: *mut u64) -> c_int;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> *mut c_void;
    fn pause() -> c_int;
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, number: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, number: *mut c_int) -> c_int;
    fn fork() -> c_int;
    fn clock_gettime(clock: c_int, time: *mut c_void) -> c_int;
    fn setsid() -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn _exit(status: c_int) -> !;
}

#[unsafe(no_mangle)]
pub extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut mask = [0u64; MASK_WORDS];
    // SAFETY: the kernel writes at most the size given into the array.
    let status = unsafe { sched_getaffinity(0, size_of_val(&mask), mask.as_mut_ptr()) };
    // SAFETY: the handler only calls _exit, which may be called in a signal handler.
    unsafe { signal(SIGTERM, leave) };
    // SAFETY: the C runtime passes argc valid strings that live as long as the process.
    let arguments = (1..argc as usize).map(|i| unsafe { CStr::from_ptr(*argv.add(i)) });
    let mut arguments = arguments
        .map(|a| a.to_string_lossy().into_owned())
        .peekable();

    let mut out = Output(None);
    if arguments.next_if(|a| a == "--out").is_some() {
        let path = arguments.next().unwrap_or_default();
        match std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
        {
            Ok(file) => out = Output(Some(file)),
            Err(error) => fail(&format!("open {path}: {error}")),
        }
    }
    if status < 0 {
        fail("sched_getaffinity failed");
    }
    out.line(&format!("affinity: {}", list(&mask)));

    while let Some(action) = arguments.next() {
        match action.as_str() {
            "--print-env" => {
                let name = arguments.next().unwrap_or_default();
                match std::env::var(&name) {
                    Ok(value) => out.line(&format!("{name}={value}")),
                    Err(_) => out.line(&format!("{name} unset")),
                }
            }
            "--print-args" => {
                arguments.by_ref().for_each(|a| out.line(&a));
                return 0;
            }
            "--when-told" => wait_to_be_told(&mut out),
            "--orphan" => orphan(&mut out),
            "--threads" => leave_threads(number(arguments.next())),
            "--wait" => wait(),
            "--duty" => keep_to_duty(number(arguments.next())),
            "--burn" => loop {
                std::hint::spin_loop();
            },
            "--exit" => return number(arguments.next()),
            other => fail(&format!("unknown action {other}")),
        }
    }
    0
}

struct Output(Option<std::fs::File>);

impl Output {
    /// One write, so that a reader never sees half a line.
    fn line(&mut self, text: &str) {
        let bytes = format!("{text}\n");
        let written = match &mut self.0 {
            Some(file) => file.write_all(bytes.as_bytes()),
            None => std::io::stdout().write_all(bytes.as_bytes()),
        };
        if written.is_err() {
            fail("cannot write what was seen");
        }
    }
}

fn list(mask: &[u64]) -> String {
    let set = |cpu: usize| {
        mask.get(cpu / 64)
            .is_some_and(|word| word & (1 << (cpu % 64)) != 0)
    };
    let mut text = String::new();
    let mut cpu = 0;
    while cpu < mask.len() * 64 {
        if set(cpu) {
            let first = cpu;
            while set(cpu + 1) {
                cpu += 1;
            }
            let comma = if text.is_empty() { "" } else { "," };
            let _ = match cpu - first {
                0 => write!(text, "{comma}{first}"),
                _ => write!(text, "{comma}{first}-{cpu}"),
            };
        }
        cpu += 1;
    }
    text
}

fn wait_to_be_told(out: &mut Output) {
    let mut set: SignalSet = [0; 16];
    // SAFETY: the set is large enough and lives through the calls.
    unsafe {
        sigemptyset(&mut set);
        sigaddset(&mut set, SIGUSR1);
        sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut());
    }
    out.line("waiting to be told");
    let mut number = 0;
    // SAFETY: as above.
    unsafe { sigwait(&set, &mut number) };
}

fn orphan(out: &mut Output) {
    // SAFETY: the process has one thread, so the child may do anything.
    match unsafe { fork() } {
        -1 => fail("fork failed"),
        0 => {
            // SAFETY: plain system call.
            unsafe { setsid() };
            out.line("orphan: ready");
            wait()
        }
        _ => {}
    }
}

fn leave_threads(count: c_int) {
    for _ in 0..count {
        std::thread::spawn(|| wait());
    }
    // SAFETY: ends this thread alone; nothing of it is used by the others.
    unsafe { syscall(SYS_EXIT, 0 as c_long) };
}

/// Whoever it has to wait for, and however late it wakes, it has used its share at the end of the
/// next turn, if there is time enough.
fn keep_to_duty(milliseconds: c_int) -> ! {
    let busy = std::time::Duration::from_millis(milliseconds.unsigned_abs().into());
    let turn = std::time::Duration::from_millis(20);
    let (began, before) = (std::time::Instant::now(), cpu_time());
    let mut turns = 0;
    loop {
        turns += 1;
        while cpu_time() < before + turns * busy {
            std::hint::spin_loop();
        }
        std::thread::sleep((turns * turn).saturating_sub(began.elapsed()));
    }
}

/// What this process has used (clock_gettime(2)).
fn cpu_time() -> std::time::Duration {
    let mut time = [0 as c_long; 2];
    // SAFETY: the kernel writes a `timespec`, which is two of these on 64-bit machines.
    unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr().cast()) };
    std::time::Duration::new(time[0].unsigned_abs(), time[1] as u32)
}

fn wait() -> ! {
    loop {
        // SAFETY: plain system call.
        unsafe { pause() };
    }
}

extern "C" fn leave(_: c_int) {
    // SAFETY: may be called in a signal handler.
    unsafe { _exit(0) }
}

fn number(argument: Option<String>) -> c_int {
    match argument.as_deref().map(str::parse) {
        Some(Ok(number)) => number,
        _ => fail("a number is missing"),
    }
}

fn fail(message: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "probe: {message}");
    // SAFETY: plain system call.
    unsafe { _exit(99) }
}
