//! Walking through the groups below a group by directory descriptors (openat(2)). Whoever may make
//! groups can nest them deeper than a path can name, and make any number of them.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc::nlink_t;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Version;
use crate::files::{MOST_BYTES, read_bounded};

/// The link count of a directory that holds no directory, on file systems that count links: its
/// name in the parent, and its own `.`.
pub(super) const LINKS_OF_A_LEAF: u8 = 2;

/// Stands for a process whose number cannot be read; the kernel uses it for a process of another
/// pid namespace (cgroups(7)).
const UNNAMED: i32 = 0;

/// The most groups that are looked at, because others wait for the lock meanwhile. Version 1 has no
/// bound on their number; version 2 tells at once that no process is below a group, and its number
/// of groups can be bounded (cgroup-v2.rst, `cgroup.max.descendants`).
const MOST_GROUPS: usize = 1 << 16;

/// The most groups that are removed at once, for the same reason: removing takes longer than
/// looking.
const MOST_REMOVED: usize = 1 << 13;

/// A directory on the way from the top to where the walk is.
struct WalkLevel {
    /// The directory's inode: somebody may move groups during the walk (version 1).
    inode: u64,
    /// The groups in it that are still to be visited.
    left: Vec<CString>,
    /// Its name in the directory above.
    name: CString,
}

/// What is done at each group of a walk.
trait Visit {
    /// Called for the group `name` in `parent`, before the groups below it. `Continue(false)`
    /// leaves those below out, `Break` ends the walk.
    fn enter(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
    ) -> io::Result<ControlFlow<(), bool>>;
    /// Called for the group `name` in `parent`, after the groups below it. `Break` ends the walk.
    fn leave(&mut self, parent: &OwnedFd, name: &CStr) -> io::Result<ControlFlow<()>>;
}

/// Calls `found` with the processes of a group and of each group below it, one group at a time,
/// until it returns `Break`. Groups without processes, or gone, are left out. 0 stands for a
/// process that lives there and whose number cannot be read.
///
/// # Errors
/// A group cannot be read. More than [`MOST_GROUPS`] groups were looked at.
pub(super) fn processes(
    dir: &Path,
    version: Version,
    found: impl FnMut(Vec<i32>) -> ControlFlow<()>,
) -> io::Result<()> {
    processes_in(dir, version, found, LookLimit(MOST_GROUPS))
}

fn processes_in(
    dir: &Path,
    version: Version,
    found: impl FnMut(Vec<i32>) -> ControlFlow<()>,
    bound: LookLimit,
) -> io::Result<()> {
    let mut processes = Processes {
        version,
        found,
        has_found: false,
        bound,
    };
    walk(dir, &mut processes)?;
    // The processes of a group that is threaded itself (kernel: cgroup-v2.rst, "Threads") are in no
    // list at or below it.
    if !processes.has_found && version == Version::V2 && is_populated(dir)? {
        let _ = (processes.found)(vec![UNNAMED]);
    }
    Ok(())
}

