//! The same under the runtimes themselves: a hook that is killed at any call that changes something
//! fails the start, and leaves nothing that lasts.

use crate::bundle::Hook;
use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::{self, Need};
use crate::plan::Plan;
use crate::strace::{self, Point, Reached, Whose};
use crate::world::{Kind, Standin, World, state};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Strace, Need::Cpus(2)];
    each(
        Engine::direct(),
        "killpoints::under_the_runtime",
        needs,
        under_the_runtime,
    )
}

fn under_the_runtime(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let points = changing_points(world);
    let strace = needs::find("strace")
        .expect("strace is installed")
        .display()
        .to_string();
    let mut killed = 0;
    let tried = strace::tried(&points);
    for &(number, point) in &tried {
        let allocate = Hook::pinfold(world, "createRuntime");
        let hook = allocate.inside(
            &strace,
            &[
                point.arguments().as_slice(),
                &["-o".into(), "/dev/null".into()],
            ]
            .concat(),
        );
        let hooks = [hook, Hook::pinfold(world, "poststop")];
        let plan = Plan::pinned(&format!("killed{number}"), "dp");
        let container = Container::prepare_with_hooks(world, engine, plan, &hooks);
        if container.launch().code() == Some(0) {
            container.delete_by_force().ok();
        } else {
            killed += 1;
        }
        let next = Container::up(world, engine, Plan::pinned(&format!("next{number}"), "dp"));
        assert_eq!(next.affinity(), "1", "after a hook was killed at {point}");
        assert_eq!(
            world.tasks("dp", "1"),
            [next.pid()],
            "after a hook was killed at {point}"
        );
        next.delete_by_force().ok();
        world.reconcile();
        world.assert_all_free(&format!("after a hook was killed at {point}"));
    }
    Reached {
        killed,
        tried: tried.len(),
        least: 8,
        percent: 80,
    }
    .assert_enough(&format!("the hook under {engine}"));
}

/// Learnt from a hook that nobody kills, the second one, which finds every directory made.
fn changing_points(world: &World) -> Vec<Point> {
    let hook = world.pinfold(&["hook", "createRuntime"]);
    let mut points = Vec::new();
    for id in ["first", "second"] {
        let standin = Standin::new(world, id);
        let input = state(id, standin.pid, json!({ "pinfold.io/pool": "dp" })).to_string();
        points = strace::points(
            &hook,
            Whose::All,
            input.as_bytes(),
            &world.dir.join("trace"),
        );
        standin.die();
        world.reconcile();
    }
    points.retain(|point| point.changes);
    points
}
