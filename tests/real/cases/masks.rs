//! I7: nothing widens a container's CPUs later; and a request that meets other people's masks is
//! refused.

use crate::case::{Case, each};
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::{Driver, Engine, Front};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, World};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let (systemd, cgroupfs) = Engine::all()
        .into_iter()
        .partition(|engine| engine.driver == Driver::Systemd);
    [
        each(Engine::all(), "masks::stay_through_updates", two, stay),
        each(
            Engine::all(),
            "masks::a_cpuset_of_its_own_is_refused",
            two,
            own_cpuset,
        ),
        each(
            cgroupfs,
            "masks::a_parent_without_its_cpus_is_named",
            two,
            parent_without,
        ),
        // On version 1 systemd knows nothing of cpusets.
        each(
            systemd,
            "masks::a_parent_without_its_cpus_is_named",
            &[Need::Cpus(2), Need::V2],
            parent_without,
        ),
        each(
            Engine::all(),
            "masks::widened_by_others_and_confined_again",
            two,
            widened,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn systemctl(arguments: &[&str]) {
    process::run(Command::new("systemctl").args(arguments)).ok();
}

fn stay(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    let updates: &[&[&str]] = match (engine.front, engine.runtime) {
        (Front::Podman, _) => &[&["update", "--cpus", "1"], &["update", "--memory", "64m"]],
        (Front::Direct, _) => &[
            &["update", "--cpu-share", "512"],
            &["update", "--memory", "67108864"],
        ],
    };
    for update in updates {
        let ran = container.engine_command(update);
        // podman 5.8 cannot update a container without a health check, unless it is told of one;
        // 5.4 not if it is.
        if ran.stderr.contains("healthcheck-timeout") {
            let told = [update, &["--health-timeout", "30s"][..]].concat();
            container.engine_command(&told).ok();
        } else {
            ran.ok();
        }
        container.assert_confined_to("1");
    }
    if Need::Systemd.is_met() {
        systemctl(&["daemon-reload"]);
        container.assert_confined_to("1");
    }
    if engine.driver == Driver::Systemd {
        let slice = engine.driver.parent(world);
        systemctl(&["set-property", "--runtime", &slice, "CPUWeight=50"]);
        // It answers when it has done what it was told before.
        systemctl(&["show", &slice]);
        container.assert_confined_to("1");
        systemctl(&["revert", &slice]);
    }
    assert!(container.exec().contains("affinity: 1\n"));
    container.assert_confined_to("1");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

fn own_cpuset(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        cpuset: Some("0".into()),
        ..Plan::pinned("a", "dp")
    };
    let container = Container::prepare(world, engine, plan);
    container.assert_refused(&[
        "already sets the CPUs 0",
        "make it anew without them",
        "or drop the pool",
    ]);
    world.assert_all_free("after a refusal");
}

fn parent_without(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let parent = engine.driver.below(world, "narrow");
    match engine.driver {
        Driver::Systemd => {
            systemctl(&["start", &parent]);
            systemctl(&["set-property", "--runtime", &parent, "AllowedCPUs=0"]);
        }
        Driver::Cgroupfs => {
            let top = hierarchy().make(&world.tag);
            cgroups::narrow(&top, &hierarchy().all_cpus());
            cgroups::narrow(&hierarchy().make_inside(&top, "narrow"), "0");
        }
    }
    let plan = Plan {
        below: Some("narrow".into()),
        ..Plan::pinned("a", "dp")
    };
    let container = Container::prepare(world, engine, plan);
    container.assert_refused(&[&parent, "allows only the CPUs 0"]);
    if engine.driver == Driver::Systemd {
        systemctl(&["revert", &parent]);
    }
    world.assert_all_free("after a refusal");
}

/// Neither the kernel nor systemd puts it back: `reconcile` does, and says so.
fn widened(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    cgroups::narrow(&hierarchy().of(container.pid()), "0-1");
    container.assert_confined_to("0-1");
    let ran = world.reconcile();
    assert!(ran.stderr.contains("confining it again"), "{ran}");
    container.assert_confined_to("1");
    let ran = world.reconcile();
    assert!(!ran.stderr.contains("confining it again"), "{ran}");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}
