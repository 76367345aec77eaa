//! A bundle's `config.json` on disk: the original that its maker wrote, and the text that we write
//! in its place. The original stays beside it, so that the bundle's next start begins from the
//! original.
//!
//! The original is kept as a hard link, and the link's name records what was written in its place:
//! no byte of the user's is written again, so nothing has to be synced. After a power loss our text
//! may be torn or empty; its inode still tells that it is ours.

use std::ffi::OsString;
use std::fs::{Metadata, hard_link};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::unistd::{AccessFlags, access};
use serde::de::IgnoredAny;

use crate::files::{self, Durability, Replacement};
use crate::refusal::Refusal;

/// What follows `config.json` in the original's name. After it come the written file's inode,
/// birth, last change, length and check sum.
const KEPT: &str = ".pinfold-";
/// The mode of a copy: a configuration can hold secrets, in its environment.
const COPY_MODE: u32 = 0o600;

/// A bundle's `config.json`, ready to be rewritten.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    found: String,
    /// The path of the kept original; `None` while `config.json` is the original.
    kept: Option<PathBuf>,
    /// Originals that earlier starts kept, and temporary files that killed starts left.
    old: Vec<PathBuf>,
    /// The inode of the file that was read.
    inode: Option<u64>,
}

/// A kept original; its name holds the fingerprint of the file that replaced it.
struct Keeper {
    path: PathBuf,
    wrote: Fingerprint,
}

/// Tells a file that we wrote from any other. Not forgery-proof: whoever can write such a file
/// gains nothing by a forged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    /// When the inode was made, in nanoseconds since the epoch; 0 where the file system does not
    /// say. A later file can have the same inode number.
    born: u64,
    /// When the file was last changed, in nanoseconds since the epoch; 0 where unknown.
    changed: u64,
    bytes: usize,
    crc32: u32,
}

impl Fingerprint {
    fn of(file: Option<&Metadata>, text: &[u8]) -> Fingerprint {
        let changed = file.map(|file| files::nanoseconds(file.modified()));
        Fingerprint {
            inode: file.map_or(0, MetadataExt::ino),
            born: file.map_or(0, files::born),
            changed: changed.unwrap_or(0),
            bytes: text.len(),
            crc32: crc32fast::hash(text),
        }
    }

    fn parse(text: &str) -> Option<Fingerprint> {
        let mut parts = text.splitn(5, '-');
        Some(Fingerprint {
            inode: parts.next()?.parse().ok()?,
            born: parts.next()?.parse().ok()?,
            changed: parts.next()?.parse().ok()?,
            bytes: parts.next()?.parse().ok()?,
            crc32: u32::from_str_radix(parts.next()?, 16).ok()?,
        })
    }

    /// Did we write the file that is there now? A copy has another inode, so its text counts; a
    /// file torn by a power loss has another text, so its inode counts. A torn file is never longer
    /// than ours, nor changed later: a file that somebody edited in place is not ours.
    fn is_of(&self, now: &Fingerprint, is_whole: bool) -> bool {
        let is_same_text = (self.bytes, self.crc32) == (now.bytes, now.crc32);
        let may_be_torn = now.bytes <= self.bytes && now.changed <= self.changed;
        is_same_text || (self.is_of_file(now) && !is_whole && may_be_torn)
    }

    fn is_of_file(&self, now: &Fingerprint) -> bool {
        (self.inode, self.born) == (now.inode, now.born)
    }
}

impl Bundle {
    /// Opens the `config.json` at `path`, which holds `text` now. If we wrote that text, whole or
    /// torn, the kept original counts.
    ///
    /// # Errors
    /// The kept original cannot be read; the text is neither ours nor UTF-8; `path` is a symbolic
    /// link, whose target may be the configuration of others too.
    pub fn new(path: PathBuf, text: Vec<u8>) -> Result<Bundle> {
        let entry = files::entry_if_there(&path)?;
        ensure!(
            !entry.as_ref().is_some_and(|entry| entry.is_symlink()),
            Refusal::new(
                format!(
                    "{} is a symbolic link, which would not be one any more",
                    path.display()
                ),
                "put the real thing there"
            )
        );
        let now = Fingerprint::of(entry.as_ref(), &text);
        let is_whole = serde_json::from_slice::<IgnoredAny>(&text).is_ok();
        let (keepers, mut old) = beside(&path)?;
        let ours = keepers
            .iter()
            .filter(|keeper| keeper.wrote.is_of(&now, is_whole))
            .max_by_key(|keeper| keeper.wrote.is_of_file(&now));
        let kept = ours.map(|keeper| keeper.path.clone());
        let found = match &kept {
            Some(kept) => {
                let file = files::open_regular(kept)?;
                let text = files::read_bounded(file, files::MOST_BYTES);
                text.with_context(|| format!("read {}", kept.display()))?
            }
            None => {
                let found = files::text_of(&text);
                found
                    .with_context(|| format!("read {}", path.display()))?
                    .to_owned()
            }
        };
        old.extend(keepers.into_iter().map(|keeper| keeper.path));
        Ok(Bundle {
            path,
            found,
            kept,
            old,
            inode: entry.map(|entry| entry.ino()),
        })
    }

