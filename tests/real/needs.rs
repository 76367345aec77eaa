//! What a test needs of the machine. A test whose needs are not met is skipped, counted and named.

use crate::cgroups::hierarchy;
use nix::libc;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Root,
    V1,
    V2,
    Cpus(usize),
    Runc,
    Crun,
    Podman,
    Systemd,
    Strace,
    Python3,
    HookFiles,
}

impl Need {
    pub(crate) fn is_met(self) -> bool {
        match self {
            Need::Root => nix::unistd::geteuid().is_root(),
            Need::V1 => hierarchy().version == 1,
            Need::V2 => hierarchy().version == 2,
            Need::Cpus(count) => (0..count).all(may_use),
            Need::Runc => find("runc").is_some(),
            Need::Crun => find("crun").is_some(),
            Need::Podman => find("podman").is_some() && find("conmon").is_some(),
            Need::Systemd => Path::new("/run/systemd/system").is_dir(),
            Need::Strace => find("strace").is_some(),
            Need::Python3 => find("python3").is_some(),
            Need::HookFiles => !crate::hookfiles::files().is_empty(),
        }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Need::Cpus(count) => write!(f, "cpus>={count}"),
            Need::HookFiles => f.write_str("hook files"),
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}

/// The absolute path of a program, as found on PATH or where the system's own programs lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/usr/lib/podman"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether this process may run on the CPU.
fn may_use(cpu: usize) -> bool {
    // SAFETY: a CPU set is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given; CPU_ISSET checks its bounds.
    unsafe {
        libc::sched_getaffinity(0, size_of_val(&set), &mut set) == 0 && libc::CPU_ISSET(cpu, &set)
    }
}
