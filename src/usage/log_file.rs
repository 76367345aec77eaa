//! The usage log: `usage.jsonl`, and the file before it, `usage.jsonl.1`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::geteuid;

use super::Record;
use crate::files;
use crate::host::Host;
use crate::refusal::{OrRefuse, Refusal};
use crate::text::shell_word;

/// How long to wait for another writer's lock. Each holds it for milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to begin again because another writer has put the file aside.
const MOST_TRIES: u32 = 8;
/// The longest line that is read, in bytes. A record of thousands of lists is shorter.
const LONGEST: u64 = 256 << 10;

/// Where the usage log is, and how large it grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file's path.
    pub path: PathBuf,
    /// The size in bytes from which the file is put aside, and a new one begun.
    pub rotate_at: u64,
}

/// The file, open and locked: nobody else writes to it or puts it aside.
#[derive(Debug)]
pub struct Writer<'a> {
    log: &'a Log,
    file: File,
    /// The file's length, where the next record begins.
    end: u64,
}

/// The content of both files.
#[derive(Debug, Default)]
pub struct LogFiles {
    /// The records, the oldest first.
    pub records: Vec<Record>,
    /// How many lines are not records.
    pub broken: usize,
    /// The first of these lines: its file, and its number from 1.
    pub first_broken: Option<(PathBuf, usize)>,
}

impl Log {
    /// Opens and locks the file. Makes it if it is missing, and puts it aside first if it is full.
    ///
    /// # Errors
    /// The directory is not ours, or others can write or replace it; the file is not ours, or
    /// cannot be made; or somebody else keeps it locked for a second.
    pub fn writer(&self, host: &Host) -> Result<Writer<'_>> {
        let (dir, name) = self.directory(host)?;
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..MOST_TRIES {
            let file = self.open_in(&dir, &name)?;
            files::lock_within(&file, deadline.saturating_duration_since(Instant::now()))
                .or_refuse(|| {
                    Refusal::new(
                        format!("lock {}", self.path.display()),
                        "see who has it open: `fuser -v` tells",
                    )
                })?;
            let (ours, there) = (
                file.metadata()?,
                fstatat(dir.as_fd(), name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW),
            );
            let is_there =
                there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.dev(), ours.ino()));
            // The former holder of the lock may have put the file aside.
            if !is_there {
                continue;
            }
            if ours.len() >= self.rotate_at.max(1) {
                let former = former(&name);
                renameat(
                    dir.as_fd(),
                    name.as_os_str(),
                    dir.as_fd(),
                    former.as_os_str(),
                )
                .with_context(|| format!("put {} aside", self.path.display()))?;
                continue;
            }
            return Ok(Writer {
                log: self,
                file,
                end: ours.len(),
            });
        }
        bail!("{} is another file all the time", self.path.display())
    }

    /// Opens the directory, which only root and we may write. Returns the file's name in it, too.
    ///
    /// A group may write the directory above, as syslog's can write /var/log. It could put a
    /// directory or a link of its own there, which is refused.
    fn directory(&self, host: &Host) -> Result<(OwnedFd, OsString)> {
        let (Some(path), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            bail!("{} is not a file", self.path.display());
        };
        // The root directory, and one that ends in `..`, has no name to be made: it is opened as
        // `.`.
        let (above, own) = match (path.parent(), path.file_name()) {
            (Some(above), Some(own)) => (above, own),
            _ => (path, OsStr::new(".")),
        };
        let unmade = || {
            Refusal::new(
                format!("make {}", path.display()),
                "make it, or name another file as usage.path in Pinfold's configuration",
            )
        };
        files::ensure_trusted_place(above, || host.unknown_root())?;
        let mut made = DirBuilder::new();
        let made = made.recursive(true).mode(0o755).create(above);
        made.or_refuse(unmade)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let parent = nix::fcntl::open(above, flags, Mode::empty())
            .with_context(|| format!("open the directory {}", above.display()))?;
        let metadata = File::from(parent.try_clone()?).metadata()?;
        files::ensure_no_strangers_in(above, &metadata, || host.unknown_root())?;
        match mkdirat(parent.as_fd(), own, Mode::from_bits_truncate(0o755)) {
            Err(Errno::EEXIST) => {}
            made => made.or_refuse(unmade)?,
        }
        let dir = openat(
            parent.as_fd(),
            own,
            flags | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )
        .with_context(|| format!("open the directory {}", path.display()))?;
        let metadata = File::from(dir.try_clone()?).metadata()?;
        let word = shell_word(path);
        ensure!(
            [0, geteuid().as_raw()].contains(&metadata.uid()),
            Refusal::new(
                format!("{} belongs to uid {}", path.display(), metadata.uid()),
                format!("`chown {} {word}`", geteuid())
            )
        );
        ensure!(
            metadata.mode() & 0o022 == 0,
            Refusal::new(
                format!("{} can be written by others", path.display()),
                format!("`chmod go-w {word}`")
            )
        );
        Ok((dir, name.to_owned()))
    }

    fn open_in(&self, dir: &OwnedFd, name: &OsString) -> Result<File> {
        let flags = OFlag::O_RDWR
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let opened = openat(
            dir.as_fd(),
            name.as_os_str(),
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        );
        let file = File::from(opened.with_context(|| format!("open {}", self.path.display()))?);
        let metadata = file.metadata()?;
        ensure!(
            metadata.is_file() && [0, geteuid().as_raw()].contains(&metadata.uid()),
            Refusal::new(
                format!("{} is not a file of ours", self.path.display()),
                format!("move it away: `mv {0} {0}.old`", shell_word(&self.path))
            )
        );
        Ok(file)
    }

    /// Reads all records of both files, each owner once.
    ///
    /// # Errors
    /// A file cannot be read. A missing one is no error.
    pub fn read(&self) -> Result<LogFiles> {
        let mut kept = LogFiles::default();
        let mut seen = HashSet::new();
        let open = |path: PathBuf| -> Result<Option<(PathBuf, File)>> {
            if files::entry_if_there(&path)?.is_none() {
                return Ok(None);
            }
            let file = files::open_regular(&path)
                .or_refuse(|| Refusal::new("the records cannot be read", "run this as root"))?;
            Ok(Some((path, file)))
        };
        // In this order, because another writer can put the file aside in between: then it is
        // opened twice, and its records count once. In the other order they would be missed.
        let own = open(self.path.clone())?;
        let former = open(former(self.path.as_os_str()).into())?;
        for (path, file) in [former, own].into_iter().flatten() {
            kept.read(&path, file, &mut seen)?;
        }
        Ok(kept)
    }
}

