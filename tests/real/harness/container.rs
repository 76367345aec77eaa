//! One container under any of the engines.

use crate::bundle::{self, Hook};
use crate::cgroups::{self, hierarchy};
use crate::engines::{Driver, Engine, Front, Runtime, runtime_path};
use crate::plan::Plan;
use crate::process::{self, Ran, Running};
use crate::syslog::SysLog;
use crate::world::World;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A container, made or not yet.
pub(crate) struct Container<'w> {
    world: &'w World,
    pub(crate) engine: Engine,
    plan: Plan,
    dir: PathBuf,
}

impl<'w> Container<'w> {
    /// Writes everything the engine needs, and starts nothing.
    pub(crate) fn prepare(world: &'w World, engine: Engine, plan: Plan) -> Container<'w> {
        let mut hooks = vec![
            Hook::pinfold(world, plan.stage),
            Hook::pinfold(world, "poststop"),
        ];
        hooks.extend(
            plan.later_hook
                .as_ref()
                .map(|args| Hook::other(plan.stage, args)),
        );
        Container::prepare_with_hooks(world, engine, plan, &hooks)
    }

    pub(crate) fn prepare_with_hooks(
        world: &'w World,
        engine: Engine,
        plan: Plan,
        hooks: &[Hook],
    ) -> Container<'w> {
        let container = Container::make_dir(world, engine, plan);
        match engine.front {
            Front::Direct => {
                let path = container.cgroups_path();
                let (plan, process) = (&container.plan, container.process());
                let rootfs = world.dir.join("rootfs");
                let config = bundle::config(&rootfs, plan, &path, &process, hooks);
                std::fs::write(container.dir.join("config.json"), config)
                    .expect("write config.json");
            }
            Front::Podman => bundle::write_hook_files(&container.dir.join("hooks.d"), hooks),
        }
        container
    }

