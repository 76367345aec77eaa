//! What a command says when a signal ends it at its work.

use crate::case::{Case, plain};
use crate::needs::Need;
use crate::process::{self, Ran, Running};
use crate::syslog::SysLog;
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![plain("last_words::a_command_has_them", needs, a_command)]
}

/// What is ended by this signal while it waits for the lock.
fn ended(world: &World, line: &[&str], signal: i32) -> Ran {
    let lock = world.hold_lock();
    let running = Running::start(&mut world.pinfold(line), b"");
    process::eventually("it waits for the lock", || {
        (!world.hooks_at_the_lock().is_empty()).then_some(())
    });
    running.signal(signal);
    let ended = running.wait();
    drop(lock);
    assert_eq!(ended.signal(), Some(signal), "{ended}");
    ended
}

fn a_command(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let asking = state("a", standin.pid, json!({ "pinfold.io/pool": "dp" }));
    world.hook("createRuntime", &asking).ok();
    let taken_back = "or by pinfold reconcile";
    let lines: [(&[&str], &str, &str); 5] = [
        (&["reconcile"], "reconcile", taken_back),
        (&["isolate", "--pool", "dp", "true"], "isolate", taken_back),
        (&["release", "a"], "the release of a", taken_back),
        (
            &["pool", "remove", "dp"],
            "the change of pool dp",
            "do it again",
        ),
        (&["reconcile", "--interval", "1"], "reconcile", taken_back),
    ];
    for (line, who, left) in lines {
        for (signal, name) in [(libc::SIGXCPU, "SIGXCPU"), (libc::SIGALRM, "SIGALRM;")] {
            let mut log = SysLog::mark();
            let ended = ended(world, line, signal);
            let words = [&format!("{who} was ended by {name}"), left];
            let is_told = words.iter().all(|word| ended.stderr.contains(word));
            assert!(is_told && ended.stderr.lines().count() == 1, "{ended}");
            log.lines_with(1, &words);
        }
    }
    // A service manager stops what runs for ever in this way.
    let stopped = ended(world, &["reconcile", "--interval", "1"], libc::SIGTERM);
    assert_eq!(stopped.stderr, "", "{stopped}");
    assert_eq!(world.claims_of("a").len(), 1, "its CPUs stay its own");
}
