//! I3 on every ordinary way out: however a container ends, its CPU list is free again.

use crate::case::{Case, each, plain};
use crate::container::Container;
use crate::engines::{Engine, Front, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, is_alive};
use crate::snapshot::Snapshot;
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let root = &[Need::Root, Need::Cpus(2)];
    let mut cases = each(Engine::all(), "endings::stopped", two, |world, engine| {
        ended_by(world, engine, |container| container.stop())
    });
    cases.extend(each(
        Engine::all(),
        "endings::killed",
        two,
        |world, engine| ended_by(world, engine, |container| container.end_by("KILL")),
    ));
    cases.extend(each(Engine::all(), "endings::by_itself", two, by_itself));
    cases.extend(each(
        Engine::direct(),
        "endings::by_itself_and_never_deleted",
        two,
        never_deleted,
    ));
    cases.extend(each(
        Engine::all(),
        "endings::deleted_by_force",
        two,
        deleted_by_force,
    ));
    cases.extend(each(
        Engine::all(),
        "endings::program_is_missing",
        two,
        program_is_missing,
    ));
    cases.extend(each(
        Engine::all(),
        "endings::a_later_hook_fails",
        two,
        a_later_hook_fails,
    ));
    cases.extend(each(
        Engine::direct(),
        "endings::second_create_of_a_running_id",
        two,
        second_create,
    ));
    cases.extend(each(
        Engine::direct(),
        "endings::same_id_under_two_roots",
        two,
        same_id_under_two_roots,
    ));
    cases.push(plain(
        "endings::poststop_of_an_unknown_id",
        root,
        poststop_of_an_unknown_id,
    ));
    cases.push(plain(
        "endings::poststop_while_the_owner_lives",
        root,
        poststop_while_the_owner_lives,
    ));
    cases.push(plain(
        "endings::poststop_twice_at_once",
        root,
        poststop_twice_at_once,
    ));
    cases
}

/// A pool of one list on which one container runs.
fn one_running<'w>(world: &'w World, engine: Engine, plan: Plan) -> Container<'w> {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, plan);
    assert_eq!(container.affinity(), "1");
    container
}

fn ended_by(world: &World, engine: Engine, end: fn(&Container)) {
    let container = one_running(world, engine, Plan::pinned("a", "dp"));
    end(&container);
    gives_back(world, &container);
}

/// podman looks after a container that has ended by itself; a runtime does when it is told to
/// delete it.
fn gives_back(world: &World, container: &Container) {
    if container.engine.front == Front::Podman {
        world.wait_until_free();
    }
    container.delete().ok();
    world.assert_all_free("after delete");
}

fn by_itself(world: &World, engine: Engine) {
    let container = one_running(
        world,
        engine,
        Plan::pinned("a", "dp").doing(&["--exit", "3"]),
    );
    gives_back(world, &container);
}

/// Nobody calls poststop; `reconcile` finds the owner dead, and so does the next container in need.
fn never_deleted(world: &World, engine: Engine) {
    let plan = |name: &str| Plan::pinned(name, "dp").doing(&["--exit", "0"]);
    let first = one_running(world, engine, plan("a"));
    let pid = world.claim_of("a")["processes"][0]["pid"]
        .as_i64()
        .expect("a claim names its process") as i32;
    process::eventually("the container ends", || (!is_alive(pid)).then_some(()));
    let second = Container::up(world, engine, plan("b"));
    assert_eq!(
        second.affinity(),
        "1",
        "the next in need gets what a dead owner held"
    );
    assert_eq!(world.claims_of("a"), Vec::<serde_json::Value>::new());
    // One that ends while reconcile looks is left to the next one.
    let pid = world.claim_of("b")["processes"][0]["pid"]
        .as_i64()
        .expect("a claim names its process") as i32;
    process::eventually("the second ends too", || (!is_alive(pid)).then_some(()));
    world.reconcile();
    world.assert_all_free("after reconcile");
    first.delete().ok();
    world.assert_all_free("after a late delete");
}

fn deleted_by_force(world: &World, engine: Engine) {
    let container = one_running(world, engine, Plan::pinned("a", "dp"));
    let pid = container.pid();
    container.delete_by_force().ok();
    assert!(!is_alive(pid));
    world.assert_all_free("after a forced delete");
}

/// Whether the engine calls poststop after a create that failed.
fn cleans_up_a_failed_create(engine: Engine) -> bool {
    engine.front == Front::Direct && engine.runtime == Runtime::Runc
}

fn program_is_missing(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        program: "/missing".into(),
        ..Plan::pinned("a", "dp")
    };
    let container = Container::prepare(world, engine, plan);
    assert_ne!(container.launch().code(), Some(0));
    if !cleans_up_a_failed_create(engine) {
        world.reconcile();
    }
    world.assert_all_free("after a failed create");
}

