//! The hook as a process: what it may do, what it holds, and what it says at its end.

use crate::case::{Case, plain};
use crate::needs::Need;
use crate::process::{self, Running};
use crate::syslog::SysLog;
use crate::world::{Kind, Standin, World, files_below, state};
use nix::libc;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    vec![
        plain(
            "hook_process::a_signal_that_ends_it_is_told",
            root,
            signals_are_told,
        ),
        plain(
            "hook_process::a_limit_on_files_is_an_error",
            root,
            file_limit,
        ),
        plain(
            "hook_process::has_two_capabilities_and_passes_nothing_on",
            root,
            has_little,
        ),
        plain(
            "hook_process::no_umask_changes_what_it_makes",
            root,
            umask_is_ours,
        ),
        plain(
            "hook_process::why_shows_what_it_refused",
            root,
            why_shows_refusals,
        ),
    ]
}

fn asking(pid: i32) -> Value {
    state("a", pid, json!({ "pinfold.io/pool": "dp" }))
}

/// A hook that waits for the lock.
fn waiting(world: &World, standin: &Standin) -> Running {
    let hook = world.hooking("createRuntime", &asking(standin.pid));
    process::eventually("the hook waits for the lock", || {
        (!world.hooks_at_the_lock().is_empty()).then_some(())
    });
    hook
}

fn signals_are_told(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    for (signal, name) in [
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGALRM, "SIGALRM after 20 s"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGHUP, "SIGHUP"),
    ] {
        let mut log = SysLog::mark();
        let lock = world.hold_lock();
        let hook = waiting(world, &standin);
        hook.signal(signal);
        let ended = hook.wait();
        drop(lock);
        assert_eq!(ended.signal(), Some(signal), "{ended}");
        let words = ["container a", &format!("was ended by {name}")];
        let is_told = words.iter().all(|word| ended.stderr.contains(word));
        assert!(is_told && ended.stderr.lines().count() == 1, "{ended}");
        log.lines_with(1, &words);
        world.assert_all_free("after a hook that was ended");
    }
    world.hook("createRuntime", &asking(standin.pid)).ok();
}

/// Its output goes through a pipe, which no limit on files concerns.
fn file_limit(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.reconcile();
    let standin = Standin::new(world, "a");
    let script = "set -o pipefail; (ulimit -f 0; exec \"$0\" \"$@\") 2>&1 | cat";
    let hook = world.pinfold(&["hook", "createRuntime"]);
    let mut limited = Command::new("/bin/bash");
    limited
        .args(["-c", script])
        .arg(hook.get_program())
        .args(hook.get_args());
    let input = asking(standin.pid).to_string();
    let refused = Running::start(&mut limited, input.as_bytes())
        .wait()
        .exits(1);
    assert!(refused.stdout.contains("File too large"), "{refused}");
    world.assert_all_free("after a refusal");
    world.hook("createRuntime", &asking(standin.pid)).ok();
}

fn has_little(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let lock = world.hold_lock();
    let hook = world.pinfold(&["hook", "createRuntime"]);
    let mut leaky = Command::new("/bin/sh");
    leaky.args(["-c", "exec 7</dev/null 8>&2; umask 0; exec \"$0\" \"$@\""]);
    leaky.arg(hook.get_program()).args(hook.get_args());
    let input = asking(standin.pid).to_string();
    let hook = Running::start(&mut leaky, input.as_bytes());
    process::eventually("the hook waits for the lock", || {
        (!world.hooks_at_the_lock().is_empty()).then_some(())
    });
    let read =
        |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", hook.pid())).unwrap();
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .trim()
            .to_owned()
    };
    // CAP_DAC_OVERRIDE and CAP_SYS_NICE (capabilities(7)); CAP_SYS_ADMIN is not in effect.
    let effective: u64 = 1 << 1 | 1 << 23;
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        let held = u64::from_str_radix(&field(set), 16).unwrap();
        let most = match set {
            "CapPrm:" => effective | 1 << 21,
            "CapEff:" => effective,
            _ => 0,
        };
        assert_eq!(held & !most, 0, "{set} {held:x}");
    }
    assert_eq!(field("Umask:"), "0022");
    // It is left as the runtime had it: see docs/SECURITY.md.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let privileges = format!("NoNewPrivs:\t{}\n", field("NoNewPrivs:"));
    assert!(own.contains(&privileges), "{privileges}");
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", hook.pid())).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let info = read(&format!("fdinfo/{name}"));
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        let is_standard = ["0", "1", "2"].contains(&name.as_str());
        assert!(
            is_standard || flags & libc::O_CLOEXEC != 0,
            "descriptor {name} would be inherited"
        );
    }
    drop(lock);
    hook.wait().ok();
}

