//! A picture of a directory tree, to show that nothing in it changed.

use nix::libc;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Every path below some directories, and what was seen there.
pub(crate) struct Snapshot(BTreeMap<PathBuf, Seen>);

#[derive(PartialEq)]
struct Seen {
    inode: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
    content: Vec<u8>,
}

impl Snapshot {
    pub(crate) fn of(dirs: &[&Path]) -> Snapshot {
        let mut seen = BTreeMap::new();
        for dir in dirs {
            look(dir, &mut seen)
                .unwrap_or_else(|error| panic!("look at {}: {error}", dir.display()));
        }
        Snapshot(seen)
    }

    #[track_caller]
    pub(crate) fn assert_same(&self, later: &Snapshot, when: &str) {
        let paths = self.0.keys().chain(later.0.keys());
        let changed: Vec<_> = paths
            .filter(|path| self.0.get(*path) != later.0.get(*path))
            .collect();
        assert!(changed.is_empty(), "{when}: changed: {changed:?}");
    }

    /// The same files with the same modes and contents, though they may have been written anew.
    /// Whether a directory that is empty was there before, nobody can tell who comes later.
    #[track_caller]
    pub(crate) fn assert_same_content(&self, later: &Snapshot, when: &str) {
        let content = |snapshot: &Snapshot, path: &PathBuf| {
            let seen = snapshot.0.get(path)?;
            let is_directory = seen.mode & libc::S_IFMT == libc::S_IFDIR;
            (!is_directory).then(|| (seen.mode, seen.content.clone()))
        };
        let paths = self.0.keys().chain(later.0.keys());
        let changed: Vec<_> = paths
            .filter(|path| content(self, path) != content(later, path))
            .collect();
        assert!(changed.is_empty(), "{when}: changed: {changed:?}");
    }
}

/// What is kept of a refusal for `pinfold why`, and counted for `pinfold metrics`, is no part of
/// the books.
fn is_of_refusals(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("refusals") || name == "counters")
}

fn look(path: &Path, seen: &mut BTreeMap<PathBuf, Seen>) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    let content = match meta.file_type() {
        kind if kind.is_file() => std::fs::read(path)?,
        kind if kind.is_symlink() => std::fs::read_link(path)?
            .into_os_string()
            .into_encoded_bytes(),
        _ => Vec::new(),
    };
    let name = path.file_name().unwrap_or_default();
    let keeps_refusals = meta.is_dir() && (name == "run" || name == "pinfold");
    let times = |seconds, nanoseconds| match keeps_refusals {
        true => (0, 0),
        false => (seconds, nanoseconds),
    };
    let modified = times(meta.mtime(), meta.mtime_nsec());
    let changed = times(meta.ctime(), meta.ctime_nsec());
    seen.insert(
        path.into(),
        Seen {
            inode: meta.ino(),
            mode: meta.mode(),
            modified,
            changed,
            content,
        },
    );
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?.path();
            if !is_of_refusals(&entry) {
                look(&entry, seen)?;
            }
        }
    }
    Ok(())
}
