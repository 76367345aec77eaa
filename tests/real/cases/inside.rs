//! Where only a part of the machine can be seen, as in a container: of its CPUs, or of its
//! processes.

use crate::case::{Case, plain};
use crate::cgroups::{hierarchy, narrow};
use crate::needs::Need;
use crate::process::{Ran, Running, eventually, run};
use crate::world::{Kind, World};
use nix::libc::SIGTERM;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain(
            "inside::pools_are_cut_from_what_is_allowed",
            needs,
            pools_are_cut_from_what_is_allowed,
        ),
        plain(
            "inside::owners_of_another_pid_namespace_are_kept",
            needs,
            kept_from_elsewhere,
        ),
        plain(
            "inside::all_of_it_in_one_pid_namespace",
            needs,
            all_in_one_namespace,
        ),
    ]
}

/// The command line of pinfold with this world's directories.
fn line(world: &World, arguments: &[&str]) -> String {
    let pinfold = world.pinfold(arguments);
    let words = std::iter::once(pinfold.get_program()).chain(pinfold.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    words.join(" ")
}

/// Runs a script in a pid namespace of its own.
fn within(script: &str) -> Ran {
    run(Command::new("unshare").args(["-pf", "--mount-proc", "sh", "-euc", script]))
}

/// Whom another tool recorded by a pid is not dead for that nobody has the pid elsewhere, and the
/// pids of a command, which its group shows to be alive, stay as they are.
fn kept_from_elsewhere(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let stranger = Running::start(Command::new("sleep").arg("1000"), b"");
    std::fs::write(world.tasks_file("dp", "1"), stranger.pid().to_string()).unwrap();
    for _ in 0..2 {
        world.reconcile();
        let ran = within(&line(world, &["reconcile"])).ok();
        assert!(ran.stderr.contains("another pid namespace"), "{ran}");
        assert_eq!(ran.stderr.lines().count(), 1, "it is said once: {ran}");
        assert_eq!(world.tasks("dp", "1"), [stranger.pid()], "{ran}");
    }
    let isolate = ["isolate", "--pool", "dp", "--"];
    let owner = [&isolate[..], &["/bin/sleep", "1000"]].concat();
    let owner = Running::start(&mut world.pinfold(&owner), b"");
    eventually("it owns the other", || {
        (world.tasks("dp", "0").len() == 2).then_some(())
    });
    let owners = world.tasks("dp", "0");
    for arguments in [&["reconcile"][..], &[&isolate[..], &["true"]].concat()] {
        let ran = within(&line(world, arguments));
        let is_start = arguments[0] == "isolate";
        assert_eq!(ran.code() != Some(0), is_start, "{ran}");
        assert!(ran.stderr.contains("another pid namespace"), "{ran}");
        assert_eq!(world.tasks("dp", "0"), owners, "{ran}");
        assert_eq!(world.tasks("dp", "1"), [stranger.pid()], "{ran}");
    }
    let described = within(&line(world, &["describe"])).ok();
    assert!(!described.stdout.contains("gone"), "{described}");
    stranger.kill();
    owner.signal(SIGTERM);
    owner.wait();
    world.reconcile();
    world.assert_all_free("where they ran");
}

/// As in a container that has Pinfold and all who use it.
fn all_in_one_namespace(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let reconcile = line(world, &["reconcile"]);
    let script = format!(
        "{reconcile}; sleep 1000 & printf $! > {tasks}; {reconcile}; [ -s {tasks} ]; \
         kill $!; wait $! || true; {reconcile}",
        tasks = world.tasks_file("dp", "1").display()
    );
    let ran = within(&script).ok();
    let said: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(said[..2], ["nothing to free"; 2], "{ran}");
    assert!(said[2].starts_with("freed 1 of pool dp"), "{ran}");
    assert!(!ran.stderr.contains("pinfold"), "{ran}");
}

/// A cgroup namespace of its own, whose root has CPU 1 alone.
fn pools_are_cut_from_what_is_allowed(world: &World) {
    let group = hierarchy().make(&format!("{}-inside", world.tag));
    narrow(&group, "1");
    let mount = match hierarchy().version {
        1 => "mount -t cgroup -o cpuset cpuset",
        _ => "mount -t cgroup2 cgroup2",
    };
    let init = line(world, &["init", "--dry-run", "--pool", "all=rest:shared"]);
    let within = format!("umount -R -l /sys/fs/cgroup && {mount} /sys/fs/cgroup && exec {init}");
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c '{within}'",
        group.display()
    );
    let ran = run(Command::new("sh").args(["-c", &script])).ok();
    assert!(ran.stdout.contains("all   shared  1      1\n"), "{ran}");
    assert!(ran.stderr.contains("allows the CPUs 1 alone"), "{ran}");
}
