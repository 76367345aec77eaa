//! The errors that each system call can give, by its manual page and by what file systems are known for.
//!
//! "Not there" (ENOENT, and ESRCH or ENODEV of a kernel file) is none of them: of what is there it would be a lie.

use nix::libc::{self, c_long};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    number: c_long,
    /// Of a write: how many bytes.
    length: u64,
}

/// A call's number, its name, and its errors.
type Row = (c_long, &'static str, &'static [i32]);

use libc::{
    E2BIG, EACCES, EAGAIN, EBUSY, EDQUOT, EINTR, EINVAL, EIO, ELOOP, EMFILE, EMLINK, ENFILE,
    ENOLCK, ENOMEM, ENOSPC, ENOSYS, EPERM, EPIPE, EROFS, ESRCH, ESTALE, EXDEV,
};

const OPEN: &[i32] = &[
    EACCES, EIO, EINTR, EMFILE, ENFILE, ENOMEM, ELOOP, ESTALE, EROFS, ENOSPC, EPERM,
];
const LOOK: &[i32] = &[EACCES, EIO, EINTR, ENOMEM, ELOOP, ESTALE];
const CHANGE: &[i32] = &[
    EACCES, EIO, ENOMEM, ENOSPC, EDQUOT, EROFS, EPERM, EBUSY, ESTALE, EMLINK, ELOOP,
];
const READ: &[i32] = &[EIO, EINTR, ENOMEM, EACCES, ESTALE];
const WRITE: &[i32] = &[
    EIO, EINTR, ENOSPC, EDQUOT, EPIPE, EACCES, EBUSY, EINVAL, ENOMEM,
];
const SYNC: &[i32] = &[EIO, ENOSPC, EROFS, EINTR];
const MODE: &[i32] = &[EIO, EPERM, EROFS, EINTR, ENOMEM];
/// connect(2) and send(2) of a local socket.
const TALK: &[i32] = &[EACCES, EAGAIN, ENOMEM, EPIPE, EINTR];

const CALLS: &[Row] = &[
    (libc::SYS_openat, "openat", OPEN),
    (libc::SYS_statx, "statx", LOOK),
    (libc::SYS_newfstatat, "newfstatat", LOOK),
    (libc::SYS_fstat, "fstat", &[EIO, EACCES, ENOMEM, ESTALE]),
    (libc::SYS_statfs, "statfs", LOOK),
    (libc::SYS_faccessat, "faccessat", LOOK),
    (libc::SYS_readlinkat, "readlinkat", LOOK),
    (libc::SYS_getdents64, "getdents64", READ),
    (libc::SYS_read, "read", READ),
    (libc::SYS_pread64, "pread64", READ),
    (libc::SYS_write, "write", WRITE),
    (libc::SYS_writev, "writev", WRITE),
    (libc::SYS_lseek, "lseek", &[EINVAL, EIO]),
    (libc::SYS_mkdirat, "mkdirat", CHANGE),
    (libc::SYS_unlinkat, "unlinkat", CHANGE),
    (libc::SYS_symlinkat, "symlinkat", CHANGE),
    (libc::SYS_linkat, "linkat", CHANGE),
    (libc::SYS_renameat, "renameat", CHANGE),
    (libc::SYS_renameat2, "renameat2", CHANGE),
    (libc::SYS_fchmod, "fchmod", MODE),
    (libc::SYS_fchmodat, "fchmodat", MODE),
    (libc::SYS_fchown, "fchown", MODE),
    (libc::SYS_fsync, "fsync", SYNC),
    (libc::SYS_fdatasync, "fdatasync", SYNC),
    (libc::SYS_flock, "flock", &[EINTR, ENOLCK, EAGAIN]),
    (libc::SYS_fcntl, "fcntl", &[EMFILE, EINTR]),
    (libc::SYS_ioctl, "ioctl", &[EIO]),
    (libc::SYS_ppoll, "ppoll", &[EINTR, ENOMEM]),
    (
        libc::SYS_sched_setaffinity,
        "sched_setaffinity",
        &[EPERM, ESRCH, EINVAL],
    ),
    (
        libc::SYS_sched_getaffinity,
        "sched_getaffinity",
        &[ESRCH, ENOMEM, EPERM],
    ),
    (libc::SYS_kill, "kill", &[EPERM]),
    (libc::SYS_getrandom, "getrandom", &[EINTR, ENOSYS]),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", &[EINTR]),
    (libc::SYS_wait4, "wait4", &[EINTR]),
    (libc::SYS_waitid, "waitid", &[EINTR]),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", &[EINTR]),
    (libc::SYS_clone, "clone", &[EAGAIN, ENOMEM]),
    (libc::SYS_clone3, "clone3", &[EAGAIN, ENOMEM]),
    (libc::SYS_execve, "execve", &[EACCES, EIO, ENOMEM, E2BIG]),
    (libc::SYS_pipe2, "pipe2", &[EMFILE, ENFILE]),
    (
        libc::SYS_socket,
        "socket",
        &[EMFILE, ENFILE, ENOMEM, EACCES],
    ),
    (
        libc::SYS_socketpair,
        "socketpair",
        &[EMFILE, ENFILE, ENOMEM],
    ),
    (libc::SYS_connect, "connect", TALK),
    (libc::SYS_sendto, "sendto", TALK),
    // recv(2): of a pair whose other end is there, nothing else.
    (libc::SYS_recvfrom, "recvfrom", &[EINTR]),
    (libc::SYS_capset, "capset", &[EPERM]),
    (libc::SYS_prctl, "prctl", &[EPERM, EINVAL]),
    (libc::SYS_setitimer, "setitimer", &[EINVAL]),
    (
        libc::SYS_pidfd_open,
        "pidfd_open",
        &[EMFILE, ENFILE, ENOMEM],
    ),
];

