//! A pool directory and a run directory in memory, a real cgroup, and real processes in it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use pinfold::cgroup::{Group, Hierarchy, cpuset};
use pinfold::claims::{Claim, Ledger, OwnerKind, VERSION};
use pinfold::cpulist::CpuSet;
use pinfold::host::Host;
use pinfold::names::Names;
use pinfold::process::{self, Process};

use crate::measure::{Program, Run, Tools};

/// The pool that is asked for.
pub(crate) const POOL: &str = "bench";

/// The pool that has the claims for which that one is too small.
const OTHER: &str = "other";

/// A shared pool whose list is the other CPU.
const CROWDED: &str = "crowded";

/// The CPU that is given: lists of the pool but for this one have owners, or are shared.
const CPU: u32 = 0;

/// How many lists the pool has that is not asked for.
const OTHER_LISTS: u32 = 8;

/// How large a site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    /// CPU lists of the pool.
    pub(crate) lists: u32,
    /// Live claims: on all lists of the pool but one, and the rest of them on another pool's.
    pub(crate) claims: u32,
    /// CPUs of the machine, where it is a made-up one.
    pub(crate) cpus: Option<u32>,
}

pub(crate) struct Site {
    dir: tempfile::TempDir,
    pinfold: String,
    size: Size,
    group: OwnGroup,
    /// The owner of all claims that are there.
    owner: Sleeper,
}

/// A process that waits, and ends with this.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn new() -> Sleeper {
        let child = Command::new("sleep").arg("100000").spawn();
        Sleeper(child.expect("execute sleep"))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id().try_into().expect("a pid")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It can have ended by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A group as a runtime makes it for a container.
pub(crate) struct OwnGroup {
    group: Group,
}

impl OwnGroup {
    /// In this parent, which is "" for the root.
    pub(crate) fn new(parent: &str, name: &str) -> OwnGroup {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{parent}/pinfoldbench{}n{number}{name}", std::process::id());
        if !parent.is_empty() {
            let parent = hierarchy().group(parent).expect("a path of a group");
            parent.make().expect("make the parent");
        }
        let group = hierarchy().group(&path).expect("a path of a group");
        group.make().expect("make a group");
        cpuset::enable(&group).expect("enable the cpuset controller");
        cpuset::inherit(&group).expect("let it inherit");
        OwnGroup { group }
    }

    /// Takes a process into it, with all CPUs again.
    pub(crate) fn adopt(&self, pid: i32) {
        let bound = cpuset::bound(&self.group).expect("what the groups above allow");
        cpuset::restore(&self.group, &bound.cpus.to_string(), None, || {
            Ok(bound.cpus.clone())
        })
        .expect("widen the group");
        self.group.adopt(pid).expect("move a process");
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        // What is left of it is seen by whoever looks.
        let _ = self.group.remove();
    }
}

fn hierarchy() -> Hierarchy {
    cpuset::hierarchy(&Host::new("/")).expect("there are cpusets")
}

impl Site {
    pub(crate) fn new(pinfold: &Path, size: Size) -> Site {
        Site::inside("", pinfold, size)
    }

    /// One whose container's group is in this one.
    pub(crate) fn inside(parent: &str, pinfold: &Path, size: Size) -> Site {
        let dir = tempfile::Builder::new()
            .prefix("pinfold-bench-")
            .tempdir_in("/dev/shm");
        let site = Site {
            dir: dir.expect("make a directory in memory"),
            pinfold: pinfold.display().to_string(),
            size,
            group: OwnGroup::new(parent, "s"),
            owner: Sleeper::new(),
        };
        site.make();
        site
    }