/// Here the allocation has surely happened; where no poststop comes, the next container in need
/// must not wait for it.
fn a_later_hook_fails(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        later_hook: Some(vec!["/bin/false".into()]),
        ..Plan::pinned("a", "dp")
    };
    let container = Container::prepare(world, engine, plan);
    assert_ne!(
        container.launch().code(),
        Some(0),
        "a hook that fails is fatal"
    );
    if cleans_up_a_failed_create(engine) {
        world.assert_all_free("after a failed create");
    }
    let next = Container::up(world, engine, Plan::pinned("b", "dp"));
    assert_eq!(next.affinity(), "1");
    next.end_by("KILL");
    next.delete();
    world.reconcile();
    world.assert_all_free("after the next one's delete");
}

fn second_create(world: &World, engine: Engine) {
    let container = one_running(world, engine, Plan::pinned("a", "dp"));
    let claim = world.claim_of("a");
    let again = container.launch();
    assert_ne!(again.code(), Some(0), "the id is taken: {again}");
    world.reconcile();
    assert_eq!(
        world.claim_of("a"),
        claim,
        "the running one keeps its claim"
    );
    assert_eq!(world.tasks("dp", "1"), [container.pid()]);
    container.assert_confined_to("1");
}

fn same_id_under_two_roots(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let plan = |root: &str| Plan {
        state_dir: root.into(),
        ..Plan::pinned("same", "dp")
    };
    let first = Container::up(world, engine, plan("root1"));
    let second = Container::up(world, engine, plan("root2"));
    assert_eq!(
        (first.affinity(), second.affinity()),
        ("0".into(), "1".into())
    );
    assert_eq!(world.claims_of("same").len(), 2);
    first.end_by("TERM");
    first.delete().ok();
    assert_eq!(
        world.tasks("dp", "0"),
        [0; 0],
        "the one that ended gives back its own"
    );
    assert_eq!(
        world.tasks("dp", "1"),
        [second.pid()],
        "the other keeps its own"
    );
    assert_eq!(world.claim_of("same")["cpus"], "1");
    second.assert_confined_to("1");
    second.end_by("TERM");
    second.delete().ok();
    world.assert_all_free("after both are gone");
}

fn poststop_of_an_unknown_id(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", standin.pid, annotations.clone()))
        .ok();
    let before = Snapshot::of(&[&world.conf, &world.run]);
    for annotations in [
        annotations,
        json!({}),
        json!({ "pinfold.io/pool": "unknown-pool" }),
    ] {
        world
            .hook("poststop", &stopped("unknown", annotations))
            .ok();
    }
    before.assert_same(
        &Snapshot::of(&[&world.conf, &world.run]),
        "after poststop of an unknown id",
    );
    assert_eq!(standin.mask(), "1");
}

/// As when a second create of a running id fails, and its engine calls poststop for it.
fn poststop_while_the_owner_lives(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", standin.pid, annotations.clone()))
        .ok();
    let claim = world.claim_of("a");
    world
        .hook("poststop", &stopped("a", annotations.clone()))
        .ok();
    assert_eq!(world.claim_of("a"), claim);
    assert_eq!(world.tasks("dp", "1"), [standin.pid]);
    assert_eq!(standin.mask(), "1");
    let cgroup = standin.die();
    world.hook("poststop", &stopped("a", annotations)).ok();
    world.assert_all_free("after the owner is gone");
    assert_eq!(
        crate::cgroups::mask(&cgroup),
        crate::cgroups::hierarchy().unnarrowed(),
        "the mask is given back"
    );
}

fn poststop_twice_at_once(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let [ends, stays] = ["a", "b"].map(|id| {
        let standin = Standin::new(world, id);
        world
            .hook("prestart", &state(id, standin.pid, annotations.clone()))
            .ok();
        standin
    });
    ends.die();
    let gate = world.hold_lock();
    let hooks = [(); 2].map(|()| world.hooking("poststop", &stopped("a", annotations.clone())));
    process::eventually("both wait at the lock", || {
        (world.hooks_at_the_lock().len() == 2).then_some(())
    });
    drop(gate);
    for hook in hooks {
        hook.wait().ok();
    }
    assert_eq!(world.tasks("dp", "0"), [0; 0]);
    assert_eq!(
        world.tasks("dp", "1"),
        [stays.pid],
        "the neighbour is left alone"
    );
    stays.die();
    world.hook("poststop", &stopped("b", annotations)).ok();
    world.assert_all_free("after both have ended");
}
