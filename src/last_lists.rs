//! The CPU lists that a container had last, so that it gets them again when it comes back. There is
//! a small file for each name, which outlives boots. Nothing depends on a file: one that is
//! missing, torn, old or another name's, or that others can write, is ignored.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use crate::files::{self, Durability};
use crate::host::Host;
use crate::names::Names;

/// The largest file, in bytes: one read(2) reads it whole.
const MOST_BYTES: u64 = 4000;

/// The most names that `reconcile` keeps: those seen last.
const MOST_NAMES: usize = 4096;

/// The end of a file's name.
const END: &str = ".json";

/// How old a file gets before it is touched again, if its container lives or comes back.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The place and the duration of what is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastLists {
    /// The directory of the files. Only root can write to it.
    pub directory: PathBuf,
    /// How long a container that does not come back is remembered.
    pub keep: Duration,
}

/// What is remembered of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The names of the owner of the lists: [`Names::lasting`].
    pub names: Names,
    /// The pool's name.
    pub pool: String,
    /// The names of the lists' directories.
    pub lists: Vec<String>,
}

impl LastLists {
    /// What is remembered of this name, with its age; `None` where nothing is, or it is too old.
    pub fn of(&self, host: &Host, names: &Names) -> Option<(Last, Duration)> {
        let read = read(host, &self.path_of(names));
        let (last, age) = read.unwrap_or_else(|error| {
            log::info!("which CPU lists it had last is not known: {error:#}");
            None
        })?;
        // Two names can have the same file.
        (last.names == *names && age <= self.keep).then_some((last, age))
    }

    /// Remembers what a name has now. The file is not synced: one that a power loss tore is
    /// ignored. With more lists than a file can hold, nothing is remembered of the name.
    ///
    /// # Errors
    /// Others can write to the directory; a file or the directory cannot be made or written.
    pub fn keep(&self, host: &Host, last: &Last) -> Result<()> {
        let path = self.path_of(&last.names);
        let text = serde_json::to_string(last)? + "\n";
        if text.len() as u64 > MOST_BYTES {
            return files::remove(&path);
        }
        files::ensure_trusted_place(&self.directory, || host.unknown_root())?;
        if files::metadata_if_there(&self.directory)?.is_none() {
            let mut made = DirBuilder::new();
            let made = made.recursive(true).mode(0o700).create(&self.directory);
            made.with_context(|| format!("make {}", self.directory.display()))?;
        }
        self.ensure_trusted(host)?;
        files::replace(&path, text.as_bytes(), 0o600, Durability::Crash)
    }

    /// Marks what is remembered of a name as seen now. A missing file is success.
    ///
    /// # Errors
    /// The file cannot be touched.
    pub fn touch(&self, names: &Names) -> Result<()> {
        let path = self.path_of(names);
        let (now, unfollowed) = (TimeSpec::UTIME_NOW, UtimensatFlags::NoFollowSymlink);
        match utimensat(AT_FDCWD, &path, &now, &now, unfollowed) {
            Err(Errno::ENOENT) => Ok(()),
            touched => touched.with_context(|| format!("touch {}", path.display())),
        }
    }

    /// Forgets all names that `called` is a name of, and returns what was remembered of them.
    ///
    /// # Errors
    /// The directory or a file cannot be read, others can write to the directory, or a file cannot
    /// be removed.
    pub fn forget(&self, host: &Host, called: &str) -> Result<Vec<Last>> {
        let mut forgotten = Vec::new();
        if !self.is_there(host)? {
            return Ok(forgotten);
        }
        for name in files::names_in(&self.directory)? {
            if !is_ours(&name) {
                continue;
            }
            let path = self.directory.join(name);
            let last = match read(host, &path) {
                Ok(Some((last, _))) => last,
                Ok(None) => continue,
                // A file that is not ours, or too long, is ignored by a start too.
                Err(error) if !is_of_system(&error) => continue,
                Err(error) => return Err(error),
            };
            if last.names.include(called) {
                files::remove(&path)?;
                forgotten.push(last);
            }
        }
        Ok(forgotten)
    }

