//! A machine's `/etc` of a test's own, in which engines are told of pinfold as a user tells them:
//! by `pinfold install`.

use crate::process::{self, Running};
use crate::snapshot::Snapshot;
use crate::world::{World, binary};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of the shim, which is the same program.
const SHIM: &str = "pinfold-runtime";

/// A mount namespace that differs from the machine in `/etc`.
pub(crate) struct Site {
    holder: Running,
    programs: PathBuf,
    /// What was there before anything was installed.
    before: Option<Snapshot>,
}

impl Site {
    pub(crate) fn new(world: &World) -> Site {
        let dir = world.dir.join("etc");
        for part in ["upper", "work"] {
            std::fs::create_dir_all(dir.join(part)).expect("make a directory of the overlay");
        }
        let mount = "mount -t overlay -o \"lowerdir=/etc,upperdir=$0/upper,workdir=$0/work\" overlay /etc \
                     && echo mounted && exec sleep infinity";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", mount]).arg(&dir);
        let holder = Running::start(&mut unshare, b"");
        process::eventually("there is an /etc of our own", || {
            holder.stdout().contains("mounted").then_some(())
        });
        let site = Site {
            holder,
            programs: programs(world),
            before: None,
        };
        site.configure(world, None);
        site
    }

    /// Writes pinfold's configuration: the world's directories, and what the shim becomes.
    pub(crate) fn configure(&self, world: &World, runtime: Option<&Path>) {
        let (conf, run) = (world.conf.display(), world.run.display());
        let mut config = format!("conf-dir = '{conf}'\nrun-dir = '{run}'\n");
        if let Some(runtime) = runtime {
            config += &format!("[runtime]\npath = '{}'\n", runtime.display());
        }
        self.write("pinfold/config.toml", &config);
    }

    /// Makes the CDI devices those of the pools there are.
    pub(crate) fn update_devices(&self) {
        process::run(&mut self.pinfold(&["cdi"])).ok();
    }

    /// A program in here.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args([
            "--mount",
            "--wd=/",
            "--target",
            &self.holder.pid().to_string(),
            "--",
        ]);
        nsenter.arg(program);
        nsenter
    }

    /// The product in here, with nothing said that a user would not say.
    pub(crate) fn pinfold(&self, arguments: &[&str]) -> Command {
        let mut pinfold = self.command(self.programs.join("pinfold"));
        pinfold.args(arguments);
        pinfold
    }

    /// A path below `/etc`, as seen from outside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.holder.pid().to_string())
            .join("root/etc")
            .join(name)
    }

    /// Writes a file below `/etc`.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        let dir = path.parent().expect("a file is in a directory");
        std::fs::create_dir_all(dir).expect("make a directory below /etc");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("write {name}: {error}"));
    }

    /// Runs `pinfold install`.
    pub(crate) fn install(&mut self, engine: &str) {
        self.before = Some(self.snapshot());
        process::run(&mut self.pinfold(&["install", engine])).ok();
    }

    /// `pinfold uninstall` must leave all files as they were.
    #[track_caller]
    pub(crate) fn assert_uninstalls(&self, engine: &str) {
        let before = self.before.as_ref().expect("something was installed");
        process::run(&mut self.pinfold(&["uninstall", engine])).ok();
        before.assert_same_content(&self.snapshot(), "after uninstall");
    }

    fn snapshot(&self) -> Snapshot {
        let dirs = ["containerd", "containers", "docker"].map(|name| self.path(name));
        let there: Vec<&Path> = dirs
            .iter()
            .map(PathBuf::as_path)
            .filter(|dir| dir.exists())
            .collect();
        Snapshot::of(&there)
    }
}

/// The product's two programs side by side, as they are installed.
fn programs(world: &World) -> PathBuf {
    let dir = world.dir.join("programs");
    std::fs::create_dir(&dir).expect("make a directory for programs");
    for name in ["pinfold", SHIM] {
        std::fs::copy(binary(), dir.join(name)).expect("copy the product");
        std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o755))
            .expect("chmod the product");
    }
    dir
}
