//! I3 over a reboot: nothing that was recorded before it counts, even where a number is in use
//! again, and what another tool recorded since does.
//!
//! Whoever boots the machine runs `reboot::begin` before and `reboot::afterwards` after, with
//! `PINFOLD_VM_BOOT` set.

use crate::case::{Case, each, plain};
use crate::container::Container;
use crate::engines::{Driver, Engine, Front, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, Standin, World, state};
use serde_json::json;
use std::mem::forget;

const LISTS: [&str; 4] = ["0", "1", "2", "3"];

/// On the disk; the claims are in /run, which a boot empties.
const HOME: &str = "/var/lib/pinfold-test-reboot";

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
    cases
}

/// One container an engine, left running into the reboot.
fn begin(_: &World, engine: Engine) {
    let world = World::lasting(HOME);
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
    let world = World::lasting(HOME);
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
    std::fs::remove_dir_all(HOME).unwrap();
    std::fs::remove_dir_all(&world.run).unwrap();
    forget(world);
}
