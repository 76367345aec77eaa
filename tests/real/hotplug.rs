//! A CPU of a list goes offline, before anybody asks for the list and while somebody owns it.

use crate::cases::{Case, each, plain};
use crate::cgroups;
use crate::container::Container;
use crate::engines::{Driver, Engine, Front};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, affinity};
use crate::world::{Kind, Standin, World, state};
use serde_json::json;

/// Neither the first, which cannot go offline, nor its sibling.
const CPU: &str = "5";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(8), Need::Hotplug];
    let mut engines = Engine::all();
    // Who draws the cgroup makes no difference for podman.
    engines.retain(|one| one.front == Front::Direct || one.driver == Driver::Systemd);
    let mut cases = each(engines, "hotplug::while_owned", needs, while_owned);
    let needs = &[Need::Root, Need::Cpus(8), Need::Hotplug];
    cases.push(plain("hotplug::before_use", needs, before_use));
    cases.push(plain(
        "hotplug::in_a_cgroup_of_ours",
        needs,
        in_a_cgroup_of_ours,
    ));
    let needs = &[Need::Root, Need::V1, Need::Cpus(8), Need::Hotplug];
    cases.push(plain("hotplug::with_descendants", needs, with_descendants));
    cases
}

/// The CPU, offline until this is dropped.
struct Offline;

impl Offline {
    fn begin() -> Offline {
        switch("0");
        Offline
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        switch("1");
    }
}

fn switch(value: &str) {
    let path = format!("/sys/devices/system/cpu/cpu{CPU}/online");
    std::fs::write(path, value).expect("switch a CPU");
}

fn before_use(world: &World) {
    world.pool("dp", Kind::Exclusive, &[CPU]);
    let offline = Offline::begin();
    let standin = Standin::new(world, "a");
    let request = |one: &Standin| state("a", one.pid, json!({ "pinfold.io/pool": "dp" }));
    let refused = world.hook("prestart", &request(&standin)).exits(1);
    assert!(refused.stderr.contains("offline"), "{refused}");
    let described = process::run(&mut world.pinfold(&["describe"])).ok();
    assert!(described.stdout.contains("offline"), "{described}");
    world.assert_all_free("after a refusal");
    drop(offline);
    // On version 1 the group of the first has lost the CPU for good.
    let standin = Standin::new(world, "b");
    world.hook("prestart", &request(&standin)).ok();
    assert_eq!(standin.mask(), CPU);
}

/// It runs elsewhere meanwhile, for it has to run somewhere; and is back when `reconcile` has run after the CPU is.
fn while_owned(world: &World, engine: Engine) {
    let pair = format!("4,{CPU}");
    world.pool("dp", Kind::Exclusive, &[&pair]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    container.assert_confined_to("4-5");
    let offline = Offline::begin();
    process::eventually("it runs on what is left of its list", || {
        (affinity(container.pid()) == "4").then_some(())
    });
    let described = process::run(&mut world.pinfold(&["describe"])).ok();
    assert!(described.stdout.contains("offline"), "{described}");
    world.reconcile();
    assert_eq!(world.tasks("dp", &pair), [container.pid()]);
    drop(offline);
    world.reconcile();
    container.assert_confined_to("4-5");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

/// All CPUs of the list go, in a group that we made: the kernel moves the process, or lets it run elsewhere.
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
    // A hook sees a container before it has forked: here it is too late for the group to be its own.
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
