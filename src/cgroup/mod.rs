//! Process groups (cgroups) of versions 1 and 2 behind one interface. The groups know no
//! controller: each controller is a file of its own that uses them ([`cpuset`], [`cpuacct`],
//! [`cpu`], [`pressure`]).

pub mod cpu;
pub mod cpuacct;
pub mod cpuset;
pub mod of_config;
pub mod partition;
pub mod pressure;
mod roll;
#[cfg(test)]
pub(crate) mod standin;
pub mod systemd;
mod values;
mod walk;

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;

pub use roll::Roll;

use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;
use crate::text::Shown;

/// The group below which all groups that we make lie. Each pool directory has a group of its own in
/// it, named by the key of its lock.
const OUR_PARENT: &str = "/pinfold";

/// How often a group is made again if another pool directory's program removes the empty parent in
/// that moment.
const MAKE_TRIES: u32 = 10;

/// One of the kernel's two cgroup interfaces (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Version 1: a hierarchy for each controller, or for some together.
    V1,
    /// Version 2: one hierarchy for all.
    V2,
}

/// The mounted hierarchy that holds a controller.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// Its version.
    pub version: Version,
    controller: &'static str,
    mount: PathBuf,
    /// The path of the group at the mount point: `/`, except in a container (proc_pid_mountinfo(5),
    /// field 4).
    root: String,
}

/// A group of processes, given by its path. It need not exist.
#[derive(Debug, Clone)]
pub struct Group {
    version: Version,
    mount: PathBuf,
    path: String,
    dir: PathBuf,
}

/// The mounts, read once for all controllers that are looked for.
#[derive(Debug)]
pub struct Mounts<'a> {
    host: &'a Host,
    /// `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    text: String,
}

impl Mounts<'_> {
    /// Reads the mounts.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(host: &Host) -> Result<Mounts<'_>> {
        let text = files::read(&host.mountinfo())?;
        Ok(Mounts { host, text })
    }

    /// Finds the hierarchy of a controller. Version 1 comes first: on a machine with both, a
    /// controller that is bound to version 1 is missing in version 2.
    ///
    /// # Errors
    /// None is mounted.
    pub fn hierarchy(&self, controller: &'static str) -> Result<Hierarchy> {
        let path = self.host.mountinfo();
        // A machine with many containers has thousands of other mounts.
        let lines = self.text.lines().filter(|line| line.contains("cgroup"));
        let mounts = lines.filter_map(|line| Mount::parse(line, controller));
        let mounts: Vec<Mount> = mounts.collect();
        let find = |version| {
            let mut found: Vec<&Mount> = mounts.iter().filter(|m| m.version == version).collect();
            found.sort_by_key(|mount| mount.root.len());
            found.first().map(|mount| Hierarchy {
                version,
                controller,
                mount: self.host.path(&mount.point),
                root: mount.root.clone(),
            })
        };
        let found = find(Version::V1).or_else(|| find(Version::V2));
        let none = || {
            Refusal::new(
                format!(
                    "{} shows no cgroup hierarchy with {controller}",
                    path.display()
                ),
                format!("mount cgroup2, or cgroup with the option {controller}"),
            )
        };
        Ok(found.ok_or_else(none)?)
    }
}

impl Hierarchy {
    /// The hierarchy as most machines have it, for a captured machine without mountinfo.
    pub fn usual(host: &Host, controller: &'static str) -> Hierarchy {
        Hierarchy {
            version: Version::V2,
            controller,
            mount: host.path("/sys/fs/cgroup"),
            root: "/".to_owned(),
        }
    }

    /// Finds the hierarchy of a controller.
    ///
    /// # Errors
    /// The mounts cannot be read, or no such hierarchy is among them.
    pub fn of(host: &Host, controller: &'static str) -> Result<Hierarchy> {
        Mounts::read(host)?.hierarchy(controller)
    }

    /// The group that a process is in; `None` where the process is gone.
    ///
    /// # Errors
    /// The process's file cannot be read, names no group of this hierarchy, or names one outside of
    /// our cgroup namespace or mount.
    pub fn group_of(&self, host: &Host, pid: i32) -> Result<Option<Group>> {
        let path = host.proc_pid(pid, "cgroup");
        let Some(text) = files::read_record_if_there(&path)? else {
            return Ok(None);
        };
        let group = self
            .group_in(&text)
            .with_context(|| format!("read {}: no {} group", path.display(), self.controller))?;
        self.group(group).map(Some)
    }

