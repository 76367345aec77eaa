//! Who else can replace a file: whoever can change a directory on the way to it, through links too.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::unistd::{getegid, geteuid};

use crate::refusal::Refusal;
use crate::text::shell_word;

/// The most symbolic links that a path may lead through (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// A path that was followed to its file.
#[derive(Debug)]
pub struct Way {
    /// The path with every link followed.
    pub real: PathBuf,
    /// The metadata of the file there.
    pub metadata: Metadata,
    /// The directories above the file and the links that others can change, and what to do about
    /// each, one sentence each.
    pub doubts: Vec<Refusal>,
}

impl Way {
    /// Follows a path. The file that it leads to has to be there, and is not judged.
    ///
    /// In a user namespace that does not know root, `unknown_root` gives the user as whom root's
    /// files are shown.
    ///
    /// # Errors
    /// A component is missing (the error is the system's own), or cannot be looked at.
    pub fn to(path: &Path, unknown_root: impl Fn() -> Option<u32>) -> io::Result<Way> {
        let mut doubts = Vec::new();
        let (real, metadata) = Way::follow(path, unknown_root, &mut doubts)?;
        // A directory can be on the way twice.
        let mut seen = BTreeSet::new();
        doubts.retain(|doubt: &Refusal| seen.insert(doubt.what.clone()));
        Ok(Way {
            real,
            metadata,
            doubts,
        })
    }

    /// The real path and the file's metadata; the doubts are added even if the path ends early.
    fn follow(
        path: &Path,
        unknown_root: impl Fn() -> Option<u32>,
        doubts: &mut Vec<Refusal>,
    ) -> io::Result<(PathBuf, Metadata)> {
        let is_trusted = |uid| is_trusted(uid, &unknown_root);
        let absolute = std::path::absolute(path)?;
        let mut pending = names_of(&absolute);
        let mut real = PathBuf::from("/");
        let mut above = real.symlink_metadata()?;
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                real.pop();
                above = real.symlink_metadata()?;
                continue;
            }
            doubts.extend(doubt_of(&real, &above, &unknown_root));
            real.push(name);
            let metadata = real.symlink_metadata()?;
            if !metadata.is_symlink() {
                above = metadata;
                continue;
            }
            if !is_trusted(metadata.uid()) {
                doubts.push(Refusal::new(
                    format!(
                        "the link {} belongs to uid {}, who can let it lead elsewhere",
                        real.display(),
                        metadata.uid()
                    ),
                    format!("`chown -h {} {}`", geteuid(), shell_word(&real)),
                ));
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = std::fs::read_link(&real)?;
            real.pop();
            if target.is_absolute() {
                real = PathBuf::from("/");
                above = real.symlink_metadata()?;
            }
            pending.extend(names_of(&target));
        }
        Ok((real, above))
    }
}