    fn make(&self) {
        let pools = self.conf().join("pools");
        // The CPU beside the one that is given is another pool's.
        let lists = (0..self.size.lists).map(|list| list_name(list).to_string());
        make_pool(&pools.join(POOL), "1", &lists.collect::<Vec<_>>());
        let others = (0..OTHER_LISTS).map(|list| list_name(self.size.lists + list).to_string());
        make_pool(&pools.join(OTHER), "0", &others.collect::<Vec<_>>());
        make_pool(&pools.join(CROWDED), "0", &[(CPU + 1).to_string()]);
        let lock = self.conf().join("lock");
        put(&lock, "", 0o600);
        if let Some(cpus) = self.size.cpus {
            make_machine(&self.root(), cpus);
        }
        // Makes the run directory, and its marks.
        self.cycle(None);
        let ledger = Ledger::open(&self.dir.path().join("run")).expect("open the ledger");
        let host = Host::new("/");
        let owner = Process::with_pid(&host, self.owner.pid()).expect("look at the owner");
        let boot_id = process::boot_id(&host).expect("read the boot's id");
        let mut tasks: Vec<(PathBuf, Vec<String>)> = Vec::new();
        for number in 1..=self.size.claims {
            let (pool, list) = match number < self.size.lists {
                true => (POOL, list_name(number)),
                false => (OTHER, list_name(self.size.lists + number % OTHER_LISTS)),
            };
            let claim = Claim {
                version: VERSION,
                id: format!("claim{number}"),
                kind: OwnerKind::Container,
                names: Names::default(),
                nonce: None,
                awaited: None,
                boot_id: boot_id.clone(),
                owner: owner.expect("the owner lives"),
                processes: owner.into_iter().collect(),
                pool: pool.to_owned(),
                lists: vec![list.to_string()],
                cpus: CpuSet::from_iter([list]),
                mems: None,
                cgroup: None,
                isolation: None,
                tuning: Default::default(),
                by_default: false,
                unit_settings: Vec::new(),
                is_slow: false,
                is_exact: false,
                since: 0,
            };
            ledger.write(&claim).expect("write a claim");
            let path = pools.join(pool).join(list.to_string()).join("tasks");
            let pid = self.owner.pid().to_string();
            match tasks.iter_mut().find(|(other, _)| *other == path) {
                Some((_, pids)) => pids.push(pid),
                None => tasks.push((path, vec![pid])),
            }
        }
        for (path, pids) in tasks {
            put(&path, &pids.join(","), 0o644);
        }
    }

    /// Does the kernel make partitions of groups that are not the root's children?
    pub(crate) fn has_partitions(&self) -> bool {
        self.group
            .group
            .dir()
            .join("cpuset.cpus.exclusive")
            .exists()
    }

    pub(crate) fn pinfold(&self) -> &str {
        &self.pinfold
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("conf")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("machine")
    }

    /// The options that name the site.
    pub(crate) fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        let mut add = |name: &str, path: PathBuf| {
            options.extend([name.to_owned(), path.display().to_string()]);
        };
        add("--conf-dir", self.conf());
        add("--run-dir", self.dir.path().join("run"));
        if self.size.cpus.is_some() {
            add("--host-root", self.root());
        }
        options
    }

    /// The configuration that names it.
    pub(crate) fn configuration(&self) -> String {
        let run = self.dir.path().join("run");
        format!(
            "conf-dir = '{}'\nrun-dir = '{}'\n",
            self.conf().display(),
            run.display()
        )
    }

    /// A hook of a container with this first process, which asks for a list or for none.
    pub(crate) fn hook(&self, stage: &str, pid: i32, asks: bool) -> Program {
        self.hook_of("web", stage, pid, asks.then_some(POOL))
    }

    /// One of many containers that ask for a list of a shared pool.
    pub(crate) fn shared_hook(&self, stage: &str, number: usize, pid: i32) -> Program {
        self.hook_of(&format!("web{number}"), stage, pid, Some(CROWDED))
    }

    fn hook_of(&self, id: &str, stage: &str, pid: i32, pool: Option<&str>) -> Program {
        let mut annotations = r#""io.container.manager":"libpod""#.to_owned();
        if let Some(pool) = pool {
            annotations += &format!(r#","pinfold.io/pool":"{pool}""#);
        }
        let status = if stage == "poststop" {
            "stopped"
        } else {
            "creating"
        };
        let state = format!(
            r#"{{"ociVersion":"1.0.2","id":"{id}","status":"{status}","pid":{pid},"bundle":"/b","annotations":{{{annotations}}}}}"#
        );
        let asks = pool.unwrap_or("nothing");
        let input = self.dir.path().join(format!("{stage}-{id}-{asks}"));
        std::fs::write(&input, state).expect("write a state");
        let mut words = vec![self.pinfold.as_str(), "hook", stage];
        let options = self.options();
        words.extend(options.iter().map(String::as_str));
        Program::new(&words, &input)
    }

    /// A container's start and its end, each as `run` does it.
    pub(crate) fn cycle_with<T>(&self, mut run: impl FnMut(&Program) -> T) -> (T, T) {
        let first_process = Sleeper::new();
        let pid = first_process.pid();
        self.group.adopt(pid);
        let start = run(&self.hook("createRuntime", pid, true));
        drop(first_process);
        let end = run(&self.hook("poststop", 0, true));
        (start, end)
    }

    /// Runs both; with tools it is measured.
    pub(crate) fn cycle(&self, tools: Option<&Tools>) -> Option<(Run, Run)> {
        let (start, end) = self.cycle_with(|hook| match tools {
            Some(tools) => Some(hook.run(tools)),
            None => {
                let mut words = hook.words.iter();
                let program = words.next().expect("a program");
                let input = std::fs::File::open(&hook.input).expect("open the state");
                let done = Command::new(program).args(words).stdin(input).output();
                let done = done.expect("execute a hook");
                let told = String::from_utf8_lossy(&done.stderr);
                assert!(done.status.success(), "{:?}: {told}", hook.words);
                None
            }
        });
        start.zip(end)
    }
}