    /// The path for this hierarchy in `/proc/<pid>/cgroup`, whose lines are `id:controllers:path`
    /// (cgroups(7)).
    fn group_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.line_in(text).map(|(_, path)| path)
    }

    /// The number that the kernel has for the hierarchy, where it is one, and the path of the group
    /// in it, from the text of `/proc/<pid>/cgroup`.
    pub fn line_in<'a>(&self, text: &'a str) -> Option<(Option<u32>, &'a str)> {
        text.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_ours = match self.version {
                Version::V1 => controllers.split(',').any(|name| name == self.controller),
                Version::V2 => id == "0" && controllers.is_empty(),
            };
            is_ours.then_some((id.parse().ok(), path))
        })
    }

    /// The group of this path, whether it exists or not.
    ///
    /// # Errors
    /// The path lies outside of our cgroup namespace, or of what is mounted.
    pub fn group(&self, path: &str) -> Result<Group> {
        ensure!(
            path.starts_with('/') && !path.split('/').any(|part| part == ".."),
            Refusal::new(
                format!(
                    "the cgroup {} belongs to another cgroup namespace",
                    Shown(path)
                ),
                "run Pinfold in the one of the host"
            )
        );
        let below = match path.strip_prefix(self.root.trim_end_matches('/')) {
            Some(below) if below.is_empty() || below.starts_with('/') => below,
            _ => bail!(Refusal::new(
                format!(
                    "the cgroup {} lies outside {}, which is what {} shows",
                    Shown(path),
                    Shown(&self.root),
                    self.mount.display()
                ),
                "mount the whole hierarchy"
            )),
        };
        Ok(Group {
            version: self.version,
            mount: self.mount.clone(),
            path: path.to_owned(),
            dir: self.mount.join(below.trim_start_matches('/')),
        })
    }

    /// The groups with these inodes, anywhere in the hierarchy.
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many.
    pub fn groups_with(&self, inodes: &[u64]) -> Result<Vec<Group>> {
        if inodes.is_empty() {
            return Ok(Vec::new());
        }
        let top = self.top()?;
        let found = walk::with_inodes(&top.dir, inodes);
        let found =
            found.with_context(|| format!("look for groups below {}", top.dir.display()))?;
        let below = |path: PathBuf| match path.as_os_str().is_empty() {
            true => top.clone(),
            false => Group {
                dir: top.dir.join(&path),
                ..top.child(&path.to_string_lossy())
            },
        };
        Ok(found.into_iter().map(below).collect())
    }

    /// The topmost group that can be seen from here.
    ///
    /// # Errors
    /// It lies outside of our cgroup namespace.
    pub fn top(&self) -> Result<Group> {
        self.group(&self.root)
    }

    /// `/pinfold`, the parent of all groups that we make, whether it exists or not.
    ///
    /// # Errors
    /// As [`Hierarchy::group`].
    pub fn parent_of_ours(&self) -> Result<Group> {
        self.group(OUR_PARENT)
    }

    /// `/pinfold/<key>`: the parent of the groups of one pool directory, named by the key of its
    /// lock.
    ///
    /// # Errors
    /// As [`Hierarchy::group`].
    pub fn parent_for(&self, key: &str) -> Result<Group> {
        self.group(&format!("{OUR_PARENT}/{key}"))
    }
}

/// The lock key in the path of a group that Pinfold made for an owner, of whatever pool directory;
/// `None` where it is no such path.
pub fn lock_key_in(path: &str) -> Option<&str> {
    let below = path.strip_prefix(OUR_PARENT)?.strip_prefix('/')?;
    below.split_once('/').map(|(key, _)| key)
}

/// Is the process in a group with this path, or below it, in any hierarchy? `false` where the
/// process is gone, and where the path is `/`.
///
/// # Errors
/// The process's file cannot be read.
pub fn is_in_any(host: &Host, pid: i32, path: &str) -> Result<bool> {
    let text = files::read_if_there(&host.proc_pid(pid, "cgroup"))?.unwrap_or_default();
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    Ok(paths.any(|other| {
        let below = other.strip_prefix(path);
        path != "/" && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }))
}

impl Group {
    /// The cgroup version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path as the kernel writes it in `/proc/<pid>/cgroup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory of its control files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The inode, which tells the group from a later one of the same path; `None` where it is gone.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn inode(&self) -> Result<Option<u64>> {
        match self.dir.symlink_metadata() {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if files::is_gone(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look at {}", self.dir.display())),
        }
    }

