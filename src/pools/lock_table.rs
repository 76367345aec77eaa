//! The kernel's table of locks, `/proc/locks` (proc_locks(5)): who holds a file's lock, and who
//! waits for it.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use crate::files;
use crate::host::Host;

/// A file as the table names it: by the device of its file system, and its inode.
///
/// That device can differ from the one that stat(2) gives: a subvolume of btrfs and a file of
/// overlayfs have their own there. The right one is the device of the file's mount
/// (proc_pid_mountinfo(5), field 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) major: u64,
    pub(super) minor: u64,
    pub(super) inode: u64,
}

impl FileId {
    /// The identity of an open file.
    pub(super) fn of(host: &Host, file: &File) -> Result<FileId> {
        let metadata = file.metadata().context("look at the lock")?;
        let told = FileId::told(&metadata);
        // The table of mounts of another root does not have the mount of a file that is open here.
        if !host.is_running_root() {
            return Ok(told);
        }
        let own = std::process::id() as i32;
        let info = host.proc_pid(own, &format!("fdinfo/{}", file.as_raw_fd()));
        let info = files::read_if_there(&info)?.unwrap_or_default();
        let mounts = files::read_if_there(&host.mountinfo())?.unwrap_or_default();
        let device = device_of_mount(&info, &mounts);
        Ok(device.map_or(told, |(major, minor)| FileId {
            major,
            minor,
            ..told
        }))
    }

    /// The identity by stat(2).
    fn told(metadata: &Metadata) -> FileId {
        FileId::by_device(metadata.dev(), metadata.ino())
    }

    /// The identity of a file with this device (stat(2), `st_dev`) and inode.
    pub(super) fn by_device(device: u64, inode: u64) -> FileId {
        FileId {
            major: major(device),
            minor: minor(device),
            inode,
        }
    }

    /// The pid of a process that holds a lock on the file, in the text `locks`.
    pub(super) fn holder_in(self, locks: &str) -> Option<i32> {
        let mut entries = locks.lines().filter_map(TableLock::parse);
        let holder = entries.find(|entry| !entry.waits && self.is_in(entry));
        holder.map(|entry| entry.pid)
    }

    /// Does anybody hold an exclusive lock on the file? Who only looks holds a shared one.
    pub(super) fn is_kept_in(self, locks: &str) -> bool {
        let mut entries = locks.lines().filter_map(TableLock::parse);
        entries.any(|entry| !entry.waits && !entry.is_shared && self.is_in(&entry))
    }

    /// The pids of all who hold a lock on the file or wait for it.
    pub(super) fn users_in(self, locks: &str) -> Vec<i32> {
        let entries = locks.lines().filter_map(TableLock::parse);
        let users = entries.filter(|entry| self.is_in(entry));
        users.map(|entry| entry.pid).collect()
    }

    fn is_in(self, entry: &TableLock<'_>) -> bool {
        let FileId {
            major,
            minor,
            inode,
        } = self;
        entry.file == format!("{major:02x}:{minor:02x}:{inode}")
    }
}

/// An entry of the table made by flock(2).
struct TableLock<'a> {
    waits: bool,
    is_shared: bool,
    pid: i32,
    file: &'a str,
}

impl TableLock<'_> {
    fn parse(line: &str) -> Option<TableLock<'_>> {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        if words.next()? != "FLOCK" {
            return None;
        }
        let mut words = words.skip(1);
        Some(TableLock {
            waits,
            is_shared: words.next()? == "READ",
            pid: words.next()?.parse().ok()?,
            file: words.next()?,
        })
    }
}

/// The device of the mount that an open file is on. `info` is the text of its `fdinfo`, whose
/// `mnt_id` (proc_pid_fdinfo(5)) names a line in `mounts`.
fn device_of_mount(info: &str, mounts: &str) -> Option<(u64, u64)> {
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    let id = id.trim();
    let line = mounts.lines().find_map(|line| {
        let (own, rest) = line.split_once(' ')?;
        (own == id).then_some(rest)
    })?;
    let (major, minor) = line.split(' ').nth(1)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_and_users_are_read_from_the_table() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 15 00:2a:77 0 EOF\n";
        let place = |major, minor| FileId {
            major,
            minor,
            inode: 77,
        };
        assert_eq!(place(0xfe, 0).holder_in(locks), Some(13));
        assert_eq!(place(0xfe, 0).users_in(locks), [13, 14]);
        assert_eq!(place(0xfd, 0).holder_in(locks), None);
        assert!(place(0xfe, 0).is_kept_in(locks));
        let looked_at = locks.replace("WRITE 13", "READ 13");
        assert!(!place(0xfe, 0).is_kept_in(&looked_at));
        assert_eq!(place(0xfe, 0).holder_in(&looked_at), Some(13));
        // File systems without a block device have device numbers too, and each can have an inode
        // 77.
        assert_eq!(place(0, 0x2a).users_in(locks), [15]);
        assert!(place(0, 0x2b).users_in(locks).is_empty());
    }

    #[test]
    fn the_mount_tells_the_device_of_the_table() {
        let info = "pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t257\n";
        let mounts = "28 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      29 28 0:42 /root /etc/kcm rw shared:1 - btrfs /dev/vdb rw,subvol=/root\n";
        assert_eq!(device_of_mount(info, mounts), Some((0, 42)));
        assert_eq!(device_of_mount("pos:\t0\n", mounts), None);
        assert_eq!(device_of_mount("mnt_id:\t7\n", mounts), None);
    }
}
