//! What the books say and what the kernel does agree, when several hands are at work in turn.

use crate::case::{Case, plain};
use crate::cases::pools::cpus;
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, Running, affinity, is_alive};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let strace = &[Need::Root, Need::Cpus(2), Need::Strace];
    let v1 = &[Need::Root, Need::Cpus(2), Need::V1];
    vec![
        plain(
            "books::isolate_does_not_bring_back_a_forced_release",
            root,
            forced_under_isolate,
        ),
        plain(
            "books::forced_from_a_survivor",
            root,
            forced_from_a_survivor,
        ),
        plain(
            "books::a_second_hook_confines_what_the_first_did_not",
            strace,
            second_hook,
        ),
        plain("books::a_shared_list_is_rid_of_the_dead", root, shared_dead),
        plain("books::isolate_under_nohup", root, under_nohup),
        plain(
            "books::isolate_with_signals_blocked",
            &[Need::Root, Need::Cpus(2), Need::Python3],
            signals_blocked,
        ),
        plain("books::a_group_with_any_name", root, group_with_any_name),
        plain(
            "books::a_process_with_any_name",
            root,
            process_with_any_name,
        ),
        plain(
            "books::a_mask_that_cannot_come_back",
            v1,
            mask_cannot_come_back,
        ),
        plain("books::sites_leave_each_other_alone", root, two_sites),
    ]
}

fn request(pool: &str) -> Value {
    json!({ "pinfold.io/pool": pool })
}

fn isolating(world: &World, command: &[&str]) -> Running {
    let line = [&["isolate", "--pool", "dp", "--"], command].concat();
    Running::start(&mut world.pinfold(&line), b"")
}

fn probe() -> &'static str {
    crate::probe::path().to_str().expect("a path in UTF-8")
}

/// The pid of the probe that `isolate` runs, once it is recorded, and can be told to end.
fn command_of(world: &World, isolate: &Running) -> i32 {
    process::eventually("the command is recorded and has begun", || {
        isolate.stdout().contains("affinity").then_some(())?;
        let named = world.tasks("dp", "1");
        named.into_iter().find(|pid| *pid != isolate.pid())
    })
}

/// I1: its list was taken from it and given away; neither its command's end nor its own makes it an
/// owner again.
fn forced_under_isolate(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let isolate = isolating(world, &[probe(), "--orphan", "--wait"]);
    let command = command_of(world, &isolate);
    let cgroup = hierarchy().of(command);
    let id = format!("isolate-{}", isolate.pid());
    process::run(&mut world.pinfold(&["release", &id, "--force"])).ok();
    let next = Standin::new(world, "next");
    world
        .hook("prestart", &state("next", next.pid, request("dp")))
        .ok();
    process::send(command, libc::SIGKILL);
    isolate.wait();
    world.reconcile();
    assert_eq!(world.tasks("dp", "1"), [next.pid]);
    let orphans = cgroups::processes(&cgroup);
    assert!(!orphans.is_empty(), "the descendant lives on");
    assert!(orphans.iter().all(|orphan| affinity(*orphan) != "1"));
    orphans
        .iter()
        .for_each(|orphan| process::send(*orphan, libc::SIGKILL));
    process::eventually("the descendant is gone", || {
        (!orphans.iter().any(|orphan| is_alive(*orphan))).then_some(())
    });
    next.die();
    world.reconcile();
    world.assert_all_free("after everybody is gone");
}

/// The first process is gone by the time that the list is taken from who lives on.
fn forced_from_a_survivor(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    let survivor = cgroups::processes(&cgroup)[0];
    process::run(&mut world.pinfold(&["release", "a", "--force"])).ok();
    world.assert_all_free("after a forced release");
    assert!(is_alive(survivor));
    let left = cpus(&affinity(survivor));
    assert!(!left.is_empty() && !left.contains(&1), "{left:?}");
}

/// The first was killed when it had recorded everything, and had not moved the process yet.
fn second_hook(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let bare = Standin::bare();
    let start = state("a", bare.pid, request("dp"));
    let trace = world.dir.join("trace");
    let kill = ["-einject=sched_setaffinity:signal=KILL:when=1".to_owned()];
    let mut first = crate::strace::under(&world.pinfold(&["hook", "prestart"]), &kill, &trace);
    let killed = Running::start(&mut first, start.to_string().as_bytes()).wait();
    assert!(crate::strace::was_killed(&killed), "{killed}");
    assert_eq!(world.tasks("dp", "1"), [bare.pid]);
    // Somebody, or the kill itself, has left it where it was.
    let original = hierarchy().of(std::process::id() as i32);
    cgroups::enter(&original, bare.pid);
    let second = world.hook("createRuntime", &start);
    assert_eq!(
        (second.code(), affinity(bare.pid)),
        (Some(0), "1".to_owned()),
        "{second}"
    );
    bare.die();
    world.reconcile();
    world.assert_all_free("after it is gone");
}

