//! Many starts at once: how many there are in a second, how long they wait for the lock, and how
//! long each has it.

use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::measure::{Program, plain};
use crate::site::{OwnGroup, Site, Sleeper};

/// Starts so many containers at once that ask for a list of a shared pool.
pub(crate) fn starts(site: &Site, at_once: usize) -> Value {
    let owners: Vec<(OwnGroup, Sleeper)> = (0..at_once)
        .map(|number| {
            let group = OwnGroup::new("", &format!("c{number}"));
            let owner = Sleeper::new();
            group.adopt(owner.pid());
            (group, owner)
        })
        .collect();
    let hooks: Vec<Program> = owners
        .iter()
        .enumerate()
        .map(|(number, (_, owner))| site.shared_hook("createRuntime", number, owner.pid()))
        .collect();
    let began = Instant::now();
    let running: Vec<Child> = hooks.iter().map(begin).collect();
    let waited = running.into_iter().map(finish).fold(0.0, f64::max);
    let seconds = began.elapsed().as_secs_f64();
    drop(owners);
    for number in 0..at_once {
        finish(begin(&site.shared_hook("poststop", number, 0)));
    }
    json!({
        "at_once": at_once,
        "per_second": at_once as f64 / seconds,
        "milliseconds": seconds * 1e3,
        "longest_wait_milliseconds": waited,
    })
}

fn begin(hook: &Program) -> Child {
    let input = std::fs::File::open(&hook.input).expect("open a state");
    let mut command = plain(&hook.words[0]);
    command.args(&hook.words[1..]).arg("--verbose");
    command
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().expect("execute a hook")
}

/// How long it has waited for the lock, in milliseconds.
fn finish(hook: Child) -> f64 {
    let done = hook.wait_with_output().expect("wait for a hook");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "a hook failed: {told}");
    // `waited 1.2 ms for the lock`
    let mut words = told.split_whitespace().skip_while(|word| *word != "waited");
    words
        .nth(1)
        .and_then(|time| time.parse().ok())
        .unwrap_or_default()
}

/// The seconds that a call took, which `strace -T` says at the line's end.
pub(crate) fn took(line: &str) -> f64 {
    let took = line
        .rsplit_once('<')
        .and_then(|(_, rest)| rest.strip_suffix('>'));
    took.and_then(|took| took.parse().ok()).unwrap_or_default()
}

/// How long a start has the lock, and how long it waited for it, in milliseconds: strace tells when
/// flock(2) came back.
pub(crate) fn lock_held(hook: &Program) -> (f64, f64) {
    let told = tempfile::NamedTempFile::new().expect("make a file");
    let input = std::fs::File::open(&hook.input).expect("open a state");
    let status = plain("strace")
        .args([
            "-f",
            "--seccomp-bpf",
            "-e",
            "trace=flock",
            "-ttt",
            "-T",
            "-o",
        ])
        .arg(told.path())
        .args(&hook.words)
        .stdin(input)
        .status();
    assert!(
        status.expect("execute strace").success(),
        "{:?} failed",
        hook.words
    );
    let told = std::fs::read_to_string(told.path()).expect("read what strace saw");
    // `4711 1764400000.123456 flock(3, LOCK_EX|LOCK_NB) = 0 <0.000005>`
    let at = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .and_then(|time| time.parse::<f64>().ok())
    };
    let mut locks = told
        .lines()
        .filter(|line| line.contains("flock(") && line.contains("= 0"));
    let taken = locks.next().expect("a hook takes the lock");
    let released = locks.next().expect("a hook lets go of the lock");
    let waited = took(taken);
    let held = at(released)
        .zip(at(taken))
        .map(|(end, begin)| end - begin - waited);
    (held.expect("strace tells the time") * 1e3, waited * 1e3)
}
