//! A containerd of the tests' own.

use crate::bundle;
use crate::daemon::Daemon;
use crate::engines::{Driver, Runtime, runtime_path};
use crate::image;
use crate::needs;
use crate::node;
use crate::process;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// Its configuration's file name.
const CONFIG: &str = "config.toml";
/// What its log says when it is up.
const READY: &str = "containerd successfully booted";

/// The directory of its CDI files, below the daemon's directory.
pub(crate) const CDI: &str = "cdi";
/// The name of a handler with hooks in its base specification, beside those that NRI serves.
pub(crate) const HOOKED: &str = "hooked";

pub(crate) struct Containerd {
    pub(crate) daemon: Daemon,
}

impl Containerd {
    /// Starts it with a runtime handler for each runtime and driver, whose base specification
    /// carries the hooks.
    pub(crate) fn start() -> Containerd {
        let daemon = Daemon::new();
        let spec = daemon.path("base-spec.json");
        std::fs::write(&spec, base_spec(&daemon).to_string()).expect("write the base spec");
        let handlers = handlers(&daemon, Some(&spec));
        let text = configuration(&daemon, &handlers);
        Containerd::configured(daemon, &text)
    }

    /// Starts it with NRI, and with a runtime handler for each runtime and driver that knows
    /// nothing of pinfold; one more has hooks in its base specification, and CDI devices ask.
    pub(crate) fn with_nri() -> Containerd {
        let daemon = Daemon::new();
        let spec = daemon.path("base-spec.json");
        std::fs::write(&spec, base_spec(&daemon).to_string()).expect("write the base spec");
        let mut handlers = handlers(&daemon, None);
        handlers.push(Handler {
            name: HOOKED.into(),
            binary: runtime_path(&daemon.world, Runtime::Runc),
            driver: Driver::Cgroupfs,
            with_hooks: Some(&spec),
        });
        let text = configuration(&daemon, &handlers) + &nri(&daemon);
        Containerd::configured(daemon, &text)
    }

    fn configured(mut daemon: Daemon, text: &str) -> Containerd {
        std::fs::write(daemon.path(CONFIG), text).expect("write config.toml");
        Containerd::launch(&mut daemon);
        Containerd { daemon }
    }

    fn launch(daemon: &mut Daemon) {
        let mut containerd = Command::new("containerd");
        daemon.start(containerd.args(["--config", &daemon.path(CONFIG)]), READY);
    }

    /// Ends it by this signal and starts it again; its containers run on.
    pub(crate) fn restart(&mut self, signal: i32) {
        self.daemon.end(signal);
        Containerd::launch(&mut self.daemon);
    }

    /// Starts one with a handler as many a machine has it, which `pinfold install` has told of
    /// pinfold.
    pub(crate) fn installed(driver: Driver) -> Containerd {
        let mut daemon = Daemon::on_a_site();
        let handler = Handler {
            name: "runc".into(),
            binary: runtime_path(&daemon.world, Runtime::Runc),
            driver,
            with_hooks: None,
        };
        let text = configuration(&daemon, &[handler]);
        let site = daemon.site.as_mut().expect("it is on a site");
        site.write("containerd/config.toml", &text);
        site.install("containerd");
        let mut containerd = site.command("containerd");
        daemon.start(&mut containerd, READY);
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

/// A handler for each runtime that is there and each driver.
fn handlers<'a>(daemon: &Daemon, with_hooks: Option<&'a str>) -> Vec<Handler<'a>> {
    let runtimes = [Runtime::Runc, Runtime::Crun].into_iter();
    let runtimes = runtimes.filter(|runtime| needs::find(runtime.name()).is_some());
    let with_drivers =
        |runtime| [Driver::Cgroupfs, Driver::Systemd].map(|driver| (runtime, driver));
    let handlers = runtimes
        .flat_map(with_drivers)
        .map(|(runtime, driver)| Handler {
            name: handler(runtime, driver),
            binary: runtime_path(&daemon.world, runtime),
            driver,
            with_hooks,
        });
    handlers.collect()
}

/// The table of NRI, which has its socket and looks for plugins in the daemon's own directory.
fn nri(daemon: &Daemon) -> String {
    let path = |name| json!(daemon.path(name));
    format!(
        "[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = false\nsocket_path = {}\n\
         plugin_path = {}\nplugin_config_path = {}\n",
        path(node::SOCKET),
        path("nri-plugins"),
        path("nri-conf")
    )
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

/// A runtime handler: what a pod's RuntimeClass names.
struct Handler<'a> {
    name: String,
    binary: PathBuf,
    driver: Driver,
    /// The base specification, and then the annotations that pods may pass.
    with_hooks: Option<&'a str>,
}

/// In the form of version 2, which every containerd from 1.3 to 2.x reads.
fn configuration(daemon: &Daemon, handlers: &[Handler]) -> String {
    let path = |name| json!(daemon.path(name));
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let mut text = format!(
        "version = 2\nroot = {}\nstate = {}\n[grpc]\naddress = {}\n[ttrpc]\naddress = {}\n\
         [{cri}]\nsandbox_image = {}\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
         enable_cdi = true\ncdi_spec_dirs = [{}]\n\
         [{cri}.containerd]\nsnapshotter = \"native\"\ndefault_runtime_name = {}\n",
        path("data"),
        path("state"),
        path("socket"),
        path("ttrpc"),
        json!(image::NAME),
        path(CDI),
        json!(handlers.first().expect("a runtime is installed").name),
    );
    for handler in handlers {
        let table = format!("{cri}.containerd.runtimes.{}", handler.name);
        text += &format!("[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n");
        if let Some(spec) = handler.with_hooks {
            text += &format!(
                "base_runtime_spec = {}\n\
                 pod_annotations = [\"pinfold.io/*\"]\ncontainer_annotations = [\"pinfold.io/*\"]\n",
                json!(spec)
            );
        }
        let (binary, systemd) = (json!(handler.binary), handler.driver == Driver::Systemd);
        text += &format!("[{table}.options]\nBinaryName = {binary}\nSystemdCgroup = {systemd}\n");
    }
    text
}