    /// Forgets names that did not come back for too long, the oldest if there are too many, and
    /// removes what killed programs left. The names of `living` are marked as seen now. What a
    /// start writes at the same moment may be forgotten; nothing else comes of that.
    ///
    /// # Errors
    /// The directory cannot be read, others can write to it, or a file cannot be looked at, touched
    /// or removed.
    pub fn prune(&self, host: &Host, living: &[Names]) -> Result<()> {
        if !self.is_there(host)? {
            return Ok(());
        }
        let living: BTreeMap<String, &Names> = living
            .iter()
            .map(|names| (file_name(names), names))
            .collect();
        let mut others = Vec::new();
        for name in files::names_in(&self.directory)? {
            let path = self.directory.join(&name);
            let Some(seen) = files::entry_if_there(&path)? else {
                continue;
            };
            let age = age(&seen)?;
            match (living.get(&name), is_ours(&name)) {
                (Some(names), _) if age > DAY => self.touch(names)?,
                (Some(_), _) => {}
                (None, true) if age > self.keep => files::remove(&path)?,
                (None, true) => others.push((age, path)),
                (None, false) if is_leftover(&name) => files::remove(&path)?,
                (None, false) => {}
            }
        }
        others.sort();
        let too_many = others.iter().skip(MOST_NAMES);
        too_many
            .map(|(_, path)| path)
            .try_for_each(|path| files::remove(path))
    }

    /// Is there a directory?
    ///
    /// # Errors
    /// Others can write to the directory: then it is not looked into.
    fn is_there(&self, host: &Host) -> Result<bool> {
        if files::metadata_if_there(&self.directory)?.is_none() {
            return Ok(false);
        }
        self.ensure_trusted(host).map(|()| true)
    }

    fn ensure_trusted(&self, host: &Host) -> Result<()> {
        files::ensure_trusted_way(&self.directory, || host.unknown_root())?;
        files::trusted_of_machine(&self.directory, || host.unknown_root()).map(drop)
    }

    fn path_of(&self, names: &Names) -> PathBuf {
        self.directory.join(file_name(names))
    }
}

/// The content and age of a file; `None` where there is none, or it is damaged.
fn read(host: &Host, path: &Path) -> Result<Option<(Last, Duration)>> {
    let (file, seen) = match files::open_regular_seen(path) {
        Err(error) if files::says_gone(&error) => return Ok(None),
        opened => opened?,
    };
    files::ensure_trusted(path, &seen, || host.unknown_root())?;
    let attempt = || -> io::Result<(Vec<u8>, Duration)> {
        Ok((files::read_record(file, MOST_BYTES)?, age(&seen)?))
    };
    let read = attempt().with_context(|| format!("read {}", path.display()));
    let (text, age) = read?;
    let last = serde_json::from_slice(&text).ok();
    Ok(last.map(|last| (last, age)))
}

/// The name of the file for these names. It is a number, so that whoever names a container has no
/// other influence on it.
fn file_name(names: &Names) -> String {
    let parts = [&names.engine, &names.namespace, &names.pod, &names.name];
    let mut number = crc32fast::Hasher::new();
    for part in parts {
        number.update(part.as_deref().unwrap_or_default().as_bytes());
        // No part of a name has this character.
        number.update(b"/");
    }
    format!("{:08x}{END}", number.finalize())
}

/// Is it an error of the file system, rather than something wrong with a file?
fn is_of_system(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() != io::ErrorKind::InvalidData)
}

fn is_ours(file_name: &str) -> bool {
    let number = file_name.strip_suffix(END).unwrap_or_default();
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    number.len() == 8 && number.bytes().all(is_digit)
}

/// Is it a temporary file of one of ours?
fn is_leftover(file_name: &str) -> bool {
    let of = file_name
        .strip_prefix('.')
        .and_then(|rest| rest.get(..8 + END.len()));
    of.is_some_and(|of| is_ours(of) && files::is_leftover(file_name, of))
}