/// Does a process live in the group or below it, as version 2 tells in one file (kernel:
/// cgroup-v2.rst, "[Un]populated Notification")?
fn is_populated(dir: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(dir.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(error) if crate::files::is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The directories of the groups with these inodes, relative to `dir`, which may be one of them.
///
/// # Errors
/// A group cannot be read. More than [`MOST_GROUPS`] groups were looked at.
pub(super) fn with_inodes(dir: &Path, inodes: &[u64]) -> io::Result<Vec<PathBuf>> {
    search(dir, inodes, MOST_GROUPS)
}

fn search(dir: &Path, inodes: &[u64], most: usize) -> io::Result<Vec<PathBuf>> {
    let mut search = Search {
        inodes,
        bound: LookLimit(most),
        at: PathBuf::new(),
        found: Vec::new(),
    };
    walk(dir, &mut search)?;
    Ok(search.found)
}

/// Removes the groups below `dir`, which stays. Returns `false` if a process is in one of them.
///
/// # Errors
/// A group cannot be removed. There are more than [`MOST_REMOVED`] groups: that many are gone then,
/// and the next call removes more.
pub(super) fn remove_below(dir: &Path) -> io::Result<bool> {
    remove_some_below(dir, MOST_REMOVED)
}

fn remove_some_below(dir: &Path, most: usize) -> io::Result<bool> {
    let mut removal = Removal {
        is_done: true,
        left: most,
    };
    walk(dir, &mut removal)?;
    Ok(removal.is_done)
}

fn walk(dir: &Path, visitor: &mut impl Visit) -> io::Result<()> {
    let mut at = match open(nix::fcntl::AT_FDCWD, dir) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        other => other?,
    };
    let mut above: Vec<WalkLevel> = Vec::new();
    let top = fstat(&at)?;
    let mut level = WalkLevel {
        inode: top.st_ino,
        left: Vec::new(),
        name: CString::default(),
    };
    match visitor.enter(&at, c".", &top)? {
        // As below: most groups have none below them.
        ControlFlow::Continue(true) if is_leaf_now(&at, c"")? => {}
        ControlFlow::Continue(true) => level.left = groups_in(&at)?,
        ControlFlow::Continue(false) => {}
        ControlFlow::Break(()) => return Ok(()),
    }
    loop {
        if let Some(name) = level.left.pop() {
            let stat = match fstatat(&at, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT | Errno::ENODEV) => continue,
                other => other?,
            };
            let enters = match visitor.enter(&at, &name, &stat)? {
                ControlFlow::Continue(enters) => enters,
                ControlFlow::Break(()) => return Ok(()),
            };
            // Most groups have none below them, and are not even opened.
            let has_below = enters && !is_leaf_now(&at, &name)?;
            let below = match has_below {
                true => open(at.as_fd(), name.as_c_str()),
                false => Err(Errno::ENOENT),
            };
            let below = match below {
                Err(Errno::ENOENT | Errno::ENODEV) => {
                    if visitor.leave(&at, &name)?.is_break() {
                        return Ok(());
                    }
                    continue;
                }
                other => other?,
            };
            let left = groups_in(&below)?;
            let inode = stat.st_ino;
            above.push(std::mem::replace(
                &mut level,
                WalkLevel { inode, left, name },
            ));
            at = below;
            continue;
        }
        let Some(parent) = above.pop() else {
            return Ok(());
        };
        at = open(at.as_fd(), c"..")?;
        if fstat(&at)?.st_ino != parent.inode {
            return Err(io::Error::other(
                "groups were moved while they were looked at",
            ));
        }
        if visitor.leave(&at, &level.name)?.is_break() {
            return Ok(());
        }
        level = parent;
    }
}

fn open<P: nix::NixPath + ?Sized>(at: impl AsFd, path: &P) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// Has the group `name` in `at` no group below it? With an empty name, `at` itself is asked. This
/// is asked only after its processes were read, so that a process that moves into a new group below
/// was seen before it moved.
fn is_leaf_now(at: &OwnedFd, name: &CStr) -> nix::Result<bool> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_EMPTY_PATH;
    match fstatat(at, name, flags) {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        other => Ok(other?.st_nlink == nlink_t::from(LINKS_OF_A_LEAF)),
    }
}