    /// The original, as its maker wrote it.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Did we write the file that is there now, whole or torn?
    pub fn is_ours(&self) -> bool {
        self.kept.is_some()
    }

    /// Checks that the file can be replaced, before anything is done that would have to be undone.
    ///
    /// # Errors
    /// Nothing can be made in its directory.
    pub fn ensure_writable(&self) -> Result<()> {
        let directory = directory_of(&self.path);
        access(directory, AccessFlags::W_OK)
            .with_context(|| format!("write to the bundle {}", directory.display()))
    }

    /// Replaces the file's text and keeps its mode and owner. The original is kept first: without
    /// it our text could not be told from a user's.
    ///
    /// # Errors
    /// A file cannot be written; the configuration is then unchanged.
    pub fn write(&self, text: &str) -> Result<()> {
        let looks = self.path.metadata();
        let looks = looks.with_context(|| format!("look at {}", self.path.display()))?;
        let ours = Replacement::like(&self.path, text.as_bytes(), &looks)?;
        let keeper = keeper(
            &self.path,
            Fingerprint::of(Some(&ours.metadata()?), text.as_bytes()),
        );
        // An original of this name belonged to a file of the same inode that is gone.
        files::remove(&keeper)?;
        self.keep(&keeper)?;
        if let Err(error) = ours.put() {
            files::remove(&keeper)?;
            return Err(error);
        }
        // A runtime makes one container at a time of a bundle: nobody else needs these.
        for path in self.old.iter().filter(|path| **path != keeper) {
            if let Err(error) = files::remove(path) {
                log::warn!("{error:#}");
            }
        }
        Ok(())
    }

    fn keep(&self, keeper: &Path) -> Result<()> {
        let found = self.kept.as_ref().unwrap_or(&self.path);
        match hard_link(found, keeper) {
            // Not every file system has hard links, and the number of links is limited.
            Err(error) if is_no_way_to_link(&error) => return self.copy(keeper),
            other => {
                other
                    .with_context(|| format!("keep {} as {}", found.display(), keeper.display()))?;
            }
        }
        let linked = files::entry_if_there(keeper)?.map(|entry| entry.ino());
        // The file was replaced since it was read, for example by a second start of the bundle.
        if self.kept.is_none() && linked != self.inode {
            files::remove(keeper)?;
            return self.copy(keeper);
        }
        Ok(())
    }

    fn copy(&self, keeper: &Path) -> Result<()> {
        let text = self.found.as_bytes();
        files::replace(keeper, text, COPY_MODE, Durability::PowerLoss)
    }
}

fn is_no_way_to_link(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK | libc::EXDEV)
    )
}

fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The originals kept beside a configuration, and the temporary files that killed starts left.
fn beside(path: &Path) -> Result<(Vec<Keeper>, Vec<PathBuf>)> {
    let directory = directory_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{KEPT}");
    let mut keepers = Vec::new();
    let mut old = Vec::new();
    for entry in files::names_in(directory)? {
        let wrote = entry.strip_prefix(&prefix).and_then(Fingerprint::parse);
        let path = directory.join(&entry);
        match wrote {
            Some(wrote) => keepers.push(Keeper { path, wrote }),
            None if files::is_leftover(&entry, &name) => old.push(path),
            // A copy of an original, half made.
            None if is_leftover_copy(&entry, &prefix) => old.push(path),
            None => {}
        }
    }
    Ok((keepers, old))
}

/// Is this `.config.json.pinfold-….NONCE`, the temporary file of a copy?
fn is_leftover_copy(entry: &str, prefix: &str) -> bool {
    let of = entry.strip_prefix('.').and_then(|rest| {
        let (name, _) = rest.rsplit_once('.')?;
        Fingerprint::parse(name.strip_prefix(prefix)?)?;
        Some(name)
    });
    of.is_some_and(|name| files::is_leftover(entry, name))
}

