//! A machine of eight CPUs in two NUMA nodes, made of files, with this machine's processes; its
//! books; and the program that serves it.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pinfold::claims::{Claim, Ledger, OwnerKind, VERSION};
use pinfold::host::Host;
use pinfold::install::{DeviceKind, Place, apply, plan_cdi};
use pinfold::names::Names;
use pinfold::placement::Site;
use pinfold::process::{Process, boot_id};

use crate::fake::PATIENCE;

pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    /// With these lists in its pools: `dp/0-1`, a `!` for an exclusive pool; and their CDI devices.
    pub(crate) fn with(lists: &[&str]) -> Machine {
        let machine = Machine::without_cdi(lists);
        machine.write_cdi();
        machine
    }

    /// The same without a CDI file.
    pub(crate) fn without_cdi(lists: &[&str]) -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
        };
        symlink("/proc", machine.path("proc")).unwrap();
        for (file, content) in [
            ("cpu/online", "0-7\n"),
            ("cpu/present", "0-7\n"),
            ("node/online", "0-1\n"),
            ("node/has_cpu", "0-1\n"),
            ("node/node0/cpulist", "0-3\n"),
            ("node/node1/cpulist", "4-7\n"),
        ] {
            machine.put(&format!("sys/devices/system/{file}"), content);
        }
        machine.put("kcm/lock", "");
        machine.mode("kcm/lock", 0o600);
        fs::create_dir(machine.path("kcm/pools")).unwrap();
        machine.mode("kcm/pools", 0o755);
        for list in lists {
            machine.add(list);
        }
        machine
    }

    /// Adds a list, and its pool where that is missing.
    pub(crate) fn add(&self, list: &str) {
        let (pool, cpus) = list.split_once('/').unwrap();
        let (pool, content) = match pool.strip_suffix('!') {
            Some(pool) => (pool, "1"),
            None => (pool, "0"),
        };
        // A pool appears as a whole.
        let half = format!("kcm/.{pool}.half");
        let whole = self.path(&format!("kcm/pools/{pool}"));
        let place = match whole.exists() {
            true => format!("kcm/pools/{pool}"),
            false => half.clone(),
        };
        self.put(&format!("{place}/exclusive"), content);
        self.put(&format!("{place}/{cpus}/tasks"), "");
        if place == half {
            fs::rename(self.path(&half), whole).unwrap();
        }
    }

    /// Has somebody who is none of Pinfold's own a list.
    pub(crate) fn set_tasks(&self, list: &str, pids: &[u32]) {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        self.put(&format!("kcm/pools/{list}/tasks"), &pids.join(","));
    }

    /// Has a container own a list: one that the kubelet started, if it is of a pod.
    pub(crate) fn claim(&self, list: &str, process: u32, pod: Option<&str>) {
        let (pool, cpus) = list.split_once('/').unwrap();
        let host = Host::new(self.dir.path());
        let pid = i32::try_from(process).unwrap();
        let owner = Process::with_pid(&host, pid).unwrap().unwrap();
        let claim = Claim {
            version: VERSION,
            id: format!("container-{}", cpus.replace(',', "-")),
            kind: OwnerKind::Container,
            names: Names {
                engine: Some(
                    if pod.is_some() {
                        "containerd"
                    } else {
                        "podman"
                    }
                    .to_owned(),
                ),
                name: Some("web".to_owned()),
                pod: pod.map(str::to_owned),
                namespace: pod.map(|_| "prod".to_owned()),
                unit: None,
            },
            nonce: None,
            awaited: None,
            boot_id: boot_id(&host).unwrap(),
            owner,
            processes: vec![owner],
            pool: pool.to_owned(),
            lists: vec![cpus.to_owned()],
            cpus: cpus.parse().unwrap(),
            mems: None,
            by_default: false,
            cgroup: None,
            isolation: None,
            tuning: Default::default(),
            unit_settings: Vec::new(),
            is_slow: false,
            is_exact: false,
            since: 1,
        };
        let ledger = Ledger::open(&self.path("run")).unwrap();
        ledger.write(&claim).unwrap();
        self.set_tasks(list, &[process]);
    }

    /// Writes the CDI file of its lists, as `pinfold cdi --lists` does.
    pub(crate) fn write_cdi(&self) {
        let host = Host::new(self.dir.path());
        let conf_dir = self.path("kcm");
        let site = Site {
            conf_dir: conf_dir.clone(),
            run_dir: self.path("run"),
            patience: Duration::ZERO,
            deadline: None,
            usage: None,
            last: None,
            options: Default::default(),
            confines_host: false,
            host,
        };
        let place = Place {
            hook_options: vec!["--conf-dir".to_owned(), conf_dir.display().to_string()],
            ..Place::default_on(&site.host)
        };
        let program = "/usr/local/bin/pinfold";
        apply(&plan_cdi(&site, &place, DeviceKind::Lists, program).unwrap()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn kubelet(&self) -> PathBuf {
        self.path("kubelet")
    }

    pub(crate) fn socket(&self, pool: &str) -> PathBuf {
        self.path(&format!("kubelet/device-plugins/pinfold-{pool}.sock"))
    }

    /// Replaces a file as a whole, and makes the directories above it.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("new-");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, &path).unwrap();
        // Whatever the umask is, what is here can be trusted.
        for ancestor in PathBuf::from(name).ancestors().skip(1) {
            self.mode(ancestor.to_str().unwrap(), 0o755);
        }
        self.mode(name, 0o644);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Starts the program on it.
    pub(crate) fn start(&self, arguments: &[&str]) -> Node {
        let stderr = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold-node"));
        command
            .args(["run", "-v", "--host-root"])
            .arg(self.dir.path());
        for (option, name) in [
            ("--conf-dir", "kcm"),
            ("--run-dir", "run"),
            ("--kubelet-dir", "kubelet"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        let command = command.args(arguments).env_remove("PINFOLD_LOG");
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = File::options().append(true).open(stderr.path()).unwrap();
        Node {
            child: command.stderr(log).spawn().unwrap(),
            log: stderr,
        }
    }
}

/// The program, which is killed when it is dropped.
pub(crate) struct Node {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Waits until the log has this part, and returns it.
    pub(crate) async fn says(&self, part: &str) -> String {
        eventually(part, || self.log().contains(part)).await;
        self.log()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it runs on: {}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A process that lives until it is dropped.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn new() -> Sleeper {
        Sleeper(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
