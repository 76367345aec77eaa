//! Devices that are CPU lists: each has hooks of its own, and together they make one claim.
//! Whatever is killed in between, no list has two owners, and everything comes back.

use crate::case::{Case, plain};
use crate::cases::killpoints::each_point;
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{Ran, Running, affinity};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let strace = &[Need::Root, Need::Strace, Need::Cpus(2)];
    vec![
        plain("lists::two_devices_make_one_claim", root, two),
        plain(
            "lists::a_second_that_is_refused_leaves_the_first",
            root,
            refused,
        ),
        plain("lists::killed_at_the_second_device", strace, second_killed),
        plain(
            "lists::killed_at_the_end_of_two_devices",
            strace,
            end_killed,
        ),
    ]
}

fn id(world: &World) -> String {
    format!("{}-listed", world.tag)
}

/// Runs the hook of one device.
fn device(world: &World, stage: &str, list: &str, state: &Value) -> Ran {
    let mut command = world.pinfold(&["hook", stage, "--list", list]);
    let ran = Running::start(&mut command, state.to_string().as_bytes()).wait();
    world.assert_sound(&format!("after {ran}"));
    ran
}

fn create(world: &World, standin: &Standin, list: &str) -> Ran {
    let state = state(&id(world), standin.pid, json!({}));
    device(world, "createRuntime", list, &state)
}

fn fresh(world: &World) {
    world.empty();
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
}

fn two(world: &World) {
    fresh(world);
    for standin in [Standin::new(world, "a"), Standin::bare()] {
        create(world, &standin, "dp:1").ok();
        assert_eq!(affinity(standin.pid), "1");
        create(world, &standin, "dp:1").ok();
        assert_eq!(affinity(standin.pid), "1");
        // Twice: an engine can run a hook in two stages.
        for _ in 0..2 {
            create(world, &standin, "dp:0").ok();
            let claim = world.claim_of(&id(world));
            assert_eq!(claim["lists"], json!(["0", "1"]));
            assert_eq!(claim["cpus"], "0-1");
            for list in ["0", "1"] {
                assert_eq!(world.tasks("dp", list), [standin.pid]);
            }
            assert_eq!(affinity(standin.pid), "0-1");
            assert_eq!(cgroups::mask(&standin.cgroup()), "0-1");
        }
        world.assert_settled("with two devices");
        standin.die();
        for list in ["dp:0", "dp:1"] {
            let stopped = stopped(&id(world), json!({}));
            device(world, "poststop", list, &stopped).ok();
            world.assert_all_free("after a poststop");
        }
    }
}

fn refused(world: &World) {
    fresh(world);
    world.pool("ix", Kind::Shared, &["3"]);
    let (standin, other) = (Standin::new(world, "a"), Standin::new(world, "other"));
    create(world, &standin, "dp:1").ok();
    let owner = format!("{}-owner", world.tag);
    let asked = state(&owner, other.pid, json!({ "pinfold.io/pool": "dp" }));
    world.hook("createRuntime", &asked).ok();
    let claim = world.claim_of(&id(world));
    for (list, words) in [
        ("dp:0", format!("is owned by {owner:?}: wait until")),
        ("dp:0-1", "has no CPU list 0-1".to_owned()),
        ("ix:3", "it has 1 of pool dp since a moment ago".to_owned()),
        (
            "dp=0",
            "it must be a pool and one of its CPU lists".to_owned(),
        ),
    ] {
        let refused = create(world, &standin, list);
        assert_ne!(refused.code(), Some(0), "{list}");
        assert!(refused.stderr.contains(&words), "{list}: {refused}");
        assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{refused}");
        assert_eq!(world.claim_of(&id(world)), claim, "{list}");
        assert_eq!(affinity(standin.pid), "1", "{list}");
        world.assert_settled("after a refusal");
    }
    // Annotations may name the pool, and no more.
    for (annotations, is_refused) in [
        (json!({ "pinfold.io/pool": "dp" }), false),
        (
            json!({ "pinfold.io/pool": "dp", "pinfold.io/mems": "local" }),
            true,
        ),
        (json!({ "pinfold.io/pool": "ix" }), true),
    ] {
        let state = state(&id(world), standin.pid, annotations);
        let ran = device(world, "createRuntime", "dp:1", &state);
        assert_eq!(ran.code() == Some(1), is_refused, "{ran}");
        assert!(!is_refused || ran.stderr.contains("ask once"), "{ran}");
    }
    let groups = [standin.die(), other.die()];
    world.reconcile();
    world.assert_all_free("after reconcile");
    for group in groups {
        assert_eq!(cgroups::mask(&group), hierarchy().unnarrowed());
    }
}

