//! What a start costs whoever waits for it: `run` of a container that ends at once, under the real
//! runtimes.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use pinfold::host::Host;
use serde_json::{Value, json};

use crate::measure::{Measured, Program, Tools};
use crate::site::{POOL, Site};

/// How a container is started.
///
/// `bare-cpus` is what a shim's container can cost at least: its configuration names a CPU, as
/// `--cpuset-cpus` has it, and the runtime moves the first process into a group with that mask.
pub(crate) const WAYS: [&str; 7] = [
    "bare",
    "bare-cpus",
    "true-pair",
    "hooks",
    "hooks-pinned",
    "shim",
    "shim-pinned",
];

/// Gives this process an `/etc` that others do not see, for the shim has no options; and hides a
/// second hierarchy of cgroups, beside which crun does not work.
pub(crate) fn enter_own_mounts(dir: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace: be root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .expect("make mounts private");
    for part in ["upper", "work"] {
        std::fs::create_dir_all(dir.join(part)).expect("make a directory");
    }
    let dir = dir.display();
    let options = format!("lowerdir=/etc,upperdir={dir}/upper,workdir={dir}/work");
    mount(
        Some("overlay"),
        "/etc",
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .expect("mount an overlay over /etc");
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() {
        umount2(unified, MntFlags::MNT_DETACH).expect("hide the unified hierarchy");
    }
}

/// The bundles of one runtime.
pub(crate) struct Bundles {
    dir: PathBuf,
    runtime: PathBuf,
    name: &'static str,
    shim: PathBuf,
}

impl Bundles {
    /// `None` where the runtime is not there.
    pub(crate) fn new(
        dir: &Path,
        name: &'static str,
        pinfold: &Path,
        tools: &Tools,
        site: &Site,
    ) -> Option<Bundles> {
        let runtime = Host::new("/").program(name)?;
        let dir = dir.join(name);
        let rootfs = dir.join("rootfs");
        for part in ["proc", "dev", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(part)).expect("make a root file system");
        }
        std::fs::copy(&tools.empty_c, rootfs.join("true")).expect("copy a program");
        let shim = dir.join("pinfold-runtime");
        symlink(pinfold, &shim).expect("link the shim");
        let bundles = Bundles {
            dir,
            runtime,
            name,
            shim,
        };
        for way in WAYS {
            let config = bundles.config(way, pinfold, site);
            let path = bundles.dir.join(way);
            std::fs::create_dir_all(&path).expect("make a bundle");
            std::fs::write(path.join("config.json"), config.to_string())
                .expect("write a configuration");
        }
        std::fs::create_dir_all("/etc/pinfold").expect("make the configuration's directory");
        let config = format!(
            "{}[runtime]\npath = '{}'\n",
            site.configuration(),
            bundles.runtime.display()
        );
        std::fs::write("/etc/pinfold/config.toml", config).expect("write pinfold's configuration");
        Some(bundles)
    }

    fn config(&self, way: &str, pinfold: &Path, site: &Site) -> Value {
        let pinned = way.ends_with("-pinned");
        let annotations = match pinned {
            true => json!({"pinfold.io/pool": POOL}),
            false => json!({"io.container.manager": "libpod"}),
        };
        let hook = |stage: &str| match way {
            "true-pair" => json!([{"path": "/bin/true", "args": ["true"]}]),
            "hooks" | "hooks-pinned" => {
                let mut args = vec!["pinfold".to_owned(), "hook".into(), stage.to_owned()];
                args.extend(site.options());
                json!([{"path": pinfold, "args": args}])
            }
            _ => json!([]),
        };
        let resources = match way {
            "bare-cpus" => json!({"cpu": {"cpus": "0"}}),
            _ => json!({}),
        };
        json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/true"], "env": ["PATH=/"], "cwd": "/" },
            "root": { "path": self.dir.join("rootfs"), "readonly": false },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            ],
            "annotations": annotations,
            "hooks": { "createRuntime": hook("createRuntime"), "poststop": hook("poststop") },
            "linux": {
                "cgroupsPath": format!("/pinfoldbench{}/{way}", std::process::id()),
                "namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "pid"}],
                "resources": resources,
            },
        })
    }

    /// The commands, each with its name.
    pub(crate) fn programs(&self) -> Vec<(String, Program)> {
        let program = |way: &str| {
            let runtime = if way.starts_with("shim") {
                &self.shim
            } else {
                &self.runtime
            };
            let bundle = self.dir.join(way).display().to_string();
            let id = format!("pinfoldbench-{way}");
            let words = [
                runtime.to_str().expect("UTF-8"),
                "run",
                "--bundle",
                &bundle,
                &id,
            ];
            (
                format!("{} run: {way}", self.name),
                Program::new(&words, Path::new("/dev/null")),
            )
        };
        WAYS.map(program).into()
    }

    /// What asks for no container: the runtime's own, and the same through the shim.
    pub(crate) fn passed_through(&self) -> Vec<(String, Program)> {
        let mut programs = Vec::new();
        for (way, path) in [("bare", &self.runtime), ("shim", &self.shim)] {
            for words in ["--version", "state pinfoldbench-held"] {
                let mut all = vec![path.to_str().expect("UTF-8")];
                all.extend(words.split(' '));
                let word = words.split(' ').next().unwrap_or_default();
                programs.push((
                    format!("{} {word}: {way}", self.name),
                    Program::new(&all, Path::new("/dev/null")),
                ));
            }
        }
        programs
    }

    /// A container that is made and not started, while something is done.
    pub(crate) fn with_held(&self, done: impl FnOnce()) {
        let runtime = |words: &[&str]| {
            let status = Command::new(&self.runtime)
                .args(words)
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .status()
                .expect("execute the runtime");
            assert!(status.success(), "{} {words:?}: {status}", self.name);
        };
        let bundle = self.dir.join("bare").display().to_string();
        runtime(&["create", "--bundle", &bundle, "pinfoldbench-held"]);
        done();
        runtime(&["delete", "--force", "pinfoldbench-held"]);
    }
}

/// Runs all of them in turn, so many times.
pub(crate) fn alternate(
    programs: &[(String, Program)],
    rounds: usize,
    tools: &Tools,
    measured: &mut Measured,
) {
    for _ in 0..rounds {
        for (name, program) in programs {
            measured
                .entry(name.clone())
                .or_default()
                .add(program.run(tools));
        }
    }
}