/// Those that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[Row] = &[
    (libc::SYS_open, "open", OPEN),
    (libc::SYS_stat, "stat", LOOK),
    (libc::SYS_lstat, "lstat", LOOK),
    (libc::SYS_access, "access", LOOK),
    (libc::SYS_readlink, "readlink", LOOK),
    (libc::SYS_mkdir, "mkdir", CHANGE),
    (libc::SYS_rmdir, "rmdir", CHANGE),
    (libc::SYS_unlink, "unlink", CHANGE),
    (libc::SYS_symlink, "symlink", CHANGE),
    (libc::SYS_link, "link", CHANGE),
    (
        libc::SYS_rename,
        "rename",
        &[
            EACCES, EIO, ENOMEM, ENOSPC, EDQUOT, EROFS, EPERM, EBUSY, ESTALE, EXDEV,
        ],
    ),
    (libc::SYS_chmod, "chmod", MODE),
    (libc::SYS_poll, "poll", &[EINTR, ENOMEM]),
    (libc::SYS_pipe, "pipe", &[EMFILE, ENFILE]),
    (libc::SYS_vfork, "vfork", &[EAGAIN, ENOMEM]),
    (libc::SYS_fork, "fork", &[EAGAIN, ENOMEM]),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[Row] = &[];

impl Call {
    pub(crate) fn of(number: c_long, arguments: &[u64; 6]) -> Call {
        let is_write = number == libc::SYS_write;
        Call {
            number,
            length: if is_write { arguments[2] } else { 0 },
        }
    }

    fn row(self) -> Option<&'static Row> {
        let mut rows = CALLS.iter().chain(OLD_CALLS);
        rows.find(|(number, ..)| *number == self.number)
    }

    /// The errors that it can give; none for a call that is not in the table.
    pub(crate) fn errors(self) -> &'static [i32] {
        self.row().map_or(&[], |(_, _, errors)| errors)
    }

    pub(crate) fn can_give(self, errno: i32) -> bool {
        self.errors().contains(&errno)
    }

    /// Can it write less than it was asked to?
    pub(crate) fn can_be_halved(self) -> bool {
        self.length > 1
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.row() {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "call {}", self.number),
        }
    }
}
