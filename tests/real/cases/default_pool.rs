//! A default pool: who asks for nothing is in it, unless it was given CPUs, opts out where it may,
//! or is a pod's sandbox.

use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::engines::Door;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let podman = [Door::Hooks, Door::Shim].map(|door| Service::all(Client::Podman, door));
    let mut services = podman.concat();
    services.extend(Service::all(Client::Docker, Door::Shim));
    let mut cases = Vec::new();
    for services in Service::groups(services) {
        let podmans = services.iter().copied();
        let podmans: Vec<_> = podmans
            .filter(|service| service.client == Client::Podman)
            .collect();
        cases.extend(each(
            services.clone(),
            "default_pool::who_asks_for_nothing_is_in_it",
            two,
            in_it,
        ));
        cases.extend(each(
            podmans.clone(),
            "default_pool::podmans_infra_container_is_not_counted",
            &[Need::Cpus(2), Need::PauseImage],
            infra,
        ));
        cases.extend(each(
            podmans,
            "default_pool::who_was_given_cpus_or_asks_is_not",
            two,
            not_in_it,
        ));
        cases.extend(each(
            services,
            "default_pool::where_it_cannot_be_given",
            two,
            cannot_be,
        ));
    }
    cases.extend(each(
        Service::all(Client::Cri, Door::Shim),
        "default_pool::a_pods_sandbox_is_not_counted",
        two,
        sandbox,
    ));
    cases
}

/// A session with this table `[host]`, of which the engine was told.
struct Host {
    session: Session,
}

impl Host {
    fn with(service: Service, table: &str) -> Host {
        let host = Host {
            session: Session::with(service),
        };
        host.say(table);
        host
    }

    fn say(&self, table: &str) {
        let site = self.session.daemon().site.as_ref();
        let site = site.expect("it is on a site");
        let path = site.path("pinfold/config.toml");
        let text = std::fs::read_to_string(path).expect("read the configuration");
        let rest = text.split("[host]").next().unwrap_or_default();
        site.write("pinfold/config.toml", &format!("{rest}[host]\n{table}\n"));
        if self.session.service.client == Client::Podman {
            self.pinfold(&["install", "podman"]).ok();
        }
    }

    fn pinfold(&self, arguments: &[&str]) -> Ran {
        let site = self.session.daemon().site.as_ref();
        process::run(&mut site.expect("it is on a site").pinfold(arguments))
    }
}

impl Drop for Host {
    /// The next test's hooks are those of a machine without a default pool.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.session.remove_all();
            self.say("");
        }
    }
}

fn in_it(_: &World, service: Service) {
    let host = Host::with(service, "default-pool = 'common'");
    let (session, world) = (&host.session, host.session.world());
    world.pool("common", Kind::Shared, &["1"]);
    session.up(&Plan::plain("web"));
    session.assert_pinned("web", "common", "1");
    let web = session.id("web");
    assert_eq!(world.claim_of(&web)["by_default"], true);
    session.up(&Plan::plain("db").asking("pinfold.io/pool", "none"));
    assert_eq!(session.affinity("db"), "1", "it may not opt out");
    assert_eq!(world.tasks("common", "1").len(), 2);
    let shown = host.pinfold(&["status", "--no-trunc"]).ok();
    assert_eq!(
        shown.stdout.matches("common (default)").count(),
        2,
        "{shown}"
    );
    let said = host.pinfold(&["check"]);
    let well = "ok       default-pool  containers that ask for nothing are in pool";
    assert!(said.stdout.contains(well), "{said}");
    for name in ["web", "db"] {
        session.stop(name);
        session.remove(name);
    }
    world.wait_until_free();
    let used = host.pinfold(&["usage", "--json", "--by", "pool"]).ok();
    let used: serde_json::Value = serde_json::from_str(&used.stdout).unwrap();
    assert_eq!(used["usage"][0]["byDefault"], 2, "{used}");

    host.say("default-pool = 'common'\ndefault-pool-opt-out = true");
    session.up(&Plan::plain("out").asking("pinfold.io/pool", "none"));
    assert_eq!(session.affinity("out"), hierarchy().all_cpus());
    assert_eq!(world.claims().len(), 0);
}

