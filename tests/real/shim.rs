//! `pinfold-runtime` in the place of a runtime: what it adds, what it hands on, and what it refuses.

use crate::cases::{Case, each};
use crate::container::Container;
use crate::engines::{Door, Driver, Engine};
use crate::installed::Machine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, World};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const SHIM: &str = "/usr/local/bin/pinfold-runtime";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2)];
    let shim = || Engine::by(Door::Shim, Engine::direct());
    [
        each(
            shim(),
            "shim::adds_what_pins_and_hands_on_the_rest",
            needs,
            adds_what_pins,
        ),
        each(
            shim(),
            "shim::refuses_a_runtime_without_hooks",
            needs,
            refuses_a_runtime,
        ),
        each(
            shim(),
            "shim::refuses_a_read_only_bundle",
            needs,
            refuses_a_read_only_bundle,
        ),
        each(
            shim(),
            "shim::refuses_what_means_one_thing_here_and_another_there",
            needs,
            refuses_what_is_ambiguous,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A bundle with a request.
fn bundle(world: &World, engine: Engine, plan: Plan) -> PathBuf {
    let dir = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
    Container::prepare_with_hooks(world, engine, plan, &[]);
    dir
}

/// How often a container is made and deleted through the shim.
const ROUNDS: usize = 110;

fn adds_what_pins(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let pinned = bundle(world, engine, Plan::pinned("pinned", "dp"));
    let refused = bundle(world, engine, Plan::pinned("refused", "dp"));
    let plain = bundle(world, engine, Plan::plain("plain"));
    let root = world.dir.join("state").display().to_string();
    let shim = |arguments: &[&str]| {
        let mut command = machine.command(SHIM);
        command.args(["--root", &root]).current_dir("/");
        if engine.driver == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        process::run(command.args(arguments))
    };
    let create = |dir: &Path, id: &str| {
        shim(&["create", "-b", dir.to_str().expect("the path is UTF-8"), id])
    };
    for round in 0..ROUNDS {
        create(&pinned, "pinned").ok();
        if round % 10 == 0 {
            assert_ne!(
                create(&refused, "refused").code(),
                Some(0),
                "the pool is full"
            );
            shim(&["start", "pinned"]).ok();
            assert_eq!(machine.affinity("state-pinned"), "1");
        }
        let claim = world.claim_of("pinned");
        assert_eq!(claim["kind"], "container", "round {round}");
        let pid = claim["owner"]["pid"].as_i64().expect("a pid");
        assert_eq!(world.tasks("dp", "1"), [pid as i32], "round {round}");
        if round % 10 == 0 {
            process::eventually("the container knows its CPUs", || {
                let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
                let variables = ["KCM_CPUS_ASSIGNED=1\0", "KCM_CPUS_ASSIGNED_MASK=2\0"];
                let has = |variable: &&str| environment.contains(*variable);
                variables.iter().all(has).then_some(())
            });
        }
        shim(&["delete", "-f", "pinned"]).ok();
        world.assert_all_free(&format!("after round {round}"));
    }
    let hooks = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("config.json")).expect("read config.json");
        text.matches("\"args\":[\"pinfold\",\"hook\"").count()
    };
    assert_eq!(hooks(&pinned), 2, "never doubled");

    // Somebody changes what was written: that is what counts, and nothing is doubled.
    let config = pinned.join("config.json");
    let written = std::fs::read_to_string(&config).expect("read config.json");
    let changed = written.replace("\"cwd\":\"/\"", "\"cwd\":\"/tmp\"");
    assert_ne!(changed, written);
    std::fs::write(&config, changed).expect("write config.json");
    create(&pinned, "pinned").ok();
    assert_eq!(hooks(&pinned), 2, "never doubled");
    shim(&["delete", "-f", "pinned"]).ok();
    // CPUs of its own choice are one place too many.
    let written = std::fs::read_to_string(&config).expect("read config.json");
    std::fs::write(&config, written.replace("\"cpus\":\"1\"", "\"cpus\":\"0\""))
        .expect("write config.json");
    let ran = create(&pinned, "pinned").exits(1);
    assert!(
        ran.stderr
            .contains("cannot start container pinned on CPUs of pool dp: its configuration already sets the CPUs"),
        "{ran}"
    );
    world.assert_all_free("after a refusal");

    // Whatever has no request is handed on as it is.
    let before = std::fs::read(plain.join("config.json")).expect("read config.json");
    create(&plain, "plain").ok();
    assert_eq!(
        std::fs::read(plain.join("config.json")).expect("read config.json"),
        before
    );
    let state = shim(&["state", "plain"]).ok().stdout;
    let state: serde_json::Value = serde_json::from_str(&state).expect("state is JSON alone");
    assert_eq!(state["id"], "plain");
    shim(&["delete", "-f", "plain"]).ok();
    let version = machine.run(SHIM, &["--version"]).ok();
    assert!(
        version.stdout.starts_with(engine.runtime.name()),
        "{version}"
    );

    // Bad input is refused before anything is written, where the engine reads it.
    for (content, part) in [(Some("{"), "it is no JSON"), (None, "there is no")] {
        let (config, log) = (refused.join("config.json"), world.dir.join("log"));
        match content {
            Some(text) => std::fs::write(&config, text).expect("write config.json"),
            None => std::fs::remove_file(&config).expect("remove config.json"),
        }
        let log_option = log.display().to_string();
        let bundle = refused.display().to_string();
        let arguments = [
            "--log",
            &log_option,
            "--log-format",
            "json",
            "create",
            "-b",
            &bundle,
            "bad",
        ];
        let ran = machine.run(SHIM, &arguments).exits(1);
        assert!(ran.stderr.contains(part), "{ran}");
        let logged = std::fs::read_to_string(&log).expect("read the log");
        let last = logged.lines().last().expect("a line");
        let entry: serde_json::Value = serde_json::from_str(last).expect("a line is JSON");
        assert!(
            entry["msg"].as_str().is_some_and(|msg| msg.contains(part)),
            "{entry}"
        );
    }
    world.assert_all_free("at the end");
}

