//! I2 when `isolate` is killed: at every one of its own system calls, before its command begins,
//! while that runs, and after it has ended.

use crate::case::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, Running, affinity, is_alive};
use crate::strace::{self, Reached};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Strace, Need::Cpus(2)];
    vec![plain("killpoints::isolate", needs, isolate)]
}

fn isolate(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    learn(world);
    let (trace, home) = learn(world);
    let waits = trace.find(WAIT).expect("learn saw it");
    // The wait itself is the last that comes while the command runs.
    let early = strace::points_in(&trace[..waits]).len() + 1;
    let points = strace::points_in(&trace);

    let (mut killed, mut outlived) = (0, 0);
    let tried = strace::tried(&points);
    for &(number, point) in &tried {
        let isolate = Isolate::start(world, &point.arguments());
        // One that was to be killed before its command ends, and is not, came by other calls this
        // time.
        let late = number >= early || !isolate.process.ends_within(process::patience() / 15);
        let told = late && isolate.end_the_command();
        let Isolate { process, out, .. } = isolate;
        killed += usize::from(strace::was_killed(&process.wait()));
        if let Some(command) = command_left_behind(&out, &home) {
            if !told {
                outlived += 1;
                assert_held(world, command, &format!("isolate was killed at {point}"));
                process::send(command, libc::SIGKILL);
            }
            process::eventually("the command is gone", || (!is_alive(command)).then_some(()));
        }
        assert_free(world, &format!("isolate was killed at {point}"));
        let left = cgroups::below(&home);
        assert!(
            left.is_empty(),
            "isolate was killed at {point}, and {left:?} is left"
        );
    }
    Reached {
        killed,
        tried: tried.len(),
        least: 30,
        percent: 80,
    }
    .assert_enough("isolate");
    println!("its command lived on after {outlived}");
    assert!(outlived > 0, "the command outlived isolate at no point");
}

/// The trace of an isolate that nobody kills, and the parent of the cgroup that it made. Its
/// command ends when isolate has nothing left to do but to wait for that.
fn learn(world: &World) -> (String, PathBuf) {
    let isolate = Isolate::start(world, &[]);
    process::eventually("isolate waits for its command's death", || {
        let trace = std::fs::read_to_string(&isolate.trace).ok()?;
        trace.contains(WAIT).then_some(())
    });
    assert_eq!(world.tasks("dp", "1").len(), 2, "its own and the command's");
    let command = process::eventually("the command runs", || command_in(&isolate.out));
    let cgroup = hierarchy().of(command);
    isolate.end_the_command();
    isolate.process.wait().ok();
    assert_free(world, "nobody killed isolate");
    let trace = std::fs::read_to_string(&isolate.trace).expect("read the trace");
    (trace, cgroup.parent().expect("not the root").to_owned())
}

/// How `isolate` waits for signals, that of its command's death among them.
const WAIT: &str = "rt_sigtimedwait(";

struct Isolate {
    process: Running,
    trace: PathBuf,
    /// What the command writes to; no other process has it in its arguments.
    out: PathBuf,
}

impl Isolate {
    /// Starts `isolate` under strace, which does not follow it into its command.
    fn start(world: &World, arguments: &[String]) -> Isolate {
        let (trace, out) = (world.dir.join("trace"), world.dir.join("command-says"));
        for earlier in [&trace, &out] {
            let _ = std::fs::remove_file(earlier);
        }
        let mut line = vec![
            "isolate",
            "--pool",
            "dp",
            "--",
            crate::probe::path().to_str().unwrap(),
        ];
        line.extend(["--out", out.to_str().unwrap(), "--wait"]);
        let isolate = world.pinfold(&line);
        let process = Running::start(&mut strace::under(&isolate, arguments, &trace), b"");
        Isolate {
            process,
            trace,
            out,
        }
    }

    /// Ends the command as soon as it runs, unless isolate ends before; gives whether the command
    /// was told.
    fn end_the_command(&self) -> bool {
        let told = process::eventually("the command runs", || match command_in(&self.out) {
            Some(command) => Some(Some(command)),
            None => self.process.ends_within(Duration::ZERO).then_some(None),
        });
        told.inspect(|&pid| process::send(pid, libc::SIGTERM))
            .is_some()
    }
}

/// The command, which has it in its arguments where to write, as soon as it has done so.
fn command_in(out: &Path) -> Option<i32> {
    let said = std::fs::read_to_string(out).ok()?;
    let probe = crate::probe::path();
    let is_probe = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == probe)
    };
    let mut found = process::processes_mentioning(out.to_str().unwrap()).into_iter();
    found
        .find(is_probe)
        .filter(|_| said.contains("affinity: 1\n"))
}

/// The command, once it is clear whether there is one. A process shows no arguments while it
/// executes a program; by then it is in the cgroup.
fn command_left_behind(out: &Path, home: &Path) -> Option<i32> {
    process::eventually("the command runs, or is known never to", || {
        let mut left = process::processes_mentioning(out.to_str().unwrap());
        left.extend(cgroups::processes(home));
        left.retain(|&pid| is_alive(pid));
        if left.is_empty() {
            Some(None)
        } else {
            command_in(out).map(Some)
        }
    })
}

fn assert_held(world: &World, command: i32, when: &str) {
    assert_eq!(affinity(command), "1", "{when}");
    let rival = Standin::new(world, "rival");
    let ran = world.hook(
        "prestart",
        &state("rival", rival.pid, json!({ "pinfold.io/pool": "dp" })),
    );
    assert!(
        ran.stderr.contains("exhausted"),
        "{when}, the list of its command was given away: {ran}"
    );
}

/// The next in need gets the list, and afterwards nothing is left.
fn assert_free(world: &World, when: &str) {
    let next = Standin::new(world, "next");
    let ran = world.hook(
        "prestart",
        &state("next", next.pid, json!({ "pinfold.io/pool": "dp" })),
    );
    assert_eq!(
        ran.code(),
        Some(0),
        "{when}, and keeps its list: {ran}{:?}",
        world.claims()
    );
    assert_eq!(
        (next.mask(), world.tasks("dp", "1")),
        ("1".into(), vec![next.pid]),
        "{when}"
    );
    next.die();
    world.reconcile();
    world.assert_all_free(when);
}