    /// The processes in this group itself; empty where it is gone. 0 stands for a process of
    /// another pid namespace.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let path = self.procs_file();
        let text = match files::read_if_there(&path) {
            // A threaded group (kernel: cgroup-v2.rst, "Threads") has no list of its own. Its
            // processes are in the list of the domain above it, which is the owner's too.
            Err(error) if is_not_supported(&error) => String::new(),
            other => other?.unwrap_or_default(),
        };
        let pids = text.lines().map(str::parse).collect::<Result<_, _>>();
        pids.with_context(|| format!("read {}", path.display()))
    }

    /// All processes in this group and in the groups below it.
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many.
    pub fn all_pids(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        self.look_for(|pids| {
            all.extend(pids);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Is this process in the group, or below it, and no other process?
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many.
    pub fn is_of(&self, pid: i32) -> Result<bool> {
        let (mut is_there, mut are_others) = (false, false);
        self.look_for(|pids| {
            is_there |= pids.contains(&pid);
            are_others |= pids.iter().any(|other| *other != pid);
            match are_others {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok(is_there && !are_others)
    }

    /// Is there any process in this group, or below it?
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many before one with a process.
    pub fn is_populated(&self) -> Result<bool> {
        let mut is_populated = false;
        self.look_for(|_| {
            is_populated = true;
            ControlFlow::Break(())
        })?;
        Ok(is_populated)
    }

    /// Calls `found` with the processes of this group and of each group below it, one group at a
    /// time, until it returns `Break`. Groups without processes are left out.
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many.
    pub fn look_for(&self, found: impl FnMut(Vec<i32>) -> ControlFlow<()>) -> Result<()> {
        let looked = walk::processes(&self.dir, self.version, found);
        looked.with_context(|| format!("look for processes in {}", self.dir.display()))
    }

    /// The groups right below this one. Their names may be any bytes.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn children(&self) -> Result<Vec<Group>> {
        let child = |dir: PathBuf| {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            Group {
                dir: dir.clone(),
                ..self.child(&name)
            }
        };
        let dirs = files::directory_paths_in(&self.dir)?;
        Ok(dirs.into_iter().map(child).collect())
    }

    /// The group of this name right below this one, whether it exists or not.
    pub fn child(&self, name: &str) -> Group {
        Group {
            version: self.version,
            mount: self.mount.clone(),
            path: format!("{}/{name}", self.path.trim_end_matches('/')),
            dir: self.dir.join(name),
        }
    }

    /// Is `other` below this group, at any depth?
    pub fn is_above(&self, other: &Group) -> bool {
        let prefix = format!("{}/", self.path.trim_end_matches('/'));
        other.path != self.path && other.path.starts_with(&prefix)
    }

    /// The group above; `None` at the mount point.
    pub fn parent(&self) -> Option<Group> {
        if self.dir == self.mount {
            return None;
        }
        let path = match self.path.rsplit_once('/') {
            None | Some(("", _)) => "/",
            Some((parent, _)) => parent,
        };
        Some(Group {
            version: self.version,
            mount: self.mount.clone(),
            path: path.to_owned(),
            dir: self.dir.parent()?.to_owned(),
        })
    }

    /// Makes the group, and those above it that are missing. A group that exists is success.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(&self) -> Result<()> {
        let mut made = std::fs::create_dir_all(&self.dir);
        for _ in 1..MAKE_TRIES {
            match &made {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
            made = std::fs::create_dir_all(&self.dir);
        }
        made.with_context(|| format!("make the cgroup {}", self.dir.display()))
    }

    /// Removes the group and those below it, if no process is in any of them, then our parents
    /// above it if they are empty. Returns `false` if a process is in one of them. A group that is
    /// gone is success.
    ///
    /// # Errors
    /// A group cannot be looked at or removed, or there are too many.
    pub fn remove(&self) -> Result<bool> {
        if self.is_populated()? {
            return Ok(false);
        }
        let removed = walk::remove_below(&self.dir);
        let removed =
            removed.with_context(|| format!("remove the groups below {}", self.dir.display()))?;
        if !removed || !files::remove_empty_directory(&self.dir)? {
            return Ok(false);
        }
        let mut parent = self.parent();
        while let Some(group) = parent.filter(|group| group.is_parent_of_ours()) {
            // The parents are everybody's who uses Pinfold: root's, and no user's to remove.
            let removed = match files::remove_empty_directory(&group.dir) {
                Err(error) if files::is_denied(&error) => false,
                removed => removed?,
            };
            if !removed {
                break;
            }
            parent = group.parent();
        }
        Ok(true)
    }

    /// Is this `/pinfold` or `/pinfold/<lock key>`?
    pub fn is_parent_of_ours(&self) -> bool {
        let below = self.path.strip_prefix(OUR_PARENT);
        let is_key = |below: &str| below.rfind('/') == Some(0);
        below.is_some_and(|below| below.is_empty() || is_key(below))
    }

    /// Moves a process with all its threads into this group.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        let path = self.procs_file();
        files::write_kernel(&path, &pid.to_string())
            .with_context(|| format!("move process {pid} into {}", self.dir.display()))
    }

    /// `cgroup.procs`. A process moves itself into the group by writing `0` to it (cgroups(7)).
    pub fn procs_file(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

fn is_not_supported(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::EOPNOTSUPP)
}

/// A mounted hierarchy that may hold the controller.
struct Mount {
    version: Version,
    root: String,
    point: String,
}

impl Mount {
    /// Parses a line of `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)); `None` if it is no
    /// hierarchy that can hold the controller.
    fn parse(line: &str, controller: &str) -> Option<Mount> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", options) if options.split(',').any(|o| o == controller) => Version::V1,
            _ => return None,
        };
        Some(Mount {
            version,
            root: unescape(place.next()?),
            point: unescape(place.next()?),
        })
    }
}

/// Decodes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    const V1: &str = "31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset";
    const V2: &str = "40 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    fn host(mountinfo: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proc/1/mountinfo");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        replace(&path, mountinfo.as_bytes(), 0o644, Durability::Crash).unwrap();
        let host = Host::new(dir.path());
        (dir, host)
    }

    #[test]
    fn version_1_comes_first_and_the_controller_is_a_whole_word() {
        for (mounts, version, dir) in [
            (
                format!("{V2}\n{V1}\n"),
                Version::V1,
                "sys/fs/cgroup/cpuset/a",
            ),
            (format!("{V2}\n"), Version::V2, "sys/fs/cgroup/unified/a"),
            (
                format!("{}\n{V2}\n", V1.replace("rw,cpuset", "rw,cpusetx")),
                Version::V2,
                "sys/fs/cgroup/unified/a",
            ),
            (
                "1 2 0:3 / /c\\040d rw - cgroup cgroup rw,cpu,cpuset".into(),
                Version::V1,
                "c d/a",
            ),
        ] {
            let (root, host) = host(&mounts);
            let hierarchy = Hierarchy::of(&host, "cpuset").unwrap();
            assert_eq!(hierarchy.version, version, "{mounts}");
            let group = hierarchy.group("/a").unwrap();
            assert_eq!(group.dir(), root.path().join(dir), "{mounts}");
        }
        let (_dir, host) = host("1 2 0:3 / /proc rw - proc proc rw");
        assert!(Hierarchy::of(&host, "cpuset").is_err());
    }

    #[test]
    fn the_parents_of_our_groups_are_told_from_those_that_begin_like_them() {
        for (path, is_one) in [
            ("/pinfold", true),
            ("/pinfold/2c-7", true),
            ("/pinfold/2c-7/web-1-2", false),
            ("/pinfold.slice", false),
            ("/pinfold.slice/web.scope", false),
            ("/pinfold-tests/narrow", false),
            ("/", false),
        ] {
            let group = Hierarchy::usual(&Host::new("/"), "cpuset")
                .group(path)
                .unwrap();
            assert_eq!(group.is_parent_of_ours(), is_one, "{path}");
        }
    }

    #[test]
    fn groups_are_found_in_the_lines_of_a_process() {
        let lines = "9:name=systemd:/s\n3:cpu,cpuset:/a:b/c\n0::/user.slice\n";
        for (mounts, path) in [(V1, "/a:b/c"), (V2, "/user.slice")] {
            let (_dir, host) = host(mounts);
            let hierarchy = Hierarchy::of(&host, "cpuset").unwrap();
            assert_eq!(hierarchy.group_in(lines), Some(path));
        }
    }

    #[test]
    fn paths_outside_what_is_mounted_are_refused() {
        let (_dir, host) = host(&V2.replace(" / /sys", " /docker/x /sys"));
        let hierarchy = Hierarchy::of(&host, "cpuset").unwrap();
        assert!(
            hierarchy
                .group("/docker/x/y")
                .unwrap()
                .dir()
                .ends_with("unified/y")
        );
        assert!(hierarchy.group("/docker/x").unwrap().parent().is_none());
        for path in ["/docker/xy", "/", "/../a", "/docker/x/../../b", "a"] {
            assert!(hierarchy.group(path).is_err(), "{path}");
        }
    }

    #[test]
    fn parents_end_at_the_mount_point() {
        let (_dir, host) = host(V2);
        let group = Hierarchy::of(&host, "cpuset")
            .unwrap()
            .group("/a/b")
            .unwrap();
        let parent = group.parent().unwrap();
        assert_eq!(parent.path(), "/a");
        assert_eq!(parent.parent().unwrap().path(), "/");
        assert!(parent.parent().unwrap().parent().is_none());
    }
}