/// A runtime that runs no hooks of ours, one that is not allowed, and one that is missing: nothing is written.
fn refuses_a_runtime(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let bundle = bundle(world, engine, Plan::pinned("a", "dp"));
    let config = bundle.join("config.json");
    let before = std::fs::read(&config).expect("read config.json");

    let hookless = world.dir.join("hookless");
    let script = "#!/bin/sh\necho '{\"hooks\":[\"prestart\"]}'\n";
    std::fs::write(&hookless, script).expect("write a runtime");
    std::fs::set_permissions(&hookless, PermissionsExt::from_mode(0o755)).expect("chmod it");
    let hookless = format!("path = {hookless:?}");
    let bundle = bundle.to_str().expect("the path is UTF-8");
    for (runtime, part) in [
        (hookless.clone(), "runs no createRuntime"),
        ("path = \"/no/such\"".to_owned(), "/no/such"),
        (
            format!("{hookless}\nallow = [\"/usr/bin/crun\"]"),
            "runtime.allow",
        ),
    ] {
        let script = "printf '[runtime]\\n%s\\n' \"$1\" >/etc/pinfold/config.toml";
        machine.run("sh", &["-ec", script, "sh", &runtime]).ok();
        let ran = machine.run(SHIM, &["create", "-b", bundle, "a"]).exits(1);
        assert!(ran.stderr.contains(part), "{ran}");
        assert_eq!(std::fs::read(&config).expect("read config.json"), before);
    }
    world.assert_all_free("at the end");
}

/// A bundle that cannot be written to: the container would start on any CPUs.
fn refuses_a_read_only_bundle(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let bundle = bundle(world, engine, Plan::pinned("a", "dp"));
    let before = std::fs::read(bundle.join("config.json")).expect("read config.json");
    let bundle = bundle.to_str().expect("the path is UTF-8");
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"";
    machine.run("sh", &["-ec", script, "sh", bundle]).ok();

    let log = world.dir.join("log");
    let log_option = format!("--log={}", log.display());
    let arguments = [
        &log_option,
        "--log-format=text",
        "create",
        "--bundle",
        bundle,
        "a",
    ];
    let ran = machine.run(SHIM, &arguments).exits(1);
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
    let logged = std::fs::read_to_string(&log).expect("read the log");
    assert!(logged.starts_with("level=error msg=\""), "{logged}");
    assert!(logged.contains("Read-only file system"), "{logged}");
    let after = std::fs::read(Path::new(bundle).join("config.json")).expect("read config.json");
    assert_eq!(after, before);
    world.assert_all_free("at the end");
}

/// Nothing is reserved, and the configuration stays as it is. What has no request is not the shim's to judge.
fn refuses_what_is_ambiguous(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let bundle = bundle(world, engine, Plan::pinned("a", "dp"));
    let root = world.dir.join("state").display().to_string();
    let shim = |arguments: &[&str]| {
        let common = ["--root", &root];
        machine.run(SHIM, &[&common, arguments].concat())
    };
    let path = bundle.to_str().expect("the path is UTF-8");
    let config = bundle.join("config.json");
    let read = || std::fs::read_to_string(&config).expect("read config.json");
    let plain = read();
    shim(&["create", "-b", path, "a"]).ok();
    shim(&["delete", "-f", "a"]).ok();
    let pinned = read();
    let other_case = |text: &str| text.replace("\"annotations\"", "\"Annotations\"");
    let without = |text: &str| text.replace("pinfold.io/pool", "other.io/pool");
    for (text, part) in [
        (other_case(&plain), "is for some runtimes annotations"),
        (other_case(&pinned), "is for some runtimes annotations"),
        (without(&pinned), "has the CPUs of an earlier start"),
    ] {
        std::fs::write(&config, &text).expect("write config.json");
        let ran = shim(&["create", "-b", path, "a"]).exits(1);
        assert!(ran.stderr.contains(part), "{ran}");
        assert_eq!(read(), text);
    }
    let elsewhere = bundle.join("elsewhere.json");
    std::fs::write(&elsewhere, &plain).expect("write another configuration");
    std::fs::remove_file(&config).expect("remove config.json");
    std::os::unix::fs::symlink(&elsewhere, &config).expect("make a link");
    let ran = shim(&["create", "-b", path, "a"]).exits(1);
    assert!(ran.stderr.contains("is a symbolic link"), "{ran}");
    world.assert_all_free("after refusals");

    // Whatever else is wrong in it, a container without a request starts, and can be ended.
    let spoil = "printf 'colour = 7\\n' | cat - /etc/pinfold/config.toml >/etc/pinfold/new && mv /etc/pinfold/new /etc/pinfold/config.toml";
    machine.run("sh", &["-ec", spoil]).ok();
    std::fs::write(&elsewhere, without(&plain)).expect("write another configuration");
    shim(&["create", "-b", path, "a"]).ok();
    shim(&["delete", "-f", "a"]).ok();
    std::fs::write(&elsewhere, &plain).expect("write another configuration");
    let ran = shim(&["create", "-b", path, "a"]).exits(1);
    assert!(ran.stderr.contains("unknown field `colour`"), "{ran}");
    world.assert_all_free("at the end");
}
