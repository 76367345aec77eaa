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
        let Point { call, nth } = self;
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
            });
        }
    }
    points
}

/// `PINFOLD_TEST_KILL_EVERY`: of so many points only one is tried; 1, every point, unless a slow
/// machine asks for more. An odd number lets the ways in which tests go on after a death, which
/// alternate, all have their turn.
pub(crate) fn kill_every() -> usize {
    let every = std::env::var("PINFOLD_TEST_KILL_EVERY").ok();
    every.map_or(1, |text| {
        text.parse().expect("PINFOLD_TEST_KILL_EVERY is a number")
    })
}

/// The points that are tried, each with its place among all.
pub(crate) fn tried(points: &[Point]) -> Vec<(usize, &Point)> {
    points.iter().enumerate().step_by(kill_every()).collect()
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
        let (every, Reached { killed, tried, .. }) = (kill_every(), self);
        let passed_over = if every > 1 {
            format!(", one in {every} of all")
        } else {
            String::new()
        };
        println!("killed {what} at {killed} points of {tried}{passed_over}");
        let may_miss = (tried * (100 - self.percent) / 100).max(usize::from(every > 1));
        assert!(
            killed * every > self.least && tried - killed <= may_miss,
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
