//! Containers that run and ask, and were given nothing, because their engine was told in a way that
//! it does not hear; and containers whose CPUs somebody chose by hand.

use crate::bundle;
use crate::case::{Case, each};
use crate::cases::installed::Machine;
use crate::command_line::CommandLine;
use crate::container::Container;
use crate::engines::{Door, Driver, Engine, runtime_path};
use crate::image;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World};
use std::process::Command;

const PROGRAM: &str = "/usr/local/bin/pinfold";
const POOL: &str = "pinfold.io/pool=dp";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2)];
    let docker = Service::all(Client::Docker, Door::Shim).into_iter();
    let docker = docker.filter(|service| service.driver == Driver::Systemd);
    let ctr = Service::all(Client::Cri, Door::Shim).into_iter();
    let ctr = ctr.filter(|service| service.driver == Driver::Systemd);
    [
        each(
            Engine::direct(),
            "unpinned::a_runtime_without_hooks",
            needs,
            a_runtime_without_hooks,
        ),
        each(
            Engine::podman(),
            "unpinned::podman_that_forgets_its_hooks",
            needs,
            podman_that_forgets_its_hooks,
        ),
        each(
            Engine::podman(),
            "unpinned::podman_with_a_label_or_a_list_kept_by_hand",
            needs,
            podman_with_a_label_or_a_list_kept_by_hand,
        ),
        each(
            docker.collect(),
            "unpinned::docker_without_the_runtime",
            needs,
            docker_without_the_runtime,
        ),
        each(
            ctr.collect(),
            "unpinned::ctr_without_the_shim",
            needs,
            ctr_without_the_shim,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What `check` finds of a container, but for what is well: others' tests may have containers here
/// as well, and groups of which it is said that they are beside this one.
fn findings_of(check: &Ran, name: &str) -> Vec<String> {
    let beside = format!("which \"{name}");
    let lines = check.stdout.lines().filter(|line| !line.contains(&beside));
    let lines = lines.filter(|line| line.contains(name) && !line.starts_with("ok "));
    lines.map(str::to_owned).collect()
}

/// There is one finding of this container, which says this.
#[track_caller]
fn assert_found(check: &Ran, name: &str, words: &[&str]) {
    let found = findings_of(check, name);
    assert_eq!(found.len(), 1, "{name}: {check}");
    for word in words {
        assert!(found[0].contains(word), "{word}: {found:?}");
    }
}

fn a_runtime_without_hooks(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let asks = format!("{}-asks", world.tag);
    let kept = format!("{}-kept", world.tag);
    let mut by_hand = Plan::plain(&kept);
    by_hand.cpuset = Some("1".into());
    let runtime = |arguments: &[&str]| {
        // Where a user's own containers have their state, for `check` looks there.
        let mut command = Command::new(runtime_path(world, engine.runtime));
        if engine.driver == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        process::run(command.args(arguments))
    };
    // Whatever of these goes away stops their slice.
    let mut containers = Vec::new();
    for plan in [
        Plan::pinned(&asks, "dp").asking("pinfold/numa", "single"),
        by_hand,
    ] {
        let name = plan.name.clone();
        let container = Container::prepare_with_hooks(world, engine, plan, &[]);
        let bundle = container.bundle().display().to_string();
        containers.push(container);
        runtime(&["create", "-b", &bundle, &name]).ok();
        // One that is not started yet lacks nothing.
        let check = process::run(&mut world.pinfold(&["check"]));
        assert!(
            findings_of(&check, &format!("container {asks} asks")).is_empty(),
            "{check}"
        );
        runtime(&["start", &name]).ok();
        if name == asks {
            let check = process::run(&mut world.pinfold(&["check"])).exits(1);
            let word = engine.runtime.name();
            assert_found(
                &check,
                &format!("{asks} asks"),
                &[word, "\"dp\" and has none", &format!("in place of {word}")],
            );
            let meant = &["\"pinfold/numa\"", "\"pinfold.io/numa\""];
            assert_found(&check, &format!("{asks} has the annotation"), meant);
            let described = process::run(&mut world.pinfold(&["describe"])).ok();
            assert!(
                described.stderr.contains(&format!("{asks} asks for CPUs")),
                "{described}"
            );
            runtime(&["delete", "--force", &name]).ok();
            let check = process::run(&mut world.pinfold(&["check"]));
            assert!(findings_of(&check, &asks).is_empty(), "{check}");
        }
    }
    let told = format!(
        "{} container {kept} was given the CPUs 1",
        engine.runtime.name()
    );
    let check = process::run(&mut world.pinfold(&["check"]));
    assert_found(
        &check,
        &told,
        &["by others than Pinfold", "1 of pool \"dp\""],
    );
    let explain = ["explain", "--pool", "dp"];
    let init = [
        "init",
        "--dry-run",
        "--reserve",
        "0",
        "--pool",
        "x=1:exclusive",
    ];
    let is_told = |verb: &[&str]| {
        let said = process::run(&mut world.pinfold(verb)).ok();
        assert!(said.stderr.contains(&told), "{told}: {said}");
    };
    is_told(&explain);
    // It makes pools where there are none.
    process::run(&mut world.pinfold(&["pool", "remove", "dp"])).ok();
    is_told(&init);
    runtime(&["delete", "--force", &kept]).ok();
    let check = process::run(&mut world.pinfold(&["check"]));
    assert!(findings_of(&check, &kept).is_empty(), "{check}");
}

fn podman_that_forgets_its_hooks(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let hooks = world.dir.join("hooks");
    let copy = "mkdir \"$0\" && cp /usr/share/containers/oci/hooks.d/pinfold-* \"$0\"";
    let hooks = hooks.display().to_string();
    machine.run("sh", &["-ec", copy, &hooks]).ok();
    let installed = format!("{}-installed", world.tag);
    let named = format!("{}-named", world.tag);
    let request = ["--annotation", POOL];

    // As long as podman knows them itself, a later start is as good as the first.
    machine.start(&installed, &request).ok();
    machine.podman(&["restart", "-t", "0", &installed]).ok();
    assert_eq!(world.claims().len(), 1);
    let check = machine.run(PROGRAM, &["check"]);
    assert!(findings_of(&check, &installed).is_empty(), "{check}");
    machine.podman(&["stop", "-t", "0", &installed]).ok();

    machine.run(PROGRAM, &["uninstall", "podman"]).ok();
    machine
        .start_with(&["--hooks-dir", &hooks], &named, &request)
        .ok();
    assert_eq!(machine.affinity(&named), "1");
    for name in [&named, &installed] {
        machine.podman(&["restart", "-t", "0", name]).ok();
        let check = machine.run(PROGRAM, &["check"]).exits(1);
        let again = format!("`podman restart {name}`");
        let remedy = [
            "podman container",
            "\"dp\" and has none",
            "`pinfold install podman`",
            &again,
        ];
        assert_found(&check, name, &remedy);
    }

    // What it says to do, done.
    machine.podman(&["stop", "-t", "0", &installed]).ok();
    machine.run(PROGRAM, &["install", "podman"]).ok();
    machine.podman(&["restart", "-t", "0", &named]).ok();
    assert_eq!(world.claims().len(), 1);
    let check = machine.run(PROGRAM, &["check"]);
    assert!(findings_of(&check, &named).is_empty(), "{check}");
    machine
        .podman(&["rm", "-f", "-t", "0", &named, &installed])
        .ok();
    world.assert_all_free("after rm");
}

fn podman_with_a_label_or_a_list_kept_by_hand(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["install", "podman"]).ok();
    machine.let_podman_find_its_storage();
    let labelled = format!("{}-labelled", world.tag);
    let kept = format!("{}-kept", world.tag);
    machine.start(&labelled, &["--label", POOL]).ok();
    machine.start(&kept, &["--cpuset-cpus", "1"]).ok();
    let check = machine.run(PROGRAM, &["check"]);
    let meant = [
        "has the label \"pinfold.io/pool\"",
        "--annotation pinfold.io/pool=",
    ];
    assert_found(&check, &labelled, &meant);
    assert_found(
        &check,
        &kept,
        &[
            "podman container",
            "CPUs 1 by others",
            "without --cpuset-cpus",
        ],
    );
    // What it says to do, done: the way from a list kept by hand to a pool.
    machine
        .podman(&["rm", "-f", "-t", "0", &labelled, &kept])
        .ok();
    machine.start(&kept, &["--annotation", POOL]).ok();
    assert_eq!(machine.affinity(&kept), "1");
    let check = machine.run(PROGRAM, &["check"]);
    assert!(findings_of(&check, &kept).is_empty(), "{check}");
    assert!(findings_of(&check, &labelled).is_empty(), "{check}");
    machine.podman(&["rm", "-f", "-t", "0", &kept]).ok();
}

fn docker_without_the_runtime(_: &World, service: Service) {
    let session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["1"]);
    let docker = session.docker();
    let site = session.daemon().site.as_ref().expect("it is on a site");
    let runtime = service.runtime.name();
    let run = |name: &str, options: &[&str]| {
        let mut docker = docker.command(&["run", "--detach", "--network", "none", "--name", name]);
        docker
            .args(options)
            .args(["--entrypoint", "/probe", image::NAME, "--wait"]);
        process::run(&mut docker).ok();
    };
    run("asks", &["--runtime", runtime, "--annotation", POOL]);
    run(
        "alike",
        &["--runtime", runtime, "--annotation", "Pinfold.io/pool=dp"],
    );
    run("label", &["--runtime", runtime, "--label", POOL]);
    run("kept", &["--runtime", runtime, "--cpuset-cpus", "1"]);
    let check = process::run(&mut site.pinfold(&["check"])).exits(1);
    let remedy = "saw it start: make it anew with `docker run --runtime pinfold`";
    assert_found(
        &check,
        "docker container asks (",
        &["\"dp\" and has none", remedy],
    );
    assert_found(&check, "docker container alike (", &["\"pinfold.io/pool\""]);
    let meant = [
        "has the label \"pinfold.io/pool\"",
        "--annotation pinfold.io/pool=",
    ];
    assert_found(&check, "docker container label (", &meant);
    assert_found(
        &check,
        "docker container kept (",
        &["CPUs 1 by others", "1 of pool \"dp\""],
    );
    // What it says to do, done.
    for name in ["asks", "alike", "label", "kept"] {
        process::run(&mut docker.command(&["rm", "--force", name])).ok();
    }
    run("asks", &["--runtime", "pinfold", "--annotation", POOL]);
    let check = process::run(&mut site.pinfold(&["check"]));
    assert!(
        findings_of(&check, "docker container").is_empty(),
        "{check}"
    );
    session.close();
}

