//! Finds the containers that run on this machine, whoever started them, in the directories in which
//! OCI runtimes keep the state of their containers, and in the bundles of containerd's tasks.
//!
//! Others wrote what is in there. The only path in it that is followed is the bundle's, which a
//! runtime noted. A file is read only if it is regular and of bounded size, and the number of
//! containers is bounded.

mod labels;
mod roots;
mod state;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::engines::Engine;
use crate::files;
use crate::host::Host;
use crate::names::{Ancestry, Names, is_name_key, short_id};
use crate::oci::{Config, Id};
use crate::process::{self, Process};

pub use labels::{labels, recorded_labels};

use roots::{Root, RootLayout};
use state::RuntimeState;

/// The largest file that is read of a container, in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// The most containers of one directory that are looked at.
const MOST_IN_A_ROOT: usize = 4096;

/// Who started a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starter {
    /// docker.
    Docker,
    /// podman.
    Podman,
    /// CRI-O.
    Crio,
    /// containerd's CRI plugin, for Kubernetes.
    Cri,
    /// Another client of containerd (`ctr`, `nerdctl`), with its namespace in containerd.
    Containerd(String),
    /// No known engine: somebody ran this OCI runtime.
    Runtime(&'static str),
}

impl Starter {
    /// The engine's name in messages.
    pub fn word(&self) -> &'static str {
        match self {
            Starter::Docker => "docker",
            Starter::Podman => "podman",
            Starter::Crio => "CRI-O",
            Starter::Cri => "Kubernetes",
            Starter::Containerd(_) => "containerd",
            Starter::Runtime(runtime) => runtime,
        }
    }

    /// The engine; `None` where none that is known started it.
    pub fn engine(&self) -> Option<Engine> {
        match self {
            Starter::Docker => Some(Engine::Docker),
            Starter::Podman => Some(Engine::Podman),
            Starter::Crio => Some(Engine::Crio),
            Starter::Cri | Starter::Containerd(_) => Some(Engine::Containerd),
            Starter::Runtime(_) => None,
        }
    }
}

/// A container that runs: its first process executes the container's program.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id, which [`Id`] accepts.
    pub id: String,
    /// Its first process, which is alive.
    pub process: Process,
    /// Who started it.
    pub starter: Starter,
    /// The user as whom its runtime runs: root, or one without privileges.
    pub user: u32,
    /// Its names.
    pub names: Names,
    /// The configuration with which its runtime started it; of runc only annotations and hooks.
    pub config: Config,
    /// The path that its configuration had when it was made.
    pub config_path: PathBuf,
}

impl Container {
    /// Its name, or short id, as its engine's commands take it.
    pub fn name(&self) -> &str {
        match &self.names.name {
            Some(name) if self.names.pod.is_none() => name,
            _ => short_id(&self.id),
        }
    }

    /// Its engine and its names, for a sentence.
    pub fn shown(&self) -> String {
        let name = self.names.with_id(&self.id);
        format!("{} container {name}", self.starter.word())
    }
}

/// The containers that were found.
#[derive(Debug, Default)]
pub struct FoundContainers {
    /// The containers, in the order of the directories of their state, then of their ids.
    pub containers: Vec<Container>,
    /// What could not be looked at, one sentence each.
    pub remarks: Vec<String>,
}

/// Finds the containers that run now. Left out are those that are gone or not started yet, and
/// those of runtimes that keep their state elsewhere.
///
/// `docker_exec_root` is docker's `exec-root`, if its configuration names one (dockerd(8)).
pub fn running(host: &Host, docker_exec_root: Option<&str>) -> FoundContainers {
    let mut search = ContainerSearch {
        host,
        boot_time: process::boot_time(host).ok(),
        seen: BTreeSet::new(),
        found: FoundContainers::default(),
    };
    for root in roots::all(host, docker_exec_root, &mut search.found.remarks) {
        if let Err(error) = search.look_into(&root) {
            search.found.remarks.push(format!("{error:#}"));
        }
    }
    search.found
}

