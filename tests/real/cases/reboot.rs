//! I3 over a reboot: nothing that was recorded before it counts, even where a number is in use
//! again, and what another tool recorded since does.
//!
//! Whoever boots the machine runs `reboot::begin` before and `reboot::afterwards` after, with
//! `PINFOLD_VM_BOOT` set.

use crate::case::{Case, each, plain};
use crate::cases::offenders::{assert_as_before, everything, machine};
use crate::container::Container;
use crate::engines::{Door, Driver, Engine, Front, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, Standin, World, claimed_cgroup, state};
use serde_json::json;
use std::collections::BTreeMap;
use std::mem::forget;
use std::path::PathBuf;

const LISTS: [&str; 4] = ["0", "1", "2", "3"];

/// The world that is on the disk; its claims are in /run, which a boot empties.
const WORLD: &str = "reboot";
/// That of an owner who has everything.
const KEPT: &str = "rebootkept";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Boots, Need::Cpus(4)];
    let mut engines = Engine::all();
    // One is left running for each of them, and one CPU list is to stay free.
    engines.retain(|one| match (one.front, one.runtime) {
        (Front::Direct, Runtime::Runc) => one.driver == Driver::Systemd,
        (Front::Direct, Runtime::Crun) => one.driver == Driver::Cgroupfs,
        (Front::Podman, Runtime::Crun) => one.driver == Driver::Systemd,
        (Front::Podman, Runtime::Runc) => false,
    });
    let mut cases = each(engines, "reboot::begin", needs, begin);
    cases.push(plain("reboot::afterwards", needs, afterwards));
    let needs = &[
        Need::Root,
        Need::Boots,
        Need::Partitions,
        Need::Systemd,
        Need::Cpus(8),
        Need::Disposable,
    ];
    cases.push(plain("reboot::begin_kept", needs, begin_kept));
    cases.push(plain("reboot::afterwards_kept", needs, afterwards_kept));
    cases
}

/// An owner with CPUs that the kernel keeps, no interrupts, no limit and no sleep, left running
/// into the reboot, and what the machine was like before it.
fn begin_kept(_: &World) {
    let world = World::lasting(KEPT);
    world.pool("dp", Kind::Exclusive, &["4"]);
    everything(&world, "dp");
    let before = serde_json::to_string(&machine()).expect("paths are text");
    std::fs::write(world.dir.join("before"), before).expect("keep it on the disk");
    forget(start_kept(&world, "left"));
    forget(world);
}

fn start_kept<'w>(world: &'w World, name: &str) -> Container<'w> {
    let engine = Engine {
        front: Front::Podman,
        runtime: Runtime::Crun,
        driver: Driver::Systemd,
        door: Door::Hooks,
    };
    let container = Container::up(world, engine, Plan::pinned(name, "dp"));
    assert_eq!(container.affinity(), "4");
    let claim = world.claim_of(&container.id());
    let group = claimed_cgroup(claim["cgroup"]["path"].as_str().unwrap());
    let partition = std::fs::read_to_string(group.join("cpuset.cpus.partition"));
    assert_eq!(partition.expect("the kernel has partitions").trim(), "root");
    container
}

/// Nothing of it is left by the boot, and the next owner has everything again and gives it back.
fn afterwards_kept(_: &World) {
    let world = World::lasting(KEPT);
    let before = std::fs::read_to_string(world.dir.join("before")).expect("it was kept");
    let before: BTreeMap<PathBuf, String> = serde_json::from_str(&before).expect("it is JSON");
    assert_as_before(&before, "after the boot");
    world.reconcile();
    assert_as_before(&before, "after the boot and reconcile");
    world.assert_all_free("after the boot and reconcile");
    // podman wants these emptied by a boot, as /run is.
    for name in ["run", "tmp"] {
        let _ = std::fs::remove_dir_all(world.dir.join("state").join(name));
    }
    let next = start_kept(&world, "next");
    assert_ne!(machine(), before);
    drop(next);
    world.wait_until_free();
    world.reconcile();
    assert_as_before(&before, "after the next owner");
    std::fs::remove_dir_all(&world.dir).expect("the next boot begins anew");
    std::fs::remove_dir_all(&world.run).expect("the next boot begins anew");
    forget(world);
}

/// One container an engine, left running into the reboot.
fn begin(_: &World, engine: Engine) {
    let world = World::lasting(WORLD);
    if !world.conf.join("pools/dp").exists() {
        world.pool("dp", Kind::Exclusive, &LISTS);
    }
    let name = format!(
        "{engine}-{}",
        process::start_time(std::process::id() as i32)
    );
    let container = Container::up(&world, engine, Plan::pinned(&name, "dp"));
    let cpus = container.affinity();
    assert_eq!(world.tasks("dp", &cpus), [container.pid()]);
    forget(container);
    forget(world);
}

fn afterwards(_: &World) {
    let world = World::lasting(WORLD);
    assert_eq!(world.claims().len(), 0, "/run is empty after a boot");
    let old = LISTS.map(|list| world.tasks("dp", list)).concat();
    // In an orderly reboot podman may have seen its container end.
    assert!(
        (2..=3).contains(&old.len()),
        "the books still have those from before: {old:?}"
    );
    let free = LISTS
        .into_iter()
        .find(|list| world.tasks("dp", list).is_empty());
    let free = free.expect("one list was free");

    // One of the numbers is in use again, and another tool has recorded an owner since the boot.
    let again = process::probe_with_pid(crate::probe::path(), old[0]);
    let other = Standin::bare();
    std::fs::write(world.tasks_file("dp", free), other.pid.to_string()).unwrap();
    let prestart = |standin: &Standin, id: &str| {
        let request = json!({ "pinfold.io/pool": "dp" });
        world.hook("prestart", &state(id, standin.pid, request))
    };
    let new: Vec<Standin> = ["a", "b", "c"]
        .map(|id| {
            let standin = Standin::new(&world, id);
            prestart(&standin, id).ok();
            standin
        })
        .into();
    assert!(again.is_some(), "the number {} was not to be had", old[0]);
    for standin in &new {
        assert_eq!(world.tasks("dp", &standin.mask()), [standin.pid]);
        assert_ne!(standin.mask(), free, "that has an owner");
    }
    assert_eq!(world.tasks("dp", free), [other.pid]);
    let late = Standin::new(&world, "late");
    let refused = prestart(&late, "late").exits(1);
    assert!(refused.stderr.contains("exhausted"), "{refused}");

    drop((new, other, again));
    world.reconcile();
    world.assert_all_free("after everybody is gone");
    // The next boot finds its containers in the same directory.
    std::fs::remove_dir_all(&world.dir).unwrap();
    std::fs::remove_dir_all(&world.run).unwrap();
    forget(world);
}
