//! Finds the runtime that made a container.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::PathBuf;

use nix::unistd::geteuid;

use super::super::{CommandLine, Id};
use super::Runtime;
use crate::files;
use crate::host::Host;

/// The file that each runtime keeps for a container below its root (runc:
/// libcontainer/container_linux.go; crun: src/libcrun/status.c).
const KEPT: [(&str, &str); 2] = [("runc", "state.json"), ("crun", "status")];

impl Runtime {
    /// The runtime to use for an existing container: the one that made it, or else `self`. The
    /// choice of runtime can have changed since.
    pub fn or_maker(self, host: &Host, line: &CommandLine) -> Runtime {
        let id = line.id.as_deref().map(Id::parse);
        let name = self.0.file_name().and_then(OsStr::to_str);
        let maker = match (id, name) {
            (Some(Ok(id)), Some(name)) => other_maker(host, line, id, name),
            _ => None,
        };
        maker.map_or(self, Runtime)
    }
}

/// The runtime that made a container; `None` if it is unknown or is the one called `name`.
fn other_maker(host: &Host, line: &CommandLine, id: Id<'_>, name: &str) -> Option<PathBuf> {
    // We do not know which files other runtimes keep.
    if !KEPT.iter().any(|(maker, _)| *maker == name) {
        return None;
    }
    // Is the runtime's file there, and may it be there?
    let made = |(maker, file): &(&str, &str)| {
        let root = match &line.root {
            Some(root) => root.clone(),
            None => own_root(host, maker),
        };
        // A file that cannot be looked at may be there, unless another runtime's file is found.
        match root.join(id.as_str()).join(file).symlink_metadata() {
            Ok(_) => (true, true),
            Err(error) => {
                let is_gone = files::is_gone(&error) || error.kind() == ErrorKind::NotADirectory;
                (false, !is_gone)
            }
        }
    };
    let found: Vec<_> = KEPT.iter().map(|kept| (kept.0, made(kept))).collect();
    let of = |is_maker: fn(&(bool, bool)) -> bool| -> Vec<&str> {
        let makers = found.iter().filter(|(_, found)| is_maker(found));
        makers.map(|(maker, _)| *maker).collect()
    };
    let mut makers = of(|(is_there, _)| *is_there);
    if makers.is_empty() {
        makers = of(|(_, may_be)| *may_be);
    }
    match makers[..] {
        [maker] if maker != name => host.program(maker),
        _ => None,
    }
}

/// A runtime's default root (runc(8), crun(1): `--root`).
fn own_root(host: &Host, runtime: &str) -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !geteuid().is_root());
    match own {
        Some(dir) => PathBuf::from(dir).join(runtime),
        None => host.path("/run").join(runtime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_made_a_container_is_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for path in [
            "run/crun/a/status",
            "run/runc/b/state.json",
            "usr/bin/runc",
            "usr/bin/crun",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::replace(&path, b"", 0o755, files::Durability::Crash).unwrap();
        }
        let root = dir.path().join("run/crun").display().to_string();
        for (words, preferred, taken) in [
            ("kill a", "/x/runc", "usr/bin/crun"),
            ("kill b", "/x/runc", "/x/runc"),
            ("delete -f b", "/x/crun", "usr/bin/runc"),
            ("kill a", "/x/other", "/x/other"),
            ("kill ../runc/b", "/x/crun", "/x/crun"),
            ("kill c", "/x/crun", "/x/crun"),
            ("--root ROOT state a", "/x/runc", "usr/bin/crun"),
            ("--root ROOT state b", "/x/crun", "/x/crun"),
        ] {
            let words = words
                .split_whitespace()
                .map(|word| word.replace("ROOT", &root).into());
            let line = CommandLine::parse(&words.collect::<Vec<_>>());
            let found = Runtime(preferred.into()).or_maker(&host, &line);
            assert_eq!(found.path(), dir.path().join(taken), "{line:?}");
        }
    }

    #[test]
    fn a_state_that_cannot_be_looked_at_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::replace(&path, b"", 0o755, files::Durability::Crash).unwrap();
        };
        ["usr/bin/runc", "usr/bin/crun", "run/runc/other"]
            .into_iter()
            .for_each(put);
        let host = Host::new(dir.path());
        // A link that leads to itself: ELOOP, for root too.
        std::fs::create_dir_all(dir.path().join("run/crun")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("run/crun/a")).unwrap();
        for (words, preferred, taken) in [
            ("kill a", "/x/runc", dir.path().join("usr/bin/crun")),
            // A path whose directory is a regular file does not exist.
            ("kill other", "/x/crun", "/x/crun".into()),
        ] {
            let words: Vec<_> = words.split(' ').map(Into::into).collect();
            let line = CommandLine::parse(&words);
            let found = Runtime(preferred.into()).or_maker(&host, &line);
            assert_eq!(found, Runtime(taken), "{line:?}");
        }
    }
}