/// Checks that nobody else can replace a file. A missing file is safe if its directory is.
///
/// # Errors
/// The first doubt, or a path that cannot be looked at.
pub fn ensure_trusted_way(path: &Path, unknown_root: impl Fn() -> Option<u32>) -> Result<()> {
    match Way::to(path, unknown_root) {
        Ok(way) => match way.doubts.first() {
            Some(doubt) => bail!(doubt.clone()),
            None => Ok(()),
        },
        Err(error) if super::is_gone(&error) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}

/// Checks that nobody else can change where a file will be made, together with its missing
/// directories.
///
/// # Errors
/// As [`ensure_trusted_way`].
pub fn ensure_trusted_place(path: &Path, unknown_root: impl Fn() -> Option<u32>) -> Result<()> {
    let mut doubts = Vec::new();
    match Way::follow(path, unknown_root, &mut doubts) {
        Err(error) if !super::is_gone(&error) => {
            return Err(error).with_context(|| format!("look at {}", path.display()));
        }
        _ => {}
    }
    doubts
        .into_iter()
        .next()
        .map_or(Ok(()), |doubt| bail!(doubt))
}

/// Checks that a directory is root's or ours, and that not everybody can replace its files. Its
/// group may: whoever opens a file there has to check the file.
///
/// # Errors
/// Another user owns the directory, or everybody can write it and it is not sticky.
pub fn ensure_no_strangers_in(
    path: &Path,
    metadata: &Metadata,
    unknown_root: impl Fn() -> Option<u32>,
) -> Result<()> {
    strangers_in(path, metadata, unknown_root).map_or(Ok(()), |doubt| bail!(doubt))
}

fn is_trusted(uid: u32, unknown_root: impl Fn() -> Option<u32>) -> bool {
    uid == 0 || uid == geteuid().as_raw() || unknown_root() == Some(uid)
}

/// The components of a path, the last one first.
fn names_of(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

/// What another user or a group can do in a directory. In a sticky one such as /tmp nobody can
/// replace another's files (unlink(2)).
fn doubt_of(
    path: &Path,
    metadata: &Metadata,
    unknown_root: impl Fn() -> Option<u32>,
) -> Option<Refusal> {
    let doubt = strangers_in(path, metadata, unknown_root);
    let (mode, gid) = (metadata.mode(), metadata.gid());
    let is_writable = mode & 0o020 != 0 && mode & libc::S_ISVTX == 0;
    if doubt.is_none() && is_writable && gid != 0 && gid != getegid().as_raw() {
        let (word, path) = (shell_word(path), path.display());
        return Some(Refusal::new(
            format!("{path} can be written by the group {gid}, which can replace what is in it"),
            format!("`chmod g-w {word}`"),
        ));
    }
    doubt
}

/// What another user can do in a directory, groups left out.
fn strangers_in(
    path: &Path,
    metadata: &Metadata,
    unknown_root: impl Fn() -> Option<u32>,
) -> Option<Refusal> {
    let word = shell_word(path);
    let path = path.display();
    if !is_trusted(metadata.uid(), unknown_root) {
        let uid = metadata.uid();
        return Some(Refusal::new(
            format!("{path} belongs to uid {uid}, who can replace what is in it"),
            format!("`chown -h {} {word}`", geteuid()),
        ));
    }
    if metadata.mode() & (0o002 | libc::S_ISVTX) == 0o002 {
        return Some(Refusal::new(
            format!("{path} can be written by anybody, who can replace what is in it"),
            format!("`chmod o-w {word}`"),
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn doubts(path: &Path) -> Vec<String> {
        let doubts = Way::to(path, || None).unwrap().doubts;
        doubts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn whoever_can_change_a_directory_on_the_way_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("open")).unwrap();
        symlink(root.join("a"), root.join("open/link")).unwrap();
        let mode = |path: &str, mode| {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(doubts(&root.join("open/link/b")), Vec::<String>::new());
        let way = Way::to(&root.join("open/link/../a/b"), || None).unwrap();
        assert_eq!(way.real, root.join("a/b"));
        for (path, bits, part) in [
            ("a", 0o777, Some("chmod o-w")),
            ("a", 0o1777, None),
            ("open", 0o757, Some("open can be written by anybody")),
            // The file itself is judged by whoever uses it.
            ("a/b", 0o777, None),
        ] {
            mode(path, bits);
            let found = doubts(&root.join("open/link/b"));
            match part {
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{found:?}"),
                None => assert_eq!(found, Vec::<String>::new(), "{path}"),
            }
            mode(path, 0o755);
        }
        assert!(super::super::is_gone(
            &Way::to(&root.join("no/x"), || None).unwrap_err()
        ));
        // A missing file does not excuse the directories that are there.
        mode("open", 0o757);
        for missing in ["open/x", "open/x/y", "open/link/x/y"] {
            let missing = root.join(missing);
            assert!(ensure_trusted_way(&missing, || None).is_ok());
            let said = ensure_trusted_place(&missing, || None).unwrap_err();
            assert!(
                format!("{said:#}").contains("open can be written"),
                "{said:#}"
            );
        }
        mode("open", 0o755);
        assert!(ensure_trusted_place(&root.join("open/x/y"), || None).is_ok());
    }

    #[test]
    fn what_belongs_to_others_is_told_through_links_too() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("theirs")).unwrap();
        symlink("../a", root.join("theirs/link")).unwrap();
        chown(root.join("theirs"), Some(12345), None).unwrap();
        let found = doubts(&root.join("theirs/link/b"));
        assert!(
            found.len() == 1 && found[0].contains("uid 12345"),
            "{found:?}"
        );
        assert_eq!(doubts(&root.join("a/b")), Vec::<String>::new());
        // In a user namespace that does not know root, root's files are shown as another user's.
        let way = Way::to(&root.join("theirs/link/b"), || Some(12345)).unwrap();
        assert!(way.doubts.is_empty());
    }
}
