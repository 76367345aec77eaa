//! A bundle's configuration on disk: what its maker wrote there, and what we make of it. What was found is kept beside it,
//! so that the next start of the bundle begins from that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use crate::files::{self, Durability};
use crate::refusal::Refusal;

/// What is behind the configuration's name in that of the file that keeps what was found.
const KEPT: &str = ".pinfold";
/// The keeper's mode: a configuration can hold secrets, in its environment.
const KEPT_MODE: u32 = 0o600;

/// A configuration that may be rewritten.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    found: String,
}

/// What is kept beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What was found, word for word.
    found: String,
    /// Which text was written in its place.
    wrote: Mark,
}

/// What tells a text from another; nobody who could write one gains by making two alike.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    bytes: usize,
    crc32: u32,
}

impl Mark {
    fn of(text: &str) -> Mark {
        Mark {
            bytes: text.len(),
            crc32: crc32fast::hash(text.as_bytes()),
        }
    }
}

impl Bundle {
    /// The configuration of this path, whose text is `text` now. Where that is what we wrote, what we found then counts.
    ///
    /// # Errors
    /// What is kept cannot be read; a symbolic link, whose target may be the configuration of others too.
    pub fn new(path: PathBuf, text: String) -> Result<Bundle> {
        ensure!(
            !files::entry_if_there(&path)?.is_some_and(|entry| entry.is_symlink()),
            Refusal::new(
                format!(
                    "{} is a symbolic link, which would not be one any more",
                    path.display()
                ),
                "put the real thing there"
            )
        );
        let kept = files::read_text_if_there(&keeper(&path))?;
        // Without sense it is not ours, or of another version: then what is there now is what was found.
        let kept: Option<Kept> = kept.and_then(|kept| serde_json::from_str(&kept).ok());
        let found = match kept {
            Some(kept) if kept.wrote == Mark::of(&text) => kept.found,
            _ => text,
        };
        Ok(Bundle { path, found })
    }

    /// What its maker wrote.
    pub fn found(&self) -> &str {
        &self.found
    }

    /// Can it be replaced? What is found out before anything is done needs no undoing.
    ///
    /// # Errors
    /// A directory in which nothing can be made.
    pub fn ensure_writable(&self) -> Result<()> {
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        access(directory, AccessFlags::W_OK)
            .with_context(|| format!("write to the bundle {}", directory.display()))
    }

    /// Puts another text in its place, with the same looks. What was found is kept first: a text that nobody wrote yet is
    /// nobody's.
    ///
    /// # Errors
    /// Something that cannot be written; the configuration is as it was then.
    pub fn write(&self, text: &str) -> Result<()> {
        let looks = self.path.metadata();
        let looks = looks.with_context(|| format!("look at {}", self.path.display()))?;
        let kept = Kept {
            found: self.found.clone(),
            wrote: Mark::of(text),
        };
        let kept = serde_json::to_string(&kept).context("keep what was found")?;
        let keeper = keeper(&self.path);
        self.remove_leftovers()?;
        files::replace(&keeper, kept.as_bytes(), KEPT_MODE, Durability::PowerLoss)?;
        files::replace_like(&self.path, text.as_bytes(), &looks)
    }

    /// What a shim left that was killed while it replaced one of the two: a runtime makes a container of a bundle once at a
    /// time.
    fn remove_leftovers(&self) -> Result<()> {
        for path in [&self.path, &keeper(&self.path)] {
            if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
                files::remove_leftovers(directory, &name.to_string_lossy())?;
            }
        }
        Ok(())
    }
}

fn keeper(path: &Path) -> PathBuf {
    let mut keeper = OsString::from(path);
    keeper.push(KEPT);
    keeper.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Bundle {
        Bundle::new(path.to_owned(), files::read(path).unwrap()).unwrap()
    }

    fn put(path: &Path, text: &str) {
        files::replace(path, text.as_bytes(), 0o640, Durability::Crash).unwrap();
    }

    #[test]
    fn the_next_start_begins_from_what_was_found() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, "mine");
        for text in ["first", "second"] {
            let bundle = open(&path);
            assert_eq!(bundle.found(), "mine");
            bundle.write(text).unwrap();
            assert_eq!(files::read(&path).unwrap(), text);
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        // Its maker has written another since.
        put(&path, "other");
        assert_eq!(open(&path).found(), "other");
        open(&path).write("third").unwrap();
        assert_eq!(open(&path).found(), "other");
    }

    #[test]
    fn a_death_between_the_two_files_and_leftovers_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        put(&path, "mine");
        open(&path).write("ours").unwrap();
        put(&path, "new");
        let kept = serde_json::to_string(&Kept {
            found: "new".into(),
            wrote: Mark::of("never written"),
        });
        put(&keeper(&path), &kept.unwrap());
        assert_eq!(open(&path).found(), "new");
        put(&keeper(&path), "no JSON");
        assert_eq!(open(&path).found(), "new");
        let others = ".config.json.swp";
        for leftover in [".config.json.abcDE1", ".config.json.pinfold.abcDE1", others] {
            put(&dir.path().join(leftover), "half");
        }
        open(&path).write("ours").unwrap();
        let mut names = files::names_in(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, [others, "config.json", "config.json.pinfold"]);
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