    /// The same for podman, with hooks.d files that the caller puts into a directory.
    pub(crate) fn prepare_with_hook_files(
        world: &'w World,
        engine: Engine,
        plan: Plan,
        fill: impl FnOnce(&Path),
    ) -> Container<'w> {
        let container = Container::make_dir(world, engine, plan);
        fill(&container.dir.join("hooks.d"));
        container
    }

    fn make_dir(world: &'w World, engine: Engine, plan: Plan) -> Container<'w> {
        let dir = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
        bundle::make_rootfs(&world.dir.join("rootfs"));
        std::fs::create_dir_all(dir.join("hooks.d")).expect("make a container's directory");
        Container {
            world,
            engine,
            plan,
            dir,
        }
    }

    /// The directory of its configuration.
    pub(crate) fn bundle(&self) -> &Path {
        &self.dir
    }

    /// Prepares and launches in one go; the launch must succeed.
    #[track_caller]
    pub(crate) fn up(world: &'w World, engine: Engine, plan: Plan) -> Container<'w> {
        let container = Container::prepare(world, engine, plan);
        container.launch().ok();
        container
    }

    /// Creates and starts it, as engines do.
    pub(crate) fn launch(&self) -> Ran {
        if self.engine.front == Front::Podman {
            return self.launching().wait();
        }
        let created = process::run(&mut self.create_command());
        if created.code() != Some(0) {
            created
        } else {
            process::run(self.runtime().args(["start", &self.plan.name]))
        }
    }

    /// Begins to run it in the background, with one command.
    pub(crate) fn launching(&self) -> Running {
        Running::start(&mut self.launch_command(), b"")
    }

    fn launch_command(&self) -> Command {
        let mut command = match self.engine.front {
            Front::Direct => {
                let mut command = self.runtime();
                command
                    .args(["run", "-d", "-b"])
                    .arg(&self.dir)
                    .arg(&self.plan.name);
                command
            }
            Front::Podman => self.podman_run(),
        };
        self.mask(&mut command);
        command
    }

    /// Begins what leads to the create hooks, and can be killed in the middle of them.
    pub(crate) fn creating(&self) -> Running {
        match self.engine.front {
            Front::Direct => Running::start(&mut self.create_command(), b""),
            Front::Podman => self.launching(),
        }
    }

    fn create_command(&self) -> Command {
        let mut command = self.runtime();
        command
            .args(["create", "-b"])
            .arg(&self.dir)
            .arg(&self.plan.name);
        self.mask(&mut command);
        command
    }

    fn mask(&self, command: &mut Command) {
        if let Some(cpus) = &self.plan.engine_mask {
            process::under_mask(command, cpus);
        }
    }

    fn podman_run(&self) -> Command {
        let mut command = self.podman();
        command.args([
            "run",
            "-d",
            "--name",
            &self.plan.name,
            "--network",
            "none",
            "--cidfile",
        ]);
        command.arg(self.dir.join("cid"));
        command.args([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
        ]);
        command.args(["--security-opt", "seccomp=unconfined"]);
        if self.plan.own_cgroup {
            command.args(["--cgroup-parent", &self.parent()]);
        } else {
            command.arg("--cgroups=disabled");
        }
        if !self.plan.own_pids {
            command.arg("--pid=host");
        }
        for (key, value) in &self.plan.annotations {
            command.args(["--annotation", &format!("{key}={value}")]);
        }
        command.args(
            self.plan
                .cpuset
                .iter()
                .flat_map(|cpus| ["--cpuset-cpus", cpus]),
        );
        command
            .args(&self.plan.options)
            .arg("--rootfs")
            .arg(self.world.dir.join("rootfs"))
            .args(self.process());
        command
    }

    /// The command line of the container's first process.
    fn process(&self) -> Vec<String> {
        let out = format!("/out/{}-{}", self.plan.state_dir, self.plan.name);
        let mut process = vec![self.plan.program.clone(), "--out".into(), out];
        process.extend(self.plan.actions.iter().cloned());
        process
    }

    fn parent(&self) -> String {
        match &self.plan.below {
            Some(name) => self.engine.driver.below(self.world, name),
            None => self.engine.driver.parent(self.world),
        }
    }

    fn cgroups_path(&self) -> String {
        let leaf = self.plan.cgroup.clone().unwrap_or_else(|| {
            self.dir
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into()
        });
        match self.engine.driver {
            Driver::Cgroupfs => format!("{}/{leaf}", self.parent()),
            Driver::Systemd => format!("{}:pinfoldtest:{leaf}", self.parent()),
        }
    }

    fn runtime(&self) -> Command {
        let mut command = Command::new(runtime_path(self.world, self.engine.runtime));
        command
            .arg("--root")
            .arg(self.world.dir.join(&self.plan.state_dir));
        if self.engine.driver == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        if !self.plan.own_cgroup {
            command.arg("--cgroup-manager=disabled");
        }
        command
    }

    pub(crate) fn podman(&self) -> Command {
        let state = self.world.dir.join(&self.plan.state_dir);
        let conf = self.world.dir.join("containers.conf");
        std::fs::write(&conf, "[engine]\nlock_type = \"file\"\n").expect("write containers.conf");
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", conf).args([
            "--storage-driver",
            "vfs",
            "--events-backend",
            "none",
        ]);
        command
            .arg("--root")
            .arg(state.join("storage"))
            .arg("--runroot")
            .arg(state.join("run"));
        command
            .arg("--tmpdir")
            .arg(state.join("tmp"))
            .arg("--hooks-dir")
            .arg(self.dir.join("hooks.d"));
        command.args(["--cgroup-manager", self.engine.driver.name(), "--runtime"]);
        command.arg(runtime_path(self.world, self.engine.runtime));
        command
    }

    pub(crate) fn engine_command(&self, arguments: &[&str]) -> Ran {
        let mut command = if self.engine.front == Front::Podman {
            self.podman()
        } else {
            self.runtime()
        };
        process::run(command.args(arguments).arg(&self.plan.name))
    }

    /// The id under which the hooks know it.
    pub(crate) fn id(&self) -> String {
        match self.engine.front {
            Front::Direct => self.plan.name.clone(),
            Front::Podman => std::fs::read_to_string(self.dir.join("cid"))
                .expect("podman wrote the id")
                .trim()
                .into(),
        }
    }

    /// The pid of the first process, as the engine tells it.
    pub(crate) fn pid(&self) -> i32 {
        let text = match self.engine.front {
            Front::Direct => {
                let state = self.engine_command(&["state"]).ok().stdout;
                let state: serde_json::Value = serde_json::from_str(&state).expect("state is JSON");
                state["pid"].to_string()
            }
            Front::Podman => {
                self.engine_command(&["inspect", "--format", "{{.State.Pid}}"])
                    .ok()
                    .stdout
            }
        };
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("the engine tells a pid, not {text:?}"))
    }

    /// What the first process saw as its very first act.
    pub(crate) fn affinity(&self) -> String {
        self.seen("affinity: ")
    }

    /// The first line of the probe that begins so, without that beginning.
    pub(crate) fn seen(&self, beginning: &str) -> String {
        let out = self
            .world
            .dir
            .join("rootfs/out")
            .join(self.dir.file_name().expect("a name"));
        process::eventually(&format!("the probe writes {beginning:?}"), || {
            let text = std::fs::read_to_string(&out).ok()?;
            text.lines()
                .find_map(|line| line.strip_prefix(beginning))
                .map(str::to_owned)
        })
    }

    /// Runs the probe a second time inside the container; gives what it printed.
    pub(crate) fn exec(&self) -> String {
        let mut command = if self.engine.front == Front::Podman {
            self.podman()
        } else {
            self.runtime()
        };
        process::run(command.args(["exec", &self.plan.name, "/probe", "--exit", "0"]))
            .ok()
            .stdout
    }

    /// Has the first process told to end, as gently as the engine does it by itself.
    pub(crate) fn stop(&self) {
        match self.engine.front {
            Front::Direct => self.end_by("TERM"),
            Front::Podman => drop(self.engine_command(&["stop"]).ok()),
        }
    }

    /// Asks the engine to signal the first process, and waits until that is gone.
    pub(crate) fn end_by(&self, signal: &str) {
        let pid = self.pid();
        match self.engine.front {
            Front::Direct => {
                process::run(self.runtime().args(["kill", &self.plan.name, signal])).ok()
            }
            Front::Podman => self.engine_command(&["kill", "--signal", signal]).ok(),
        };
        process::eventually("the first process ends", || {
            (!process::is_alive(pid)).then_some(())
        });
    }

    /// Removes a container that has ended.
    pub(crate) fn delete(&self) -> Ran {
        let verb = if self.engine.front == Front::Podman {
            "rm"
        } else {
            "delete"
        };
        process::eventually("the engine notices the end", || {
            let ran = self.engine_command(&[verb]);
            (ran.code() == Some(0)).then_some(ran)
        })
    }

    /// Removes a container whatever it does.
    pub(crate) fn delete_by_force(&self) -> Ran {
        process::run(&mut self.force_command())
    }

    fn force_command(&self) -> Command {
        let (mut command, arguments): (_, &[&str]) = match self.engine.front {
            Front::Direct => (self.runtime(), &["delete", "--force"]),
            Front::Podman => (self.podman(), &["rm", "--force", "--time", "0"]),
        };
        command.args(arguments).arg(&self.plan.name);
        command
    }

    /// It cannot start, for this reason: from where the engine shows it, and the log. crun alone
    /// has a file for its stderr here, which only it writes to.
    #[track_caller]
    pub(crate) fn assert_refused(&self, words: &[&str]) {
        let mut log = SysLog::mark();
        let ran = self.launch();
        assert_ne!(ran.code(), Some(0), "{ran}");
        if self.engine.runtime == Runtime::Runc || self.engine.front == Front::Podman {
            assert!(words.iter().all(|word| ran.stderr.contains(word)), "{ran}");
        }
        log.lines_with(1, words);
    }

    /// The mask that its cgroup holds, and the CPUs that its first process may use now.
    #[track_caller]
    pub(crate) fn assert_confined_to(&self, cpus: &str) {
        let pid = self.pid();
        assert_eq!(
            cgroups::mask(&hierarchy().of(pid)),
            cpus,
            "mask of the cgroup of {}",
            self.plan.name
        );
        assert_eq!(
            process::affinity(pid),
            cpus,
            "CPUs of the first process of {}",
            self.plan.name
        );
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.dir.join("cid").exists() || self.engine.front == Front::Direct {
            process::try_to_run(&mut self.force_command());
        }
        if self.engine.driver == Driver::Systemd {
            let slice = format!("{}.slice", self.world.tag);
            process::try_to_run(Command::new("systemctl").arg("stop").arg(slice));
        }
    }
}