/// I3: nobody is ever refused by a shared pool, and yet it does not fill with the dead.
fn shared_dead(world: &World) {
    world.pool("sh", Kind::Shared, &["0", "1"]);
    for name in ["a", "b", "c"] {
        let dead = Standin::new(world, name);
        world
            .hook("prestart", &state(name, dead.pid, request("sh")))
            .ok();
        dead.die();
    }
    let living = Standin::new(world, "living");
    world
        .hook("prestart", &state("living", living.pid, request("sh")))
        .ok();
    let owners = [world.tasks("sh", "0"), world.tasks("sh", "1")].concat();
    assert_eq!(owners, [living.pid]);
}

/// A signal that `isolate` was started to ignore, its command ignores too.
fn under_nohup(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let line = ["isolate", "--pool", "dp", "--", probe(), "--wait"];
    let pinfold = world.pinfold(&line);
    let mut nohup = std::process::Command::new("nohup");
    nohup.arg(pinfold.get_program()).args(pinfold.get_args());
    let isolate = Running::start(&mut nohup, b"");
    let command = command_of(world, &isolate);
    let status = std::fs::read_to_string(format!("/proc/{command}/status")).expect("its status");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.expect("a line").trim(), 16).expect("a mask");
    assert_eq!(ignored & 1, 1, "SIGHUP is ignored");
    isolate.signal(libc::SIGTERM);
    isolate.wait().ok();
}

/// What one pool directory's `reconcile` finds below `/pinfold` and does not know may be another's.
fn two_sites(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let isolate = isolating(world, &[probe(), "--wait"]);
    let command = command_of(world, &isolate);
    let child = hierarchy().make_inside(&hierarchy().of(command), "child");
    let other = World::new();
    other.pool("dp", Kind::Exclusive, &["1"]);
    other.reconcile();
    assert!(child.exists(), "an empty group of another's owner stays");
    isolate.signal(libc::SIGTERM);
    isolate.wait().ok();
    world.assert_all_free("after the command ended");
}

/// Whoever started `isolate` had the end of children blocked, or ignored it: it hears of its
/// command's all the same.
fn signals_blocked(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for left in [
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ] {
        let pinfold = world.pinfold(&["isolate", "--pool", "dp", "--", probe(), "--exit", "3"]);
        let script = format!("import os, signal, sys\n{left}\nos.execv(sys.argv[1], sys.argv[1:])");
        let mut python = std::process::Command::new("python3");
        python
            .args(["-c", &script])
            .arg(pinfold.get_program())
            .args(pinfold.get_args());
        Running::start(&mut python, b"").wait().exits(3);
        world.assert_all_free("after the command ended");
    }
}

/// I2: whatever a container calls a group below its own, who lives in there is seen.
fn group_with_any_name(world: &World) {
    use std::os::unix::ffi::OsStrExt;
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    let survivor = cgroups::processes(&cgroup)[0];
    let child = cgroup.join(std::ffi::OsStr::from_bytes(b"\xff"));
    std::fs::create_dir(&child).expect("make a group");
    for file in ["cpuset.mems", "cpuset.cpus"] {
        if let Ok(value) = std::fs::read_to_string(cgroup.join(file)) {
            let _ = std::fs::write(child.join(file), value.trim());
        }
    }
    cgroups::enter(&child, survivor);
    world.reconcile();
    assert_eq!(world.tasks("dp", "1"), [survivor]);
    process::send(survivor, libc::SIGKILL);
    process::eventually("the survivor is gone", || {
        (!is_alive(survivor)).then_some(())
    });
    std::fs::remove_dir(&child).expect("remove the group");
    world.reconcile();
    world.assert_all_free("after it is gone");
}

/// What a process calls itself stops no other's start.
fn process_with_any_name(world: &World) {
    use std::os::unix::ffi::OsStrExt;
    world.pool("sh", Kind::Shared, &["0"]);
    let program = world.dir.join(std::ffi::OsStr::from_bytes(b"\xff) Z 0 0"));
    std::fs::copy(probe(), &program).expect("copy the probe");
    let mut odd = std::process::Command::new(&program);
    let mut odd = odd.arg("--wait").spawn().expect("start it");
    let pid = odd.id() as i32;
    process::eventually("it has its name", || {
        let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
        name.starts_with(b"\xff").then_some(())
    });
    world
        .hook("prestart", &state("odd", pid, request("sh")))
        .ok();
    let other = Standin::new(world, "other");
    world
        .hook("prestart", &state("other", other.pid, request("sh")))
        .ok();
    let tasks = world.tasks("sh", "0");
    odd.kill().expect("kill it");
    odd.wait().expect("wait for it");
    assert_eq!(tasks, [pid, other.pid]);
    other.die();
    world.reconcile();
    world.assert_all_free("after both are gone");
}

/// I3: the parent was narrowed meanwhile, so that the mask from before is refused: the group gets
/// what there is.
fn mask_cannot_come_back(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0"]);
    let parent = hierarchy().make(&format!("{}-parent", world.tag));
    let owner = Standin::inside(&hierarchy().make_inside(&parent, "child"), &["--wait"]);
    world
        .hook("prestart", &state("a", owner.pid, request("dp")))
        .ok();
    let cgroup = owner.die();
    cgroups::narrow(&parent, "0");
    world.reconcile();
    world.assert_all_free("although the mask cannot come back");
    assert_eq!(cgroups::mask(&cgroup), "0");
}
