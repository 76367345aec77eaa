//! `pinfold isolate`: CPUs of its own for a command, without a container.

use crate::case::{Case, plain};
use crate::cgroups::hierarchy;
use crate::needs::Need;
use crate::process::{self, Ran, Running, affinity, is_alive};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    vec![
        plain(
            "isolate::passes_the_exit_status_on",
            root,
            passes_the_exit_status_on,
        ),
        plain("isolate::statuses_of_its_own", root, statuses_of_its_own),
        plain(
            "isolate::confines_and_tells_the_command",
            root,
            confines_and_tells_the_command,
        ),
        plain(
            "isolate::arguments_are_passed_verbatim",
            root,
            arguments_are_passed_verbatim,
        ),
        plain("isolate::input_is_passed_on", root, input_is_passed_on),
        plain(
            "isolate::signals_are_forwarded",
            root,
            signals_are_forwarded,
        ),
        plain(
            "isolate::killed_while_the_command_runs",
            root,
            killed_while_the_command_runs,
        ),
        plain(
            "isolate::a_descendant_outlives_the_command",
            root,
            a_descendant_outlives_the_command,
        ),
    ]
}

/// Begins `isolate` in pool `dp`, with the command after its own arguments.
fn isolating(world: &World, arguments: &[&str], command: &[&str], input: &[u8]) -> Running {
    let line = [&["isolate", "--pool", "dp"], arguments, &["--"], command].concat();
    Running::start(&mut world.pinfold(&line), input)
}

fn isolate(world: &World, command: &[&str]) -> Ran {
    isolating(world, &[], command, b"").wait()
}

fn probe() -> &'static str {
    crate::probe::path().to_str().expect("a path in UTF-8")
}

fn passes_the_exit_status_on(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for status in [0, 7, 255] {
        isolate(world, &[probe(), "--exit", &status.to_string()]).exits(status);
    }
    isolate(world, &["/bin/sh", "-c", "kill -KILL $$"]).exits(128 + libc::SIGKILL);
    isolate(world, &["/bin/sh", "-c", "kill -HUP $$"]).exits(128 + libc::SIGHUP);
    world.assert_all_free("after each command");
}

fn statuses_of_its_own(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    isolate(world, &["/nowhere/to/be/found"]).exits(127);
    let not_executable = world.dir.join("plain-file");
    std::fs::write(&not_executable, "").expect("write a file");
    isolate(world, &[not_executable.to_str().unwrap()]).exits(126);
    world.assert_all_free("after commands that never ran");
    let unknown = ["isolate", "--pool", "unknown-pool", "--", "/bin/true"];
    let refused = process::run(&mut world.pinfold(&unknown)).exits(125);
    assert!(refused.stderr.contains("unknown-pool"), "{refused}");
    let owner = isolating(world, &[], &[probe(), "--wait"], b"");
    process::eventually("the command runs", || {
        owner.stdout().contains("affinity").then_some(())
    });
    let refused = isolate(world, &["/bin/true"]).exits(125);
    assert!(
        refused.stderr.contains("exhausted") && refused.stderr.contains("dp"),
        "{refused}"
    );
}

fn confines_and_tells_the_command(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let command = [
        probe(),
        "--print-env",
        "KCM_CPUS_ASSIGNED",
        "--print-env",
        "KCM_CPUS_ASSIGNED_MASK",
    ];
    let neighbour = isolating(world, &[], &[probe(), "--wait"], b"");
    process::eventually("the neighbour runs", || {
        neighbour.stdout().contains("affinity: 0\n").then_some(())
    });
    let one = isolate(world, &command).ok();
    assert_eq!(
        one.stdout,
        "affinity: 1\nKCM_CPUS_ASSIGNED=1\nKCM_CPUS_ASSIGNED_MASK=2\n"
    );
    neighbour.signal(libc::SIGTERM);
    neighbour.wait().ok();
    let both = isolating(world, &["--lists", "2"], &command, b"")
        .wait()
        .ok();
    assert_eq!(
        both.stdout,
        "affinity: 0-1\nKCM_CPUS_ASSIGNED=0,1\nKCM_CPUS_ASSIGNED_MASK=3\n"
    );
    let unpinned = isolating(world, &["--no-affinity"], &command, b"")
        .wait()
        .ok();
    let all = hierarchy().all_cpus();
    assert_eq!(
        unpinned.stdout,
        format!("affinity: {all}\nKCM_CPUS_ASSIGNED=0\nKCM_CPUS_ASSIGNED_MASK=1\n")
    );
    world.assert_all_free("after each command");
}

