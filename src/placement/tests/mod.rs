//! Tests of the use cases on a tree that stands for a machine with cgroup v2; its processes are
//! files.

mod accounting;
mod again;
mod booting;
mod by_default;
mod changing;
mod confining;
mod exact;
mod forced;
mod isolated;
mod listed;
mod looking;
mod made;
mod reaping;
mod starting;
mod supervised;
mod tuned;
mod unreadable;

use std::path::PathBuf;
use std::time::Duration;

use super::{Books, Site};
use crate::cgroup::cpuset;
use crate::claims::{Before, Claim, ClaimedGroup, Ledger, OwnerKind, VERSION};
use crate::cpulist::CpuSet;
use crate::files::{Durability, entry_if_there, read, replace};
use crate::host::Host;
use crate::names::Names;
use crate::process::Process;

/// No process of the real machine has this pid or a higher one (proc_sys_kernel(5), `pid_max`).
const FIRST: i32 = 1 << 22;

/// The boot id of the tree.
const BOOT: &str = "this-boot";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    /// A machine of eight CPUs, all allowed in every group, with a pool directory without pools.
    fn new() -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, content) in [
            (
                "proc/1/mountinfo",
                "40 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/sys/kernel/random/boot_id", BOOT),
            ("proc/sys/kernel/random/uuid", "a-nonce\n"),
            ("proc/stat", "cpu 1\nbtime 1000000\n"),
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-7\n"),
            (
                "sys/fs/cgroup/cgroup.subtree_control",
                "cpu cpuset memory\n",
            ),
            ("etc/kcm/lock", ""),
            ("etc/kcm/pools/.keep", ""),
        ] {
            machine.put(path, content);
        }
        machine.remove("etc/kcm/pools/.keep");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
    }

    fn is_there(&self, path: &str) -> bool {
        let entry = entry_if_there(&self.path(path)).unwrap();
        entry.is_some()
    }

    fn get(&self, path: &str) -> String {
        read(&self.path(path)).unwrap()
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.path(path)).unwrap();
    }

    /// Has reading a file fail, which is there; returns its text, for [`Machine::heal`].
    fn spoil(&self, path: &str) -> String {
        let text = self.get(path);
        self.remove(path);
        std::fs::create_dir(self.path(path)).unwrap();
        text
    }

    fn heal(&self, path: &str, text: &str) {
        std::fs::remove_dir(self.path(path)).unwrap();
        self.put(path, text);
    }

    /// Makes a pool of these lists. `exclusive` is the text of its file.
    fn pool(&self, name: &str, exclusive: &str, lists: &[&str]) {
        self.put(&format!("etc/kcm/pools/{name}/exclusive"), exclusive);
        for list in lists {
            self.put(&format!("etc/kcm/pools/{name}/{list}/tasks"), "");
        }
    }

    fn set_tasks(&self, pool: &str, list: &str, tasks: &str) {
        self.put(&format!("etc/kcm/pools/{pool}/{list}/tasks"), tasks);
    }

    fn tasks(&self, pool: &str, list: &str) -> String {
        self.get(&format!("etc/kcm/pools/{pool}/{list}/tasks"))
    }

    fn has_list(&self, pool: &str, list: &str) -> bool {
        self.is_there(&format!("etc/kcm/pools/{pool}/{list}"))
    }

    /// Makes a group without processes.
    fn group(&self, path: &str) {
        for (file, content) in [
            ("cgroup.procs", ""),
            ("cpuset.cpus", "\n"),
            ("cpuset.mems", "\n"),
            ("cpuset.cpus.effective", "0-7\n"),
        ] {
            self.put(&format!("sys/fs/cgroup{path}/{file}"), content);
        }
    }

    /// The value last written to a group's file: a write to a plain file leaves the rest of a
    /// longer old text on later lines.
    fn value(&self, group: &str, file: &str) -> String {
        let text = self.get(&format!("sys/fs/cgroup{group}/{file}"));
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Starts a process alone in a new group.
    fn start(&self, number: i32, group: &str) -> Process {
        let process = self.process(number);
        self.group(group);
        self.live(process, group);
        process
    }

    fn process(&self, number: i32) -> Process {
        Process {
            pid: FIRST + number,
            start: 1000 + u64::try_from(number).unwrap(),
        }
    }

    /// Starts a process in an existing group, where others may be.
    fn live(&self, process: Process, group: &str) {
        let Process { pid, start } = process;
        let zeros = "0 ".repeat(15);
        let stat = format!("{pid} (sleep) S 1 {zeros}1 0 {start} 0\n");
        self.put(&format!("proc/{pid}/stat"), &stat);
        self.put(&format!("proc/{pid}/cgroup"), &format!("0::{group}\n"));
        let procs = format!("sys/fs/cgroup{group}/cgroup.procs");
        let others = self.get(&procs);
        self.put(&procs, &format!("{others}{pid}\n"));
    }

    fn end(&self, process: Process, group: &str) {
        let procs = format!("sys/fs/cgroup{group}/cgroup.procs");
        let rest = self.get(&procs).replace(&format!("{}\n", process.pid), "");
        self.put(&procs, &rest);
        std::fs::remove_dir_all(self.path(&format!("proc/{}", process.pid))).unwrap();
    }

    fn site(&self) -> Site {
        let host = Host::new(self.dir.path());
        Site {
            conf_dir: host.default_conf_dir(),
            run_dir: host.default_run_dir(),
            patience: Duration::ZERO,
            deadline: None,
            usage: None,
            last: None,
            options: Default::default(),
            confines_host: false,
            host,
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.site().run_dir).unwrap()
    }

    /// Makes a pinned container as a start leaves it: in a group of its own, in the ledger and in
    /// `tasks`.
    fn pinned(&self, id: &str, number: i32, pool: &str, lists: &[&str]) -> Claim {
        let group = group_of(id);
        let process = self.start(number, &group);
        let claim = self.claim(id, process, pool, lists);
        self.put(
            &format!("sys/fs/cgroup{group}/cpuset.cpus"),
            &format!("{}\n", claim.cpus),
        );
        self.put(
            &format!("sys/fs/cgroup{group}/cpuset.cpus.effective"),
            &format!("{}\n", claim.cpus),
        );
        self.ledger().write(&claim).unwrap();
        for list in lists {
            let others = self.tasks(pool, list);
            let comma = if others.is_empty() { "" } else { "," };
            let pid = process.pid;
            self.set_tasks(pool, list, &format!("{others}{comma}{pid}"));
        }
        claim
    }

    /// A claim for it, not written, on the group that it has now.
    fn claim(&self, id: &str, owner: Process, pool: &str, lists: &[&str]) -> Claim {
        let path = group_of(id);
        Claim {
            version: VERSION,
            id: id.to_owned(),
            kind: OwnerKind::Container,
            names: Names::default(),
            nonce: None,
            awaited: None,
            boot_id: BOOT.to_owned(),
            owner,
            processes: vec![owner],
            pool: pool.to_owned(),
            lists: lists.iter().map(|list| (*list).to_owned()).collect(),
            cpus: cpus(&lists.join(",")),
            mems: None,
            cgroup: Some(self.claimed(&path)),
            isolation: None,
            tuning: Default::default(),
            by_default: false,
            unit_settings: Vec::new(),
            is_slow: false,
            is_exact: false,
            since: 1,
        }
    }

    /// What a claim records of a group that we did not make.
    fn claimed(&self, path: &str) -> ClaimedGroup {
        self.claimed_at("sys/fs/cgroup", path)
    }

    /// The same of a hierarchy that is mounted there.
    fn claimed_at(&self, mount: &str, path: &str) -> ClaimedGroup {
        use std::os::unix::fs::MetadataExt;
        let dir = self.path(&format!("{mount}{path}"));
        ClaimedGroup {
            path: path.to_owned(),
            inode: dir.metadata().unwrap().ino(),
            made: false,
            confined: true,
            before: Before::default(),
            moved_from: None,
        }
    }

    /// Has this id a claim?
    fn knows(&self, id: &str) -> bool {
        !self.ledger().of_id(id).unwrap().is_empty()
    }

    /// Makes a pinned container, and ends it; nothing has been freed yet.
    fn dead(&self, id: &str, number: i32, pool: &str, lists: &[&str]) -> Claim {
        let claim = self.pinned(id, number, pool, lists);
        self.end(claim.owner, &group_of(id));
        claim
    }
}

fn open(site: &Site) -> Books<'_> {
    let hierarchy = cpuset::hierarchy(&site.host).unwrap();
    site.open_books(hierarchy).unwrap()
}

/// The group of a container.
fn group_of(id: &str) -> String {
    format!("/machine.slice/{id}")
}

fn cpus(text: &str) -> CpuSet {
    text.parse().unwrap()
}

/// The text of an error with its remedy.
fn said<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    let error = result.unwrap_err();
    let refusal = crate::refusal::Refusal::of(&error);
    format!("{}: {}", refusal.what, refusal.remedy)
}