fn ctr_without_the_shim(_: &World, service: Service) {
    let session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["1"]);
    let daemon = session.daemon();
    let site = daemon.site.as_ref().expect("it is on a site");
    let runtime = runtime_path(&daemon.world, service.runtime)
        .display()
        .to_string();
    let shim = daemon
        .world
        .dir
        .join("programs/pinfold-runtime")
        .display()
        .to_string();
    let rootfs = daemon.rootfs().display().to_string();
    let ctr = |arguments: &[&str]| process::run(session.cri().ctr("default").args(arguments));
    let name = format!("{}-ctr", daemon.world.tag);
    let run = |binary: &str, request: [&str; 2]| {
        let mut arguments = vec!["run", "--detach", "--rootfs", "--runc-binary", binary];
        arguments.extend(request);
        ctr(&[&arguments[..], &[&rootfs, &name, "/probe", "--wait"]].concat()).ok();
    };
    let remove = || {
        ctr(&["tasks", "rm", "--force", &name]).ok();
        ctr(&["containers", "rm", &name]).ok();
    };
    // It makes an annotation of a label, too.
    for option in ["--annotation", "--label"] {
        run(&runtime, [option, POOL]);
        let check = process::run(&mut site.pinfold(&["check"])).exits(1);
        let remedy = "`ctr run --runc-binary` and the path of pinfold-runtime";
        assert_found(
            &check,
            &name,
            &["containerd container", "\"dp\" and has none", remedy],
        );
        remove();
        run(&shim, [option, POOL]);
        let check = process::run(&mut site.pinfold(&["check"]));
        assert!(findings_of(&check, &name).is_empty(), "{check}");
        remove();
    }
    session.close();
}
