//! `pinfold-node` beside an engine of the tests' own.

use crate::daemon::Daemon;
use crate::process::{self, Running};
use crate::world::binary;
use nix::libc;
use std::path::PathBuf;
use std::process::Command;

/// The program, where it is built.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::var_os("PINFOLD_TEST_NODE").map(PathBuf::from)
}

/// The path of the engine's NRI socket, below the daemon's directory.
pub(crate) const SOCKET: &str = "nri.sock";

/// How an engine's log tells that it asks our plugin from now on.
const TAKEN: [&str; 2] = ["90-pinfold", "connected"];

/// A process that serves as the NRI plugin.
pub(crate) struct Node {
    process: Running,
}

impl Node {
    /// Starts it with more options, and waits until the engine has taken it.
    pub(crate) fn start(daemon: &Daemon, more: &[&str]) -> Node {
        let before = taken(daemon);
        let mut command = Command::new(program().expect("the test needs the program"));
        command
            .args(["run", "--nri", "--nri-socket", &daemon.path(SOCKET)])
            .arg("--bin-dir")
            .arg(binary().parent().expect("it is in a directory"))
            .args(daemon.world.options())
            .args(more);
        let node = Node {
            process: Running::start(&mut command, b""),
        };
        node.wait_until_taken(daemon, before);
        node
    }

    /// Waits until the engine has taken it once more than `before`.
    pub(crate) fn wait_until_taken(&self, daemon: &Daemon, before: usize) {
        process::eventually("the engine takes the plugin", || {
            let log = self.process.stderr();
            assert!(
                !self.process.ends_within(std::time::Duration::ZERO),
                "{log}"
            );
            (taken(daemon) > before).then_some(())
        });
    }

    /// Kills it as nothing can prepare for.
    pub(crate) fn kill(self) {
        self.process.signal(libc::SIGKILL);
        self.process.wait();
    }

    /// Waits until it has said all of these words in one line.
    pub(crate) fn says(&self, words: &[&str]) {
        process::eventually(&format!("pinfold-node says {words:?}"), || {
            let log = self.process.stderr();
            let is_it = |line: &str| words.iter().all(|word| line.contains(word));
            log.lines().any(is_it).then_some(())
        });
    }
}

/// How often the engine that runs has taken our plugin.
pub(crate) fn taken(daemon: &Daemon) -> usize {
    let log = daemon.whole_log();
    let lines = log.lines();
    lines
        .filter(|line| TAKEN.iter().all(|word| line.contains(word)) && !line.contains("closed"))
        .count()
}