impl LogFiles {
    fn read(
        &mut self,
        path: &Path,
        file: File,
        seen: &mut HashSet<(String, String)>,
    ) -> Result<()> {
        let mut lines = BufReader::new(file);
        let mut number = 0;
        let mut line = Vec::new();
        while next_line(&mut lines, &mut line)
            .with_context(|| format!("read {}", path.display()))?
        {
            number += 1;
            let text = std::str::from_utf8(&line).ok();
            let record = text.and_then(|text| Record::parse(text).ok());
            match record {
                // A record that was written twice, because its first writer died right afterwards.
                Some(record) if !seen.insert((record.owner.clone(), record.id.clone())) => {}
                Some(record) => self.records.push(record),
                None => {
                    self.broken += 1;
                    self.first_broken
                        .get_or_insert_with(|| (path.to_owned(), number));
                }
            }
        }
        Ok(())
    }
}

/// Reads the next line, without its end, into `line`; `false` at the end of the file. Of a line
/// that is too long only the beginning is kept, which is not a record.
fn next_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut read = lines.by_ref().take(LONGEST).read_until(b'\n', line)?;
    let is_any = read > 0;
    while read > 0 && line.last() != Some(&b'\n') {
        let mut rest = Vec::new();
        read = lines.by_ref().take(LONGEST).read_until(b'\n', &mut rest)?;
        if rest.last() == Some(&b'\n') {
            break;
        }
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(is_any)
}

