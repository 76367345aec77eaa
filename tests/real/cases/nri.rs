//! NRI: who asks by annotation is pinned under a handler that knows nothing of pinfold, an update
//! leaves the pin, and what dies in between leaks nothing and gives nothing twice.

use crate::case::{Case, each};
use crate::cgroups::{self, hierarchy};
use crate::containerd::{CDI, HOOKED};
use crate::cri::Pod;
use crate::engines::{Door, Driver, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World, binary};
use nix::libc;
use serde_json::{Value, json};

const ASKING: (&str, &str) = ("pinfold.io/pool", "dp");

pub(crate) fn cases() -> Vec<Case> {
    let services = || Service::all(Client::Cri, Door::Nri);
    let runc = || {
        let cgroupfs = |service: &Service| {
            (service.runtime, service.driver) == (Runtime::Runc, Driver::Cgroupfs)
        };
        services().into_iter().filter(cgroupfs).collect()
    };
    let two = &[Need::Cpus(2)];
    [
        super::served::life("nri", services()),
        each(
            services(),
            "nri::an_update_leaves_the_pin",
            two,
            an_update_leaves_the_pin,
        ),
        each(
            services(),
            "nri::an_update_before_the_start_is_refused",
            two,
            an_update_before_the_start,
        ),
        each(
            services(),
            "nri::a_request_that_cannot_be_met_is_refused_at_the_creation",
            two,
            refused_at_the_creation,
        ),
        each(
            runc(),
            "nri::hooks_that_are_there_are_not_doubled",
            two,
            hooks_are_not_doubled,
        ),
        each(
            runc(),
            "nri::a_device_asks_by_itself_and_is_guarded",
            two,
            a_device_is_guarded,
        ),
        each(
            services(),
            "nri::who_asks_for_nothing_is_in_the_default_pool",
            two,
            in_the_default_pool,
        ),
        each(
            services(),
            "nri::what_started_without_the_plugin_is_reported",
            two,
            started_without_the_plugin,
        ),
        each(
            runc(),
            "nri::the_plugin_dies_before_each_step",
            two,
            the_plugin_dies,
        ),
        each(runc(), "nri::the_engine_dies", two, the_engine_dies),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn owned(annotations: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = annotations.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// A pod that asks for a list of `dp`.
fn asking(session: &Session, name: &str) -> Pod {
    let service = session.service;
    session.cri().run_pod(service, name, &owned(&[ASKING]))
}

/// The mask of a container's group.
fn mask(session: &Session, name: &str) -> String {
    cgroups::mask(&hierarchy().of(session.pid(name)))
}

fn an_update_leaves_the_pin(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    session.up(&Plan::pinned("pinned", "dp"));
    session.up(&Plan::plain("plain"));
    for (resources, plain) in [
        (json!({"cpus": "0"}), "0"),
        (json!({"cpus": "0-1", "shares": 512}), "0-1"),
        (json!({"shares": 600}), "0-1"),
    ] {
        for name in ["pinned", "plain"] {
            cri.update(name, &resources).ok();
        }
        session.assert_pinned("pinned", "dp", "1");
        assert_eq!(mask(&session, "plain"), plain, "{resources}");
    }
    assert_eq!(shares(&session, "pinned"), shares(&session, "plain"));
    session.stop("pinned").ok();
    session.world().wait_until_free();
}

/// What it says would be in the container's specification at the start, and the hook refuses who
/// has been given CPUs already.
fn an_update_before_the_start(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    let pod = asking(&session, "pod");
    cri.create_in(&pod, &Plan::plain("early"), &[]).ok();
    for resources in [json!({"cpus": "0"}), json!({"mems": "0"})] {
        let refused = cri.update("early", &resources);
        let part = "it asks for CPUs of a pool, and gets them when it starts";
        assert_ne!(refused.code(), Some(0), "{refused}");
        assert!(refused.stderr.contains(part), "{refused}");
    }
    cri.update("early", &json!({"shares": 512})).ok();
    cri.begin("early").ok();
    session.assert_pinned("early", "dp", "1");
    cri.remove_pod(&pod).ok();
    session.world().wait_until_free();
}

/// A container's share of CPU time, as its group says it.
fn shares(session: &Session, name: &str) -> String {
    let pid = session.pid(name);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of_cpu = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let is_it = controllers.is_empty() || controllers.split(',').any(|one| one == "cpu");
        is_it.then(|| path.trim_start_matches('/').to_owned())
    };
    let (controller, file) = match hierarchy().version {
        1 => ("cpu", "cpu.shares"),
        _ => ("", "cpu.weight"),
    };
    let root = match controller {
        "" => hierarchy().root.clone(),
        controller => cgroups::mount_with(controller),
    };
    let paths = groups.lines().filter_map(of_cpu);
    let mut found =
        paths.filter_map(|path| std::fs::read_to_string(root.join(path).join(file)).ok());
    found.next().expect("it has a share").trim().to_owned()
}

fn refused_at_the_creation(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    let pod = cri.run_pod(service, "pod", &owned(&[("pinfold.io/pool", "../etc")]));
    let refused = cri.create_in(&pod, &Plan::plain("bad"), &[]);
    assert_ne!(refused.code(), Some(0), "{refused}");
    let said = "pinfold: cannot start container pod/bad ";
    assert!(refused.stderr.contains(said), "{refused}");
    let why = process::run(&mut world.pinfold(&["why", "pod/bad"])).ok();
    assert!(why.stdout.contains("../etc"), "{why}");
    assert_eq!(world.claims().len(), 0);
}

/// A handler whose base specification has our hooks: each runs once, and pins.
fn hooks_are_not_doubled(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    let pod = cri.run_pod_under(HOOKED, service, "pod", &owned(&[ASKING]));
    cri.launch_in(&pod, &Plan::plain("once")).ok();
    session.assert_pinned("once", "dp", "1");
    for stage in ["createRuntime", "poststop"] {
        assert_eq!(cri.hooks("once", stage), 1, "{stage}");
    }
    cri.remove_pod(&pod).ok();
    session.world().wait_until_free();
}

/// A container by CDI device, of a pool or of one list, gets nothing from the plugin, and keeps its
/// CPUs all the same.
fn a_device_is_guarded(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    let dir = session.daemon().path(CDI);
    std::fs::create_dir_all(&dir).unwrap();
    let bin = binary();
    let bin = bin.parent().unwrap().to_str().unwrap();
    for (name, more) in [("of-pool", &[][..]), ("of-list", &["--lists"])] {
        let file = format!("{dir}/{name}.json");
        let write = [&["cdi", "--bin-dir", bin, "--output", &file], more].concat();
        process::run(&mut world.pinfold(&write)).ok();
        let text = std::fs::read_to_string(&file).unwrap();
        let devices: Value = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let device = [&devices["kind"], &devices["devices"][0]["name"]]
            .map(text)
            .join("=");
        let pod = cri.run_pod(service, name, &[]);
        // The engine notices a new file by itself, some time later.
        process::eventually("the engine knows the device", || {
            let created = cri.create_in(&pod, &Plan::plain(name), &[&device]);
            (created.code() == Some(0)).then_some(())
        });
        cri.begin(name).ok();
        session.assert_pinned(name, "dp", "1");
        assert_eq!(cri.hooks(name, "createRuntime"), 1);
        cri.update(name, &json!({"cpus": "0"})).ok();
        session.assert_pinned(name, "dp", "1");
        cri.remove_pod(&pod).ok();
        session.world().wait_until_free();
        std::fs::remove_file(file).unwrap();
    }
}

/// The same as under an engine whose hook files say it: who may stay out, and what cannot be given.
fn in_the_default_pool(_: &World, service: Service) {
    let mut session = Session::with(service);
    let config = session.world().dir.join("default-pool.toml");
    let configured = |session: &mut Session, table: &str| {
        std::fs::write(&config, format!("[host]\n{table}\n")).unwrap();
        session.cri_mut().kill_node();
        let more = ["--config", config.to_str().unwrap()];
        session.cri_mut().start_node_with(&more);
    };
    session.world().pool("common", Kind::Shared, &["1"]);
    session.world().pool("dp", Kind::Exclusive, &["0"]);
    configured(&mut session, "default-pool = 'common'");
    session.up(&Plan::plain("web"));
    session.assert_pinned("web", "common", "1");
    let web = session.id("web");
    assert_eq!(session.world().claim_of(&web)["by_default"], true);
    session.cri().update("web", &json!({"cpus": "0"})).ok();
    session.assert_pinned("web", "common", "1");
    session.up(&Plan::plain("stays").asking("pinfold.io/pool", "none"));
    assert_eq!(session.affinity("stays"), "1", "it may not stay out");
    session.up(&Plan::pinned("asks", "dp"));
    session.assert_pinned("asks", "dp", "0");
    assert_eq!(session.cri().hooks("asks", "createRuntime"), 1);
    assert_eq!(session.world().tasks("common", "1").len(), 2);
    for name in ["web", "stays", "asks"] {
        session.stop(name).ok();
    }
    session.world().wait_until_free();

    configured(
        &mut session,
        "default-pool = 'common'\ndefault-pool-opt-out = true",
    );
    session.up(&Plan::plain("out").asking("pinfold.io/pool", "none"));
    assert_eq!(session.affinity("out"), hierarchy().all_cpus());
    session.stop("out").ok();

    for (needed, starts) in [("false", true), ("true", false)] {
        let table = format!("default-pool = 'dp'\ndefault-pool-needed = {needed}");
        configured(&mut session, &table);
        let name = format!("needed-{needed}");
        let launched = session.launch(service, &Plan::plain(&name));
        assert_eq!(launched.code() == Some(0), starts, "{launched}");
        // crun leaves it to the log what a hook says.
        if service.runtime == Runtime::Runc {
            let part = "is the configuration's default-pool, and is exclusive";
            assert_eq!(launched.stderr.contains(part), !starts, "{launched}");
        }
    }
    assert_eq!(session.world().claims().len(), 0);
    session.cri_mut().kill_node();
    session.cri_mut().start_node();
}

/// NRI fails open: that is how it is, and it is said.
fn started_without_the_plugin(_: &World, service: Service) {
    let mut session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["1"]);
    let pods = ["first", "second"].map(|name| asking(&session, name));
    session
        .cri()
        .launch_in(&pods[0], &Plan::plain("pinned"))
        .ok();
    session.cri_mut().kill_node();
    session.assert_pinned("pinned", "dp", "1");
    session
        .cri()
        .launch_in(&pods[1], &Plan::plain("unpinned"))
        .ok();
    assert_eq!(session.affinity("unpinned"), hierarchy().all_cpus());
    session.cri_mut().start_node();
    let id = session.id("unpinned");
    let words = [
        "second/unpinned",
        &id[..12],
        "asks for CPUs of pool dp, and runs without any",
    ];
    session.cri().node().says(&words);
    session.stop("pinned").ok();
    session.world().wait_until_free();
}

/// The steps of a container's life, before each of which the plugin dies.
const STEPS: [&str; 6] = ["pod", "create", "start", "update", "stop", "remove"];

fn the_plugin_dies(_: &World, service: Service) {
    let mut session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["1"]);
    for killed in STEPS {
        let name = format!("before-{killed}");
        let mut pod = None;
        for step in STEPS {
            if step == killed {
                session.cri_mut().kill_node();
            }
            match step {
                "pod" => pod = Some(asking(&session, &name)),
                other => step_of(&session, pod.as_ref().unwrap(), &name, other).map_or((), |ran| {
                    ran.ok();
                }),
            }
            let is_updated_unguarded = killed == "update" && step == "update";
            match (step, killed) {
                ("start", "create") => {
                    assert_eq!(session.affinity(&name), hierarchy().all_cpus());
                    assert_eq!(session.world().claims().len(), 0);
                }
                ("start" | "update", _) if killed != "create" && !is_updated_unguarded => {
                    session.assert_pinned(&name, "dp", "1");
                }
                _ => {}
            }
            if step == killed {
                session.cri_mut().start_node();
            }
        }
        session.world().wait_until_free();
    }
}

