//! podman as `pinfold install` sets it up.

use crate::command_line::CommandLine;
use crate::daemon::Daemon;
use crate::engines::{Door, Driver, runtime_path};
use crate::plan::Plan;
use crate::service::Service;
use std::process::Command;

/// The directory that podman's configuration names for hooks, for none of the machine's own is to
/// be touched.
const HOOKS_DIR: &str = "containers/oci/hooks.d";

/// There is no daemon, but the rest of one: a world and a site.
pub(crate) struct Podman {
    daemon: Daemon,
    driver: Driver,
}

impl Podman {
    pub(crate) fn start(driver: Driver) -> Podman {
        let mut daemon = Daemon::on_a_site();
        let site = daemon.site.as_mut().expect("it is on a site");
        // podman asks for higher limits than a machine may allow.
        let limits = "default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]";
        let conf = format!(
            "[containers]\n{limits}\n[engine]\nlock_type = \"file\"\n\
             hooks_dir = [\"/etc/{HOOKS_DIR}\"]\n"
        );
        site.write("containers/containers.conf", &conf);
        std::fs::create_dir_all(site.path(HOOKS_DIR)).expect("make the hooks directory");
        site.install("podman");
        std::fs::create_dir(daemon.dir.join("no-hooks")).expect("make an empty directory");
        Podman { daemon, driver }
    }

    /// A command of podman's, with the runtime and the hooks of this service.
    pub(crate) fn by(&self, service: Service, arguments: &[&str]) -> Command {
        let no_hooks = self.daemon.path("no-hooks");
        let runtime = runtime_path(&self.daemon.world, service.runtime);
        let runtime = runtime.display().to_string();
        let mut podman = match service.door {
            Door::Hooks => self.command(&["--runtime", &runtime]),
            Door::Shim => self.command(&["--hooks-dir", &no_hooks, "--runtime", "pinfold"]),
            Door::Cdi => self.command(&["--hooks-dir", &no_hooks, "--runtime", &runtime]),
            Door::Nri => panic!("podman has no NRI"),
        };
        podman.args(arguments);
        podman
    }
}

impl CommandLine for Podman {
    const REMOVE_BY_FORCE: &[&str] = &["rm", "--force", "--time", "0"];

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut podman = self.daemon.command("podman");
        podman.args(["--storage-driver", "vfs", "--events-backend", "none"]);
        podman.args([
            "--root",
            &self.daemon.path("storage"),
            "--runroot",
            &self.daemon.path("run"),
        ]);
        podman.args(["--tmpdir", &self.daemon.path("tmp")]);
        podman.args(["--cgroup-manager", self.driver.name()]);
        podman.args(arguments);
        podman
    }

    fn run_command(&self, service: Service, plan: &Plan, how: &str) -> Command {
        if let (Door::Cdi, Some(site)) = (service.door, &self.daemon.site) {
            site.update_devices();
        }
        let daemon = &self.daemon;
        let mut podman = self.by(service, &[]);
        podman.args(["run", how, "--name", &plan.name, "--network", "none"]);
        podman.args(["--cgroup-parent", &self.driver.parent(&daemon.world)]);
        podman.args(service.request(plan)).args(&plan.options);
        podman
            .arg("--rootfs")
            .arg(daemon.rootfs())
            .arg(&plan.program);
        podman
            .args(["--out", &format!("/out/{}", plan.name)])
            .args(&plan.actions);
        podman
    }
}
