//! An owner is known by what people call it: where each engine says that is for the engine itself
//! to show.

use crate::case::{Case, each, plain};
use crate::container::Container;
use crate::engines::{Door, Driver, Engine};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, Running};
use crate::service::{Client, Service, Session};
use crate::syslog::SysLog;
use crate::world::{Kind, World, binary};
use nix::libc;
use serde_json::{Value, json};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let doors = [
        (Client::Podman, Door::Hooks),
        (Client::Podman, Door::Shim),
        (Client::Docker, Door::Hooks),
        (Client::Docker, Door::Shim),
        (Client::Docker, Door::Cdi),
        (Client::Ctr, Door::Hooks),
        (Client::Cri, Door::Hooks),
        (Client::Cri, Door::Shim),
    ];
    let services = doors.map(|(client, door)| Service::all(client, door));
    // The driver makes no difference to a name.
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    let services = services.concat().into_iter().filter(systemd).collect();
    let groups = Service::groups(services).into_iter();
    let by_services =
        groups.flat_map(|services| each(services, "named::by_every_engine", two, by_every_engine));
    let root = &[Need::Root, Need::Cpus(2)];
    let systemd = [&root[..], &[Need::Systemd]].concat();
    by_services
        .chain(each(Engine::podman(), "named::by_podman", two, by_podman))
        .chain([
            plain("named::a_command_by_its_program", root, by_its_program),
            plain("named::a_command_by_its_unit", &systemd, by_its_unit),
        ])
        .chain(each(
            Engine::podman()
                .into_iter()
                .filter(|engine| engine.driver == Driver::Systemd)
                .collect(),
            "named::a_container_in_the_group_of_its_unit",
            &[Need::V2, Need::Cpus(2)],
            in_the_group_of_its_unit,
        ))
        .collect()
}

fn by_podman(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("web", "dp"));
    let claim = world.claim_of(&container.id());
    assert_eq!(claim["names"], json!({"engine": "podman", "name": "web"}));
    // The names of engines' own commands do: here as there.
    let refused = release(world, &["web"]).exits(1);
    let id = &container.id()[..12];
    let says = format!("web ({id}) still runs on 1 of pool dp");
    assert!(refused.stderr.contains(&says), "{refused}");
    let unknown = release(world, &["webb", "--force"]).exits(1);
    assert!(
        unknown.stderr.contains(&format!("web ({id}) on 1 of dp")),
        "{unknown}"
    );
    let freed = release(world, &["web", "--force"]).ok();
    assert_eq!(
        freed.stdout,
        format!("freed 1 of pool dp, which web ({id}) held\n")
    );
    world.assert_all_free("after release by name");
    container.delete_by_force().ok();
}

/// As a Quadlet does it: `--cgroups=split`.
fn in_the_group_of_its_unit(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::prepare(world, engine, Plan::pinned("web", "dp"));
    let unit = format!("{}.service", world.tag);
    let podman = container.podman();
    let mut run = Command::new("systemd-run");
    run.args([
        "--quiet",
        "--collect",
        "--unit",
        &unit,
        "-p",
        "Delegate=yes",
    ]);
    for (name, value) in podman.get_envs() {
        let value = value.unwrap_or_default().to_string_lossy();
        run.arg(format!("--setenv={}={value}", name.to_string_lossy()));
    }
    run.arg("--")
        .arg(podman.get_program())
        .args(podman.get_args());
    run.args(["run", "--cgroups=split", "--network=none", "--name=web"]);
    run.args(["--annotation", "pinfold.io/pool=dp", "--rootfs"]);
    run.arg(world.dir.join("rootfs")).args(["/probe", "--wait"]);
    process::run(&mut run).ok();
    let claim = process::eventually("it has a claim", || world.claims().pop());
    let names = json!({"engine": "podman", "name": "web", "unit": unit});
    assert_eq!(claim["names"], names);
    let still = release(world, &[&unit]).exits(1);
    assert!(still.stderr.contains("web ("), "{still}");
    process::run(Command::new("systemctl").args(["stop", &unit])).ok();
    container.delete_by_force();
    world.wait_until_free();
}

fn release(world: &World, arguments: &[&str]) -> Ran {
    process::run(&mut world.pinfold(&[&["release"], arguments].concat()))
}

fn by_its_program(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let mut isolate = world.pinfold(&["isolate", "--pool", "dp", "--", "/bin/sleep", "1000"]);
    let isolate = Running::start(&mut isolate, b"");
    // Before its command is there, a signal would end it as it ends any program.
    let claim = process::eventually("it has a claim, and its command", || {
        let claim = world.claims().pop()?;
        (claim["processes"].as_array()?.len() == 2).then_some(claim)
    });
    assert_eq!(claim["names"]["name"], "sleep");
    let still = release(world, &["sleep"]).exits(1);
    assert!(still.stderr.contains("sleep (isolate-"), "{still}");
    isolate.signal(libc::SIGTERM);
    world.wait_until_free();
}

fn by_its_unit(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let unit = format!("{}.service", world.tag);
    let mut run = Command::new("systemd-run");
    run.args(["--quiet", "--collect", "--unit", &unit, "--"]);
    run.arg(binary()).arg("isolate").args(world.options());
    process::run(run.args(["--pool", "dp", "--", "/bin/sleep", "1000"])).ok();
    let claim = process::eventually("it has a claim", || world.claims().pop());
    assert_eq!(claim["names"], json!({"name": "sleep", "unit": unit}));
    let status = process::run(&mut world.pinfold(&["status", "--no-trunc"])).ok();
    let row = status.stdout.lines().find(|line| line.contains(&unit));
    assert!(row.is_some_and(|row| row.contains(" dp ")), "{status}");
    let still = release(world, &[&world.tag]).exits(1);
    assert!(
        still.stderr.contains("still runs on 1 of pool dp"),
        "{still}"
    );
    process::run(Command::new("systemctl").args(["stop", &unit])).ok();
    world.reconcile();
    world.assert_all_free("after the unit");
}

/// What the claim of a container `web` says of its names.
fn names(service: Service) -> Value {
    match service.client {
        Client::Podman => json!({"engine": "podman", "name": "web"}),
        Client::Docker => json!({"engine": "docker", "name": "web"}),
        // There the id is the name.
        Client::Ctr => json!({"engine": "containerd"}),
        Client::Cri => json!({
            "engine": "containerd", "name": "web", "pod": "web", "namespace": "telco",
        }),
    }
}

fn by_every_engine(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "1");
    assert_eq!(world.claim_of(&session.id("web"))["names"], names(service));

    let mut log = SysLog::mark();
    let refused = session.launch(service, &Plan::pinned("second", "dp"));
    assert_ne!(refused.code(), Some(0), "the pool is full: {refused}");
    let container = match service.client {
        Client::Cri => "container second/second (",
        Client::Ctr => "container second on",
        Client::Docker | Client::Podman => "container second (",
    };
    log.lines_with(1, &["pinfold", container, "the pool is exhausted"]);

    let called = match service.client {
        Client::Cri => "telco/web/web",
        _ => "web",
    };
    let still = release(world, &[called]).exits(1);
    assert!(
        still.stderr.contains("still runs on 1 of pool dp"),
        "{still}"
    );
    session.remove_by_force("web").ok();
    session.world().wait_until_free();
}
