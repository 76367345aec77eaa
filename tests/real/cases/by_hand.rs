//! docker's CPU lists that are kept by hand: the way to pools and back, as docs/recipes.md has it,
//! and what `docker update` leaves behind.

use crate::case::{Case, each};
use crate::command_line::CommandLine;
use crate::engines::{Door, Driver};
use crate::image;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, affinity};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let by = |door| {
        let all = Service::all(Client::Docker, door).into_iter();
        all.filter(|service| service.driver == Driver::Systemd)
    };
    let every_door = [Door::Hooks, Door::Shim, Door::Cdi].into_iter();
    [
        each(
            by(Door::Shim).collect(),
            "by_hand::docker_goes_to_pools_and_back",
            &[Need::Cpus(4)],
            there_and_back,
        ),
        each(
            every_door.flat_map(by).collect(),
            "by_hand::docker_update_is_not_taken_back_by_a_restart",
            &[Need::Cpus(2)],
            update_and_restart,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn there_and_back(_: &World, service: Service) {
    let session = Session::with(service);
    let docker = session.docker();
    let site = session.daemon().site.as_ref().expect("it is on a site");
    let pinfold = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        process::run(&mut site.pinfold(&words))
    };
    let run = |options: &str| {
        let mut docker = docker.command(&["run", "-d", "--name", "forwarder", "--network", "none"]);
        docker.args(options.split_whitespace());
        process::run(docker.args(["--entrypoint", "/probe", image::NAME, "--wait"])).ok();
    };
    let remove = || process::run(&mut docker.command(&["rm", "-f", "forwarder"])).ok();
    let names_it = |ran: &Ran| {
        let all = format!("{}{}", ran.stdout, ran.stderr);
        all.contains("docker container forwarder")
    };
    let by_hand = format!("--runtime {} --cpuset-cpus 1-3", service.runtime.name());
    let pools = "--pool dataplane=1:exclusive --pool common=rest:shared";

    run(&by_hand);
    let tried = pinfold(&format!("init --dry-run {pools}")).ok();
    assert!(names_it(&tried), "{tried}");
    let made = pinfold(&format!("init {pools}")).ok();
    assert!(names_it(&made), "{made}");
    let check = pinfold("check");
    assert!(names_it(&check), "{check}");
    remove();
    run("--runtime pinfold --annotation pinfold.io/pool=dataplane");
    let check = pinfold("check");
    assert!(!names_it(&check), "{check}");
    let claims = session.world().claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    let owned = claims[0]["cpus"].as_str().expect("a claim has CPUs");
    assert_eq!(affinity(session.pid("forwarder")), owned);

    remove();
    session.world().wait_until_free();
    pinfold("uninstall docker").ok();
    for pool in ["dataplane", "common"] {
        pinfold(&format!("pool remove {pool}")).ok();
    }
    run(&by_hand);
    assert_eq!(affinity(session.pid("forwarder")), "1-3");
    let check = pinfold("check");
    assert!(!names_it(&check), "{check}");
    session.close();
}

/// docker keeps what `update` was told, and has no word for taking it back.
fn update_and_restart(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    let docker = |arguments: &[&str]| process::run(&mut session.docker().command(arguments));
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "1");
    docker(&["update", "--cpuset-cpus", "0", "web"]).ok();
    docker(&["update", "--cpuset-cpus", "", "web"]);
    let refused = docker(&["restart", "--time", "1", "web"]);
    assert_ne!(refused.code(), Some(0), "{refused}");
    let why = process::run(&mut world.pinfold(&["why"])).ok();
    for part in ["already sets the CPUs", "make it anew without them"] {
        assert!(why.stdout.contains(part), "{part}: {why}\n{refused}");
    }
    world.wait_until_free();
    // What it says to do, done.
    docker(&["rm", "-f", "web"]).ok();
    session.up(&Plan::pinned("anew", "dp"));
    session.assert_pinned("anew", "dp", "1");
    session.remove_by_force("anew").ok();
    world.wait_until_free();
}
