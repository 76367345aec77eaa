//! Reads a directory's entries with few system calls: std's `read_dir` makes one more.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, statat};

use super::is_gone;

/// The size of the buffer, in bytes: the names of a thousand CPU lists.
const AT_A_TIME: usize = 32 << 10;
/// So many entries there is room for at first.
const USUAL: usize = 64;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The entry's name.
    pub name: OsString,
    kind: FileType,
}

impl DirectoryEntry {
    /// Is it a directory itself, not a link to one?
    pub fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Is it a symbolic link?
    pub fn is_symlink(&self) -> bool {
        self.kind == FileType::Symlink
    }

    /// The entry's name as text; `None` if it is not UTF-8.
    pub fn into_name(self) -> Option<String> {
        self.name.into_string().ok()
    }
}

/// All entries of a directory, unsorted; none if there is no directory. An entry that vanishes
/// before its type is known is left out.
///
/// # Errors
/// The directory cannot be read, or an entry whose type it does not give (readdir(3), `DT_UNKNOWN`)
/// cannot be looked at.
pub fn entries_in(directory: &Path) -> Result<Vec<DirectoryEntry>> {
    match read(directory) {
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        other => other.with_context(|| format!("list {}", directory.display())),
    }
}

fn read(directory: &Path) -> io::Result<Vec<DirectoryEntry>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, directory, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); AT_A_TIME];
    let mut raw = RawDir::new(&file, &mut buffer);
    let mut entries = Vec::with_capacity(USUAL);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if let Some(kind) = kind_of(file.as_fd(), name, entry.file_type())? {
            entries.push(DirectoryEntry {
                name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                kind,
            });
        }
    }
    Ok(entries)
}

fn kind_of(directory: BorrowedFd<'_>, name: &CStr, told: FileType) -> io::Result<Option<FileType>> {
    if told != FileType::Unknown {
        return Ok(Some(told));
    }
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_told_once_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        // More entries than one getdents64(2) returns.
        for number in 0..2000 {
            std::fs::create_dir(dir.path().join(format!("directory{number}"))).unwrap();
        }
        let file = dir.path().join("file");
        crate::files::replace(&file, b"", 0o600, crate::files::Durability::Crash).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let mut entries = entries_in(dir.path()).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(entries.len(), 2002);
        assert_eq!(
            entries.iter().filter(|entry| entry.is_directory()).count(),
            2000
        );
        assert!(entries[2001].is_symlink() && entries[2001].name == "link");
        assert!(!entries[2000].is_directory() && !entries[2000].is_symlink());
        assert_eq!(entries_in(&dir.path().join("no")).unwrap(), []);
        // Whoever asks what an error says asks for std's.
        let error = entries_in(&dir.path().join("file")).unwrap_err();
        let error = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
