//! Reads what the kernel says of processes and cgroups.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

use super::files::{ClaimFile, ClaimedGroup, RecordedProcess, cpus_in, is_gone};
use crate::host::Host;

pub(super) struct Machine {
    host: Host,
    pub(super) boot_id: String,
    pub(super) online: BTreeSet<u32>,
    /// Where the hierarchy with cpusets is mounted. `root` is the path of the group that is mounted
    /// there.
    mount: PathBuf,
    root: String,
    effective: &'static str,
}

/// Does a process exist?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// No, or it is dead and nobody has waited for it.
    Gone,
    /// Yes, and it started at this clock tick after boot.
    Since(u64),
    /// It cannot be told.
    Unknown,
}

impl Machine {
    pub(super) fn find(host: &Host) -> Result<Machine, String> {
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path);
            text.map_err(|error| format!("read {}: {error}", path.display()))
        };
        let mounts = read(host.mountinfo())?;
        let (mount, root, is_v1) = hierarchy(&mounts).ok_or("no cgroup hierarchy has cpusets")?;
        let online = read(host.sys_cpu("online"))?;
        Ok(Machine {
            host: host.clone(),
            boot_id: read(host.boot_id())?.trim().to_owned(),
            online: cpus_in(online.trim_end_matches('\0')).unwrap_or_default(),
            mount: host.path(&mount),
            root,
            effective: match is_v1 {
                true => "cpuset.effective_cpus",
                false => "cpuset.cpus.effective",
            },
        })
    }

    /// Is the owner of a claim alive? It is if a process is that the claim records, or any process
    /// in its group or, without a group, in the one that it awaits.
    pub(super) fn is_alive(&self, claim: &ClaimFile) -> io::Result<bool> {
        if claim.boot_id != self.boot_id {
            return Ok(false);
        }
        for process in &claim.processes {
            match self.presence(process.pid) {
                Presence::Unknown => return Ok(true),
                Presence::Since(start) if start == process.start => return Ok(true),
                _ => {}
            }
        }
        if let Some(group) = &claim.cgroup {
            return match self.directory(group) {
                Some(directory) => has_processes(&directory),
                None => Ok(false),
            };
        }
        let Some(directory) = claim.awaited.as_deref().and_then(|path| self.place(path)) else {
            return Ok(false);
        };
        let own = cpus_in_file(&directory.join("cpuset.cpus")).unwrap_or_default();
        let is_it = !own.is_empty() && own.is_subset(&claim.cpus);
        Ok(is_it && has_processes(&directory)?)
    }

    /// Looks for a process, in fields 3, 20 and 22 of proc_pid_stat(5). A leader that is a zombie
    /// while other threads run is not dead.
    pub(super) fn presence(&self, pid: i32) -> Presence {
        let stat = match std::fs::read(self.host.proc_pid(pid, "stat")) {
            Ok(stat) => String::from_utf8_lossy(&stat).into_owned(),
            Err(error) if is_gone(&error) => return Presence::Gone,
            Err(_) => return Presence::Unknown,
        };
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|text| text.parse().ok());
        match (fields.first(), number(17), number(19)) {
            (Some(&("Z" | "X")), Some(0 | 1), _) => Presence::Gone,
            (Some(_), Some(_), Some(start)) => Presence::Since(start),
            _ => Presence::Unknown,
        }
    }

    /// The CPUs that a process may run on; `None` if it is gone.
    pub(super) fn affinity(&self, process: &RecordedProcess) -> Option<BTreeSet<u32>> {
        let status = std::fs::read(self.host.proc_pid(process.pid, "status")).ok()?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let is_it = self.presence(process.pid) == Presence::Since(process.start);
        let mut lines = status.lines();
        let cpus = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        cpus_in(cpus).filter(|_| is_it)
    }

    /// The effective CPUs of a claim's group; `None` if another group has its path now, or no
    /// process is in it.
    pub(super) fn cpus_of_group(&self, group: &ClaimedGroup) -> Option<BTreeSet<u32>> {
        let directory = self.directory(group)?;
        let is_used = has_processes(&directory).ok()?;
        cpus_in_file(&directory.join(self.effective)).filter(|_| is_used)
    }

    /// The effective CPUs of the group above a claim's.
    pub(super) fn cpus_above_group(&self, group: &ClaimedGroup) -> Option<BTreeSet<u32>> {
        cpus_in_file(&self.directory(group)?.parent()?.join(self.effective))
    }

    fn directory(&self, group: &ClaimedGroup) -> Option<PathBuf> {
        let directory = self.place(&group.path)?;
        let inode = directory.symlink_metadata().ok()?.ino();
        (inode == group.inode).then_some(directory)
    }

    fn place(&self, path: &str) -> Option<PathBuf> {
        let below = path.strip_prefix(self.root.trim_end_matches('/'))?;
        Some(self.mount.join(below.trim_start_matches('/')))
    }

    /// The groups that Pinfold has made for users of this pool directory's lock.
    pub(super) fn groups_of_ours(&self, conf_dir: &Path) -> io::Result<Vec<OurGroup>> {
        let lock = conf_dir.join("lock").metadata()?;
        let key = format!("/pinfold/{:x}-{}", lock.dev(), lock.ino());
        let home = self.place(&key).ok_or(io::ErrorKind::NotFound)?;
        let groups = subdirectories(&home)?.into_iter();
        let look = |path: PathBuf| {
            Ok(OurGroup {
                inode: path.symlink_metadata()?.ino(),
                cpus: cpus_in_file(&path.join(self.effective)).unwrap_or_default(),
                is_empty: !has_processes(&path)?,
                path,
            })
        };
        groups.map(look).collect()
    }
}

/// A group that Pinfold has made.
pub(super) struct OurGroup {
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) cpus: BTreeSet<u32>,
    pub(super) is_empty: bool,
}

/// Finds the hierarchy with cpusets: the mount point, the group that is mounted there, and whether
/// it is of version 1, which is preferred (proc_pid_mountinfo(5)).
fn hierarchy(mounts: &str) -> Option<(String, String, bool)> {
    let found = mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let place: Vec<&str> = place.split(' ').collect();
        let kind: Vec<&str> = kind.split(' ').collect();
        let is_v1 = match *kind.first()? {
            "cgroup" if kind.get(2)?.split(',').any(|option| option == "cpuset") => true,
            "cgroup2" => false,
            _ => return None,
        };
        Some((
            place.get(4)?.replace("\\040", " "),
            (*place.get(3)?).to_owned(),
            is_v1,
        ))
    });
    found.min_by_key(|(_, root, is_v1)| (!is_v1, root.len()))
}

fn cpus_in_file(path: &Path) -> Option<BTreeSet<u32>> {
    cpus_in(&std::fs::read_to_string(path).ok()?)
}

/// Is there a process in a group, or in any below it? A threaded group lists none; the group above
/// does.
fn has_processes(directory: &Path) -> io::Result<bool> {
    match std::fs::read(directory.join("cgroup.procs")) {
        Ok(pids) if !pids.is_empty() => return Ok(true),
        Ok(_) => {}
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for child in subdirectories(directory)? {
        if has_processes(&child)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn subdirectories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        let is_directory =
            |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let directories = entries.iter().filter(|entry| is_directory(entry));
        Ok(directories.map(|entry| entry.path()).collect())
    };
    match list() {
        Err(error) if is_gone(&error) => Ok(vec![]),
        other => other,
    }
}
