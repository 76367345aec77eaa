//! Walking through the groups below one, by directory descriptors (openat(2)): whoever may make
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

/// The links to a directory without directories in it, on a file system that counts them: its name,
/// and its own `.`.
pub(super) const LINKS_OF_A_LEAF: u8 = 2;

/// What stands for a process whose number is not to be had, as for one of another pid namespace
/// (cgroups(7)).
const UNNAMED: i32 = 0;

/// So many groups are looked at: others wait for the lock meanwhile. Version 1 bounds their number
/// nowhere; version 2 says at once where nobody lives below, and lets their number be bounded
/// (cgroup-v2.rst, `cgroup.max.descendants`).
const MOST_GROUPS: usize = 1 << 16;

/// So many groups are removed at once, for the same reason: removing one takes longer than a look.
const MOST_REMOVED: usize = 1 << 13;

/// One level of a walk that is on its way down.
struct WalkLevel {
    /// What tells this directory from any other: somebody may move groups meanwhile (version 1).
    inode: u64,
    /// The groups in it that are still to be visited.
    left: Vec<CString>,
    /// Its name in the one above.
    name: CString,
}

/// What a visitor of groups does.
trait Visit {
    /// Comes to the group of this name in another, before those below it; where it has none to tell
    /// of, those are left out.
    fn enter(
        &mut self,
        parent: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
    ) -> io::Result<ControlFlow<(), bool>>;
    /// Leaves a group of this name, after those below it.
    fn leave(&mut self, parent: &OwnedFd, name: &CStr) -> io::Result<ControlFlow<()>>;
}

/// Hands the processes of a group, and of those below it, to `found`, group by group, until that
/// has enough. A group that is gone has none; 0 stands for one that lives there and that nothing
/// names.
///
/// # Errors
/// Also more groups than [`MOST_GROUPS`], unless there was enough before.
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
    // Of a group that is threaded itself (kernel: cgroup-v2.rst, "Threads") no file here names a
    // process.
    if !processes.has_found && version == Version::V2 && is_populated(dir)? {
        let _ = (processes.found)(vec![UNNAMED]);
    }
    Ok(())
}

/// Version 2 says of a group and all below it whether anything lives there (kernel: cgroup-v2.rst,
/// "[Un]populated Notification").
fn is_populated(dir: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(dir.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(error) if crate::files::is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The directories of the groups with these inodes, from the one where the search begins.
///
/// # Errors
/// Also more groups than [`MOST_GROUPS`].
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

/// Removes the groups below one, which stays; `false` where a process is in one of them.
///
/// # Errors
/// Also more groups than [`MOST_REMOVED`]: so many are gone then, and the next to ask removes more.
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
        // As below: most groups have none.
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
            // Most groups have none below: those are not even opened.
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

/// Has a group none below it? Asked once its processes were looked for: who moves into a new one
/// below is found there. Without a name it is the group itself.
fn is_leaf_now(at: &OwnedFd, name: &CStr) -> nix::Result<bool> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_EMPTY_PATH;
    match fstatat(at, name, flags) {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        other => Ok(other?.st_nlink == nlink_t::from(LINKS_OF_A_LEAF)),
    }
}

/// The names of the groups in one. One that is removed meanwhile has none.
fn groups_in(group: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    // A descriptor of its own, whose place in the directory is its own too.
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

/// Reads a file of the group of this name in another; `None` where there is none, or the group is
/// gone.
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

/// How many groups may still be looked at.
struct LookLimit(usize);

impl LookLimit {
    /// Looks at one more.
    fn count(&mut self) -> io::Result<()> {
        let many = "there are too many groups to look at: remove the empty ones (find DIRECTORY -depth -mindepth 1 -type d -exec rmdir {} +)";
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
        // Version 2 tells of all groups below at once (kernel: cgroup-v2.rst, "[Un]populated
        // Notification").
        let events = match self.version {
            Version::V1 => String::new(),
            Version::V2 => read(parent, name, "cgroup.events")?.unwrap_or_default(),
        };
        if events.lines().any(|line| line == "populated 0") {
            return Ok(ControlFlow::Continue(false));
        }
        let text = match read(parent, name, "cgroup.procs") {
            // A threaded group (kernel: cgroup-v2.rst, "Threads") has no list of its own: the
            // domain above it, which is the owner's too, names its processes.
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
    /// How many may still be removed.
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
        // The first is the one that they are below.
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
