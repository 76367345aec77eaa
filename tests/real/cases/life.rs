//! What podman does to a container while it lives, and the ways out that only podman has.

use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let mut cases = each(
        Engine::podman(),
        "life::paused_restarted_removed",
        two,
        through,
    );
    cases.extend(each(
        Engine::podman(),
        "life::removed_when_it_ends",
        two,
        removed_when_it_ends,
    ));
    cases
}

/// Pinned at every moment, and after a restart again; `exec` is confined too.
fn through(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    assert_eq!(container.affinity(), "1");
    assert!(container.exec().contains("affinity: 1\n"));
    container.engine_command(&["pause"]).ok();
    container.assert_confined_to("1");
    container.engine_command(&["unpause"]).ok();
    let first = container.pid();
    container.engine_command(&["restart", "--time", "0"]).ok();
    let second = process::eventually("it runs again", || {
        let pid = container.pid();
        (pid != 0 && pid != first).then_some(pid)
    });
    container.assert_confined_to("1");
    assert!(container.exec().contains("affinity: 1\n"));
    assert_eq!(world.tasks("dp", "1"), [second]);
    assert_eq!(world.claims().len(), 1);
    container.engine_command(&["pause"]).ok();
    container
        .engine_command(&["rm", "--force", "--time", "0"])
        .ok();
    world.assert_all_free("after rm --force");
}

fn removed_when_it_ends(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan::pinned("a", "dp").doing(&["--when-told", "--exit", "3"]);
    let container = Container::up(world, engine, plan.option("--rm"));
    assert_eq!(world.tasks("dp", "1"), [container.pid()]);
    container.engine_command(&["kill", "--signal", "USR1"]).ok();
    world.wait_until_free();
}
