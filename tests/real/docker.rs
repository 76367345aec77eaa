//! A dockerd of the tests' own, and its client.

use crate::daemon::Daemon;
use crate::engines::{Driver, Runtime, runtime_path};
use crate::image;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Served, Service};
use crate::with_hooks;
use serde_json::json;
use std::process::Command;

pub(crate) struct Docker {
    daemon: Daemon,
}

impl Docker {
    /// Starts a daemon whose runtimes add the hooks.
    pub(crate) fn start(driver: Driver) -> Docker {
        let mut daemon = Daemon::new();
        let runtimes = [Runtime::Runc, Runtime::Crun].map(|runtime| {
            let (name, hooks) = (runtime_name(runtime), daemon.hooks());
            // A runtime that is not installed is asked for by no test.
            let path = crate::needs::find(runtime.name())
                .map(|_| runtime_path(&daemon.world, runtime))
                .unwrap_or_default();
            let path = with_hooks::runtime(&daemon.world, &name, &path, &hooks);
            (name, json!({ "path": path }))
        });
        let runtimes: serde_json::Map<_, _> = runtimes.into_iter().collect();
        let configuration = json!({
            "data-root": daemon.path("data"),
            "exec-root": daemon.path("exec"),
            "pidfile": daemon.path("pid"),
            "hosts": [socket(&daemon)],
            "storage-driver": "vfs",
            "iptables": false,
            "ip6tables": false,
            "bridge": "none",
            "cgroup-parent": driver.parent(&daemon.world),
            "exec-opts": [format!("native.cgroupdriver={}", driver.name())],
            "runtimes": runtimes,
        });
        let file = daemon.path("daemon.json");
        std::fs::write(&file, configuration.to_string()).expect("write daemon.json");
        let mut dockerd = Command::new("dockerd");
        daemon.start(dockerd.args(["--config-file", &file]), "API listen on");
        let docker = Docker { daemon };
        let archive = image::archive(&docker.daemon);
        process::run(docker.command(&["load", "-q", "-i"]).arg(archive)).ok();
        docker
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_CONFIG", &self.daemon.dir);
        docker
            .args(["--host", &socket(&self.daemon)])
            .args(arguments);
        docker
    }

    fn run_command(&self, service: Service, plan: &Plan, how: &str) -> Command {
        let mut docker = self.command(&["run", how, "--network", "none", "--name", &plan.name]);
        docker.args(["--runtime", &runtime_name(service.runtime)]);
        let out = format!("{}:/out", self.daemon.out().display());
        docker.args(["--volume", &out]);
        for (key, value) in &plan.annotations {
            docker.args(["--annotation", &format!("{key}={value}")]);
        }
        docker.args(["--entrypoint", &plan.program, image::NAME]);
        docker
            .args(["--out", &format!("/out/{}", plan.name)])
            .args(&plan.actions);
        docker
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        process::run(&mut self.command(arguments))
    }
}

impl Served for Docker {
    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn launch(&self, service: Service, plan: &Plan) -> Ran {
        process::run(&mut self.run_command(service, plan, "--detach"))
    }

    fn run_and_remove(&self, service: Service, plan: &Plan) -> Option<Ran> {
        Some(process::run(&mut self.run_command(service, plan, "--rm")))
    }

    fn id(&self, name: &str) -> String {
        let told = self.run(&["inspect", "--format", "{{.Id}}", name]).ok();
        told.stdout.trim().to_owned()
    }

    fn pid(&self, name: &str) -> i32 {
        let told = self
            .run(&["inspect", "--format", "{{.State.Pid}}", name])
            .ok();
        told.stdout.trim().parse().expect("docker tells a pid")
    }

    fn exec(&self, name: &str, command: &[&str]) -> Ran {
        process::run(self.command(&["exec", name]).args(command))
    }

    fn stop(&self, name: &str) -> Ran {
        self.run(&["stop", name])
    }

    fn kill(&self, name: &str) -> Ran {
        self.run(&["kill", name])
    }

    fn remove(&self, name: &str) -> Ran {
        self.run(&["rm", name])
    }

    fn remove_by_force(&self, name: &str) -> Ran {
        self.run(&["rm", "--force", name])
    }

    fn remove_all(&self) {
        let all = self.run(&["ps", "--all", "--quiet"]).stdout;
        if !all.is_empty() {
            process::try_to_run(
                self.command(&["rm", "--force"])
                    .args(all.split_whitespace()),
            );
        }
    }
}

fn socket(daemon: &Daemon) -> String {
    format!("unix://{}", daemon.path("socket"))
}

/// Not the runtime's own name, which docker keeps for its default.
fn runtime_name(runtime: Runtime) -> String {
    format!("{}-with-hooks", runtime.name())
}