/// The time since a file was written or touched; 0 where the clock was set back since.
fn age(file: &Metadata) -> io::Result<Duration> {
    let since = SystemTime::now().duration_since(file.modified()?);
    Ok(since.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    fn names(name: &str) -> Names {
        Names {
            engine: Some("podman".into()),
            name: Some(name.into()),
            ..Names::default()
        }
    }

    fn last(name: &str, lists: &[&str]) -> Last {
        Last {
            names: names(name),
            pool: "dp".into(),
            lists: lists.iter().map(|list| (*list).to_owned()).collect(),
        }
    }

    struct Place {
        _dir: tempfile::TempDir,
        host: Host,
        lists: LastLists,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            Place {
                host: Host::new(dir.path()),
                lists: LastLists {
                    directory: dir.path().join("lib/last"),
                    keep: MONTH,
                },
                _dir: dir,
            }
        }

        fn keep(&self, last: &Last) {
            self.lists.keep(&self.host, last).unwrap();
        }

        fn of(&self, name: &str) -> Option<Last> {
            let found = self.lists.of(&self.host, &names(name));
            found.map(|(last, _)| last)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.lists.path_of(&names(name))
        }

        fn age(&self, name: &str, by: Duration) {
            let file = File::options().write(true).open(self.path(name)).unwrap();
            let then = SystemTime::now() - by;
            file.set_times(FileTimes::new().set_modified(then)).unwrap();
        }

        fn files(&self) -> usize {
            files::names_in(&self.lists.directory).unwrap().len()
        }
    }

    #[test]
    fn the_last_of_a_name_is_remembered_and_only_its_own() {
        let place = Place::new();
        assert_eq!(place.of("web"), None);
        place.keep(&last("web", &["1,5"]));
        place.keep(&last("db", &["2,6"]));
        place.keep(&last("web", &["3,7", "4"]));
        assert_eq!(place.of("web"), Some(last("web", &["3,7", "4"])));
        assert_eq!(place.of("db"), Some(last("db", &["2,6"])));
        assert_eq!(place.files(), 2);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&place.lists.directory), 0o700);
        assert_eq!(mode(&place.path("web")), 0o600);
    }

    #[test]
    fn parts_of_a_name_are_not_mistaken_for_each_other() {
        let joined = Names {
            pod: Some("ab".into()),
            name: Some("c".into()),
            ..Names::default()
        };
        let other = Names {
            pod: Some("a".into()),
            name: Some("bc".into()),
            ..Names::default()
        };
        assert_ne!(file_name(&joined), file_name(&other));
    }

    #[test]
    fn what_is_odd_says_nothing() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        let path = place.path("web");
        let text = fs::read(&path).unwrap();
        let put = |text: &[u8]| files::replace(&path, text, 0o600, Durability::Crash).unwrap();
        let mut long = text.clone();
        long.resize(5000, b' ');
        let other = serde_json::to_vec(&last("other", &["1"])).unwrap();
        for odd in [
            &text[..20],
            b"",
            b"\0\0\0",
            b"[]",
            b"{}",
            &long,
            &other,
            b"\xff",
        ] {
            put(odd);
            assert_eq!(place.of("web"), None, "{odd:?}");
        }
        put(&text);
        assert!(place.of("web").is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(place.of("web"), None);
        fs::rename(&path, place.lists.directory.join("real")).unwrap();
        symlink("real", &path).unwrap();
        assert_eq!(place.of("web"), None);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(place.of("web"), None);
        assert!(place.lists.keep(&place.host, &last("web", &["1"])).is_err());
    }

    #[test]
    fn more_than_fits_is_not_remembered() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        place.keep(&last("web", &["100,200"; 500]));
        assert_eq!(place.of("web"), None);
        assert_eq!(place.files(), 0);
    }

    #[test]
    fn nothing_is_kept_where_others_can_write() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&place.lists.directory, open).unwrap();
        assert!(place.lists.keep(&place.host, &last("web", &["2"])).is_err());
        assert_eq!(place.of("web"), Some(last("web", &["1"])));
    }

    #[test]
    fn who_does_not_come_back_is_forgotten_and_who_lives_is_not() {
        let place = Place::new();
        place.lists.prune(&place.host, &[]).unwrap();
        for name in ["old", "new", "living"] {
            place.keep(&last(name, &["1"]));
        }
        place.age("old", MONTH + DAY);
        place.age("living", MONTH + DAY);
        assert_eq!(place.of("old"), None);
        for name in [".00000000.json.abcDE1-0", ".notes.abcDE1-0", "notes"] {
            let path = place.lists.directory.join(name);
            files::replace(&path, b"", 0o600, Durability::Crash).unwrap();
        }
        place
            .lists
            .prune(&place.host, &[names("living"), names("unknown")])
            .unwrap();
        assert_eq!(place.of("living"), Some(last("living", &["1"])));
        assert_eq!(place.of("new"), Some(last("new", &["1"])));
        let left = files::names_in(&place.lists.directory).unwrap();
        assert_eq!(left.len(), 4, "{left:?}");
    }

    #[test]
    fn an_end_counts_as_seen_and_makes_nothing() {
        let place = Place::new();
        place.lists.touch(&names("web")).unwrap();
        place.keep(&last("web", &["1"]));
        place.age("web", MONTH + DAY);
        assert_eq!(place.of("web"), None);
        place.lists.touch(&names("web")).unwrap();
        assert_eq!(place.of("web"), Some(last("web", &["1"])));
        assert_eq!(place.files(), 1);
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten() {
        let place = Place::new();
        for number in 0..MOST_NAMES + 3 {
            place.keep(&last(&format!("c{number}"), &["1"]));
        }
        place.age("c7", DAY);
        place.lists.prune(&place.host, &[]).unwrap();
        assert!(place.files() <= MOST_NAMES);
        assert_eq!(place.of("c7"), None);
    }

    #[test]
    fn nothing_is_removed_where_others_can_put_files_nor_what_is_not_ours() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        place.keep(&last("db", &["1"]));
        let large = place.lists.directory.join("DEADBEEF.json");
        files::replace(&large, b"", 0o600, Durability::Crash).unwrap();
        place.age("web", MONTH + DAY);
        let then = SystemTime::now() - 2 * MONTH;
        let file = File::options().write(true).open(&large).unwrap();
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
        let mode =
            |mode| fs::set_permissions(&place.lists.directory, PermissionsExt::from_mode(mode));
        mode(0o777).unwrap();
        assert!(place.lists.prune(&place.host, &[]).is_err());
        assert!(place.lists.forget(&place.host, "web").is_err());
        assert_eq!(place.files(), 3);
        mode(0o700).unwrap();
        place.lists.prune(&place.host, &[]).unwrap();
        assert_eq!(place.files(), 2);
        assert!(large.metadata().is_ok());
    }

    #[test]
    fn one_file_that_is_too_long_does_not_keep_others_from_being_forgotten() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        place.keep(&last("db", &["1"]));
        let long = vec![b' '; MOST_BYTES as usize + 1];
        files::replace(&place.path("db"), &long, 0o600, Durability::Crash).unwrap();
        let forgotten = place.lists.forget(&place.host, "web").unwrap();
        assert_eq!(forgotten, [last("web", &["1"])]);
    }

    #[test]
    fn a_name_is_forgotten_on_demand() {
        let place = Place::new();
        place.keep(&last("web", &["1"]));
        place.keep(&last("db", &["2"]));
        let forgotten = place.lists.forget(&place.host, "web").unwrap();
        assert_eq!(forgotten, [last("web", &["1"])]);
        assert_eq!(place.of("web"), None);
        assert!(place.of("db").is_some());
        assert!(place.lists.forget(&place.host, "web").unwrap().is_empty());
    }
}
