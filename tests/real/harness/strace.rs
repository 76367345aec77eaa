//! Every system call of a command, and the command killed at one of them.

use crate::process::{Ran, Running};
use nix::libc;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// The `nth` call of this name that the command makes.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) call: String,
    pub(crate) nth: usize,
    /// Whether anything outside the command may be another for it.
    pub(crate) changes: bool,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.call, self.nth)
    }
}

impl Point {
    /// The arguments that make strace kill its command at this point, before the call is carried
    /// out.
    pub(crate) fn arguments(&self) -> [String; 3] {
        let Point { call, nth, .. } = self;
        let inject = format!("-einject={call}:signal=KILL:when={nth}");
        ["-qq".into(), format!("-etrace={call}"), inject]
    }
}

/// Whose system calls count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those of the command and of all that it starts.
    All,
    /// The command's own.
    Its,
}

impl Whose {
    fn option(self) -> Vec<String> {
        match self {
            Whose::All => vec!["-f".into()],
            Whose::Its => vec![],
        }
    }
}

/// Runs the command to its end, which must be a success, and gives every system call that it made
/// after its exec.
pub(crate) fn points(command: &Command, whose: Whose, input: &[u8], trace: &Path) -> Vec<Point> {
    let options = [whose.option(), vec!["-qq".into()]].concat();
    let mut strace = under(command, &options, trace);
    Running::start(&mut strace, input).wait().ok();
    points_in(&std::fs::read_to_string(trace).expect("read the trace"))
}

/// The calls of a trace, in order. Calls are counted by thread and name, as strace's injection
/// counts them.
pub(crate) fn points_in(trace: &str) -> Vec<Point> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut points = Vec::new();
    for line in trace.lines() {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let thread = &line[..line.len() - rest.len()];
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        let is_name = call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if is_name && call != "execve" {
            let nth = counts.entry((thread, call)).or_default();
            *nth += 1;
            points.push(Point {
                call: call.into(),
                nth: *nth,
                changes: changes(call, rest),
            });
        }
    }
    points
}

/// Calls that change nothing outside the process that makes them, which is gone when it is killed:
/// one that is killed at such a call leaves what it would leave at its next.
const PURE: [&str; 51] = [
    "access",
    "arch_prctl",
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "faccessat2",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getpid",
    "getppid",
    "getrandom",
    "getsid",
    "getsockopt",
    "gettid",
    "getuid",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "poll",
    "ppoll",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "sigaltstack",
    "stat",
    "statx",
    "uname",
];

/// Whether a call, of a line of a trace, may change something that outlives its process. What is not
/// known to change nothing may.
fn changes(call: &str, line: &str) -> bool {
    match call {
        "openat" => ["O_CREAT", "O_TRUNC", "O_TMPFILE"]
            .iter()
            .any(|flag| line.contains(flag)),
        _ => !PURE.contains(&call),
    }
}

/// Which points are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillEvery {
    /// Each.
    Call,
    /// Each that may have changed something since the one before.
    Change,
    /// One of so many. An odd number lets the ways in which tests go on after a death, which
    /// alternate, all have their turn.
    Nth(usize),
}

impl std::fmt::Display for KillEvery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KillEvery::Call => f.write_str("call"),
            KillEvery::Change => f.write_str("change"),
            KillEvery::Nth(every) => write!(f, "{every}"),
        }
    }
}

/// `PINFOLD_TEST_KILL_EVERY`: `call`, unless a slow machine asks for fewer by `change` or a number.
pub(crate) fn kill_every() -> KillEvery {
    let every = std::env::var("PINFOLD_TEST_KILL_EVERY").ok();
    match every.as_deref() {
        None | Some("call") => KillEvery::Call,
        Some("change") => KillEvery::Change,
        Some(text) => match text.parse() {
            Ok(every) if every > 0 => KillEvery::Nth(every),
            _ => panic!("PINFOLD_TEST_KILL_EVERY is call, change or a number"),
        },
    }
}

/// The points that are tried, each with a number that is even for half of them.
pub(crate) fn tried(points: &[Point]) -> Vec<(usize, &Point)> {
    let points = points.iter();
    match kill_every() {
        KillEvery::Call => points.enumerate().collect(),
        KillEvery::Nth(every) => points.enumerate().step_by(every).collect(),
        KillEvery::Change => points.filter(|point| point.changes).enumerate().collect(),
    }
}

/// How many of the tried points were reached, and how many have to be: a command need not make the
/// same calls every time.
pub(crate) struct Reached {
    pub(crate) killed: usize,
    pub(crate) tried: usize,
    /// Of all points together.
    pub(crate) least: usize,
    pub(crate) percent: usize,
}

impl Reached {
    /// Says how many, and where points are passed over, says so too.
    #[track_caller]
    pub(crate) fn assert_enough(&self, what: &str) {
        let Reached { killed, tried, .. } = self;
        let may_miss = tried * (100 - self.percent) / 100;
        let (passed_over, least, may_miss) = match kill_every() {
            KillEvery::Call => (String::new(), self.least, may_miss),
            // Of ten calls one is such a one, or more.
            KillEvery::Change => (
                ", at each that may change something".to_owned(),
                self.least / 10,
                may_miss.max(1),
            ),
            KillEvery::Nth(every) => (
                format!(", one in {every} of all"),
                self.least / every,
                may_miss.max(1),
            ),
        };
        println!("killed {what} at {killed} points of {tried}{passed_over}");
        assert!(
            *killed > least && tried - killed <= may_miss,
            "too few points were reached"
        );
    }
}

/// Runs the command and kills it at the point; gives whether it came to that, for a command need
/// not make the same calls every time.
pub(crate) fn kill_at(
    point: &Point,
    command: &Command,
    whose: Whose,
    input: &[u8],
    trace: &Path,
) -> bool {
    let arguments = [whose.option(), point.arguments().to_vec()].concat();
    was_killed(&Running::start(&mut under(command, &arguments, trace), input).wait())
}

/// strace ends as its command did.
pub(crate) fn was_killed(ran: &Ran) -> bool {
    ran.signal() == Some(libc::SIGKILL)
}

/// The command under strace, which writes what it sees to `trace`.
pub(crate) fn under(command: &Command, arguments: &[String], trace: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(arguments).arg("-o").arg(trace);
    strace.arg(command.get_program()).args(command.get_args());
    strace
}
