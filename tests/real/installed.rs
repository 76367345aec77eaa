//! What `pinfold install` writes, under the real podman: every file at its own place, in a mount namespace in which
//! `/etc` and the like are copies that only this test sees.

use crate::bundle;
use crate::cases::{Case, each};
use crate::cgroups::hierarchy;
use crate::container::Container;
use crate::engines::{Door, Driver, Engine, runtime_path};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, Running};
use crate::world::{Kind, World, binary};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "/usr/local/bin/pinfold";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2)];
    let engines = Engine::podman;
    let shim = || Engine::by(Door::Shim, Engine::direct());
    [
        each(
            engines(),
            "installed::one_command_and_podman_pins",
            needs,
            one_command_and_podman_pins,
        ),
        each(
            Engine::by(Door::Cdi, engines()),
            "installed::a_device_is_enough",
            needs,
            a_device_is_enough,
        ),
        each(
            engines(),
            "installed::podman_knows_the_shim",
            needs,
            podman_knows_the_shim,
        ),
        each(
            shim(),
            "installed::the_shim_adds_what_pins_and_hands_on_the_rest",
            needs,
            the_shim_adds_what_pins,
        ),
        each(
            shim(),
            "installed::the_shim_refuses_a_runtime_without_hooks",
            needs,
            the_shim_refuses_a_runtime,
        ),
        each(
            shim(),
            "installed::the_shim_refuses_a_read_only_bundle",
            needs,
            the_shim_refuses_a_read_only_bundle,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The machine as only the test sees it. It is gone when the process that holds the namespace is.
pub(crate) struct Machine<'w> {
    world: &'w World,
    engine: Engine,
    holder: Running,
}

impl<'w> Machine<'w> {
    pub(crate) fn new(world: &'w World, engine: Engine) -> Machine<'w> {
        let ready = world.dir.join("ready");
        let script = "set -e; cd \"$1\"; mkdir m; mount -t tmpfs none m
            for dir in etc usr/local usr/share; do
                mkdir -p m/upper/$dir m/work/$dir
                mount -t overlay -o lowerdir=/$dir,upperdir=m/upper/$dir,workdir=m/work/$dir none /$dir
            done
            touch ready; exec sleep 3600";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(&world.dir);
        let holder = Running::start(&mut command, b"");
        process::eventually("the copies are mounted", || ready.exists().then_some(()));
        let machine = Machine {
            world,
            engine,
            holder,
        };
        std::fs::copy(binary(), machine.own_copy()).expect("copy the program");
        let install = "rm -f /usr/local/bin/pinfold; cp \"$1\" /usr/local/bin/pinfold; ln -sf pinfold /usr/local/bin/pinfold-runtime
            mkdir -p /etc/pinfold /etc/containers/containers.conf.d
            printf 'conf-dir = \"%s\"\\nrun-dir = \"%s\"\\n[runtime]\\npath = \"%s\"\\n' \"$2\" \"$3\" \"$4\" >/etc/pinfold/config.toml
            printf '[engine]\\nlock_type = \"file\"\\n' >/etc/containers/containers.conf.d/10-test.conf";
        let mut command = machine.command("sh");
        command.args(["-ec", install, "sh"]).arg(machine.own_copy());
        command.arg(&world.conf).arg(&world.run);
        process::run(command.arg(runtime_path(world, engine.runtime))).ok();
        machine
    }

    /// The program, where the test cannot remove it by what it does to the installed one.
    fn own_copy(&self) -> PathBuf {
        self.world.dir.join("pinfold")
    }

    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.holder.pid().to_string(), "--"]);
        command.arg(program.as_ref());
        command
    }

    pub(crate) fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Ran {
        process::run(self.command(program).args(arguments))
    }

    /// Every file that podman may read, with its content.
    fn files(&self) -> String {
        let script =
            "find /etc/containers /usr/share/containers -type f -exec sha256sum {} + | sort";
        self.run("sh", &["-c", script]).ok().stdout
    }

    /// Does podman take this runtime for one that needs no cgroups? It asks its list, by the runtime's name.
    fn can_do_without_cgroups(&self, runtime: &str) -> bool {
        let rootfs = self.world.dir.join("rootfs");
        let rootfs = rootfs.to_str().expect("the path is UTF-8");
        let mut arguments = vec!["--runtime", runtime, "create", "--cgroups=disabled"];
        arguments.extend(["--network", "none", "--rootfs", rootfs, "/probe"]);
        self.podman(&arguments).code() == Some(0)
    }

    fn podman(&self, arguments: &[&str]) -> Ran {
        let state = self.world.dir.join("state");
        let mut command = self.command("podman");
        command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
        for (option, dir) in [
            ("--root", "storage"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(state.join(dir));
        }
        command.args(["--cgroup-manager", self.engine.driver.name(), "--runtime"]);
        command.arg(runtime_path(self.world, self.engine.runtime));
        process::run(command.args(arguments))
    }

    fn start(&self, name: &str, more: &[&str]) -> Ran {
        let parent = match self.engine.driver {
            Driver::Cgroupfs => format!("/{}", self.world.tag),
            Driver::Systemd => format!("{}.slice", self.world.tag),
        };
        let rootfs = self.world.dir.join("rootfs");
        let rootfs = rootfs.to_str().expect("the path is UTF-8");
        let out = format!("/out/{name}");
        let mut arguments = vec!["run", "-d", "--name", name, "--network", "none"];
        arguments.extend([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
        ]);
        arguments.extend([
            "--security-opt",
            "seccomp=unconfined",
            "--cgroup-parent",
            &parent,
        ]);
        arguments.extend(more);
        arguments.extend(["--rootfs", rootfs, "/probe", "--out", &out, "--wait"]);
        self.podman(&arguments)
    }

    /// What a container's first process saw as its very first act.
    fn affinity(&self, name: &str) -> String {
        let out = self.world.dir.join("rootfs/out").join(name);
        process::eventually("the probe writes its affinity", || {
            let text = std::fs::read_to_string(&out).ok()?;
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix("affinity: ").map(str::to_owned))
        })
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // systemd makes the directory of a slice again that it takes for active, when a scope in it has just gone.
        if self.engine.driver == Driver::Systemd {
            let slice = format!("{}.slice", self.world.tag);
            process::run(Command::new("systemctl").args(["stop", &slice]));
        }
    }
}

