//! What `pinfold install` writes, under the real podman: every file at its own place, in a mount
//! namespace in which `/etc` and the like are copies that only this test sees.

use crate::bundle;
use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver, Engine, runtime_path};
use crate::needs::{self, Need};
use crate::process::{self, Ran, Running};
use crate::world::{Kind, World, binary};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "/usr/local/bin/pinfold";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Cpus(2)];
    let engines = Engine::podman;
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
            Engine::by(Door::Cdi, engines()),
            "installed::devices_of_single_lists_add_up",
            needs,
            devices_of_single_lists,
        ),
        each(
            engines(),
            "installed::the_shim_follows_podmans_own_runtime",
            needs,
            follows_podmans_own_runtime,
        ),
        each(
            engines(),
            "installed::a_container_can_learn_its_cpus_by_every_door",
            needs,
            learns_its_cpus,
        ),
        each(
            engines(),
            "installed::podman_knows_the_shim",
            needs,
            podman_knows_the_shim,
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

    /// Does podman take this runtime for one that needs no cgroups? It asks its list, by the
    /// runtime's name.
    fn can_do_without_cgroups(&self, runtime: &str) -> bool {
        let rootfs = self.world.dir.join("rootfs");
        let rootfs = rootfs.to_str().expect("the path is UTF-8");
        let mut arguments = vec!["--runtime", runtime, "create", "--cgroups=disabled"];
        arguments.extend(["--network", "none", "--rootfs", rootfs, "/probe"]);
        self.podman(&arguments).code() == Some(0)
    }

    pub(crate) fn podman(&self, arguments: &[&str]) -> Ran {
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

    /// From now on `podman` without any option means the podman of this test.
    pub(crate) fn let_podman_find_its_storage(&self) {
        let state = self.world.dir.join("state").display().to_string();
        let script = "printf '[storage]\\ndriver = \"vfs\"\\ngraphroot = \"%s/storage\"\\nrunroot = \"%s/run\"\\n' \"$0\" \"$0\" \\
                >/etc/containers/storage.conf
            printf '[engine]\\ntmp_dir = \"%s/tmp\"\\nevents_logger = \"none\"\\n' \"$0\" \\
                >/etc/containers/containers.conf.d/20-storage.conf";
        self.run("sh", &["-ec", script, &state]).ok();
    }

    pub(crate) fn start(&self, name: &str, more: &[&str]) -> Ran {
        self.start_with(&[], name, more)
    }

    /// The same with options of podman itself.
    pub(crate) fn start_with(&self, options: &[&str], name: &str, more: &[&str]) -> Ran {
        let parent = match self.engine.driver {
            Driver::Cgroupfs => format!("/{}", self.world.tag),
            Driver::Systemd => format!("{}.slice", self.world.tag),
        };
        let rootfs = self.world.dir.join("rootfs");
        let rootfs = rootfs.to_str().expect("the path is UTF-8");
        let out = format!("/out/{name}");
        let mut arguments = options.to_vec();
        arguments.extend(["run", "-d", "--name", name, "--network", "none"]);
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
    pub(crate) fn affinity(&self, name: &str) -> String {
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
        // systemd makes the directory of a slice again that it takes for active, when a scope in it
        // has just gone.
        if self.engine.driver == Driver::Systemd {
            let slice = format!("{}.slice", self.world.tag);
            process::try_to_run(Command::new("systemctl").args(["stop", &slice]));
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
    for force in [&[][..], &["--dry-run"]] {
        let arguments = [&["uninstall", "podman"], force].concat();
        let refused = machine.run(PROGRAM, &arguments).exits(1);
        for part in ["pinned", "on 1 of dp", "--force"] {
            assert!(refused.stderr.contains(part), "{part}: {refused}");
        }
    }
    let dry = ["uninstall", "podman", "--force", "--dry-run"];
    machine.run(PROGRAM, &dry).ok();
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

    // The device, its annotation and the hook files besides: pinned once. Where they disagree,
    // refused.
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
    // The last pool takes them along, and the next brings them back.
    machine.run(PROGRAM, &["pool", "remove", "other"]).ok();
    let check = machine.run(PROGRAM, &["check"]);
    assert!(check.stdout.contains("and so no devices"), "{check}");
    machine
        .start("nothing", &["--device", "pinfold.io/pool=other"])
        .exits(126);
    machine
        .run(PROGRAM, &["pool", "add", "back:shared", "--list", "0"])
        .ok();
    machine
        .start("back", &["--device", "pinfold.io/pool=back"])
        .ok();
    assert_eq!(machine.affinity("back"), "0");
    let owned = machine.run(PROGRAM, &["uninstall", "cdi"]).exits(1);
    assert!(
        owned.stderr.contains("back") && owned.stderr.contains("--force"),
        "{owned}"
    );
    machine
        .podman(&["rm", "-f", "-t", "0", "back", "nothing"])
        .ok();
    machine.run(PROGRAM, &["uninstall", "cdi"]).ok();
    machine
        .start("without", &["--device", "pinfold.io/pool=other"])
        .exits(126);
    world.assert_all_free("at the end");
}

/// A container gets the very lists that its devices name, and the file follows the pools.
fn devices_of_single_lists(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["cdi", "--lists"]).ok();
    let check = machine.run(PROGRAM, &["check"]).ok();
    let there = "there are devices for the CPU lists";
    assert!(check.stdout.contains(there), "{check}");
    let [zero, one] = ["pinfold.io/list=dp.0", "pinfold.io/list=dp.1"];
    machine.start("one", &["--device", one]).ok();
    assert_eq!(machine.affinity("one"), "1");
    let again = machine.start("again", &["--device", zero, "--device", one]);
    assert!(
        again
            .exits(126)
            .stderr
            .contains("its CPU list 1 is owned by")
    );
    machine
        .podman(&["rm", "-f", "-t", "0", "one", "again"])
        .ok();
    // crun runs no poststop for a start that failed: what the first device gave is a dead owner's.
    machine.run(PROGRAM, &["reconcile"]).ok();
    world.assert_all_free("after rm");
    machine
        .start("both", &["--device", one, "--device", zero])
        .ok();
    assert_eq!(machine.affinity("both"), "0-1");
    let claims = world.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(claims[0]["lists"], json!(["0", "1"]));
    machine.podman(&["rm", "-f", "-t", "0", "both"]).ok();
    world.assert_all_free("after rm of both");
    // `pool` writes the file anew.
    machine.run(PROGRAM, &["pool", "remove", "dp"]).ok();
    machine
        .run(PROGRAM, &["pool", "add", "new:exclusive", "--list", "1"])
        .ok();
    machine.start("gone", &["--device", one]).exits(126);
    machine
        .start("new", &["--device", "pinfold.io/list=new.1"])
        .ok();
    assert_eq!(machine.affinity("new"), "1");
    machine.podman(&["rm", "-f", "-t", "0", "new", "gone"]).ok();
    machine.run(PROGRAM, &["uninstall", "cdi"]).ok();
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

/// Nothing of ours names a runtime: podman's configuration does, and then nothing, which is crun
/// for podman.
fn follows_podmans_own_runtime(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let (mine, used) = (world.dir.join("mine"), world.dir.join("used"));
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n",
        used.display(),
        runtime_path(world, engine.runtime).display()
    );
    std::fs::write(&mine, script).expect("write a runtime");
    let configure = "chmod 755 \"$1\"; sed -i '/^.runtime/,$d' /etc/pinfold/config.toml
        printf '[engine]\\nruntime = \"mine\"\\n[engine.runtimes]\\nmine = [\"%s\"]\\n' \"$1\" \\
            >/etc/containers/containers.conf.d/20-mine.conf";
    let mut command = machine.command("sh");
    process::run(command.args(["-ec", configure, "sh"]).arg(&mine)).ok();
    let check = machine.run(PROGRAM, &["check"]);
    let becomes = format!("becomes {} for podman", mine.display());
    assert!(check.stdout.contains(&becomes), "{check}");

    let shim = ["--runtime", "pinfold"];
    for (name, request, affinity) in [
        ("plain", &[][..], hierarchy().all_cpus()),
        (
            "pinned",
            &["--annotation", "pinfold.io/pool=dp"],
            "1".to_owned(),
        ),
    ] {
        machine.start(name, &[&shim[..], request].concat()).ok();
        assert_eq!(machine.affinity(name), affinity);
        machine.podman(&["rm", "-f", "-t", "0", name]).ok();
        let calls = std::fs::read_to_string(&used).expect("it was called");
        for verb in ["create", "start", "kill", "delete"] {
            assert!(calls.contains(verb), "{verb}: {calls}");
        }
        std::fs::write(&used, "").expect("begin anew");
    }
    world.assert_all_free("after rm");

    machine
        .run("rm", &["/etc/containers/containers.conf.d/20-mine.conf"])
        .ok();
    let check = machine.run(PROGRAM, &["check"]);
    let own = if needs::find("crun").is_some() {
        "/crun for podman"
    } else {
        "/runc for podman"
    };
    assert!(check.stdout.contains(own), "{check}");
}

/// By the shim in KCM's variables, for a device as for an annotation; by the hooks alone in what
/// the kernel shows in it.
fn learns_its_cpus(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let machine = Machine::new(world, engine);
    machine.run(PROGRAM, &["install", "podman"]).ok();
    let (shim, device) = (["--runtime", "pinfold"], ["--device", "pinfold.io/pool=dp"]);
    let annotation = ["--annotation", "pinfold.io/pool=dp"];
    let variables = ["KCM_CPUS_ASSIGNED=1\0", "KCM_CPUS_ASSIGNED_MASK=2\0"];
    let close = |doors: &str| {
        let script = "sed -i '/^.pools/,$d' /etc/pinfold/config.toml
            printf '[pools.dp]\\ndoors = [%s]\\n' \"$1\" >>/etc/pinfold/config.toml";
        machine.run("sh", &["-ec", script, "sh", doors]).ok();
    };
    for (name, options, is_told) in [
        ("shim-device", [&shim[..], &device].concat(), true),
        ("shim-annotation", [&shim[..], &annotation].concat(), true),
        (
            "shim-both",
            [&shim[..], &device, &annotation].concat(),
            true,
        ),
        ("device", device.to_vec(), false),
        ("annotation", annotation.to_vec(), false),
    ] {
        machine.start(name, &options).ok();
        assert_eq!(machine.affinity(name), "1", "{name}");
        assert_eq!(world.claims().len(), 1, "{name}");
        let pid = world.tasks("dp", "1")[0];
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ"));
        let environment = environment.expect("read its environment");
        for variable in variables {
            assert_eq!(
                environment.contains(variable),
                is_told,
                "{name}: {variable}"
            );
        }
        let pool = "PINFOLD_POOL=dp\0";
        assert_eq!(
            environment.contains(pool),
            options.contains(&device[0]),
            "{name}"
        );
        // As docs/requests.md tells it.
        let file = match hierarchy().version {
            1 => "cpuset/cpuset.cpus",
            _ => "cpuset.cpus.effective",
        };
        let shown = std::fs::read_to_string(format!("/proc/{pid}/root/sys/fs/cgroup/{file}"));
        assert_eq!(shown.expect("its cgroup is shown").trim(), "1", "{name}");
        // Twice, for the second time the bundle has what the first wrote.
        machine.podman(&["stop", "-t", "1", name]).ok();
        world.wait_until_free();
        machine.podman(&["start", name]).ok();
        let pid = world.tasks("dp", "1")[0];
        assert_eq!(process::affinity(pid), "1", "{name} again");
        machine.podman(&["rm", "-f", "-t", "0", name]).ok();
        world.assert_all_free(name);
    }
    // It is by its device that it asks, whoever reads that.
    close("\"cdi\"");
    machine.start("open", &[&shim[..], &device].concat()).ok();
    machine.podman(&["rm", "-f", "-t", "0", "open"]).ok();
    close("\"shim\"");
    machine
        .start("closed", &[&shim[..], &device].concat())
        .exits(126);
    machine.podman(&["rm", "-f", "-t", "0", "closed"]).ok();
    world.assert_all_free("at the end");
}
