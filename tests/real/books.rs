//! What the books say and what the kernel does agree, when several hands are at work in turn.

use crate::cases::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, Running, affinity, is_alive};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let strace = &[Need::Root, Need::Cpus(2), Need::Strace];
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

/// The pid of the command that `isolate` runs, once it is recorded.
fn command_of(world: &World, isolate: &Running) -> i32 {
    process::eventually("the command is recorded", || {
        let named = world.tasks("dp", "1");
        named.into_iter().find(|pid| *pid != isolate.pid())
    })
}

/// I1: its list was taken from it and given away; neither its command's end nor its own makes it an owner again.
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
    assert!(is_alive(survivor) && affinity(survivor) == "0");
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
