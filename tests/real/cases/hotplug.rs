//! A CPU of a list goes offline, before anybody asks for the list and while somebody owns it.

use crate::case::{Case, each, plain};
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, affinity};
use crate::world::{Kind, Standin, World, state};
use serde_json::{Value, json};

/// Neither the first, which cannot go offline, nor its sibling.
const CPU: &str = "5";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Disposable, Need::Cpus(8), Need::Hotplug];
    let root = &[&needs[..], &[Need::Root]].concat();
    let version_1 = &[&root[..], &[Need::V1]].concat();
    let all = Engine::all;
    [
        each(all(), "hotplug::before_use", needs, before_use),
        each(all(), "hotplug::while_owned", needs, while_owned),
        each(all(), "hotplug::all_of_it_while_owned", needs, all_of_it),
        vec![
            plain("hotplug::in_a_cgroup_of_ours", root, in_a_cgroup_of_ours),
            plain("hotplug::with_descendants", version_1, with_descendants),
        ],
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The CPU, offline until this is dropped.
struct Offline;

impl Offline {
    fn begin() -> Offline {
        switch("0").expect("switch a CPU off");
        Offline
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // A failure must not hide the one that is being unwound.
        if let Err(error) = switch("1") {
            eprintln!("switch CPU {CPU} on again: {error}");
        }
    }
}

fn switch(value: &str) -> std::io::Result<()> {
    std::fs::write(format!("/sys/devices/system/cpu/cpu{CPU}/online"), value)
}

/// `status` says it of the list, and of its owner.
#[track_caller]
fn assert_described(world: &World, state: &str) {
    let status = process::run(&mut world.pinfold(&["status", "--json"])).ok();
    let document: Value = serde_json::from_str(&status.stdout).expect("it is JSON");
    let list = &document["pools"][0]["lists"][0];
    assert_eq!(
        (&list["state"], &list["offline"]),
        (&json!(state), &json!(CPU))
    );
    let owners = document["owners"].as_array().expect("there are owners");
    let are_offline = owners.iter().all(|owner| owner["state"] == "offline");
    assert!(
        are_offline && owners.is_empty() == (state == "free"),
        "{status}"
    );
}

fn before_use(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &[CPU]);
    let parent = engine.driver.parent(world);
    let parent = Need::V1
        .is_met()
        .then(|| hierarchy().make(parent.trim_start_matches('/')));
    let offline = Offline::begin();
    let container = |name| Container::prepare(world, engine, Plan::pinned(name, "dp"));
    container("a").assert_refused(&["dp", "offline", &format!("put CPU {CPU} online")]);
    assert_described(world, "free");
    world.assert_all_free("after a refusal");
    drop(offline);
    // Version 1 has taken the CPU from the group above for good, and that is not ours to widen.
    if let Some(parent) = parent {
        container("b").assert_refused(&["allows only the CPUs 0-4,6-7", "let it have"]);
        cgroups::narrow(&parent, &hierarchy().all_cpus());
    }
    let container = Container::up(world, engine, Plan::pinned("c", "dp"));
    container.assert_confined_to(CPU);
}

/// It runs elsewhere meanwhile, for it has to run somewhere; and is back when `reconcile` has run
/// after the CPU is.
fn while_owned(world: &World, engine: Engine) {
    let pair = format!("4,{CPU}");
    world.pool("dp", Kind::Exclusive, &[&pair]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    container.assert_confined_to("4-5");
    let offline = Offline::begin();
    process::eventually("it runs on what is left of its list", || {
        (affinity(container.pid()) == "4").then_some(())
    });
    assert_described(world, "owned");
    world.reconcile();
    assert_eq!(world.tasks("dp", &pair), [container.pid()]);
    drop(offline);
    world.reconcile();
    container.assert_confined_to("4-5");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

/// With no CPU left it runs elsewhere, and owns its list all the same.
fn all_of_it(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &[CPU]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    container.assert_confined_to(CPU);
    let pid = container.pid();
    let offline = Offline::begin();
    process::eventually("it runs elsewhere", || (affinity(pid) != CPU).then_some(()));
    assert_described(world, "owned");
    let ran = world.reconcile();
    assert!(
        ran.stderr.contains("are offline: it runs elsewhere"),
        "{ran}"
    );
    assert_eq!(world.tasks("dp", CPU), [pid], "it still owns its list");
    drop(offline);
    world.reconcile();
    container.assert_confined_to(CPU);
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

/// All CPUs of the list go, in a group that we made: the kernel moves the process, or lets it run
/// elsewhere.
fn in_a_cgroup_of_ours(world: &World) {
    world.pool("dp", Kind::Exclusive, &[CPU]);
    let standin = Standin::bare();
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", standin.pid, request))
        .ok();
    assert_eq!(affinity(standin.pid), CPU);
    let offline = Offline::begin();
    process::eventually("it runs elsewhere", || {
        (affinity(standin.pid) != CPU).then_some(())
    });
    world.reconcile();
    assert_eq!(
        world.tasks("dp", CPU),
        [standin.pid],
        "it still owns its list"
    );
    drop(offline);
    world.reconcile();
    assert_eq!(affinity(standin.pid), CPU);
    assert_eq!(cgroups::mask(&standin.cgroup()), CPU);
    standin.die();
    world.reconcile();
    world.assert_all_free("after its end");
}

/// What the owner has forked is moved too, and comes back with it. Version 2 moves nobody.
fn with_descendants(world: &World) {
    world.pool("dp", Kind::Exclusive, &[CPU]);
    let standin = Standin::running(world, "a", &["--orphan", "--wait"]);
    let group = standin.cgroup();
    let all = process::eventually("the descendant is there", || {
        let all = cgroups::processes(&group);
        (all.len() == 2).then_some(all)
    });
    let request = json!({ "pinfold.io/pool": "dp" });
    // A hook sees a container before it has forked: here it is too late for the group to be its
    // own.
    let moved = cgroups::hierarchy().make_inside(&group, "first");
    let descendant = *all.iter().find(|pid| **pid != standin.pid).expect("two");
    cgroups::enter(&moved, standin.pid);
    world
        .hook("prestart", &state("a", standin.pid, request))
        .ok();
    cgroups::enter(&moved, descendant);
    assert_eq!(affinity(descendant), CPU);
    let offline = Offline::begin();
    process::eventually("both run elsewhere", || {
        let are_out = all.iter().all(|pid| affinity(*pid) != CPU);
        are_out.then_some(())
    });
    drop(offline);
    world.reconcile();
    for pid in &all {
        assert_eq!(affinity(*pid), CPU, "{pid} of {all:?}");
    }
    process::send(descendant, nix::libc::SIGKILL);
    standin.die();
    world.reconcile();
    world.assert_all_free("after its end");
}
