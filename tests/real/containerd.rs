//! A containerd of the tests' own.

use crate::bundle;
use crate::daemon::Daemon;
use crate::engines::{Driver, Runtime, runtime_path};
use crate::image;
use crate::needs;
use crate::process;
use serde_json::{Value, json};
use std::process::Command;

pub(crate) struct Containerd {
    pub(crate) daemon: Daemon,
}

impl Containerd {
    /// Starts it with a runtime handler for each runtime and driver, whose base specification carries the hooks.
    pub(crate) fn start() -> Containerd {
        let mut daemon = Daemon::new();
        let spec = daemon.path("base-spec.json");
        std::fs::write(&spec, base_spec(&daemon).to_string()).expect("write the base spec");
        let file = daemon.path("config.toml");
        std::fs::write(&file, configuration(&daemon, &spec)).expect("write config.toml");
        let mut containerd = Command::new("containerd");
        daemon.start(
            containerd.args(["--config", &file]),
            "containerd successfully booted",
        );
        Containerd { daemon }
    }

    /// `ctr` in the namespace of the CRI or in its own.
    pub(crate) fn ctr(&self, namespace: &str) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args([
            "--address",
            &self.daemon.path("socket"),
            "--namespace",
            namespace,
        ]);
        ctr
    }

    /// Brings the image into a namespace.
    pub(crate) fn import(&self, namespace: &str) {
        let archive = image::archive(&self.daemon);
        let mut ctr = self.ctr(namespace);
        ctr.args(["images", "import", "--no-unpack"]).arg(archive);
        process::run(&mut ctr).ok();
    }
}

/// The name of a runtime handler.
pub(crate) fn handler(runtime: Runtime, driver: Driver) -> String {
    format!("{}-{}", runtime.name(), driver.name())
}

/// The specification that containerd itself would begin with, and the hooks.
fn base_spec(daemon: &Daemon) -> Value {
    let spec = process::run(Command::new("ctr").args(["oci", "spec"]))
        .ok()
        .stdout;
    let mut spec: Value = serde_json::from_str(&spec).expect("ctr prints a specification");
    spec["hooks"] = bundle::stages(&daemon.hooks());
    spec
}

/// In the form of version 2, which every containerd from 1.3 to 2.x reads.
fn configuration(daemon: &Daemon, spec: &str) -> String {
    let path = |name| json!(daemon.path(name));
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let installed = |runtime: &Runtime| needs::find(runtime.name()).is_some();
    let runtimes: Vec<Runtime> = [Runtime::Runc, Runtime::Crun]
        .into_iter()
        .filter(installed)
        .collect();
    let mut text = format!(
        "version = 2\nroot = {}\nstate = {}\n[grpc]\naddress = {}\n[ttrpc]\naddress = {}\n\
         [{cri}]\nsandbox_image = {}\ndisable_apparmor = true\n\
         [{cri}.containerd]\nsnapshotter = \"native\"\ndefault_runtime_name = {}\n",
        path("data"),
        path("state"),
        path("socket"),
        path("ttrpc"),
        json!(image::NAME),
        json!(handler(
            *runtimes.first().expect("a runtime is installed"),
            Driver::Cgroupfs
        )),
    );
    for runtime in runtimes {
        let binary = json!(runtime_path(&daemon.world, runtime));
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            let table = format!("{cri}.containerd.runtimes.{}", handler(runtime, driver));
            text += &format!(
                "[{table}]\nruntime_type = \"io.containerd.runc.v2\"\nbase_runtime_spec = {}\n\
                 pod_annotations = [\"pinfold.io/*\"]\ncontainer_annotations = [\"pinfold.io/*\"]\n\
                 [{table}.options]\nBinaryName = {binary}\nSystemdCgroup = {}\n",
                json!(spec),
                driver == Driver::Systemd,
            );
        }
    }
    text
}
