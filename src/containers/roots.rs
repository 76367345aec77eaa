//! Lists the directories in which the state of containers is kept.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::files;
use crate::host::Host;

/// The OCI runtimes that are known. They keep their state in `/run/<name>` unless `--root` says
/// otherwise (runc(8), crun(1)).
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// docker's directories. Each has a state directory for each runtime (`runtime-<name>`), with a
/// directory for docker's namespace in containerd.
const DOCKERS: [&str; 2] = ["/run/docker", "/run/snap.docker"];

/// The directory in which containerd's shim (`runc.v2`) has the runtime keep its state, with a
/// directory for each namespace.
const CONTAINERD_RUNC: &str = "/run/containerd/runc";

/// containerd's state directories, in which each namespace has its tasks' bundles. docker's own
/// containerd has its bundles below docker's directory.
const CONTAINERDS: [&str; 3] = [
    "/run/containerd",
    "/run/k3s/containerd",
    "/var/snap/microk8s/common/run/containerd",
];
/// The directory of the bundles in these.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// The directory of the users' directories in which their runtimes keep their state:
/// `$XDG_RUNTIME_DIR`, as systemd sets it (pam_systemd(8)).
const USERS: &str = "/run/user";

/// The most directories in a directory that are looked at.
const MOST_DIRECTORIES: usize = 1024;

/// What the directories in a [`Root`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootLayout {
    /// A container's state, written by its runtime.
    State,
    /// The bundle of a containerd task.
    Bundle,
}

/// A directory with a directory for each container.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) dir: PathBuf,
    pub(super) form: RootLayout,
    /// The namespace in containerd, of which each client has its own.
    pub(super) namespace: Option<String>,
    /// The runtime that has this directory for its own, or else the engine's default runtime.
    pub(super) runtime: &'static str,
    /// The user to whom everything in it has to belong.
    pub(super) user: u32,
}

/// All of these directories that exist. The runtimes' own come first: they tell when a process
/// started.
///
/// Adds what cannot be looked at, and what is left out, to the remarks.
pub(super) fn all(
    host: &Host,
    docker_exec_root: Option<&str>,
    remarks: &mut Vec<String>,
) -> Vec<Root> {
    let mut roots = Vec::new();
    let mut directories = |dir: &Path| directories(dir, remarks);
    let of_root = |dir: PathBuf, form, namespace| Root {
        dir,
        form,
        namespace,
        runtime: RUNTIMES[0],
        user: 0,
    };
    for runtime in RUNTIMES {
        let dir = host.path("/run").join(runtime);
        roots.push(Root {
            runtime,
            ..of_root(dir, RootLayout::State, None)
        });
    }
    let dockers: Vec<&str> = DOCKERS.into_iter().chain(docker_exec_root).collect();
    let mut bundles: Vec<PathBuf> = CONTAINERDS.iter().map(|dir| host.path(dir)).collect();
    let mut states = vec![host.path(CONTAINERD_RUNC)];
    for docker in dockers {
        let docker = host.path(docker);
        let runtimes = directories(&docker);
        let runtimes = runtimes.into_iter();
        let runtimes = runtimes.filter(|(name, _)| name.starts_with("runtime-"));
        states.extend(runtimes.map(|(_, dir)| dir));
        bundles.push(docker.join("containerd/daemon"));
    }
    let bundles = bundles.into_iter().map(|dir| dir.join(TASKS));
    let states = states.into_iter().map(|dir| (dir, RootLayout::State));
    for (dir, form) in states.chain(bundles.map(|dir| (dir, RootLayout::Bundle))) {
        for (namespace, dir) in directories(&dir) {
            roots.push(of_root(dir, form, Some(namespace)));
        }
    }
    for (name, dir) in directories(&host.path(USERS)) {
        let Ok(user) = name.parse() else { continue };
        // Root's runtimes keep theirs in the system's directories.
        for runtime in RUNTIMES.into_iter().filter(|_| user != 0) {
            roots.push(Root {
                runtime,
                user,
                ..of_root(dir.join(runtime), RootLayout::State, None)
            });
        }
    }
    roots.retain(|root| match belongs_to(&root.dir, root.user) {
        Ok(belongs) => belongs,
        Err(error) => {
            if geteuid().is_root() {
                remarks.push(format!("{error:#}"));
            }
            false
        }
    });
    roots
}

/// Is this a directory, not a link to one, that belongs to this user, to us or to root? `false` if
/// it is gone.
///
/// # Errors
/// It cannot be looked at, which does not tell whose it is.
pub(super) fn belongs_to(dir: &Path, user: u32) -> Result<bool> {
    let trusted = [0, user, geteuid().as_raw()];
    let looks = files::entry_if_there(dir)?;
    Ok(looks.is_some_and(|looks| looks.is_dir() && trusted.contains(&looks.uid())))
}

/// The names in a directory, sorted, with their paths. An error is a remark only for root: others
/// may not look into many of them.
fn directories(dir: &Path, remarks: &mut Vec<String>) -> Vec<(String, PathBuf)> {
    let mut names = match names_in(dir, MOST_DIRECTORIES + 1) {
        Ok(names) => names,
        Err(error) => {
            if geteuid().is_root() {
                remarks.push(format!("{error:#}"));
            }
            return Vec::new();
        }
    };
    if names.len() > MOST_DIRECTORIES {
        names.truncate(MOST_DIRECTORIES);
        remarks.push(format!(
            "{} has more directories than are looked at ({MOST_DIRECTORIES})",
            dir.display()
        ));
    }
    names.sort();
    let with_path = |name: String| {
        let path = dir.join(&name);
        (name, path)
    };
    names.into_iter().map(with_path).collect()
}

/// At most `most` names in a directory; none if it does not exist.
pub(super) fn names_in(dir: &Path, most: usize) -> Result<Vec<String>> {
    let attempt = || -> io::Result<Vec<OsString>> {
        let entries = std::fs::read_dir(dir)?.take(most);
        entries.map(|entry| Ok(entry?.file_name())).collect()
    };
    match attempt() {
        Err(error) if files::is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", dir.display())),
        Ok(names) => Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_gone_belongs_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(belongs_to(dir.path(), own).unwrap());
        assert!(!belongs_to(&dir.path().join("link"), own).unwrap());
        assert!(!belongs_to(&dir.path().join("gone"), own).unwrap());
        // The kernel refuses a name of more than 255 bytes.
        assert!(belongs_to(&dir.path().join("x".repeat(300)), own).is_err());
    }
}