fn one_command_and_podman_pins(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    let before = machine.files();
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let check = machine.run(PROGRAM, &["check"]).ok();
    let becomes = runtime_path(world, engine.runtime);
    for line in [
        format!("runs {PROGRAM}"),
        format!("pinfold-runtime becomes {}", becomes.display()),
    ] {
        assert!(check.stdout.contains(&line), "{line}: {check}");
    }

    for runtime in ["pinfold", "/usr/local/bin/pinfold-runtime", "crun"] {
        assert!(machine.can_do_without_cgroups(runtime), "{runtime}");
    }

    let request = ["--annotation", "pinfold.io/pool=dp"];
    machine.start("pinned", &request).ok();
    assert_eq!(machine.affinity("pinned"), "1");
    machine.start("plain", &[]).ok();
    assert_eq!(machine.affinity("plain"), hierarchy().all_cpus());
    assert_eq!(world.claims().len(), 1);
    machine.start("full", &request).exits(126);
    let check = machine.run(PROGRAM, &["check"]).ok();
    assert!(
        check.stdout.contains("all owners (1) are confined"),
        "{check}"
    );
    machine
        .podman(&["rm", "-f", "-t", "0", "pinned", "full"])
        .ok();
    world.assert_all_free("after rm");

    // podman starts a container all the same where the hook's program is gone: only check tells.
    machine.run("rm", &[PROGRAM]).ok();
    machine.start("unpinned", &request).ok();
    assert_eq!(machine.affinity("unpinned"), hierarchy().all_cpus());
    let check = machine.run(machine.own_copy(), &["check"]).exits(1);
    assert!(
        check.stdout.contains(&format!("there is no {PROGRAM}")),
        "{check}"
    );
    machine
        .podman(&["rm", "-f", "-t", "0", "plain", "unpinned"])
        .ok();

    machine
        .run(machine.own_copy(), &["uninstall", "podman"])
        .ok();
    assert_eq!(machine.files(), before);
    assert!(!machine.can_do_without_cgroups("/usr/local/bin/pinfold-runtime"));
}