impl Writer<'_> {
    /// Adds a record, in a single write if the file system takes it whole.
    ///
    /// # Errors
    /// It cannot be written. Then nothing of it stays in the file.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let line = record.line()?;
        let mut file = &self.file;
        let mut last = [b'\n'];
        let is_torn = self.end > 0
            && matches!(file.read_at(&mut last, self.end - 1), Ok(1))
            && last != [b'\n'];
        let bytes = match is_torn {
            true => format!("\n{line}").into_bytes(),
            false => line.into_bytes(),
        };
        if let Err(error) = file.write_all(&bytes) {
            // If this fails too, a part of the record stays: one broken line, after which the next
            // record begins on a line of its own.
            let _ = file.set_len(self.end);
            let remedy = format!(
                "make room for {}, or name another file as usage.path in Pinfold's configuration",
                self.log.path.display()
            );
            return Err(error)
                .or_refuse(|| Refusal::new(format!("write {}", self.log.path.display()), remedy));
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// The name of the file that was put aside.
fn former(name: impl Into<OsString>) -> OsString {
    let mut name = name.into();
    name.push(".1");
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{Exactness, Record};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn record(id: &str) -> Record {
        Record {
            version: 1,
            id: id.into(),
            name: Some("web\n\u{202e}".into()),
            kind: crate::claims::OwnerKind::Container,
            pool: "dp".into(),
            by_default: false,
            lists: vec!["2,3".into()],
            cpus: 2,
            start: "2026-03-01T10:00:00Z".into(),
            end: Some("2026-03-01T11:00:00Z".into()),
            cpu_seconds: Some(1.5),
            user_seconds: Some(1.0),
            system_seconds: Some(0.5),
            noise_seconds: None,
            watched_seconds: None,
            exactness: Exactness::Exact,
            read: Some("2026-03-01T10:59:59Z".into()),
            owner: format!("boot {id}"),
        }
    }

    fn log(dir: &Path) -> Log {
        Log {
            path: dir.join("log/usage.jsonl"),
            rotate_at: 1 << 20,
        }
    }

    fn host() -> Host {
        Host::new("/")
    }

    fn ids(kept: &LogFiles) -> Vec<&str> {
        kept.records.iter().map(|one| one.id.as_str()).collect()
    }

    #[test]
    fn records_are_kept_once_and_whatever_else_is_there_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        assert!(log.read().unwrap().records.is_empty());
        log.writer(&host()).unwrap().add(&record("a")).unwrap();
        assert_eq!(log.path.metadata().unwrap().mode() & 0o777, 0o600);
        let whole = files::read(&log.path).unwrap();
        let newer = whole.replace("\"version\":1", "\"version\":2");
        let long = "x".repeat(2 * LONGEST as usize + 5);
        // The last line was torn, and the next record begins after it.
        let text = format!("{whole}{whole}{long}\n\n{newer}\u{fffd}\n{{\"version\"");
        files::replace(&log.path, text.as_bytes(), 0o600, files::Durability::Crash).unwrap();
        log.writer(&host()).unwrap().add(&record("b")).unwrap();
        let kept = log.read().unwrap();
        assert_eq!(ids(&kept), ["a", "b"]);
        assert_eq!(kept.broken, 5);
        assert_eq!(kept.first_broken, Some((log.path.clone(), 3)));
        assert_eq!(kept.records[0], record("a"));
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_one_before_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log {
            rotate_at: 1000,
            ..log(dir.path())
        };
        for number in 0..9 {
            let mut writer = log.writer(&host()).unwrap();
            writer.add(&record(&number.to_string())).unwrap();
        }
        let kept = log.read().unwrap();
        assert!(
            (3..9).contains(&kept.records.len()),
            "{}",
            kept.records.len()
        );
        assert_eq!(kept.records.last().unwrap().id, "8");
        assert_eq!(kept.broken, 0);
        let names = files::names_in(&dir.path().join("log")).unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn many_writers_at_once_lose_and_tear_nothing_while_files_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        // Both files together hold more than all writers write.
        let log = Log {
            rotate_at: 48 << 10,
            ..log(dir.path())
        };
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let log = &log;
                scope.spawn(move || {
                    for number in 0..25 {
                        let mut file = log.writer(&host()).unwrap();
                        file.add(&record(&format!("{writer}-{number}"))).unwrap();
                    }
                });
            }
        });
        let kept = log.read().unwrap();
        assert_eq!((kept.records.len(), kept.broken), (200, 0));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let home = dir.path().join("log");
        std::fs::create_dir(&home).unwrap();
        let said = || format!("{:#}", log.writer(&host()).unwrap_err());
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(said().contains("can be written by others"), "{}", said());
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o755)).unwrap();
        // Nothing is made below a directory that others can change.
        let deep = Log {
            path: home.join("a/b/usage.jsonl"),
            ..log.clone()
        };
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        for log in [&log, &deep] {
            let said = format!("{:#}", log.writer(&host()).unwrap_err());
            assert!(said.contains("can be written by anybody"), "{said}");
        }
        assert!(home.join("a").symlink_metadata().is_err());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        // A link, even one that leads to a file of ours.
        let target = dir.path().join("target");
        files::replace(&target, b"kept", 0o600, files::Durability::Crash).unwrap();
        symlink(&target, &log.path).unwrap();
        assert!(said().contains("open"), "{}", said());
        assert!(log.read().is_err());
        assert_eq!(files::read(&target).unwrap(), "kept");
        std::fs::remove_file(&log.path).unwrap();
        std::fs::create_dir(&log.path).unwrap();
        assert!(said().contains("open"), "{}", said());
        std::fs::remove_dir(&log.path).unwrap();
        nix::unistd::mkfifo(&log.path, Mode::S_IRWXU).unwrap();
        assert!(said().contains("not a file of ours"), "{}", said());
        std::fs::remove_file(&log.path).unwrap();
        // The directory itself is a link.
        std::fs::rename(&home, dir.path().join("real")).unwrap();
        symlink("real", &home).unwrap();
        assert!(said().contains("open the directory"), "{}", said());
    }

    #[test]
    fn a_group_can_write_the_directory_above_and_nothing_of_its_own_is_used() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        let home = dir.path().join("log");
        let said = |log: &Log| format!("{:#}", log.writer(&host()).unwrap_err());
        let mode = |mode| {
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
        };
        // As Ubuntu's /var/log.
        chown(dir.path(), Some(0), Some(12345)).unwrap();
        mode(0o775);
        for id in ["a", "b"] {
            log.writer(&host()).unwrap().add(&record(id)).unwrap();
        }
        assert_eq!(ids(&log.read().unwrap()), ["a", "b"]);
        let made = home.metadata().unwrap();
        assert_eq!((made.uid(), made.mode() & 0o7777), (0, 0o755));
        // Further up, such a group could lead the path elsewhere.
        let deep = Log {
            path: home.join("deep/usage.jsonl"),
            ..log.clone()
        };
        assert!(said(&deep).contains("written by the group 12345"));
        assert!(home.join("deep").symlink_metadata().is_err());
        // What somebody in the group puts in its place.
        std::fs::rename(&home, dir.path().join("ours")).unwrap();
        symlink("ours", &home).unwrap();
        assert!(said(&log).contains("open the directory"), "{}", said(&log));
        std::fs::remove_file(&home).unwrap();
        std::fs::create_dir(&home).unwrap();
        chown(&home, Some(12345), Some(12345)).unwrap();
        assert!(
            said(&log).contains("log belongs to uid 12345"),
            "{}",
            said(&log)
        );
        assert!(files::names_in(&home).unwrap().is_empty());
        std::fs::remove_dir(&home).unwrap();
        // Nothing is made where anybody, or another owner, can replace it.
        mode(0o777);
        assert!(said(&log).contains("can be written by anybody"));
        mode(0o755);
        chown(dir.path(), Some(12345), None).unwrap();
        assert!(said(&log).contains("belongs to uid 12345, who can replace"));
        assert!(home.symlink_metadata().is_err());
    }
}
