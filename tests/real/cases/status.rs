//! `pinfold status` tells where owners really run, whatever tool has moved them.

use crate::case::{Case, each, plain};
use crate::cgroups;
use crate::engines::{Door, Driver};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, affinity};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, Standin, World, state};
use serde_json::{Value, json};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    let docker = Service::all(Client::Docker, Door::Hooks).into_iter();
    let docker = docker.filter(systemd).collect();
    let two = &[Need::Cpus(2)];
    let root = &[Need::Root, Need::Cpus(2)];
    let mut cases = each(docker, "status::docker_update_is_seen", two, docker_update);
    cases.push(plain(
        "status::a_mask_that_another_tool_changed",
        root,
        changed_mask,
    ));
    cases
}

/// The one owner, and what is said about it.
fn owner(world: &World) -> (Value, String) {
    let ran = process::run(&mut world.pinfold(&["status", "--json"])).ok();
    let document: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    assert_eq!(
        document["owners"].as_array().map(Vec::len),
        Some(1),
        "{ran}"
    );
    (
        document["owners"][0].clone(),
        document["remarks"].to_string(),
    )
}

/// It is seen as moved, to this CPU, and `reconcile`, which the remark names, brings it back.
#[track_caller]
fn assert_moved_and_mended(world: &World, cpu: &str) {
    let (moved, remarks) = owner(world);
    assert_eq!(
        (&moved["state"], &moved["runsOn"]),
        (&json!("moved"), &json!(cpu))
    );
    assert!(remarks.contains("pinfold reconcile"), "{remarks}");
    let row = process::run(&mut world.pinfold(&["status"])).ok();
    assert!(row.stdout.contains(" moved "), "{row}");
    world.reconcile();
    let (mended, remarks) = owner(world);
    assert_eq!(
        (&mended["state"], &mended["runsOn"]),
        (&json!("running"), &json!("1"))
    );
    assert_eq!(remarks, "[]");
}

fn changed_mask(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", standin.pid, request))
        .ok();
    assert_eq!(owner(world).0["state"], "running");
    cgroups::narrow(&standin.cgroup(), "0");
    assert_moved_and_mended(world, "0");
    assert_eq!(affinity(standin.pid), "1");
}

fn docker_update(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "1");
    let socket = format!("unix://{}", session.daemon().path("socket"));
    let mut docker = Command::new("docker");
    docker.args(["--host", &socket, "update", "--cpuset-cpus", "0", "web"]);
    process::run(&mut docker).ok();
    assert_moved_and_mended(world, "0");
    session.assert_pinned("web", "dp", "1");
    session.remove_by_force("web").ok();
    session.world().wait_until_free();
}
