//! tracefs, where the kernel keeps its tracer (kernel: Documentation/trace/ftrace.rst), and what
//! killed programs of ours left in it.

use std::fs::DirBuilder;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::statfs::{TRACEFS_MAGIC, statfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::files::{self, Durability};
use crate::host::Host;
use crate::process::{self, Process};

/// What the names of our instances begin with; the pid of their maker and its start follow.
const PREFIX: &str = "pinfold-noise-";

/// The file system, mounted.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
    /// A mount that nobody else sees, and that ends with this.
    _mount: Option<OwnedFd>,
}

impl Tracefs {
    /// Finds it where it is mounted; else mounts it for this alone.
    ///
    /// # Errors
    /// The kernel has none, or does not let us.
    pub(super) fn open(host: &Host) -> Result<Tracefs> {
        let usual = host.tracefs();
        let is_there = statfs(&usual).is_ok_and(|fs| fs.filesystem_type() == TRACEFS_MAGIC);
        if is_there {
            return Ok(Tracefs {
                root: usual,
                _mount: None,
            });
        }
        let mount = || -> rustix::io::Result<OwnedFd> {
            let made = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&made)?;
            let flags = FsMountFlags::FSMOUNT_CLOEXEC;
            fsmount(made, flags, MountAttrFlags::empty())
        };
        let mount = mount().context("mount tracefs")?;
        Ok(Tracefs {
            root: host.own_descriptor(mount.as_raw_fd()),
            _mount: Some(mount),
        })
    }

    /// The place of an instance.
    pub(super) fn instance(&self, name: &str) -> PathBuf {
        self.root.join("instances").join(name)
    }

    /// The names of all instances of ours.
    pub(super) fn ours(&self) -> Result<Vec<String>> {
        let mut names = files::names_in(&self.root.join("instances"))?;
        names.retain(|name| name.starts_with(PREFIX));
        Ok(names)
    }
}

/// The name of an instance that this process makes.
pub(super) fn name(maker: Process) -> String {
    format!("{PREFIX}{}-{}", maker.pid, maker.start)
}

/// Who made an instance of this name.
fn maker(name: &str) -> Option<Process> {
    let (pid, start) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some(Process {
        pid: pid.parse().ok()?,
        start: start.parse().ok()?,
    })
}

/// Writes down that there is going to be an instance; returns where.
pub(super) fn record(host: &Host, name: &str) -> Result<PathBuf> {
    let directory = host.trace_records();
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory);
    made.with_context(|| format!("make {}", directory.display()))?;
    files::ensure_trusted_way(&directory, || host.unknown_root())?;
    let path = directory.join(name);
    files::replace(&path, b"\n", 0o600, Durability::Crash)?;
    Ok(path)
}

/// Removes an instance, if it is there; `false` where somebody has a file of it open.
pub(super) fn remove(instance: &Path) -> Result<bool> {
    files::remove_empty_directory(instance)
}

/// Removes the instances that are written down and whose makers are gone. Without such it is one
/// look into a directory.
///
/// # Errors
/// An instance that can be neither looked at nor removed.
pub fn remove_leftovers(host: &Host) -> Result<()> {
    let directory = host.trace_records();
    let names = match files::names_in(&directory) {
        // Root's are none of a user's business.
        Err(error) if files::is_denied(&error) => return Ok(()),
        names => names?,
    };
    // Whoever traces does it in the first pid namespace: elsewhere nobody's end can be told.
    if names.is_empty() || process::pid_namespace(host).as_deref() != Some(process::FIRST_PIDS) {
        return Ok(());
    }
    let mut dead = Vec::new();
    for name in names {
        if is_left(host, &name)? {
            dead.push(name);
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    let tracefs = Tracefs::open(host)?;
    for name in dead {
        if remove(&tracefs.instance(&name))? {
            files::remove(&directory.join(name))?;
        }
    }
    Ok(())
}

/// The same of those that are not written down any more.
pub(super) fn remove_unrecorded(host: &Host, tracefs: &Tracefs) -> Result<()> {
    for name in tracefs.ours()? {
        if is_left(host, &name)? {
            remove(&tracefs.instance(&name))?;
        }
    }
    Ok(())
}

/// Is this the name of an instance, and is its maker gone?
fn is_left(host: &Host, name: &str) -> Result<bool> {
    match maker(name) {
        Some(maker) => Ok(!maker.is_alive(host)?),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_made_it() {
        let own = Process {
            pid: 4711,
            start: 99,
        };
        assert_eq!(maker(&name(own)), Some(own));
        for other in [
            "",
            "pinfold-noise-",
            "pinfold-noise-7",
            "pinfold-noise-7-x",
            "foo-7-8",
            ".pinfold-noise-7-8",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_a_dead_makers_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        // Nothing is written down.
        remove_leftovers(&host).unwrap();
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        let path = record(&host, "somebody's").unwrap();
        remove_leftovers(&host).unwrap();
        assert!(path.metadata().is_ok());
    }
}