struct ContainerSearch<'a> {
    host: &'a Host,
    boot_time: Option<i64>,
    /// The ids and pids that were found: a container can be in its runtime's state and in its
    /// task's bundle.
    seen: BTreeSet<(String, i32)>,
    found: FoundContainers,
}

impl ContainerSearch<'_> {
    fn look_into(&mut self, root: &Root) -> Result<()> {
        // A user's directory is readable for that user and for root alone.
        if !geteuid().is_root() && !roots::belongs_to(&root.dir, geteuid().as_raw())? {
            return Ok(());
        }
        let mut ids = roots::names_in(&root.dir, MOST_IN_A_ROOT + 1)?;
        if ids.len() > MOST_IN_A_ROOT {
            ids.truncate(MOST_IN_A_ROOT);
            self.found.remarks.push(format!(
                "{} has more containers than are looked at ({MOST_IN_A_ROOT})",
                root.dir.display()
            ));
        }
        ids.sort();
        for id in ids.into_iter().filter(|id| Id::parse(id).is_ok()) {
            let dir = root.dir.join(&id);
            if let Err(error) = self.look_at(root, &dir, &id) {
                self.found.remarks.push(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn look_at(&mut self, root: &Root, dir: &Path, id: &str) -> Result<()> {
        if !roots::belongs_to(dir, root.user)? {
            return Ok(());
        }
        let state = match root.form {
            RootLayout::State => state::of_runtime(self.host, dir)?,
            RootLayout::Bundle => state::of_bundle(dir)?,
        };
        let Some(state) = state else { return Ok(()) };
        let process = Process::with_pid(self.host, state.pid)?;
        let Some(process) = process.filter(|process| self.is_meant(&state, process)) else {
            return Ok(());
        };
        let is_new = self.seen.insert((id.to_owned(), process.pid));
        if is_new && !is_waiting(dir)? {
            let annotations = state.config.plain_annotations();
            let annotations = annotations.filter(|(key, _)| is_name_key(key));
            let annotations = annotations
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let ancestry = Ancestry::of(self.host, process.pid).with_config(&state.config_path);
            self.found.containers.push(Container {
                id: id.to_owned(),
                process,
                starter: starter(root, &state.config),
                user: root.user,
                names: ancestry.names(id, &annotations),
                config: state.config,
                config_path: state.config_path,
            });
        }
        Ok(())
    }

    /// Is this the process whose pid was noted, and not a later one with the same pid?
    fn is_meant(&self, state: &RuntimeState, process: &Process) -> bool {
        match state.start {
            Some(start) => process.start == start,
            None => {
                let boot_time = self.boot_time;
                let started = boot_time.and_then(|boot_time| process.started_at(boot_time));
                // A later process started after the pid was written. Both clocks count in seconds.
                started.is_some_and(|started| started <= state.written + 1)
            }
        }
    }
}

/// Does the first process still wait to be started? runc and crun have it wait at the FIFO
/// `exec.fifo`.
fn is_waiting(dir: &Path) -> Result<bool> {
    let fifo = dir.join("exec.fifo");
    match fifo.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if files::is_gone(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", fifo.display())),
    }
}

/// Tells who started a container. podman and CRI-O mark theirs with an annotation; containerd has a
/// namespace for each client, `moby` for docker.
fn starter(root: &Root, config: &Config) -> Starter {
    let mut annotations = config.plain_annotations();
    match annotations.find(|(key, _)| *key == "io.container.manager") {
        Some((_, "libpod")) => return Starter::Podman,
        Some((_, "cri-o")) => return Starter::Crio,
        _ => {}
    }
    match root.namespace.as_deref() {
        Some("moby") => Starter::Docker,
        Some("k8s.io") => Starter::Cri,
        Some(namespace) => Starter::Containerd(namespace.to_owned()),
        None => Starter::Runtime(root.runtime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};
    use std::os::unix::fs::symlink;

    const RUNC: &str = r#"{"id":"x","init_process_pid":PID,"init_process_start":START,"config":{
        "labels":["pinfold.io/pool=dp","bundle=/forged","a=b=c","bundle=/bundles/x"],
        "Hooks":{"prestart":null,
        "createRuntime":[{"args":["pinfold","hook","createRuntime","--conf-dir","/k"]}]}}}"#;
    const CRUN: &str = r#"{"pid":PID,"process-start-time":START,"bundle":"/bundles/x"}"#;
    const CONFIG: &str = r#"{"annotations":{"pinfold.io/pool":"dp","n":1},"hooks":{}}"#;

    struct PodmanMachine {
        dir: tempfile::TempDir,
    }

    impl PodmanMachine {
        /// A machine with a process 7, which started 500 ticks after boot.
        fn new() -> PodmanMachine {
            let machine = PodmanMachine {
                dir: tempfile::tempdir().unwrap(),
            };
            machine.put("proc/stat", "btime 1000000\n");
            let rest = "0 ".repeat(18);
            machine.put("proc/7/stat", &format!("7 (sleep) S {rest}500 0 0\n"));
            machine
        }

        fn put(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, text.as_bytes(), 0o600, Durability::Crash).unwrap();
        }

        fn running(&self) -> FoundContainers {
            running(&Host::new(self.dir.path()), Some("/srv/docker"))
        }

        /// The ids of the containers that are found, and who started them.
        fn found(&self) -> Vec<(String, Starter)> {
            let found = self.running();
            assert!(found.remarks.is_empty(), "{:?}", found.remarks);
            let found = found.containers.into_iter();
            found.map(|one| (one.id, one.starter)).collect()
        }
    }

    fn state(form: &str, pid: u32, start: u32) -> String {
        form.replace("PID", &pid.to_string())
            .replace("START", &start.to_string())
    }

    #[test]
    fn each_runtime_and_engine_is_found_in_its_own_place() {
        let runc = state(RUNC, 7, 500);
        for (file, text, starter) in [
            ("run/runc/x/state.json", &runc, Starter::Runtime("runc")),
            (
                "run/docker/runtime-runc/moby/x/state.json",
                &runc,
                Starter::Docker,
            ),
            (
                "run/docker/runtime-pinfold/moby/x/state.json",
                &runc,
                Starter::Docker,
            ),
            (
                "srv/docker/runtime-runc/moby/x/state.json",
                &runc,
                Starter::Docker,
            ),
            (
                "run/containerd/runc/k8s.io/x/state.json",
                &runc,
                Starter::Cri,
            ),
            (
                "run/containerd/runc/default/x/state.json",
                &runc,
                Starter::Containerd("default".into()),
            ),
        ] {
            let machine = PodmanMachine::new();
            machine.put(file, text);
            assert_eq!(machine.found(), [("x".to_owned(), starter)], "{file}");
            let found = machine.running().containers.remove(0);
            let annotations: Vec<_> = found.config.plain_annotations().collect();
            assert!(annotations.contains(&("pinfold.io/pool", "dp")), "{file}");
            assert!(annotations.contains(&("a", "b=c")), "{file}");
            assert_eq!(found.config.pinning_hooks(), [["--conf-dir", "/k"]]);
            let config = machine.dir.path().join("bundles/x/config.json");
            assert_eq!(found.config_path, config, "{file}");
        }
    }

    #[test]
    fn crun_keeps_a_copy_of_the_configuration_or_names_the_bundle() {
        for (config, starter) in [
            ("run/crun/x/config.json", Starter::Runtime("crun")),
            ("bundles/x/config.json", Starter::Podman),
        ] {
            let machine = PodmanMachine::new();
            machine.put("run/crun/x/status", &state(CRUN, 7, 500));
            assert!(machine.found().is_empty());
            let podman = CONFIG.replace(r#""n":1"#, r#""io.container.manager":"libpod""#);
            let is_podman = starter == Starter::Podman;
            machine.put(config, if is_podman { &podman } else { CONFIG });
            assert_eq!(machine.found(), [("x".to_owned(), starter)]);
        }
    }

    #[test]
    fn a_task_is_found_by_its_bundle_once() {
        let machine = PodmanMachine::new();
        let task = "run/containerd/io.containerd.runtime.v2.task/moby/x";
        machine.put(&format!("{task}/config.json"), CONFIG);
        machine.put(&format!("{task}/init.pid"), "7");
        assert_eq!(machine.found(), [("x".to_owned(), Starter::Docker)]);
        machine.put(
            "run/docker/runtime-runc/moby/x/state.json",
            &state(RUNC, 7, 500),
        );
        assert_eq!(machine.found().len(), 1);
        // Another process has the pid since: it is younger than the file.
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        machine.put("proc/stat", &format!("btime {}\n", now + 60));
        machine.put(
            "run/docker/runtime-runc/moby/x/state.json",
            &state(RUNC, 7, 499),
        );
        assert!(machine.found().is_empty());
    }

    #[test]
    fn what_is_gone_or_waits_or_belongs_to_others_is_none() {
        let file = "run/runc/x/state.json";
        for (pid, start) in [(8, 500), (7, 501), (0, 500)] {
            let machine = PodmanMachine::new();
            machine.put(file, &state(RUNC, pid, start));
            assert!(machine.found().is_empty(), "{pid} {start}");
        }
        let machine = PodmanMachine::new();
        machine.put(file, &state(RUNC, 7, 500));
        machine.put("run/runc/x/exec.fifo", "");
        assert!(machine.found().is_empty());
        let machine = PodmanMachine::new();
        machine.put("elsewhere/x/state.json", &state(RUNC, 7, 500));
        std::fs::create_dir_all(machine.dir.path().join("run/runc")).unwrap();
        symlink("../../elsewhere/x", machine.dir.path().join("run/runc/x")).unwrap();
        symlink("../elsewhere", machine.dir.path().join("run/crun")).unwrap();
        assert!(machine.found().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_rest_is_found() {
        let machine = PodmanMachine::new();
        machine.put("run/runc/x/state.json", &state(RUNC, 7, 500));
        machine.put("run/runc/others/state.json", r#"{"status":"running"}"#);
        machine.put("run/runc/.cache/y", "");
        machine.put("run/runc/a b/state.json", &state(RUNC, 7, 500));
        machine.put("run/crun/bad/status", "[");
        machine.put("run/crun/large/status", &" ".repeat(5 << 20));
        std::fs::create_dir_all(machine.dir.path().join("run/crun/link")).unwrap();
        symlink("/dev/zero", machine.dir.path().join("run/crun/link/status")).unwrap();
        let found = machine.running();
        assert_eq!(found.containers.len(), 1);
        let remarks = found.remarks.join("\n");
        assert_eq!(found.remarks.len(), 3, "{remarks}");
        for part in ["bad/status", "large/status", "link/status"] {
            assert!(remarks.contains(part), "{remarks}");
        }
    }
    #[test]
    fn what_is_not_looked_at_is_said() {
        let machine = PodmanMachine::new();
        let root = machine.dir.path().join("run/runc");
        for number in 0..=MOST_IN_A_ROOT {
            std::fs::create_dir_all(root.join(number.to_string())).unwrap();
        }
        let remarks = machine.running().remarks;
        assert!(
            remarks.len() == 1 && remarks[0].contains("more containers than are looked at (4096)"),
            "{remarks:?}"
        );
    }

    #[test]
    fn namespaces_that_are_not_looked_at_are_said() {
        let machine = PodmanMachine::new();
        let tasks = machine
            .dir
            .path()
            .join("run/containerd/io.containerd.runtime.v2.task");
        for number in 0..=1024 {
            std::fs::create_dir_all(tasks.join(number.to_string())).unwrap();
        }
        // What is no directory, and is not "not there" either.
        machine.put("run/user", "");
        let remarks = machine.running().remarks;
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].contains("more directories than are looked at (1024)"));
        assert!(remarks[1].contains("run/user"), "{remarks:?}");
    }
}