fn arguments_are_passed_verbatim(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let awkward = [
        "a b",
        "$(touch never)",
        "`touch never`",
        "",
        "*",
        "--pool",
        "--",
        "\"'\\",
    ];
    let ran = isolate(
        world,
        &[&[probe(), "--print-args"], awkward.as_slice()].concat(),
    )
    .ok();
    let expected = [&["affinity: 1"], awkward.as_slice(), &[""]]
        .concat()
        .join("\n");
    assert_eq!(ran.stdout, expected);
}

fn input_is_passed_on(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    assert_eq!(
        isolating(world, &[], &["/bin/cat"], b"some input\n")
            .wait()
            .ok()
            .stdout,
        "some input\n"
    );
}

fn signals_are_forwarded(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for (signal, status) in [(libc::SIGTERM, 0), (libc::SIGINT, 128 + libc::SIGINT)] {
        let isolate = isolating(world, &[], &[probe(), "--wait"], b"");
        process::eventually("the command runs", || {
            isolate.stdout().contains("affinity: 1\n").then_some(())
        });
        isolate.signal(signal);
        isolate.wait().exits(status);
        world.assert_all_free("after the command ended by a signal");
    }
}

fn request() -> serde_json::Value {
    json!({ "pinfold.io/pool": "dp" })
}

/// A container in need is refused now, and gets the list as soon as `end` has come to pass.
#[track_caller]
fn assert_held_until(world: &World, end: impl FnOnce()) {
    let rival = Standin::new(world, "rival");
    world.reconcile();
    let refused = world
        .hook("prestart", &state("rival", rival.pid, request()))
        .exits(1);
    assert!(refused.stderr.contains("exhausted"), "{refused}");
    assert!(
        !world.tasks("dp", "1").is_empty(),
        "other tools see an owner"
    );
    end();
    world
        .hook("prestart", &state("rival", rival.pid, request()))
        .ok();
    assert_eq!(world.tasks("dp", "1"), [rival.pid]);
    rival.die();
    world.reconcile();
    world.assert_all_free("after everybody is gone");
}

fn killed_while_the_command_runs(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let isolate = isolating(world, &[], &[probe(), "--wait"], b"");
    process::eventually("the command runs", || {
        isolate.stdout().contains("affinity: 1\n").then_some(())
    });
    let own = isolate.pid();
    let command = process::eventually("tasks names isolate and the command", || {
        let named = world.tasks("dp", "1");
        let command = named.iter().copied().find(|&pid| pid != own)?;
        (named.len() == 2 && named.contains(&own)).then_some(command)
    });
    let cgroup = hierarchy().of(command);
    isolate.kill();
    assert_eq!(affinity(command), "1", "the command runs on, confined");
    assert_held_until(world, || {
        process::send(command, libc::SIGKILL);
        process::eventually("the command is gone", || (!is_alive(command)).then_some(()));
    });
    assert!(!cgroup.exists(), "{} is removed", cgroup.display());
}

fn a_descendant_outlives_the_command(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let out = world.dir.join("command-says").display().to_string();
    let command = [probe(), "--out", &out, "--orphan", "--exit", "4"];
    let isolate = isolating(world, &[], &command, b"");
    process::eventually("the descendant is there", || {
        std::fs::read_to_string(&out)
            .ok()?
            .contains("orphan")
            .then_some(())
    });
    let orphan = process::eventually("only the descendant is left", || {
        let mut left = process::processes_mentioning(&out);
        left.retain(|&pid| is_alive(pid) && pid != isolate.pid());
        (left.len() == 1).then(|| left[0])
    });
    assert_held_until(world, || {
        process::send(orphan, libc::SIGKILL);
        process::eventually("the descendant is gone", || {
            (!is_alive(orphan)).then_some(())
        });
    });
    isolate.wait().exits(4);
}