fn not_in_it(_: &World, service: Service) {
    let host = Host::with(service, "default-pool = 'common'");
    let (session, world) = (&host.session, host.session.world());
    world.pool("common", Kind::Shared, &["1"]);
    world.pool("dp", Kind::Exclusive, &["0"]);
    session.up(&Plan::plain("chosen").option("--cpuset-cpus=0"));
    assert_eq!(session.affinity("chosen"), "0");
    assert_eq!(world.claims().len(), 0);
    session.remove_by_force("chosen").ok();
    // The engine's hook is there as well as the shim's.
    session.up(&Plan::pinned("asks", "dp"));
    session.assert_pinned("asks", "dp", "0");
    assert_eq!(world.claims().len(), 1);
    let asks = session.id("asks");
    assert_eq!(world.claim_of(&asks)["by_default"], serde_json::Value::Null);
    session.remove_by_force("asks").ok();
    world.wait_until_free();
}

/// It is started outside of the pool, or not at all where that is said.
fn cannot_be(_: &World, service: Service) {
    let host = Host::with(service, "default-pool = 'common'");
    let (session, world) = (&host.session, host.session.world());
    world.pool("other", Kind::Exclusive, &["1"]);
    session.up(&Plan::plain("lone"));
    assert_eq!(session.affinity("lone"), hierarchy().all_cpus());
    let said = host.pinfold(&["check"]).exits(1);
    for part in [
        "\"common\", which is not there",
        "`pinfold pool add common=1:shared`",
    ] {
        assert!(said.stdout.contains(part), "{part}: {said}");
    }
    world.pool("common", Kind::Shared, &["0"]);
    let said = host.pinfold(&["check"]);
    let part = "asked for nothing, and run outside of the default pool \"common\"";
    assert!(said.stdout.contains(part), "{said}");
    host.say("default-pool = 'other'\ndefault-pool-needed = true");
    let refused = session.launch(service, &Plan::plain("needs"));
    assert_ne!(refused.code(), Some(0), "{refused}");
    let why = host.pinfold(&["why"]).ok();
    let part = "is the configuration's default-pool, and is exclusive";
    assert!(why.stdout.contains(part), "{why}");
    assert_eq!(world.claims().len(), 0);
}

/// The same command in a directory that it can name: podman builds its pause image there.
fn with_a_directory(command: &Command) -> Command {
    let mut arguments = command.get_args();
    let mut with = Command::new(command.get_program());
    with.args(arguments.by_ref().take_while(|word| *word != "--"));
    with.args(["--", "sh", "-c", "cd / && exec \"$0\" \"$@\""]);
    with.args(arguments);
    with
}

fn infra(_: &World, service: Service) {
    let host = Host::with(service, "default-pool = 'common'");
    let (session, world) = (&host.session, host.session.world());
    world.pool("common", Kind::Shared, &["1"]);
    let podman = session.podman();
    let create = ["pod", "create", "--name", "pod", "--network", "none"];
    for arguments in [&create[..], &["pod", "start", "pod"]] {
        process::run(&mut with_a_directory(&podman.by(service, arguments))).ok();
    }
    let claims = world.claims();
    process::run(&mut podman.by(service, &["pod", "rm", "--force", "pod"])).ok();
    assert_eq!(claims.len(), 0, "{claims:?}");
}

fn sandbox(_: &World, service: Service) {
    let host = Host::with(service, "default-pool = 'common'");
    let (session, world) = (&host.session, host.session.world());
    world.pool("common", Kind::Shared, &["1"]);
    let pod = session.cri().run_pod(service, "pod", &[]);
    assert_eq!(world.claims().len(), 0, "a pod's sandbox is given nothing");
    session.cri().launch_in(&pod, &Plan::plain("inpod")).ok();
    session.assert_pinned("inpod", "common", "1");
    assert_eq!(world.claims().len(), 1);
    session.cri().remove_pod(&pod).ok();
    world.wait_until_free();
}
