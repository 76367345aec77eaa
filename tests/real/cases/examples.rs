//! `examples/`, as it stands: the bundle under runc and crun, and the Quadlet unit as podman's
//! generator reads it. `compose` has the compose file; `tests/apply.rs` the configuration, and
//! `tests/packages/deb` has systemd start the unit.

use crate::bundle::{Hook, stages};
use crate::case::{Case, each, plain};
use crate::engines::{Driver, Engine, runtime_path};
use crate::needs::{Need, find};
use crate::process;
use crate::world::{Kind, World};
use serde_json::{Value, json};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2), Need::Busybox];
    let mut engines = Engine::direct();
    // The file names no cgroup: which driver makes one is the runtime's own choice.
    engines.retain(|engine| engine.driver == Driver::Cgroupfs);
    let mut cases = each(engines, "examples::the_bundle_is_pinned", needs, bundle);
    let unit = "examples::the_quadlet_unit_asks";
    cases.push(plain(unit, &[Need::Root, Need::Quadlet], quadlet));
    cases
}

fn bundle(world: &World, engine: Engine) {
    world.pool("dataplane", Kind::Exclusive, &["1"]);
    let dir = world.dir.join("bundle");
    std::fs::create_dir_all(dir.join("rootfs/bin")).expect("make the rootfs");
    let busybox = dir.join("rootfs/bin/busybox");
    std::fs::copy("/bin/busybox", busybox).expect("copy busybox");
    let text = include_str!("../../../examples/bundle/config.json");
    let mut config: Value = serde_json::from_str(text).expect("the example is JSON");
    // The hooks that the package brings, as this test has them.
    let wanted = ["createRuntime", "poststop"].map(|stage| {
        let args = json!(["pinfold", "hook", stage]);
        let hook = json!([{ "path": "/usr/bin/pinfold", "args": args, "timeout": 30 }]);
        (stage.to_owned(), hook)
    });
    assert_eq!(config["hooks"], Value::Object(wanted.into_iter().collect()));
    config["hooks"] = stages(&["createRuntime", "poststop"].map(|name| Hook::pinfold(world, name)));
    config["linux"]["cgroupsPath"] = json!(format!("/{}/example", world.tag));
    std::fs::write(dir.join("config.json"), config.to_string()).expect("write the bundle");
    let mut run = Command::new(runtime_path(world, engine.runtime));
    run.arg("--root").arg(world.dir.join("state"));
    run.args(["run", "--bundle"]).arg(&dir).arg("example");
    let said = process::run(&mut run).ok();
    assert_eq!(said.stdout.trim(), "Cpus_allowed_list:\t1", "{said}");
    world.wait_until_free();
}

fn quadlet(world: &World) {
    let units = world.dir.join("units");
    std::fs::create_dir(&units).expect("make a directory");
    let unit = include_str!("../../../examples/forwarder.container");
    std::fs::write(units.join("forwarder.container"), unit).expect("write the unit");
    let mut read = Command::new(find("quadlet").expect("it is needed"));
    read.env("QUADLET_UNIT_DIRS", &units).arg("-dryrun");
    let said = process::run(&mut read).ok();
    let starts = said
        .stdout
        .lines()
        .find(|line| line.starts_with("ExecStart="));
    let starts = starts.unwrap_or_else(|| panic!("it starts nothing: {said}"));
    for part in [
        "podman run",
        "--annotation pinfold.io/pool=dataplane",
        "localhost/box /bin/busybox sleep 1000",
    ] {
        assert!(starts.contains(part), "{part}: {starts}");
    }
    // What it does not know it says, and leaves out.
    assert!(!said.stderr.contains("nsupported"), "{said}");
}
