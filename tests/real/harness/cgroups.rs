//! The machine's cpuset hierarchy as tests see it, v1 and v2 alike.

use crate::process;
use nix::libc;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The hierarchy that confines processes to CPUs.
pub(crate) struct Hierarchy {
    pub(crate) version: u8,
    pub(crate) root: PathBuf,
}

/// The hierarchy of this machine: v1 where its cpuset controller is mounted, else v2.
pub(crate) fn hierarchy() -> &'static Hierarchy {
    static FOUND: OnceLock<Hierarchy> = OnceLock::new();
    FOUND.get_or_init(|| {
        let v1 = mounts()
            .into_iter()
            .find(|mount| mount.kind == "cgroup" && mount.has_option("cpuset"));
        let found = v1.map(|mount| Hierarchy {
            version: 1,
            root: mount.path,
        });
        let v2 = || mounts().into_iter().find(|mount| mount.kind == "cgroup2");
        let found = found.or_else(|| {
            Some(Hierarchy {
                version: 2,
                root: v2()?.path,
            })
        });
        found.expect("a cgroup hierarchy is mounted")
    })
}

/// A unified hierarchy that holds controllers beside a v1 cpuset, which crun refuses to work with.
pub(crate) fn unified_in_the_way() -> Option<PathBuf> {
    let mount = mounts().into_iter().find(|mount| mount.kind == "cgroup2")?;
    let controllers = std::fs::read_to_string(mount.path.join("cgroup.controllers")).ok()?;
    (hierarchy().version == 1 && !controllers.trim().is_empty()).then_some(mount.path)
}

impl Hierarchy {
    /// The cpuset cgroup of a process.
    pub(crate) fn of(&self, pid: i32) -> PathBuf {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .expect("read the cgroup of a live process");
        let path = text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = match self.version {
                1 => controllers.split(',').any(|name| name == "cpuset"),
                _ => line.starts_with("0::"),
            };
            ours.then(|| path.trim_start_matches('/'))
        });
        self.root
            .join(path.expect("the process has a cpuset cgroup"))
    }

    /// All CPUs that a process at the root may use.
    pub(crate) fn all_cpus(&self) -> String {
        let name = if self.version == 1 {
            "cpuset.cpus"
        } else {
            "cpuset.cpus.effective"
        };
        let text = std::fs::read_to_string(self.root.join(name))
            .expect("read the CPUs of the root cgroup");
        text.trim().to_owned()
    }

    /// What the mask of a cgroup reads when nobody has narrowed it.
    pub(crate) fn unnarrowed(&self) -> String {
        if self.version == 1 {
            self.all_cpus()
        } else {
            String::new()
        }
    }

    /// Makes a cgroup at the top, ready to hold processes.
    pub(crate) fn make(&self, name: &str) -> PathBuf {
        self.make_inside(&self.root, name)
    }

    /// Makes a cgroup below another, with that one's CPUs.
    pub(crate) fn make_inside(&self, parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        std::fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        if self.version == 1 {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value =
                    std::fs::read_to_string(parent.join(file)).expect("read the parent's cpuset");
                write(&path.join(file), value.trim());
            }
        }
        path
    }
}

/// The mask of a cgroup; empty where it has none of its own.
pub(crate) fn mask(cgroup: &Path) -> String {
    std::fs::read_to_string(cgroup.join("cpuset.cpus"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The processes of a cgroup and of the cgroups below it.
pub(crate) fn processes(cgroup: &Path) -> Vec<i32> {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let own = own.lines().filter_map(|line| line.parse().ok());
    own.chain(children(cgroup).iter().flat_map(|child| processes(child)))
        .collect()
}

/// Confines a cgroup to these CPUs, from outside of pinfold.
pub(crate) fn narrow(cgroup: &Path, cpus: &str) {
    if hierarchy().version == 2 {
        let parent = cgroup.parent().expect("not the root of the hierarchy");
        write(&parent.join("cgroup.subtree_control"), "+cpuset");
    }
    write(&cgroup.join("cpuset.cpus"), cpus);
}

pub(crate) fn enter(cgroup: &Path, pid: i32) {
    write(&cgroup.join("cgroup.procs"), &pid.to_string());
}

/// Every cgroup below another.
pub(crate) fn below(cgroup: &Path) -> Vec<PathBuf> {
    let children = children(cgroup);
    let deeper: Vec<PathBuf> = children.iter().flat_map(|child| below(child)).collect();
    [children, deeper].concat()
}

/// Every cgroup at the top of any hierarchy whose name begins with `prefix`.
pub(crate) fn named(prefix: &str) -> Vec<PathBuf> {
    let tops = mounts()
        .into_iter()
        .filter(|mount| mount.kind.starts_with("cgroup"))
        .map(|mount| mount.path);
    let found = tops.flat_map(|top| children(&top));
    found
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect()
}

/// Kills what lives in these cgroups and removes them. What cannot be removed is left for the
/// caller to find.
pub(crate) fn clear(cgroups: &[PathBuf]) {
    let deadline = std::time::Instant::now() + process::patience();
    loop {
        let left: Vec<i32> = cgroups
            .iter()
            .flat_map(|cgroup| processes(cgroup))
            .collect();
        if left.is_empty() || std::time::Instant::now() > deadline {
            break;
        }
        left.iter()
            .for_each(|&pid| process::send(pid, libc::SIGKILL));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    cgroups.iter().for_each(|cgroup| remove(cgroup));
}

fn remove(cgroup: &Path) {
    children(cgroup).iter().for_each(|child| remove(child));
    let _ = std::fs::remove_dir(cgroup);
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn write(file: &Path, value: &str) {
    std::fs::write(file, value)
        .unwrap_or_else(|error| panic!("write {value} to {}: {error}", file.display()));
}

struct Mount {
    path: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }
}

/// Where version 1 has a controller.
pub(crate) fn mount_with(controller: &str) -> PathBuf {
    let mut mounts = mounts().into_iter();
    let found = mounts.find(|mount| mount.kind == "cgroup" && mount.has_option(controller));
    found.expect("the controller is mounted").path
}

fn mounts() -> Vec<Mount> {
    let text = std::fs::read_to_string("/proc/self/mounts").expect("read the mounts");
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1).map(str::to_owned);
        Some(Mount {
            path: fields.next()?.into(),
            kind: fields.next()?,
            options: fields.next()?,
        })
    };
    text.lines().filter_map(mount).collect()
}

/// A file that cannot be written while this lives, for root neither.
pub(crate) struct ReadOnly(PathBuf);

impl ReadOnly {
    pub(crate) fn new(file: &Path) -> ReadOnly {
        let mount = |options: &[&str]| {
            let mut mount = Command::new("mount");
            process::run(mount.args(options).arg(file).arg(file)).ok();
        };
        mount(&["--bind"]);
        mount(&["-o", "remount,bind,ro"]);
        ReadOnly(file.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