fn step_of(session: &Session, pod: &Pod, name: &str, step: &str) -> Option<Ran> {
    let cri = session.cri();
    Some(match step {
        "create" => cri.create_in(pod, &Plan::plain(name), &[]),
        "start" => cri.begin(name),
        "update" => cri.update(name, &json!({"cpus": "0"})),
        "stop" => session.stop(name),
        "remove" => cri.remove_pod(pod),
        other => panic!("{other} is no step"),
    })
}

/// The engine ends as it likes, and then as it cannot prepare for; what runs keeps its CPUs, and
/// the plugin is there again.
fn the_engine_dies(_: &World, service: Service) {
    let mut session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["0", "1"]);
    let mut names = Vec::new();
    for (name, signal) in [("elder", libc::SIGTERM), ("younger", libc::SIGKILL)] {
        let pod = asking(&session, &format!("pod-{name}"));
        session.cri().launch_in(&pod, &Plan::plain(name)).ok();
        names.push(name);
        session.cri_mut().restart(signal);
        let lists: Vec<String> = names.iter().map(|name| mask(&session, name)).collect();
        for (name, list) in names.iter().zip(&lists) {
            session.assert_pinned(name, "dp", list);
        }
        assert_eq!(session.world().claims().len(), names.len());
        if let [elder, younger] = lists.as_slice() {
            assert_ne!(elder, younger, "one list, two owners");
        }
    }
    let pod = asking(&session, "pod-third");
    let refused = session.cri().launch_in(&pod, &Plan::plain("third"));
    assert!(
        refused.stderr.contains("the pool is exhausted"),
        "{refused}"
    );
    let before = mask(&session, "elder");
    session.cri().update("elder", &json!({"cpus": "0-1"})).ok();
    session.assert_pinned("elder", "dp", &before);
    for name in names {
        session.stop(name).ok();
    }
    session.world().wait_until_free();
}