/// The only CPU of a list: of the first it is one that every machine has, of others mostly none
/// that is there.
fn list_name(list: u32) -> u32 {
    if list == 0 { CPU } else { CPU + 1 + list }
}

fn make_pool(pool: &Path, exclusive: &str, lists: &[String]) {
    for list in lists {
        std::fs::create_dir_all(pool.join(list)).expect("make a list");
        put(&pool.join(list).join("tasks"), "", 0o644);
    }
    put(&pool.join("exclusive"), exclusive, 0o644);
}

fn put(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("set a file's mode");
}

/// A machine of two packages with so many CPUs, whose processes and groups are this one's.
fn make_machine(root: &Path, cpus: u32) {
    let cpu_dir = root.join("sys/devices/system/cpu");
    std::fs::create_dir_all(&cpu_dir).expect("make a machine");
    for name in ["online", "possible", "present"] {
        put(&cpu_dir.join(name), &format!("0-{}\n", cpus - 1), 0o444);
    }
    for node in 0..2 {
        let half = cpus / 2;
        let (first, last) = (node * half, (node + 1) * half - 1);
        let dir = root.join(format!("sys/devices/system/node/node{node}"));
        std::fs::create_dir_all(&dir).expect("make a node");
        put(&dir.join("cpulist"), &format!("{first}-{last}\n"), 0o444);
    }
    let nodes = root.join("sys/devices/system/node");
    for name in [
        "online",
        "possible",
        "has_cpu",
        "has_memory",
        "has_normal_memory",
    ] {
        put(&nodes.join(name), "0-1\n", 0o444);
    }
    for cpu in 0..cpus {
        let topology = cpu_dir.join(format!("cpu{cpu}/topology"));
        std::fs::create_dir_all(&topology).expect("make a CPU");
        let package = cpu / (cpus / 2);
        let first = package * (cpus / 2);
        for (name, text) in [
            ("physical_package_id", package.to_string()),
            ("core_id", cpu.to_string()),
            ("core_cpus_list", cpu.to_string()),
            ("thread_siblings_list", cpu.to_string()),
            (
                "package_cpus_list",
                format!("{first}-{}", first + cpus / 2 - 1),
            ),
        ] {
            put(&topology.join(name), &format!("{text}\n"), 0o444);
        }
    }
    std::fs::create_dir_all(root.join("sys/fs")).expect("make a machine");
    symlink("/sys/fs/cgroup", root.join("sys/fs/cgroup")).expect("link the groups");
    symlink("/proc", root.join("proc")).expect("link the processes");
}