fn a_device_is_enough(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["cdi"]).ok();
    let check = machine.run(PROGRAM, &["check"]).ok();
    assert!(check.stdout.contains("there are devices"), "{check}");

    let device = ["--device", "pinfold.io/pool=dp"];
    machine.start("pinned", &device).ok();
    assert_eq!(machine.affinity("pinned"), "1");
    machine.start("full", &device).exits(126);
    machine
        .podman(&["rm", "-f", "-t", "0", "pinned", "full"])
        .ok();
    world.assert_all_free("after rm");

    // The device, its annotation and the hook files besides: pinned once. Where they disagree, refused.
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let both = [&device[..], &["--annotation", "pinfold.io/pool=dp"]].concat();
    machine.start("both", &both).ok();
    assert_eq!(machine.affinity("both"), "1");
    assert_eq!(world.claims().len(), 1);
    machine.podman(&["rm", "-f", "-t", "0", "both"]).ok();
    world.assert_all_free("after rm of what asked twice");
    world.pool("other", Kind::Shared, &["0"]);
    let other = [&device[..], &["--annotation", "pinfold.io/pool=other"]].concat();
    machine.start("torn", &other).exits(126);
    machine.podman(&["rm", "-f", "-t", "0", "torn"]).ok();
    world.assert_all_free("after a refusal");

    // A pool that came by another way has no device yet: check tells, and `cdi` mends it.
    let check = machine.run(PROGRAM, &["check"]).exits(1);
    assert!(
        check
            .stdout
            .contains("not those of the pools as they are now"),
        "{check}"
    );
    machine.run(PROGRAM, &["cdi"]).ok();
    machine
        .start("shared", &["--device", "pinfold.io/pool=other"])
        .ok();
    assert_eq!(machine.affinity("shared"), "0");
    machine.run(PROGRAM, &["pool", "remove", "dp"]).ok();
    machine.run(PROGRAM, &["check"]).ok();
    machine.start("gone", &device).exits(126);
    machine
        .podman(&["rm", "-f", "-t", "0", "shared", "gone"])
        .ok();
    machine.run(PROGRAM, &["uninstall", "cdi"]).ok();
    machine
        .start("without", &["--device", "pinfold.io/pool=other"])
        .exits(126);
    world.assert_all_free("at the end");
}

fn podman_knows_the_shim(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let request = ["--runtime", "pinfold", "--annotation", "pinfold.io/pool=dp"];
    machine.start("both", &request).ok();
    assert_eq!(machine.affinity("both"), "1");
    machine.podman(&["rm", "-f", "-t", "0", "both"]).ok();
    world.assert_all_free("after rm of what hooks and shim pinned");

    machine
        .run(
            "sh",
            &["-c", "rm /usr/share/containers/oci/hooks.d/pinfold-*"],
        )
        .ok();
    machine.start("pinned", &request).ok();
    assert_eq!(machine.affinity("pinned"), "1");
    machine.start("full", &request).exits(126);
    machine.start("plain", &["--runtime", "pinfold"]).ok();
    assert_eq!(machine.affinity("plain"), hierarchy().all_cpus());
    assert_eq!(world.claims().len(), 1);
    machine
        .podman(&["rm", "-f", "-t", "0", "pinned", "full", "plain"])
        .ok();
    world.assert_all_free("after rm");
}

/// How often a container is made and deleted through the shim.
const ROUNDS: usize = 110;

fn the_shim_adds_what_pins(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let bundle_of = |plan: Plan| {
        let dir = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
        Container::prepare_with_hooks(world, engine, plan, &[]);
        dir
    };
    let pinned = bundle_of(Plan::pinned("pinned", "dp"));
    let refused = bundle_of(Plan::pinned("refused", "dp"));
    let plain = bundle_of(Plan::plain("plain"));
    let root = world.dir.join("state").display().to_string();
    let shim = |arguments: &[&str]| {
        let mut command = machine.command("/usr/local/bin/pinfold-runtime");
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
    let version = machine
        .run("/usr/local/bin/pinfold-runtime", &["--version"])
        .ok();
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
        let ran = machine
            .run("/usr/local/bin/pinfold-runtime", &arguments)
            .exits(1);
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
fn the_shim_refuses_a_runtime(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let plan = Plan::pinned("a", "dp");
    let bundle = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
    Container::prepare_with_hooks(world, engine, plan, &[]);
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
        let ran = machine
            .run(
                "/usr/local/bin/pinfold-runtime",
                &["create", "-b", bundle, "a"],
            )
            .exits(1);
        assert!(ran.stderr.contains(part), "{ran}");
        assert_eq!(std::fs::read(&config).expect("read config.json"), before);
    }
    world.assert_all_free("at the end");
}

/// A bundle that cannot be written to: the container would start on any CPUs.
fn the_shim_refuses_a_read_only_bundle(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let machine = Machine::new(world, engine);
    let plan = Plan::pinned("a", "dp");
    let bundle = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
    Container::prepare_with_hooks(world, engine, plan, &[]);
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
    let ran = machine
        .run("/usr/local/bin/pinfold-runtime", &arguments)
        .exits(1);
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
    let logged = std::fs::read_to_string(&log).expect("read the log");
    assert!(logged.starts_with("level=error msg=\""), "{logged}");
    assert!(logged.contains("Read-only file system"), "{logged}");
    let after = std::fs::read(Path::new(bundle).join("config.json")).expect("read config.json");
    assert_eq!(after, before);
    world.assert_all_free("at the end");
}