fn keeper(path: &Path, wrote: Fingerprint) -> PathBuf {
    let mut keeper = OsString::from(path);
    let Fingerprint {
        inode,
        born,
        changed,
        bytes,
        crc32,
    } = wrote;
    keeper.push(format!(
        "{KEPT}{inode}-{born}-{changed}-{bytes}-{crc32:08x}"
    ));
    keeper.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Bundle {
        Bundle::new(path.to_owned(), std::fs::read(path).unwrap()).unwrap()
    }

    fn put(path: &Path, text: &str) {
        files::replace(path, text.as_bytes(), 0o640, Durability::Crash).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names = files::names_in(dir).unwrap();
        names.sort();
        names
    }

    #[test]
    fn the_next_start_begins_from_what_was_found() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, "{\"mine\":1}");
        let inode = path.metadata().unwrap().ino();
        for text in ["{\"first\":1}", "{\"second\":1}"] {
            let bundle = open(&path);
            assert_eq!(bundle.found(), "{\"mine\":1}");
            bundle.write(text).unwrap();
            assert_eq!(files::read(&path).unwrap(), text);
            // The hard link is the original's own inode, and the only file added.
            let names = names(dir.path());
            assert_eq!(names.len(), 2, "{names:?}");
            let kept = dir.path().join(&names[1]).metadata().unwrap();
            assert_eq!((kept.ino(), kept.nlink()), (inode, 1));
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        // The maker has since written another text, in a new file or in place.
        put(&path, "{\"other\":1}");
        assert_eq!(open(&path).found(), "{\"other\":1}");
        open(&path).write("{\"third\":1}").unwrap();
        assert_eq!(open(&path).found(), "{\"other\":1}");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, b"{\"fresh\":1}"))
            .unwrap();
        assert_eq!(open(&path).found(), "{\"fresh\":1}");
        assert!(!open(&path).is_ours());
    }

    #[test]
    fn what_a_power_loss_leaves_of_ours_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let ours = "{\"ours\":[1,2,3]}";
        for left in [0, 1, ours.len() as u64 - 1] {
            put(&path, "{\"mine\":1}");
            open(&path).write(ours).unwrap();
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let changed = file.metadata().unwrap().modified().unwrap();
            file.set_len(left).unwrap();
            // A file that somebody broke in place is not ours.
            let later = changed + std::time::Duration::from_millis(1);
            file.set_modified(later).unwrap();
            assert!(!open(&path).is_ours(), "{left}");
            file.set_modified(changed).unwrap();
            assert_eq!(open(&path).found(), "{\"mine\":1}", "{left}");
            // Blocks that were never written hold zeros.
            file.set_len(ours.len() as u64).unwrap();
            file.set_modified(changed).unwrap();
            assert_eq!(open(&path).found(), "{\"mine\":1}", "{left}");
            open(&path).write(ours).unwrap();
            assert_eq!(open(&path).found(), "{\"mine\":1}", "{left}");
            // Or bytes of another file, which may be no text.
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"\xff\xfe", left.min(9)).unwrap();
            file.set_modified(changed).unwrap();
            assert_eq!(open(&path).found(), "{\"mine\":1}", "{left}");
            std::fs::remove_file(&path).unwrap();
        }
        // A file that somebody else broke is not ours.
        put(&path, "{\"broken");
        assert!(!open(&path).is_ours());
        let no_text = Bundle::new(path, b"{\"broken\xff".to_vec());
        assert!(no_text.is_err());
    }

    #[test]
    fn what_was_read_is_kept_also_where_another_start_was_faster() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, "{\"mine\":1}");
        let (first, second) = (open(&path), open(&path));
        first.write("{\"first\":1}").unwrap();
        second.write("{\"second\":1}").unwrap();
        assert_eq!(open(&path).found(), "{\"mine\":1}");
    }

    #[test]
    fn a_death_between_the_two_files_and_leftovers_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, "{\"mine\":1}");
        open(&path).write("{\"ours\":1}").unwrap();
        put(&path, "{\"new\":1}");
        let bundle = open(&path);
        bundle
            .keep(&keeper(
                &path,
                Fingerprint::of(None, b"{\"never written\":1}"),
            ))
            .unwrap();
        assert_eq!(open(&path).found(), "{\"new\":1}");
        let others = [".config.json.swp", "config.json.pinfold-notes"];
        for leftover in [".config.json.abcDE1-0", others[0], others[1]] {
            put(&dir.path().join(leftover), "half");
        }
        open(&path).write("{\"ours\":2}").unwrap();
        let names = names(dir.path());
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(
            others
                .iter()
                .all(|other| names.iter().any(|name| name == other))
        );
        assert_eq!(open(&path).found(), "{\"new\":1}");
    }

    #[test]
    fn a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("config.json");
        std::os::unix::fs::symlink("other.json", &link).unwrap();
        let error = Bundle::new(link, "{}".into()).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
}
