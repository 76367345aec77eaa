//! I7: the container's first instruction already runs on its CPUs, and on no others.

use crate::case::{Case, each, plain};
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::{Engine, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{affinity, start_time};
use crate::world::{Kind, Standin, World, claimed_cgroup, state, stopped};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let crun = |engine: &Engine| engine.runtime == Runtime::Crun;
    let crun = Engine::all().into_iter().filter(crun).collect();
    let mut cases = each(
        Engine::all(),
        "pinned::from_the_first_instruction",
        two,
        from_the_first_instruction,
    );
    cases.extend(each(
        Engine::all(),
        "pinned::though_the_engine_is_masked",
        two,
        though_the_engine_is_masked,
    ));
    cases.extend(each(
        Engine::all(),
        "pinned::to_two_lists_at_once",
        two,
        to_two_lists_at_once,
    ));
    cases.extend(each(
        Engine::all(),
        "pinned::at_the_older_stage",
        two,
        at_the_older_stage,
    ));
    cases.extend(each(
        Engine::all(),
        "pinned::in_a_shared_pool",
        two,
        in_a_shared_pool,
    ));
    cases.extend(each(
        crun,
        "pinned::without_a_cgroup_of_its_own",
        two,
        without_a_cgroup_of_its_own,
    ));
    cases.push(plain(
        "pinned::a_process_in_a_cgroup_of_others",
        &[Need::Root, Need::Cpus(2)],
        in_a_cgroup_of_others,
    ));
    cases.push(plain(
        "pinned::where_the_controller_is_missing",
        &[Need::Root, Need::V2, Need::Cpus(2)],
        missing_controller,
    ));
    cases
}

fn from_the_first_instruction(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    assert_eq!(
        container.affinity(),
        "1",
        "the first system call of the first process"
    );
    container.assert_confined_to("1");

    let (pid, claim) = (container.pid(), world.claim_of(&container.id()));
    assert_eq!(claim["cpus"], "1");
    assert_eq!(claim["lists"], json!(["1"]));
    assert_eq!(claim["pool"], "dp");
    assert_eq!(
        claim["processes"],
        json!([{ "pid": pid, "start": start_time(pid) }])
    );
    assert_eq!(
        claimed_cgroup(claim["cgroup"]["path"].as_str().unwrap()),
        hierarchy().of(pid)
    );
    assert_eq!(world.tasks("dp", "1"), [pid]);

    assert!(
        container.exec().contains("affinity: 1\n"),
        "a process that joins later is confined too"
    );
    container.end_by("TERM");
    container.delete();
    world.assert_all_free("after delete");
}

/// An engine's own mask is inherited and remembered by the kernel; it must neither win nor narrow.
fn though_the_engine_is_masked(world: &World, engine: Engine) {
    world.pool("one", Kind::Exclusive, &["1"]);
    world.pool("zero", Kind::Exclusive, &["0"]);
    for (name, pool, cpus, mask) in [("a", "one", "1", 0), ("b", "zero", "0", 1)] {
        let plan = Plan {
            engine_mask: Some(vec![mask]),
            ..Plan::pinned(name, pool)
        };
        let container = Container::up(world, engine, plan);
        assert_eq!(container.affinity(), cpus, "the engine ran on {mask} alone");
        container.assert_confined_to(cpus);
    }
}

fn to_two_lists_at_once(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    for (name, key) in [("a", "pinfold.io/lists"), ("b", "pinfold.io/cpus")] {
        let plan = Plan {
            engine_mask: Some(vec![0]),
            ..Plan::pinned(name, "dp").asking(key, "2")
        };
        let container = Container::up(world, engine, plan);
        assert_eq!(container.affinity(), "0-1", "asked by {key}");
        assert_eq!(affinity(container.pid()), "0-1");
        let (pid, claim) = (container.pid(), world.claim_of(&container.id()));
        assert_eq!(claim["lists"], json!(["0", "1"]));
        assert_eq!(
            (world.tasks("dp", "0"), world.tasks("dp", "1")),
            (vec![pid], vec![pid])
        );
        container.delete_by_force().ok();
        world.reconcile();
        world.assert_all_free(key);
    }
}

fn at_the_older_stage(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(
        world,
        engine,
        Plan {
            stage: "prestart",
            ..Plan::pinned("a", "dp")
        },
    );
    assert_eq!(container.affinity(), "1");
    container.assert_confined_to("1");
}

/// Many owners on one list, and the second leaves the first alone when it goes.
fn in_a_shared_pool(world: &World, engine: Engine) {
    world.pool("shared", Kind::Shared, &["1"]);
    let [a, b] = ["a", "b"].map(|name| Container::up(world, engine, Plan::pinned(name, "shared")));
    let (mut pids, mut named) = ([a.pid(), b.pid()], world.tasks("shared", "1"));
    pids.sort();
    named.sort();
    assert_eq!(named, pids);
    assert_eq!((a.affinity(), b.affinity()), ("1".into(), "1".into()));
    b.end_by("TERM");
    b.delete();
    assert_eq!(world.tasks("shared", "1"), [a.pid()]);
    a.assert_confined_to("1");
}

/// Where the engine makes no cgroup, pinfold does, and takes it away again.
fn without_a_cgroup_of_its_own(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(
        world,
        engine,
        Plan {
            own_cgroup: false,
            ..Plan::pinned("a", "dp")
        },
    );
    assert_eq!(container.affinity(), "1");
    container.assert_confined_to("1");
    let cgroup = hierarchy().of(container.pid());
    assert!(
        cgroup.starts_with(hierarchy().root.join("pinfold")),
        "made below /pinfold: {}",
        cgroup.display()
    );
    assert_eq!(world.claim_of(&container.id())["cgroup"]["made"], true);
    container.end_by("KILL");
    container.delete();
    world.assert_all_free("after delete");
    assert!(
        !cgroup.exists(),
        "{} is removed at release",
        cgroup.display()
    );
}

/// The same, with the bare process that a hook is told of, in the very cgroup of the test.
fn in_a_cgroup_of_others(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let process = Standin::bare();
    let (pid, before) = (process.pid, process.mask());
    world
        .hook("prestart", &state("a", pid, annotations.clone()))
        .ok();
    let cgroup = hierarchy().of(pid);
    assert!(
        cgroup.starts_with(hierarchy().root.join("pinfold")),
        "moved to {}",
        cgroup.display()
    );
    assert_eq!(
        (cgroups::mask(&cgroup), affinity(pid)),
        ("1".into(), "1".into())
    );
    assert_eq!(cgroups::processes(&cgroup), [pid], "nobody else was moved");
    process.die();
    world.hook("poststop", &stopped("a", annotations)).ok();
    world.assert_all_free("after poststop");
    assert!(
        !cgroup.exists(),
        "{} is removed at release",
        cgroup.display()
    );
    let own = std::process::id() as i32;
    assert_eq!(
        cgroups::mask(&hierarchy().of(own)),
        before,
        "the cgroup it came from was not touched"
    );
}

/// On v2 a cgroup has no cpuset files where an ancestor does not hand the controller down.
fn missing_controller(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let top = hierarchy().make(&format!("{}-top", world.tag));
    let standin = Standin::inside(&hierarchy().make_inside(&top, "nested"), &["--wait"]);
    assert!(
        !standin.cgroup().join("cpuset.cpus").exists(),
        "the controller is missing at first"
    );
    let annotations = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", standin.pid, annotations))
        .ok();
    assert_eq!(
        (standin.mask(), affinity(standin.pid)),
        ("1".into(), "1".into())
    );
}
