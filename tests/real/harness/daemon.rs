//! A daemon that a test starts: its process, its log, and a world that outlives the single test.

use crate::bundle::{self, Hook};
use crate::process::{self, Running};
use crate::site::Site;
use crate::world::World;
use nix::libc;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How much of the log a failure shows.
const LINES: usize = 15;

pub(crate) struct Daemon {
    process: Option<Running>,
    pub(crate) site: Option<Site>,
    pub(crate) world: World,
    pub(crate) dir: PathBuf,
}

impl Daemon {
    /// A place for a daemon, which is not running yet.
    pub(crate) fn new() -> Daemon {
        let world = World::new();
        let dir = world.dir.join("daemon");
        std::fs::create_dir(&dir).expect("make a directory of the daemon");
        let daemon = Daemon {
            process: None,
            site: None,
            world,
            dir,
        };
        bundle::make_rootfs(&daemon.rootfs());
        daemon
    }

    /// The same with an `/etc` of its own, in which pinfold can be installed.
    pub(crate) fn on_a_site() -> Daemon {
        let mut daemon = Daemon::new();
        daemon.site = Some(Site::new(&daemon.world));
        daemon
    }

    /// A program as the daemon sees the machine.
    pub(crate) fn command(&self, program: &str) -> Command {
        match &self.site {
            Some(site) => site.command(program),
            None => Command::new(program),
        }
    }

    /// Starts it, and waits until its log says so in the words `ready`.
    pub(crate) fn start(&mut self, command: &mut Command, ready: &str) {
        let process = Running::start(command, b"");
        process::eventually(&format!("{command:?} says {ready:?}"), || {
            let log = process.stderr();
            let ended = process.ends_within(Duration::ZERO);
            assert!(!ended, "{command:?} has ended: {log}");
            log.contains(ready).then_some(())
        });
        self.process = Some(process);
    }

    /// The hooks of pinfold for the daemon's world.
    pub(crate) fn hooks(&self) -> [Hook; 2] {
        ["createRuntime", "poststop"].map(|stage| Hook::pinfold(&self.world, stage))
    }

    /// The root file system that containers start from.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.world.dir.join("rootfs")
    }

    /// Where every container's first process writes what it saw, in a file of the container's name.
    pub(crate) fn out(&self) -> PathBuf {
        self.rootfs().join("out")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Ends it by this signal, and waits until it has ended.
    pub(crate) fn end(&mut self, signal: i32) {
        let process = self.process.take().expect("it was started");
        process.signal(signal);
        process.wait();
    }

    /// All that the process that runs has logged.
    pub(crate) fn whole_log(&self) -> String {
        self.process
            .as_ref()
            .map(Running::stderr)
            .unwrap_or_default()
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.signal(libc::SIGTERM);
            process.ends_within(process::patience());
        }
        let slice = format!("{}.slice", self.world.tag);
        if std::path::Path::new("/run/systemd/system").exists() {
            process::try_to_run(Command::new("systemctl").args(["stop", &slice]));
        }
    }
}