/// Somebody else asks for a list of the pool, while whose hook was killed still lives. Returns
/// whether they got one, and they are gone then.
fn a_rival_gets_one(world: &World) -> bool {
    let rival = Standin::new(world, "rival");
    let asked = state("rival", rival.pid, json!({ "pinfold.io/pool": "dp" }));
    let ran = world.hook("createRuntime", &asked);
    if ran.code() != Some(0) {
        assert!(ran.stderr.contains("exhausted"), "{ran}");
    }
    let group = rival.die();
    let stopped = stopped("rival", json!({ "pinfold.io/pool": "dp" }));
    world.hook("poststop", &stopped).ok();
    let _ = std::fs::remove_dir(group);
    ran.code() == Some(0)
}

/// The container whose hook was killed ends, and somebody cleans up after it, or nobody does.
fn ends(world: &World, standin: Standin, number: usize) {
    let group = standin.die();
    if number % 2 == 0 {
        let stopped = stopped(&id(world), json!({}));
        device(world, "poststop", "dp:1", &stopped).ok();
    }
    world.reconcile();
    world.assert_all_free("after reconcile");
    assert_eq!(cgroups::mask(&group), hierarchy().unnarrowed());
    let _ = std::fs::remove_dir(group);
}

/// The first list stays the container's, and what it may run on is what its claim names.
fn second_killed(world: &World) {
    let before = || {
        fresh(world);
        let standin = Standin::new(world, "a");
        create(world, &standin, "dp:1").ok();
        let input = state(&id(world), standin.pid, json!({}));
        (standin, input.to_string())
    };
    let verb = ["hook", "createRuntime", "--list", "dp:0"];
    each_point(world, &verb, before, |standin, number| {
        let claim = world.claim_of(&id(world));
        let is_wide = claim["lists"] == json!(["0", "1"]);
        assert!(is_wide || claim["lists"] == json!(["1"]), "{claim}");
        assert_eq!(world.tasks("dp", "1"), [standin.pid]);
        if !is_wide {
            assert_eq!(standin.mask(), "1", "wider than its claim");
            assert_eq!(affinity(standin.pid), "1", "wider than its claim");
        }
        assert_eq!(a_rival_gets_one(world), !is_wide, "{claim}");
        // Another hook of the container finishes what the killed one began.
        if number % 3 == 0 {
            create(world, &standin, "dp:0").ok();
            assert_eq!(affinity(standin.pid), "0-1");
            // What the killed one was writing is left.
            world.reconcile();
        }
        ends(world, standin, number);
    });
}

fn end_killed(world: &World) {
    let before = || {
        fresh(world);
        let standin = Standin::new(world, "a");
        for list in ["dp:1", "dp:0"] {
            create(world, &standin, list).ok();
        }
        let group = standin.die();
        (group, stopped(&id(world), json!({})).to_string())
    };
    let verb = ["hook", "poststop", "--list", "dp:0"];
    each_point(world, &verb, before, |group, number| {
        // The hook of the other device comes all the same.
        if number % 2 == 0 {
            let stopped = stopped(&id(world), json!({}));
            device(world, "poststop", "dp:1", &stopped).ok();
            assert!(world.claims().is_empty(), "after the other poststop");
        }
        world.reconcile();
        world.assert_all_free("after reconcile");
        assert_eq!(cgroups::mask(&group), hierarchy().unnarrowed());
        let _ = std::fs::remove_dir(group);
    });
}