fn umask_is_ours(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for umask in ["0", "777"] {
        let _ = std::fs::remove_dir_all(&world.run);
        let standin = Standin::new(world, &format!("a{umask}"));
        let hook = world.pinfold(&["hook", "createRuntime"]);
        let mut masked = Command::new("/bin/sh");
        masked.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]);
        masked.arg(hook.get_program()).args(hook.get_args());
        let input = asking(standin.pid).to_string();
        Running::start(&mut masked, input.as_bytes()).wait().ok();
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&world.run), 0o700);
        assert_eq!(mode(&world.tasks_file("dp", "1")), 0o644);
        for file in files_below(&world.run.join("claims")) {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
            let home = file.parent().unwrap();
            assert_eq!(mode(home) & 0o022, 0, "{}", home.display());
        }
        let released = ["release", "a", "--force"];
        process::run(&mut world.pinfold(&released)).ok();
    }
}

fn why_shows_refusals(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let why = |words: &[&str]| process::run(&mut world.pinfold(&[&["why"], words].concat()));
    let empty = why(&[]).ok();
    assert!(empty.stdout.contains("nothing was refused"), "{empty}");
    let standin = Standin::new(world, "a");
    let plain = state("plain", standin.pid, json!({}));
    world.hook("createRuntime", &plain).ok();
    assert!(
        !world.run.join("refusals").exists(),
        "a container without a request writes nothing"
    );
    let too_much = json!({ "pinfold.io/pool": "dp", "pinfold.io/lists": "2" });
    let refused = world
        .hook("createRuntime", &state("web1", standin.pid, too_much))
        .exits(1);
    world
        .hook(
            "createRuntime",
            &state("b\u{202e}", standin.pid, json!({ "pinfold.io/pool": "dp" })),
        )
        .exits(1);
    let told = why(&["web"]).ok();
    let (_, sentence) = told.stdout.trim_end().split_once(' ').expect("a time");
    assert_eq!(refused.stderr, format!("pinfold: {sentence}\n"));
    for word in ["container web1", "pool dp", "too small"] {
        assert!(sentence.contains(word), "{told}");
    }
    assert_eq!(told.stdout.lines().count(), 1, "{told}");
    assert_eq!(why(&[]).ok().stdout.lines().count(), 2);
    assert_eq!(why(&["--since", "1h"]).ok().stdout.lines().count(), 2);
    // Words of the sentence name nobody.
    for other in ["other", "pool", "dp", "we", "1"] {
        let no = why(&[other]);
        let is_beginning = "web1".starts_with(other);
        no.exits(i32::from(!is_beginning));
    }
    let document: Value = serde_json::from_str(&why(&["web1", "--json"]).ok().stdout).unwrap();
    assert_eq!(document["refusals"][0]["message"], sentence);
    assert_eq!(document["refusals"][0]["container"], "web1");
    world.assert_all_free("after refusals");
    // Nothing depends on it.
    std::fs::remove_file(world.run.join("refusals")).unwrap();
    std::fs::create_dir(world.run.join("refusals")).unwrap();
    let again = world
        .hook(
            "createRuntime",
            &state("b\u{202e}", standin.pid, json!({ "pinfold.io/pool": "dp" })),
        )
        .exits(1);
    assert_eq!(again.stderr.lines().count(), 1, "{again}");
    world.hook("createRuntime", &asking(standin.pid)).ok();
}
