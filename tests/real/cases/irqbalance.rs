//! irqbalance, which moves interrupts about: it keeps off the CPUs of owners, and of nobody else.

use crate::case::{Case, plain};
use crate::needs::Need;
use crate::process::{Running, eventually, run};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[
        Need::Root,
        Need::Irqbalance,
        Need::Cpus(8),
        Need::Disposable,
    ];
    vec![plain("irqbalance::is_told", needs, is_told)]
}

/// The mask of the CPUs that it keeps off, as it tells itself.
fn banned(socket: &PathBuf) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"setup").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, mask) = answer.rsplit_once("BANNED ")?;
    Some(mask.trim_matches(['\0', ' ']).to_owned())
}

fn is_told(world: &World) {
    std::fs::create_dir_all("/run/irqbalance").unwrap();
    let mut command = Command::new("irqbalance");
    // It looks around each second.
    command.args(["--foreground", "--interval", "1"]);
    command.env("IRQBALANCE_BANNED_CPULIST", "7");
    let balancer = Running::start(&mut command, b"");
    let socket = PathBuf::from(format!("/run/irqbalance/irqbalance{}.sock", balancer.pid()));
    let is_banned = |mask: &str| {
        eventually(&format!("it keeps off {mask}"), || {
            // It may have been too busy to be told.
            world.reconcile();
            (banned(&socket)? == mask).then_some(())
        });
    };
    is_banned("00000080");
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    run(&mut world.pinfold(&["pool", "set", "dp", "irqs=away"])).ok();
    let start = |name: &str| {
        let standin = Standin::new(world, name);
        let asking = state(name, standin.pid, json!({ "pinfold.io/pool": "dp" }));
        world.hook("createRuntime", &asking).ok();
        standin
    };
    let end = |name: &str, standin: Standin| {
        let group = standin.die();
        let stopped = stopped(name, json!({ "pinfold.io/pool": "dp" }));
        world.hook("poststop", &stopped).ok();
        std::fs::remove_dir(group).unwrap();
    };
    let web = start("web");
    is_banned("00000090");
    let api = start("api");
    is_banned("000000b0");
    let told = run(&mut world.pinfold(&["check"])).stdout;
    assert!(!told.contains("irqbalance"), "{told}");
    end("web", web);
    is_banned("000000a0");
    end("api", api);
    is_banned("00000080");
    world.reconcile();
    balancer.kill();
}
