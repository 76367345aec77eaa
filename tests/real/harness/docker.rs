//! A dockerd of the tests' own, and its client.

use crate::command_line::CommandLine;
use crate::daemon::Daemon;
use crate::engines::{Door, Runtime, runtime_path};
use crate::image;
use crate::needs;
use crate::plan::Plan;
use crate::process;
use crate::service::Service;
use crate::with_hooks;
use serde_json::{Map, Value, json};
use std::process::Command;

/// Its configuration's file name, where it is not on a site of its own.
const CONFIG: &str = "daemon.json";

pub(crate) struct Docker {
    daemon: Daemon,
}

impl Docker {
    /// Starts a daemon whose runtimes add the hooks, or one that `pinfold install` has told of
    /// pinfold.
    pub(crate) fn start(service: Service) -> Docker {
        let mut daemon = if service.is_installed() {
            Daemon::on_a_site()
        } else {
            Daemon::new()
        };
        let settings = settings(&daemon, service).to_string();
        if let Some(site) = &mut daemon.site {
            site.write("docker/daemon.json", &settings);
            site.install("docker");
        } else {
            std::fs::write(daemon.path(CONFIG), settings).expect("write daemon.json");
        }
        Docker::launch_daemon(&mut daemon);
        let docker = Docker { daemon };
        let archive = image::archive(&docker.daemon);
        process::run(docker.command(&["load", "-q", "-i"]).arg(archive)).ok();
        docker
    }

    fn launch_daemon(daemon: &mut Daemon) {
        let mut dockerd = daemon.command("dockerd");
        if daemon.site.is_none() {
            dockerd.args(["--config-file", &daemon.path(CONFIG)]);
        }
        daemon.start(&mut dockerd, "API listen on");
    }

    /// Ends the daemon by this signal and starts it again: with the first, or at the latest when it
    /// is back, it ends its containers.
    pub(crate) fn restart(&mut self, signal: i32) {
        self.daemon.end(signal);
        // One that was killed leaves it.
        let _ = std::fs::remove_file(self.daemon.path("pid"));
        Docker::launch_daemon(&mut self.daemon);
    }
}

impl CommandLine for Docker {
    const REMOVE_BY_FORCE: &[&str] = &["rm", "--force"];

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_CONFIG", &self.daemon.dir);
        docker
            .args(["--host", &socket(&self.daemon)])
            .args(arguments);
        docker
    }

    fn run_command(&self, service: Service, plan: &Plan, how: &str) -> Command {
        if let (Door::Cdi, Some(site)) = (service.door, &self.daemon.site) {
            site.update_devices();
        }
        let mut docker = self.command(&["run", how, "--network", "none", "--name", &plan.name]);
        docker.args(["--runtime", &runtime_name(service)]);
        let out = format!("{}:/out", self.daemon.out().display());
        docker.args(["--volume", &out]);
        docker.args(service.request(plan)).args(&plan.options);
        docker.args(["--entrypoint", &plan.program, image::NAME]);
        docker
            .args(["--out", &format!("/out/{}", plan.name)])
            .args(&plan.actions);
        docker
    }
}

fn socket(daemon: &Daemon) -> String {
    format!("unix://{}", daemon.path("socket"))
}

/// What daemon.json says before anything is installed.
fn settings(daemon: &Daemon, service: Service) -> Value {
    // A runtime that is not installed is asked for by no test; and runc is known to docker.
    let runtimes = [Runtime::Runc, Runtime::Crun]
        .into_iter()
        .filter(|runtime| {
            let is_known = service.is_installed() && *runtime == Runtime::Runc;
            !is_known && needs::find(runtime.name()).is_some()
        });
    let runtimes = runtimes.map(|runtime| {
        let (name, found) = (runtime.name(), runtime_path(&daemon.world, runtime));
        if service.is_installed() {
            return (name.to_owned(), json!({ "path": found }));
        }
        let name = with_hooks_name(runtime);
        let path = with_hooks::runtime(&daemon.world, &name, &found, &daemon.hooks());
        (name, json!({ "path": path }))
    });
    let runtimes: Map<String, Value> = runtimes.collect();
    json!({
        "data-root": daemon.path("data"),
        "exec-root": daemon.path("exec"),
        "pidfile": daemon.path("pid"),
        "hosts": [socket(daemon)],
        "storage-driver": "vfs",
        "iptables": false,
        "ip6tables": false,
        "bridge": "none",
        "cgroup-parent": service.driver.parent(&daemon.world),
        "exec-opts": [format!("native.cgroupdriver={}", service.driver.name())],
        "runtimes": runtimes,
    })
}

/// The name of a runtime in daemon.json.
fn runtime_name(service: Service) -> String {
    match service.door {
        Door::Hooks => with_hooks_name(service.runtime),
        Door::Shim => "pinfold".into(),
        Door::Cdi => service.runtime.name().into(),
        Door::Nri => panic!("docker has no NRI that can set CPUs"),
    }
}

/// Not the runtime's own name, which docker keeps for its default.
fn with_hooks_name(runtime: Runtime) -> String {
    format!("{}-with-hooks", runtime.name())
}
