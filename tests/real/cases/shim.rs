//! `pinfold-runtime` in the place of a runtime: what it adds, what it hands on, and what it
//! refuses.

use crate::case::{Case, each};
use crate::cases::installed::Machine;
use crate::cases::pools::{assert_follows, cpus, pool, the_list};
use crate::container::Container;
use crate::engines::{Door, Driver, Engine, runtime_path};
use crate::needs::{Need, device_near};
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::world::{Kind, World};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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
        each(
            shim(),
            "shim::pins_once_what_asks_by_several_doors",
            needs,
            several_doors,
        ),
        each(
            shim(),
            "shim::leaves_devices_that_are_lists_to_their_hooks",
            needs,
            leaves_lists_to_hooks,
        ),
        each(
            shim(),
            "shim::keeps_to_the_rules_of_pools",
            needs,
            rules_of_pools,
        ),
        each(
            shim(),
            "shim::a_list_grows_under_its_containers",
            needs,
            grows_under_its_containers,
        ),
        each(
            shim(),
            "shim::looks_for_cpus_near_the_containers_devices",
            &[Need::Cpus(8), Need::Nodes(2), Need::DeviceNear(1)],
            near_its_devices,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn daemon_reload() {
    process::run(Command::new("systemctl").arg("daemon-reload")).ok();
}

/// A bundle with a request.
fn bundle(world: &World, engine: Engine, plan: Plan) -> PathBuf {
    let dir = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
    Container::prepare_with_hooks(world, engine, plan, &[]);
    dir
}

/// How often a container is made and deleted through the shim; emulation is slow, and shows no more
/// in that time.
fn rounds() -> usize {
    if Need::Native.is_met() { 110 } else { 22 }
}

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
    for round in 0..rounds() {
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
        if round == 0 {
            shim(&["update", "--cpu-share", "512", "pinned"]).ok();
            assert_eq!(process::affinity(pid as i32), "1", "after an update");
        }
        // The runtime has told systemd of them.
        if round == 0 && engine.driver == Driver::Systemd {
            daemon_reload();
            assert_eq!(process::affinity(pid as i32), "1", "after daemon-reload");
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
    let state: Value = serde_json::from_str(&state).expect("state is JSON alone");
    assert_eq!(state["id"], "plain");
    shim(&["delete", "-f", "plain"]).ok();
    let version = machine.run(SHIM, &["--version"]).ok();
    assert!(
        version.stdout.starts_with(engine.runtime.name()),
        "{version}"
    );

    // Bad input is refused before anything is written, where the engine reads it.
    for (content, part) in [(Some("{"), "it is not JSON"), (None, "there is no")] {
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
        let entry: Value = serde_json::from_str(last).expect("a line is JSON");
        assert!(
            entry["msg"].as_str().is_some_and(|msg| msg.contains(part)),
            "{entry}"
        );
    }
    world.assert_all_free("at the end");
}

/// A runtime that runs no hooks of ours, one that is not allowed, and one that is missing: nothing
/// is written.
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
        let (conf, run) = (world.conf.display(), world.run.display());
        let config_file = format!("conf-dir = '{conf}'\nrun-dir = '{run}'\n[runtime]\n{runtime}\n");
        let script = "printf %s \"$1\" >/etc/pinfold/config.toml";
        machine.run("sh", &["-ec", script, "sh", &config_file]).ok();
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

/// A container's bundle, and the shim on a machine where it is installed.
pub(crate) struct Scene<'w> {
    world: &'w World,
    engine: Engine,
    pub(crate) machine: Machine<'w>,
    pub(crate) bundle: PathBuf,
}

impl<'w> Scene<'w> {
    pub(crate) fn new(world: &'w World, engine: Engine) -> Scene<'w> {
        Scene::of(world, engine, Plan::pinned("a", "dp"))
    }

    /// One whose container does this once it is started.
    pub(crate) fn doing(world: &'w World, engine: Engine, actions: &[&str]) -> Scene<'w> {
        Scene::of(world, engine, Plan::pinned("a", "dp").doing(actions))
    }

    fn of(world: &'w World, engine: Engine, plan: Plan) -> Scene<'w> {
        Scene {
            world,
            engine,
            machine: Machine::new(world, engine),
            bundle: bundle(world, engine, plan),
        }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.config()).expect("read config.json")
    }

    fn edited(&self, text: &str, edit: impl FnOnce(&mut Value)) {
        let mut config = serde_json::from_str(text).expect("config.json is JSON");
        edit(&mut config);
        std::fs::write(self.config(), config.to_string()).expect("write config.json");
    }

    pub(crate) fn shim(&self, arguments: &[&str]) -> Ran {
        let mut command = self.machine.command(SHIM);
        command.arg("--root").arg(self.world.dir.join("state"));
        if self.engine.driver == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        process::run(command.args(arguments))
    }

    pub(crate) fn create(&self) -> Ran {
        let bundle = self.bundle.to_str().expect("the path is UTF-8");
        self.shim(&["create", "-b", bundle, "a"])
    }

    pub(crate) fn delete(&self) {
        self.shim(&["delete", "-f", "a"]).ok();
        self.world.assert_all_free("after delete");
    }

    /// The first process, which has not been started.
    pub(crate) fn first_process(&self) -> i32 {
        let pid = self.world.claim_of("a")["owner"]["pid"].as_i64();
        pid.expect("a pid") as i32
    }

    /// The container has all of the pool's list, and keeps that.
    fn follows(&self, pool: &str) {
        let list = the_list(self.world, pool);
        assert!(cpus(&list).len() > 1, "{list}");
        assert_follows(self.world, "a", self.first_process(), &list);
        if self.engine.driver == Driver::Systemd {
            daemon_reload();
            assert_follows(self.world, "a", self.first_process(), &list);
        }
    }

    /// Adds lines to Pinfold's configuration; `runtime`'s table is its last.
    fn configure(&self, lines: &str) {
        let script = "printf '%s\\n' \"$1\" >>/etc/pinfold/config.toml";
        self.machine.run("sh", &["-ec", script, "sh", lines]).ok();
    }
}

/// Nothing is reserved, and the configuration stays as it is. What has no request is not the shim's
/// to judge.
fn refuses_what_is_ambiguous(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::new(world, engine);
    let config = scene.config();
    let plain = scene.text();
    scene.create().ok();
    scene.delete();
    let pinned = scene.text();
    let other_case = |text: &str| text.replace("\"annotations\"", "\"Annotations\"");
    let without = |text: &str| text.replace("pinfold.io/pool", "other.io/pool");
    for (text, part) in [
        (other_case(&plain), "is for some runtimes annotations"),
        (other_case(&pinned), "is for some runtimes annotations"),
        (without(&pinned), "has the CPUs of an earlier start"),
    ] {
        std::fs::write(&config, &text).expect("write config.json");
        let ran = scene.create().exits(1);
        assert!(ran.stderr.contains(part), "{ran}");
        assert_eq!(scene.text(), text);
    }
    let elsewhere = scene.bundle.join("elsewhere.json");
    std::fs::write(&elsewhere, &plain).expect("write another configuration");
    std::fs::remove_file(&config).expect("remove config.json");
    std::os::unix::fs::symlink(&elsewhere, &config).expect("make a link");
    let ran = scene.create().exits(1);
    assert!(ran.stderr.contains("is a symbolic link"), "{ran}");
    world.assert_all_free("after refusals");

    // Whatever else is wrong in it, a container without a request starts, and can be ended.
    scene.configure("[pools.dp]\ncolour = 7");
    std::fs::write(&elsewhere, without(&plain)).expect("write another configuration");
    scene.create().ok();
    scene.delete();
    std::fs::write(&elsewhere, &plain).expect("write another configuration");
    let ran = scene.create().exits(1);
    assert!(ran.stderr.contains("unknown field `colour`"), "{ran}");
    world.assert_all_free("at the end");
}

/// Hooks of a directory and of a device come with the configuration: whichever is first takes the
/// reservation over.
fn several_doors(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("other", Kind::Shared, &["0"]);
    let scene = Scene::new(world, engine);
    let found = scene.text();
    let of_directory: &[&str] = &[];
    for (device, is_refused) in [
        (of_directory, false),
        (&["--device", "dp"], false),
        (&["--device", "dp.2"], true),
        (&["--device", "other"], true),
    ] {
        scene.edited(&found, |config| {
            for stage in ["createRuntime", "poststop"] {
                let args = [&["pinfold", "hook", stage], device].concat();
                let hook = json!({ "path": "/usr/local/bin/pinfold", "args": args, "timeout": 30 });
                config["hooks"][stage] = json!([hook]);
            }
        });
        let ran = scene.create();
        if is_refused {
            assert_ne!(ran.code(), Some(0), "{device:?}: {ran}");
            // Some runtimes keep what failed.
            scene.shim(&["delete", "-f", "a"]);
            world.reconcile();
            world.assert_all_free("after a refusal");
            continue;
        }
        ran.ok();
        let pid = scene.first_process();
        assert_eq!(world.claims().len(), 1, "{device:?}");
        assert_eq!(world.tasks("dp", "1"), [pid], "{device:?}");
        assert_eq!(process::affinity(pid), "1", "{device:?}");
        scene.delete();
    }
}

/// The very list of the device, whatever else would have the shim give CPUs: a default pool, an
/// annotation of the same pool, and what an earlier start wrote.
fn leaves_lists_to_hooks(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("common", Kind::Shared, &["0"]);
    let scene = Scene::new(world, engine);
    // The runtime's table is before that of the host.
    scene.configure("[host]\ndefault-pool = 'common'");
    let found = scene.text();
    let silent = |config: &mut Value| {
        let annotations = config["annotations"].as_object_mut().expect("it has some");
        annotations.retain(|key, _| !key.starts_with("pinfold.io/"));
    };
    let device = |config: &mut Value| {
        for stage in ["createRuntime", "poststop"] {
            let args = ["pinfold", "hook", stage, "--list", "dp:1"];
            let hook = json!({ "path": "/usr/local/bin/pinfold", "args": args, "timeout": 30 });
            let hooks = config["hooks"][stage].as_array_mut();
            match hooks {
                Some(hooks) => hooks.push(hook),
                None => config["hooks"][stage] = json!([hook]),
            }
        }
    };
    let with_the_device = || {
        scene.create().ok();
        assert_eq!(process::affinity(scene.first_process()), "1");
        assert_eq!(world.claim_of("a")["pool"], "dp");
        assert!(!scene.text().contains("KCM_CPUS_ASSIGNED"));
        scene.delete();
    };
    scene.edited(&found, device);
    with_the_device();
    scene.edited(&found, |config| {
        silent(config);
        device(config);
    });
    with_the_device();
    // What an earlier start wrote is not the file's any more once somebody edits it.
    scene.edited(&found, silent);
    scene.create().ok();
    assert_eq!(world.claim_of("a")["pool"], "common");
    scene.delete();
    let written = scene.text();
    scene.edited(&written, device);
    let ran = scene.create().exits(1);
    assert!(
        ran.stderr.contains("has the CPUs of an earlier start"),
        "{ran}"
    );
    world.assert_all_free("after a refusal");
}

/// By which doors, and for pods of which namespaces: the mark of the engine that the configuration
/// names counts.
fn rules_of_pools(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::new(world, engine);
    let found = scene.text();
    let marked = |key: &str, namespace: &str| {
        scene.edited(&found, |config| {
            config["annotations"][key] = namespace.into();
        });
    };
    let refused = |part: &str| {
        let before = scene.text();
        let ran = scene.create().exits(1);
        assert!(ran.stderr.contains(part), "{part}: {ran}");
        assert_eq!(scene.text(), before);
        world.assert_all_free("after a refusal");
    };
    let containerd = "io.kubernetes.cri.sandbox-namespace";
    let rules = "[pools.dp]\nnamespaces = [\"telco\"]\ndoors = [\"shim\"]";
    scene.configure(rules);
    marked(containerd, "telco");
    refused("runtime.engine");
    // The runtime's table is before that of the pool.
    let name = "sed -i 's,^path = .*,&\\nengine = \"containerd\",' /etc/pinfold/config.toml";
    scene.machine.run("sh", &["-ec", name]).ok();
    scene.create().ok();
    assert_eq!(process::affinity(scene.first_process()), "1");
    scene.delete();
    marked(containerd, "web");
    refused("its namespace \"web\" may not use it");
    marked("io.kubernetes.pod.namespace", "telco");
    refused("has no mark");
    let close = "sed -i 's,^doors = .*,doors = [\"cdi\"],' /etc/pinfold/config.toml";
    scene.machine.run("sh", &["-ec", close]).ok();
    marked(containerd, "telco");
    refused("it may not be asked for by shim");
}

/// What is written in the configuration is of before: the hook gives what the list is by then. And
/// what the runtime and systemd were told at the start is not in the way of a list that grows
/// later.
fn grows_under_its_containers(world: &World, engine: Engine) {
    world.pool("common", Kind::Shared, &["0"]);
    let scene = Scene::of(world, engine, Plan::pinned("a", "common"));
    // The runtime takes its time before it makes the container.
    let (slow, go) = (world.dir.join("slow"), world.dir.join("go"));
    let real = runtime_path(world, engine.runtime);
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = features ] && exec {real} features\nuntil [ -e {go} ]; do sleep 0.05; done\nexec {real} \"$@\"\n",
        real = real.display(),
        go = go.display()
    );
    std::fs::write(&slow, script).expect("write a runtime");
    std::fs::set_permissions(&slow, PermissionsExt::from_mode(0o755)).expect("chmod it");
    let name = format!(
        "sed -i 's,^path = .*,path = \"{}\",' /etc/pinfold/config.toml",
        slow.display()
    );
    scene.machine.run("sh", &["-ec", &name]).ok();
    std::thread::scope(|scope| {
        let created = scope.spawn(|| scene.create());
        process::eventually("there is a reservation", || {
            let claims = world.claims_of("a");
            (claims.len() == 1).then_some(())
        });
        pool(world, &["resize", "common", "2"]).ok();
        std::fs::write(&go, "").expect("let the runtime go on");
        created.join().expect("it was created").ok();
    });
    assert!(scene.text().contains("\"cpus\":\"0\""), "written before");
    assert_eq!(world.claim_of("a")["kind"], "container");
    scene.follows("common");
    scene.delete();

    pool(world, &["resize", "common", "1"]).ok();
    scene.create().ok();
    assert_eq!(process::affinity(scene.first_process()), "0");
    pool(world, &["resize", "common", "2"]).ok();
    scene.follows("common");
    scene.delete();
}

/// Nobody has to say what the configuration says: a device of node 1, and CPUs of it.
fn near_its_devices(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0,1", "2,3", "4,5", "6,7"]);
    let scene = Scene::new(world, engine);
    let found = scene.text();
    scene.create().ok();
    assert_eq!(process::affinity(scene.first_process()), "0-1");
    scene.delete();
    let device = device_near(1).expect("there is one");
    let numbers = std::fs::read_to_string(format!("/sys/class/block/{device}/dev"));
    let numbers = numbers.expect("read the device's numbers");
    let (major, minor) = numbers.trim().split_once(':').expect("two numbers");
    let number = |text: &str| text.parse::<u64>().expect("a number");
    scene.edited(&found, |config| {
        config["linux"]["devices"] = json!([{
            "path": format!("/dev/{device}"), "type": "b",
            "major": number(major), "minor": number(minor), "fileMode": 0o600,
        }]);
    });
    scene.create().ok();
    assert_eq!(process::affinity(scene.first_process()), "4-5");
    scene.delete();
}
