//! Engines that are daemons: pinned from the first instruction, refused when the pool is full,
//! everything given back.

use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::Ran;
use crate::service::{Client, Service, Session};
use crate::snapshot::Snapshot;
use crate::syslog::SysLog;
use crate::world::{Kind, World};

pub(crate) fn cases() -> Vec<Case> {
    let clients = [Client::Docker, Client::Ctr, Client::Cri];
    let services = clients.map(|client| Service::all(client, Door::Hooks));
    // What shares a daemon stands together, so that none is started twice.
    let groups = Service::groups(services.concat());
    groups.into_iter().flat_map(of).collect()
}

fn of(services: Vec<Service>) -> Vec<Case> {
    // The driver makes no difference to a program that is not there.
    let systemd = |service: &&Service| service.driver == Driver::Systemd;
    let systemd = services.iter().filter(systemd).copied().collect();
    let missing = each(
        systemd,
        "served::program_is_missing",
        &[Need::Cpus(2)],
        program_is_missing,
    );
    life("served", services)
        .into_iter()
        .chain(missing)
        .collect()
}

/// What must hold for a container whatever the engine, and however its request comes to pinfold.
pub(crate) fn life(prefix: &str, services: Vec<Service>) -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let name = |name: &str| format!("{prefix}::{name}");
    [
        each(
            services.clone(),
            &name("pinned_from_the_first_instruction"),
            two,
            pinned,
        ),
        each(
            services.clone(),
            &name("refused_when_full"),
            two,
            refused_when_full,
        ),
        each(services, &name("given_back_at_every_end"), two, given_back),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn pinned(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    session.up(&Plan::pinned("pinned", "dp"));
    session.assert_pinned("pinned", "dp", "1");
    let second = session
        .exec("pinned", &["/probe", "--exit", "0"])
        .ok()
        .stdout;
    assert!(
        second.contains("affinity: 1\n"),
        "a process that joins later: {second}"
    );

    let books = Snapshot::of(&[&world.conf, &world.run]);
    session.up(&Plan::plain("plain"));
    assert_eq!(session.affinity("plain"), hierarchy().all_cpus());
    books.assert_same(
        &Snapshot::of(&[&world.conf, &world.run]),
        "after one without a request",
    );

    session.stop("pinned").ok();
    if service.client == Client::Ctr {
        session.remove("pinned").ok();
    }
    session.world().wait_until_free();
}

fn refused_when_full(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    session.up(&Plan::pinned("first", "dp"));
    session.assert_pinned("first", "dp", "1");
    let books = Snapshot::of(&[&world.conf, &world.run]);
    let mut log = SysLog::mark();
    let refused = session.launch(service, &Plan::pinned("second", "dp"));
    assert_tells(service, &refused);
    log.lines_with(1, &["pinfold", "dp", "the pool is exhausted"]);
    books.assert_same(&Snapshot::of(&[&world.conf, &world.run]), "after a refusal");
    session.assert_pinned("first", "dp", "1");

    session.remove_by_force("first").ok();
    session.world().wait_until_free();
    session.up(&Plan::pinned("third", "dp"));
    session.assert_pinned("third", "dp", "1");
}

/// What a user sees of a refusal: the shim's own sentence, or the hook's, which runc hands on; of
/// crun no more than that a hook failed.
fn assert_tells(service: Service, refused: &Ran) {
    assert_ne!(refused.code(), Some(0), "the pool is full: {refused}");
    let words = match (service.door, service.runtime) {
        (Door::Shim, _) | (_, Runtime::Runc) => "the pool is exhausted",
        (_, Runtime::Crun) => "hook",
    };
    assert!(
        refused.stderr.contains(words),
        "should say {words:?}: {refused}"
    );
}

fn given_back(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);

    session.up(&Plan::pinned("killed", "dp"));
    assert_eq!(session.affinity("killed"), "1");
    session.kill("killed").ok();
    ends(&session, "killed");

    session.up(&Plan::pinned("itself", "dp").doing(&["--exit", "3"]));
    assert_eq!(session.affinity("itself"), "1");
    ends(&session, "itself");

    if let Some(ran) = session.run_and_remove(
        service,
        &Plan::pinned("removed", "dp").doing(&["--exit", "3"]),
    ) {
        ran.exits(3);
        assert_eq!(session.affinity("removed"), "1");
        session.world().wait_until_free();
    }
}

/// Everything is given back after an end that nobody asked the engine for. `ctr` does not look:
/// there it takes a removal.
fn ends(session: &Session, name: &str) {
    if session.service.client == Client::Ctr {
        session.remove(name).ok();
    }
    session.world().wait_until_free();
}

/// The create fails after CPUs were given, and not every runtime then calls poststop.
fn program_is_missing(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        program: "/missing".into(),
        ..Plan::pinned("missing", "dp")
    };
    let failed = session.launch(service, &plan);
    assert_ne!(failed.code(), Some(0), "there is no such program: {failed}");
    session.up(&Plan::pinned("next", "dp"));
    session.assert_pinned("next", "dp", "1");
    session.remove_by_force("next").ok();
    session.world().wait_until_free();
}
