//! The errors that each system call can give, by its manual page and by what file systems are known
//! for. Every call that a verb makes is listed here, or in `supervisor` among those that are
//! passed: a new one fails the campaign that meets it.
//!
//! "Not there" (ENOENT, and ESRCH or ENODEV of a kernel file) is none of them: of what is there it
//! would be a lie.

use nix::libc::{self, c_long};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    number: c_long,
    /// Of a write: how many bytes.
    length: u64,
    /// Of fcntl(2): what is asked of it.
    operation: Option<libc::c_int>,
}

/// A call's number, its name, and its errors.
type Row = (c_long, &'static str, &'static [i32]);

use libc::{
    E2BIG, EACCES, EAGAIN, EBUSY, EDEADLK, EDQUOT, EFBIG, EINTR, EINVAL, EIO, ELOOP, EMFILE,
    EMLINK, ENFILE, ENOLCK, ENOMEM, ENOSPC, ENOSYS, EPERM, EPIPE, EROFS, ESRCH, ESTALE, EXDEV,
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
/// pwrite(2): no pipe has a place to write at.
const WRITE_AT: &[i32] = &[EIO, EINTR, ENOSPC, EDQUOT, EFBIG, EACCES, ENOMEM];
/// fcntl(2) where it makes a descriptor, waits for a lock of a file, or tries or looks at one.
const COPY: &[i32] = &[EMFILE];
const LOCK_WAIT: &[i32] = &[EINTR, ENOLCK, EDEADLK];
const LOCK: &[i32] = &[EAGAIN, EACCES, ENOLCK, EINTR];
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
    (libc::SYS_pwrite64, "pwrite64", WRITE_AT),
    (libc::SYS_writev, "writev", WRITE),
    (libc::SYS_sendfile, "sendfile", WRITE),
    (libc::SYS_copy_file_range, "copy_file_range", WRITE),
    (
        libc::SYS_ftruncate,
        "ftruncate",
        &[EIO, EINTR, EFBIG, EPERM, ENOSPC],
    ),
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
    (libc::SYS_utimensat, "utimensat", MODE),
    (libc::SYS_fsync, "fsync", SYNC),
    (libc::SYS_fdatasync, "fdatasync", SYNC),
    (libc::SYS_flock, "flock", &[EINTR, ENOLCK, EAGAIN]),
    // By what is asked of it: see `Call::errors`.
    (libc::SYS_fcntl, "fcntl", &[]),
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
    // A program that gets no memory says where it was, and ends itself.
    (libc::SYS_getcwd, "getcwd", &[ENOMEM, EACCES]),
    (libc::SYS_tgkill, "tgkill", &[EAGAIN]),
    (libc::SYS_getrandom, "getrandom", &[EINTR, ENOSYS]),
    (
        libc::SYS_inotify_init1,
        "inotify_init1",
        &[EMFILE, ENFILE, ENOMEM],
    ),
    (
        libc::SYS_inotify_add_watch,
        "inotify_add_watch",
        &[EACCES, ENOMEM, ENOSPC],
    ),
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
    (
        libc::SYS_close_range,
        "close_range",
        &[ENOMEM, EMFILE, ENOSYS],
    ),
    (libc::SYS_capset, "capset", &[EPERM]),
    (libc::SYS_prctl, "prctl", &[EPERM, EINVAL]),
    (libc::SYS_setitimer, "setitimer", &[EINVAL]),
    (
        libc::SYS_timer_create,
        "timer_create",
        &[EAGAIN, ENOMEM, EPERM],
    ),
    (libc::SYS_timer_settime, "timer_settime", &[EINVAL]),
    (
        libc::SYS_pidfd_open,
        "pidfd_open",
        &[EMFILE, ENFILE, ENOMEM],
    ),
    (libc::SYS_fsopen, "fsopen", &[EPERM, EMFILE, ENFILE, ENOMEM]),
    (libc::SYS_fsconfig, "fsconfig", &[EPERM, EBUSY, ENOMEM]),
    (
        libc::SYS_fsmount,
        "fsmount",
        &[EPERM, EMFILE, ENFILE, ENOMEM],
    ),
    (libc::SYS_signalfd4, "signalfd4", &[EMFILE, ENFILE, ENOMEM]),
];

/// Calls that cannot fail, or whose failure their manual page does not know.
const UNFAILING: &[(c_long, &str)] = &[
    (libc::SYS_timer_delete, "timer_delete"),
    (libc::SYS_getuid, "getuid"),
    (libc::SYS_getgid, "getgid"),
    (libc::SYS_getegid, "getegid"),
    (libc::SYS_getppid, "getppid"),
    (libc::SYS_getrusage, "getrusage"),
    (libc::SYS_setsid, "setsid"),
    (libc::SYS_umask, "umask"),
    (libc::SYS_capget, "capget"),
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

#[cfg(target_arch = "x86_64")]
const UNFAILING_OLD: &[c_long] = &[libc::SYS_arch_prctl, libc::SYS_getpgrp, libc::SYS_alarm];
#[cfg(not(target_arch = "x86_64"))]
const UNFAILING_OLD: &[c_long] = &[];

impl Call {
    pub(crate) fn of(number: c_long, arguments: &[u64; 6]) -> Call {
        let is_write = [libc::SYS_write, libc::SYS_pwrite64].contains(&number);
        let is_fcntl = number == libc::SYS_fcntl;
        Call {
            number,
            length: if is_write { arguments[2] } else { 0 },
            operation: is_fcntl.then_some(arguments[1] as _),
        }
    }

    /// Does anybody know which errors it gives?
    pub(crate) fn is_listed(self) -> bool {
        let unfailing = UNFAILING.iter().map(|(number, _)| number);
        self.row().is_some()
            || unfailing
                .chain(UNFAILING_OLD)
                .any(|one| *one == self.number)
    }

    fn row(self) -> Option<&'static Row> {
        let mut rows = CALLS.iter().chain(OLD_CALLS);
        rows.find(|(number, ..)| *number == self.number)
    }

    /// The errors that it can give.
    pub(crate) fn errors(self) -> &'static [i32] {
        match self.operation {
            Some(libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => COPY,
            Some(libc::F_SETLKW | libc::F_OFD_SETLKW) => LOCK_WAIT,
            Some(libc::F_SETLK | libc::F_GETLK | libc::F_OFD_SETLK | libc::F_OFD_GETLK) => LOCK,
            _ => self.row().map_or(&[], |(_, _, errors)| errors),
        }
    }

    /// Does it wait for a time to pass, or for something to happen until then?
    pub(crate) fn is_pause(self) -> bool {
        matches!(&*self.to_string(), "clock_nanosleep" | "poll" | "ppoll")
    }

    /// Does it change what a file system has, so that it is another one right before than right
    /// after it?
    pub(crate) fn changes_files(self) -> bool {
        const CHANGING: [&str; 17] = [
            "write",
            "pwrite64",
            "writev",
            "ftruncate",
            "fsync",
            "fdatasync",
            "mkdir",
            "mkdirat",
            "rmdir",
            "unlink",
            "unlinkat",
            "symlink",
            "symlinkat",
            "link",
            "linkat",
            "fchmod",
            "fchown",
        ];
        let name = self.to_string();
        name.starts_with("rename") || CHANGING.contains(&&*name)
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
