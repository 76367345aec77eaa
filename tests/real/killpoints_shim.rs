//! The shim killed at every system call: a bundle's configuration is whole, and the next create makes of it what it
//! always does.

use crate::cases::{Case, plain};
use crate::container::Container;
use crate::engines::Engine;
use crate::installed::Machine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::strace::{Reached, kill_at, points, tried};
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Strace, Need::Runc];
    vec![plain("killpoints::the_shim", needs, the_shim)]
}

/// The runtime is one that does nothing: what counts is what the shim leaves to it.
fn the_shim(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let engine = Engine::direct()[0];
    let machine = Machine::new(world, engine);
    let script = "printf '[runtime]\\npath = \"/bin/true\"\\n' >/etc/pinfold/config.toml";
    machine.run("sh", &["-ec", script]).ok();
    let plan = Plan::pinned("a", "dp");
    let bundle = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
    Container::prepare_with_hooks(world, engine, plan, &[]);
    let (config, trace) = (bundle.join("config.json"), world.dir.join("trace"));
    let read = || std::fs::read_to_string(&config).expect("read config.json");
    let create = || {
        let mut command = machine.command("/usr/local/bin/pinfold-runtime");
        command.args(["create", "-b"]).arg(&bundle).arg("a");
        command
    };

    let before = read();
    let all = points(&create(), b"", &trace);
    let after = read();
    assert_ne!(before, after, "hooks were added");
    let tried = tried(&all);
    let mut killed = 0;
    for (_, point) in &tried {
        std::fs::write(&config, &before).expect("write config.json");
        killed += usize::from(kill_at(point, &create(), b"", &trace));
        let left = read();
        assert!(left == before || left == after, "killed at {point}: {left}");
        process::run(&mut create()).ok();
        assert_eq!(read(), after, "after a death at {point}");
    }
    // The child that asks the runtime for its features can die alone: the shim, and strace with it, goes on.
    let reached = Reached {
        killed,
        tried: tried.len(),
        least: 100,
        percent: 80,
    };
    reached.assert_enough("the shim");
    world.assert_all_free("at the end");
}