/// The names of the groups right below a group; empty if it is removed meanwhile.
fn groups_in(group: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    // A new descriptor has its own position in the directory.
    let mut dir = match Dir::openat(
        group,
        ".",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(names),
        other => other?,
    };
    for entry in dir.iter() {
        let entry = match entry {
            Err(Errno::ENOENT | Errno::ENODEV) => break,
            other => other?,
        };
        let name = entry.file_name();
        let is_directory = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => is_directory(group, name)?,
        };
        if is_directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_directory(group: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match fstatat(group, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads a file of the group `name` in `parent`; `None` where the file or the group is gone.
fn read(parent: &OwnedFd, name: &CStr, file: &str) -> io::Result<Option<String>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let path = [name.to_bytes(), b"/", file.as_bytes()].concat();
    let attempt = openat(parent, path.as_slice(), flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| read_bounded(File::from(file), MOST_BYTES));
    match attempt {
        Ok(text) => Ok(Some(text)),
        Err(error) if crate::files::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many more groups may be looked at.
struct LookLimit(usize);

impl LookLimit {
    /// Counts one more group.
    ///
    /// # Errors
    /// The limit is reached.
    fn count(&mut self) -> io::Result<()> {
        let many = "there are too many groups to look at: remove the empty ones (find DIRECTORY \
                    -depth -mindepth 1 -type d -exec rmdir {} +)";
        self.0 = self.0.checked_sub(1).ok_or(io::Error::other(many))?;
        Ok(())
    }
}

struct Processes<F> {
    version: Version,
    found: F,
    has_found: bool,
    bound: LookLimit,
}

impl<F: FnMut(Vec<i32>) -> ControlFlow<()>> Visit for Processes<F> {
    fn enter(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        _: &FileStat,
    ) -> io::Result<ControlFlow<(), bool>> {
        self.bound.count()?;
        // If version 2 says that nothing lives here or below (kernel: cgroup-v2.rst, "[Un]populated
        // Notification"), the groups below need not be visited.
        let events = match self.version {
            Version::V1 => String::new(),
            Version::V2 => read(parent, name, "cgroup.events")?.unwrap_or_default(),
        };
        if events.lines().any(|line| line == "populated 0") {
            return Ok(ControlFlow::Continue(false));
        }
        let text = match read(parent, name, "cgroup.procs") {
            // A threaded group (kernel: cgroup-v2.rst, "Threads") has no list of its own. Its
            // processes are in the list of the domain above it, which is the owner's too.
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => String::new(),
            other => other?.unwrap_or_default(),
        };
        let pids: Result<Vec<i32>, _> = text.lines().map(str::parse).collect();
        let pids = pids.map_err(io::Error::other)?;
        self.has_found |= !pids.is_empty();
        if !pids.is_empty() && (self.found)(pids).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(true))
    }

    fn leave(&mut self, _: &OwnedFd, _: &CStr) -> io::Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

struct Search<'a> {
    inodes: &'a [u64],
    bound: LookLimit,
    at: PathBuf,
    found: Vec<PathBuf>,
}

impl Visit for Search<'_> {
    fn enter(
        &mut self,
        _: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
    ) -> io::Result<ControlFlow<(), bool>> {
        self.bound.count()?;
        if name != c"." {
            self.at.push(OsStr::from_bytes(name.to_bytes()));
        }
        if self.inodes.contains(&stat.st_ino) {
            self.found.push(self.at.clone());
        }
        Ok(match self.found.len() == self.inodes.len() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(true),
        })
    }

    fn leave(&mut self, _: &OwnedFd, _: &CStr) -> io::Result<ControlFlow<()>> {
        self.at.pop();
        Ok(ControlFlow::Continue(()))
    }
}

struct Removal {
    is_done: bool,
    /// How many more groups may be removed.
    left: usize,
}

impl Visit for Removal {
    fn enter(&mut self, _: &OwnedFd, _: &CStr, _: &FileStat) -> io::Result<ControlFlow<(), bool>> {
        Ok(ControlFlow::Continue(true))
    }

    fn leave(&mut self, parent: &OwnedFd, name: &CStr) -> io::Result<ControlFlow<()>> {
        let many = "there were too many groups to remove at once: the others are removed next time";
        self.left = self.left.checked_sub(1).ok_or(io::Error::other(many))?;
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(ControlFlow::Continue(())),
            Err(Errno::EBUSY | Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.is_done = false;
                Ok(ControlFlow::Break(()))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    fn put(dir: &Path, file: &str, content: &str) {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
    }

    fn all(dir: &Path) -> Vec<i32> {
        let mut all = Vec::new();
        processes(dir, Version::V2, |pids| {
            all.extend(pids);
            ControlFlow::Continue(())
        })
        .unwrap();
        all.sort_unstable();
        all
    }

    #[test]
    fn processes_are_found_in_every_group_that_has_some() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "cgroup.procs", "1\n");
        put(dir.path(), "a/cgroup.procs", "2\n3\n");
        put(dir.path(), "a/b/c/cgroup.procs", "4\n");
        put(dir.path(), "d/cgroup.procs", "5\n");
        assert_eq!(all(dir.path()), [1, 2, 3, 4, 5]);
        put(dir.path(), "a/cgroup.events", "populated 0\nfrozen 0\n");
        assert_eq!(all(dir.path()), [1, 5]);
        assert!(all(&dir.path().join("gone")).is_empty());
        let mut visits = 0;
        let enough = |_| {
            visits += 1;
            ControlFlow::Break(())
        };
        processes(dir.path(), Version::V1, enough).unwrap();
        assert_eq!(visits, 1);
    }

    #[test]
    fn groups_without_number_are_not_all_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..10 {
            put(dir.path(), &format!("{number}/cgroup.procs"), "");
        }
        // The topmost group counts too.
        let looked = |most| {
            let found = |_| ControlFlow::Continue(());
            processes_in(dir.path(), Version::V1, found, LookLimit(most))
        };
        assert!(looked(11).is_ok());
        let error = looked(10).unwrap_err().to_string();
        assert!(error.contains("too many groups"), "{error}");
    }

    #[test]
    fn what_lives_in_a_group_counts_though_nothing_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for (events, named, found) in [
            ("populated 1\nfrozen 0\n", "", &[UNNAMED][..]),
            ("populated 1\nfrozen 0\n", "7\n", &[7]),
            ("populated 0\nfrozen 0\n", "", &[]),
        ] {
            put(dir.path(), "cgroup.events", events);
            put(dir.path(), "threads/cgroup.procs", named);
            assert_eq!(all(dir.path()), found, "{events:?} {named:?}");
        }
    }

    #[test]
    fn groups_are_found_by_their_inodes_and_not_for_ever() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let names = [".", "a", "a/b", "a/b/c", "d", "e/f"];
        for name in names {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let inode = |name: &str| dir.path().join(name).metadata().unwrap().ino();
        let found = |wanted: &[u64]| with_inodes(dir.path(), wanted).unwrap();
        for name in names {
            let below = name.trim_start_matches('.');
            assert_eq!(found(&[inode(name)]), [Path::new(below)], "{name}");
        }
        let mut both = found(&[inode("d"), inode("a/b"), u64::MAX]);
        both.sort();
        assert_eq!(both, [Path::new("a/b"), Path::new("d")]);
        let error = search(dir.path(), &[u64::MAX], names.len()).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
        assert!(search(dir.path(), &[u64::MAX], names.len() + 1).is_ok());
    }

    #[test]
    fn groups_without_number_are_removed_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..10 {
            std::fs::create_dir_all(dir.path().join(format!("{number}/below"))).unwrap();
        }
        for _ in 0..2 {
            let error = remove_some_below(dir.path(), 8).unwrap_err().to_string();
            assert!(error.contains("too many groups"), "{error}");
        }
        assert!(remove_some_below(dir.path(), 8).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn groups_deeper_than_a_path_can_name_are_walked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let name = CString::new("n".repeat(250)).unwrap();
        let mut at = open(nix::fcntl::AT_FDCWD, dir.path()).unwrap();
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&at, name.as_c_str(), Mode::S_IRWXU).unwrap();
            at = open(at.as_fd(), name.as_c_str()).unwrap();
        }
        assert!(all(dir.path()).is_empty());
        assert!(remove_below(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
