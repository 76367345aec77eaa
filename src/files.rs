//! Reads files, writes kernel files, and replaces files atomically. Every error names its path.

mod entries;
mod steady;
mod summed;
mod trust;

pub use entries::{DirectoryEntry, entries_in};
pub use steady::SteadyFile;
pub use summed::{summed, unsummed};
pub use trust::{Way, ensure_no_strangers_in, ensure_trusted_place, ensure_trusted_way};

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::unistd::geteuid;
use rustix::io::Errno;

use crate::refusal::Refusal;
use crate::text::shell_word;

/// The most bytes that are read of any file; `/proc/self/mountinfo` of a busy host is the largest.
pub const MOST_BYTES: u64 = 16 << 20;

/// The size of a file's first read(2), in bytes.
const READ_BYTES: usize = 8 << 10;
/// The smallest page size of a kernel, in bytes.
const PAGE_BYTES: usize = 4 << 10;

/// When an inode was made, in nanoseconds since the epoch; 0 where the file system does not say. A
/// later file can have the same inode number.
pub fn born(file: &Metadata) -> u64 {
    nanoseconds(file.created())
}

/// Nanoseconds since the epoch; 0 where the time is not known.
pub fn nanoseconds(time: io::Result<SystemTime>) -> u64 {
    let since = time
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or_default()
    })
}

/// Reads a whole file as text; a file that is missing is an error.
pub fn read(path: &Path) -> Result<String> {
    read_if_there(path)?.with_context(|| format!("read {}: no such file", path.display()))
}

/// Reads a whole file as text; `None` if there is no file, or its process is gone (reading below
/// `/proc/<pid>` then gives ESRCH, proc(5)). Bytes that are not UTF-8 become U+FFFD: a process or a
/// mount point can have any name.
///
/// A symbolic link as the last component is followed: callers that read what others can write
/// open it themselves with `O_NOFOLLOW`.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    let attempt = File::open(path).and_then(|file| read_bytes(file, MOST_BYTES));
    lossy(attempt, path)
}

/// Like [`read_if_there`], for a file that one read(2) returns whole, which saves the read(2) that
/// finds its end: a regular file, or one that the kernel makes as one record, such as a value of
/// sysfs or of a cgroup, or a process's `stat` and `cgroup`.
///
/// The kernel returns a list (`mountinfo`, `locks`, `cgroup.procs`) in pieces: read it with
/// [`read_if_there`].
pub fn read_record_if_there(path: &Path) -> Result<Option<String>> {
    let attempt = File::open(path).and_then(|file| read_record(file, MOST_BYTES));
    lossy(attempt, path)
}

/// Like [`read_record_if_there`]; a missing file is an error.
pub fn read_record_of(path: &Path) -> Result<String> {
    read_record_if_there(path)?.with_context(|| format!("read {}: no such file", path.display()))
}

fn lossy(read: io::Result<Vec<u8>>, path: &Path) -> Result<Option<String>> {
    match read {
        Ok(bytes) => Ok(Some(String::from_utf8(bytes).unwrap_or_else(|error| {
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Reads a whole file as text that will be written back; `None` if there is no file.
///
/// # Errors
/// Also a file that is not UTF-8, which could not be written back as it was, and a file that is not
/// regular: a FIFO would block.
pub fn read_text_if_there(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_bytes_if_there(path)? else {
        return Ok(None);
    };
    text_of(&bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8(bytes).ok())
}

/// Reads a regular file as bytes, since its text may have been torn; `None` if there is no file.
///
/// # Errors
/// Also a file that is not regular: a FIFO would block.
pub fn read_bytes_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    let attempt = || -> io::Result<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        read_bytes(file, MOST_BYTES)
    };
    match attempt() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Does this error say that the file, or the process or device behind it, does not exist (any
/// more)? Any other error leaves that unknown.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)
    )
}

/// Like [`is_gone`], for an error with context.
pub fn says_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(is_gone)
}

/// Does the error say that root may do this and we may not?
pub fn is_denied_to_us(error: &anyhow::Error) -> bool {
    let says = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    !geteuid().is_root() && error.downcast_ref::<io::Error>().is_some_and(says)
}

/// Was permission denied? Having uid 0 does not rule that out: root of a user namespace is denied
/// too.
pub fn is_denied(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    })
}

/// The metadata of what a path leads to, links followed; `None` if nothing is there.
///
/// `exists`, `is_dir` and `is_file` of the standard library take every error for "not there".
pub fn metadata_if_there(path: &Path) -> Result<Option<Metadata>> {
    if_there(path.metadata(), path)
}

/// The metadata of a path itself, which may be a link; `None` if nothing is there.
pub fn entry_if_there(path: &Path) -> Result<Option<Metadata>> {
    if_there(path.symlink_metadata(), path)
}

fn if_there(looked: io::Result<Metadata>, path: &Path) -> Result<Option<Metadata>> {
    match looked {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}

/// Reads to the end as text; refuses more than `most` bytes, and input that is not UTF-8.
pub fn read_bounded(source: impl Read, most: u64) -> io::Result<String> {
    let bytes = read_bytes(source, most)?;
    text_of(&bytes)?;
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// The bytes as text; refuses what is not UTF-8.
pub fn text_of(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| {
        let message = "stream did not contain valid UTF-8";
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn read_bytes(source: impl Read, most: u64) -> io::Result<Vec<u8>> {
    // The kernel makes a file's text anew at each read(2): the fewer reads, the less it can change
    // in between.
    let mut bytes = Vec::with_capacity(READ_BYTES);
    source.take(most + 1).read_to_end(&mut bytes)?;
    ensure_at_most(bytes.len(), most)?;
    Ok(bytes)
}

/// Reads a file that one read(2) mostly returns whole: it ends at the first read that returns no
/// whole pages. Binary attributes of sysfs, such as a long list of CPUs, return at most one page
/// per read(2) (kernel: fs/kernfs/file.c).
pub fn read_record(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Most are a line or two: the room for more is not asked of the allocator.
    let mut room = [MaybeUninit::uninit(); READ_BYTES];
    loop {
        let piece = match rustix::io::read(&file, &mut room) {
            Err(Errno::INTR) => continue,
            other => other?.0,
        };
        bytes.extend_from_slice(piece);
        ensure_at_most(bytes.len(), most)?;
        if piece.is_empty() || piece.len() % PAGE_BYTES != 0 {
            return Ok(bytes);
        }
    }
}

fn ensure_at_most(length: usize, most: u64) -> io::Result<()> {
    if length as u64 <= most {
        return Ok(());
    }
    let message = format!("larger than {most} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Writes a value to a kernel file with one write(2); the file is neither made nor truncated.
///
/// An empty value is refused, because the kernel ignores an empty write: to clear a file, write a
/// newline.
pub fn write_kernel(path: &Path, value: &str) -> io::Result<()> {
    if value.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an empty write is no write",
        ));
    }
    let written = OpenOptions::new()
        .write(true)
        .open(path)?
        .write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// What a replaced file has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process: the rename alone. For records that a reboot makes void.
    Crash,
    /// A power loss as well: the file and its directory are synced. For what an operator made.
    PowerLoss,
}

/// How many random letters and digits tell a temporary file from another.
const NONCE_CHARACTERS: usize = 6;
/// Follows the random characters, so that no name that somebody else gives a file (`.NAME.backup`)
/// looks like a temporary file of ours.
const NONCE_END: &str = "-0";

/// The prefix of the temporary file that becomes `NAME`: `.NAME.<nonce>` beside it.
pub fn temporary_prefix(name: &str) -> String {
    format!(".{name}.")
}

/// Replaces or makes a file in one step: readers see all of the new file or nothing of it
/// (rename(2)).
pub fn replace(path: &Path, content: &[u8], mode: u32, durability: Durability) -> Result<()> {
    put(path, content, (mode, None), durability)
}

/// Like [`replace`], with the mode and owner of the file `like`, which may be the same file;
/// synced.
pub fn replace_like(path: &Path, content: &[u8], like: &Metadata) -> Result<()> {
    put(path, content, looks_of(like), Durability::PowerLoss)
}

/// A temporary file that is complete and not yet renamed: dropping it removes it.
#[derive(Debug)]
pub struct Replacement {
    temporary: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Replacement {
    /// Writes the temporary file that is to replace `path`, with the mode and owner of `like`. It
    /// survives the death of any process, but is not synced.
    pub fn like(path: &Path, content: &[u8], like: &Metadata) -> Result<Replacement> {
        let temporary = put_together(path, content, looks_of(like));
        Ok(Replacement {
            temporary: temporary.with_context(|| format!("replace {}", path.display()))?,
            path: path.to_owned(),
        })
    }

    /// The temporary file's metadata: the same inode will be at `path`.
    pub fn metadata(&self) -> Result<Metadata> {
        let metadata = self.temporary.as_file().metadata();
        metadata.with_context(|| format!("replace {}", self.path.display()))
    }

    /// Renames the temporary file to `path`.
    pub fn put(self) -> Result<()> {
        let put = self.temporary.persist(&self.path);
        put.map_err(|error| error.error)
            .with_context(|| format!("replace {}", self.path.display()))?;
        Ok(())
    }
}

/// Does everything that replacing a file takes but the rename; leaves nothing behind.
pub fn try_replacing(path: &Path) -> Result<()> {
    let attempt = || -> io::Result<()> { temporary_beside(path)?.write_all(&[0; TRIAL_BYTES]) };
    attempt().with_context(|| format!("replace {}", path.display()))
}

/// The bytes that a trial writes: one page, as much as most files of ours take.
const TRIAL_BYTES: usize = 4096;

/// A file's mode, and its owner and group if they are not the writer's own.
type Looks = (u32, Option<(u32, u32)>);

fn looks_of(file: &Metadata) -> Looks {
    (file.mode() & 0o7777, Some((file.uid(), file.gid())))
}

/// Makes a temporary file beside the file that it is to replace.
fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let (directory, name) = split(path)?;
    tempfile::Builder::new()
        .prefix(&temporary_prefix(name))
        .rand_bytes(NONCE_CHARACTERS)
        .suffix(NONCE_END)
        .tempfile_in(directory)
}

fn put_together(path: &Path, content: &[u8], looks: Looks) -> io::Result<tempfile::NamedTempFile> {
    let (mode, owner) = looks;
    let mut temporary = temporary_beside(path)?;
    temporary.write_all(content)?;
    if let Some((uid, gid)) = owner {
        fchown(temporary.as_file(), Some(uid), Some(gid))?;
    }
    // The umask is whatever the engine had: the mode is set afterwards.
    let mode = Permissions::from_mode(mode);
    temporary.as_file().set_permissions(mode)?;
    Ok(temporary)
}

fn put(path: &Path, content: &[u8], looks: Looks, durability: Durability) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let temporary = put_together(path, content, looks)?;
        if durability == Durability::PowerLoss {
            temporary.as_file().sync_all()?;
        }
        temporary.persist(path).map_err(|error| error.error)?;
        if durability == Durability::PowerLoss {
            sync_directory(split(path)?.0)?;
        }
        Ok(())
    };
    attempt().with_context(|| format!("replace {}", path.display()))
}

/// Makes changes of a directory's entries survive a power loss (fsync(2)).
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file; succeeds if there is none.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_gone(&error) => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes an empty directory. Returns `false` if it is not empty or in use, `true` also if it is
/// gone.
pub fn remove_empty_directory(path: &Path) -> Result<bool> {
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOTEMPTY | libc::EBUSY | libc::EEXIST)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Removes the temporary files that a killed [`replace`] of `directory/name` left behind.
///
/// A concurrent [`replace`] of that file fails: hold the lock under which the file is replaced, or
/// have that done again.
pub fn remove_leftovers(directory: &Path, name: &str) -> Result<()> {
    for entry in names_in(directory)? {
        if is_leftover(&entry, name) {
            remove(&directory.join(entry))?;
        }
    }
    Ok(())
}

/// Is `entry` the name of a temporary file that was to become `name`?
pub fn is_leftover(entry: &str, name: &str) -> bool {
    let nonce = entry.strip_prefix(&temporary_prefix(name));
    let nonce = nonce.and_then(|nonce| nonce.strip_suffix(NONCE_END));
    nonce.is_some_and(|nonce| nonce.len() == NONCE_CHARACTERS)
}

/// The names in a directory, unsorted; empty if there is no directory. Names that are not UTF-8 are
/// left out: no file of ours or KCM's has one.
pub fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = entries_in(directory)?.into_iter();
    Ok(entries.filter_map(DirectoryEntry::into_name).collect())
}

/// The names of a directory's subdirectories, with the same exceptions as [`names_in`].
pub fn directories_in(directory: &Path) -> Result<Vec<String>> {
    let entries = entries_in(directory)?.into_iter();
    let directories = entries.filter(DirectoryEntry::is_directory);
    Ok(directories.filter_map(DirectoryEntry::into_name).collect())
}

/// The paths of a directory's subdirectories, also of those whose names are not UTF-8.
pub fn directory_paths_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = entries_in(directory)?.into_iter();
    let directories = entries.filter(DirectoryEntry::is_directory);
    Ok(directories
        .map(|entry| directory.join(entry.name))
        .collect())
}

/// The metadata of a path, links not followed, if only root, root's group and we can change it.
pub fn trusted(path: &Path) -> Result<Metadata> {
    trusted_of_machine(path, || None)
}

/// Like [`trusted`], for files of the machine. A user namespace without root shows root's files as
/// a user's, whom `unknown_root` gives: these are trusted too.
pub fn trusted_of_machine(
    path: &Path,
    unknown_root: impl FnOnce() -> Option<u32>,
) -> Result<Metadata> {
    let metadata = path
        .symlink_metadata()
        .with_context(|| format!("look at {}", path.display()))?;
    ensure_trusted(path, &metadata, unknown_root)?;
    Ok(metadata)
}

/// Checks that only root, root's group and we can change the file `found` at a path, which is no
/// link. [`trusted_of_machine`] looks at the path itself.
pub fn ensure_trusted(
    path: &Path,
    found: &Metadata,
    unknown_root: impl FnOnce() -> Option<u32>,
) -> Result<()> {
    let (shown, metadata) = (path.display(), found);
    ensure!(
        !metadata.is_symlink(),
        Refusal::new(
            format!("{shown} is a symbolic link, which is not followed"),
            "put the real thing there"
        )
    );
    // A device has other users too: no remedy here tells anybody to change it.
    ensure!(
        metadata.is_file() || metadata.is_dir(),
        Refusal::new(
            format!("{shown} is neither a file nor a directory"),
            "put the real thing there, or name another"
        )
    );
    ensure!(
        metadata.mode() & 0o002 == 0,
        Refusal::new(
            format!("{shown} can be written by anybody"),
            format!("`chmod o-w {}`", shell_word(path))
        )
    );
    ensure!(
        metadata.mode() & 0o020 == 0 || metadata.gid() == 0,
        Refusal::new(
            format!("{shown} can be written by the group {}", metadata.gid()),
            format!("`chmod g-w {}`", shell_word(path))
        )
    );
    let is_ours = metadata.uid() == 0 || metadata.uid() == geteuid().as_raw();
    ensure!(
        is_ours || unknown_root() == Some(metadata.uid()),
        Refusal::new(
            format!(
                "{shown} belongs to uid {}: only root's, or one's own, can be trusted",
                metadata.uid()
            ),
            format!("`chown -h {} {}`", geteuid(), shell_word(path))
        )
    );
    Ok(())
}

/// Opens a regular file that others may have put there: refuses a symbolic link (`O_NOFOLLOW`,
/// open(2)) and does not block on a FIFO.
pub fn open_regular(path: &Path) -> Result<File> {
    open_regular_with(path, OpenOptions::new().read(true))
}

/// Like [`open_regular`], for reading and writing; makes the file if it is missing.
pub fn open_or_make_regular(path: &Path, mode: u32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(mode);
    open_regular_with(path, &mut options)
}

/// Like [`open_regular`], for a file whose metadata is known and that nobody else can replace.
pub fn open_seen(path: &Path, seen: &Metadata) -> Result<File> {
    match seen.is_file() {
        true => open_unfollowed(path, OpenOptions::new().read(true)),
        false => open_regular(path),
    }
}

/// Like [`open_regular`]; returns the file's metadata as well.
pub fn open_regular_seen(path: &Path) -> Result<(File, Metadata)> {
    regular_with(path, OpenOptions::new().read(true))
}

fn open_regular_with(path: &Path, options: &mut OpenOptions) -> Result<File> {
    regular_with(path, options).map(|(file, _)| file)
}

fn regular_with(path: &Path, options: &mut OpenOptions) -> Result<(File, Metadata)> {
    let file = open_unfollowed(path, options)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!(Refusal::new(
            format!("open {}: is not a regular file", path.display()),
            "put a real file there"
        ));
    }
    Ok((file, metadata))
}

fn open_unfollowed(path: &Path, options: &mut OpenOptions) -> Result<File> {
    options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => Refusal::new(
                "is a symbolic link, which is not followed",
                "put a real file there",
            )
            .into(),
            _ => anyhow::Error::new(error),
        })
        .with_context(|| format!("open {}", path.display()))
}

/// How long to pause between attempts at a lock that others hold for microseconds.
const PAUSE: Duration = Duration::from_millis(1);

/// Takes the flock(2) of a file of ours; closing the file releases it.
///
/// # Errors
/// Somebody else held the lock for longer than `patience`, or it cannot be locked.
pub fn lock_within(file: &File, patience: Duration) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match fs2::FileExt::try_lock_exclusive(file) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let is_held = error.raw_os_error() == fs2::lock_contended_error().raw_os_error();
                let may_pass = is_held || error.kind() == io::ErrorKind::Interrupted;
                if !may_pass || began.elapsed() >= patience {
                    return Err(error);
                }
            }
        }
        sleep(PAUSE);
    }
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_the_page_is_read_whole() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut write = File::from(write);
        let writer = std::thread::spawn(move || {
            write.write_all(&[b'x'; PAGE_BYTES]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
            write.write_all(b"end").unwrap();
        });
        let bytes = read_record(File::from(read), MOST_BYTES).unwrap();
        writer.join().unwrap();
        assert_eq!(bytes.len(), PAGE_BYTES + 3);
        assert!(bytes.ends_with(b"end"));
    }

    #[test]
    fn replace_makes_and_replaces_with_the_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks");
        for content in ["", "1,2"] {
            replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
            assert_eq!(read(&path).unwrap(), content);
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(names_in(dir.path()).unwrap(), ["tasks"]);
    }

    #[test]
    fn a_failed_replace_names_the_path_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tasks")).unwrap();
        let error = replace(
            &dir.path().join("tasks"),
            b"1",
            0o644,
            Durability::PowerLoss,
        );
        assert!(format!("{:#}", error.unwrap_err()).contains("tasks"));
        assert_eq!(names_in(dir.path()).unwrap(), ["tasks"]);
    }

    #[test]
    fn a_kernel_file_is_never_made_and_never_given_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_kernel(&dir.path().join("cpuset.cpus"), "0").is_err());
        assert!(names_in(dir.path()).unwrap().is_empty());
        assert!(write_kernel(&dir.path().join("cpuset.cpus"), "").is_err());
    }

    #[test]
    fn a_record_is_read_whole_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        for length in [
            0,
            1,
            READ_BYTES - 1,
            READ_BYTES,
            READ_BYTES + 1,
            5 * READ_BYTES,
        ] {
            replace(&path, &vec![b'x'; length], 0o600, Durability::Crash).unwrap();
            let open = || File::open(&path).unwrap();
            assert_eq!(read_record(open(), MOST_BYTES).unwrap().len(), length);
            assert_eq!(read_record(open(), length as u64).unwrap().len(), length);
            if length > 0 {
                assert!(read_record(open(), length as u64 - 1).is_err());
            }
        }
        assert_eq!(
            read_record_if_there(&dir.path().join("none")).unwrap(),
            None
        );
    }

    #[test]
    fn reading_is_bounded() {
        assert_eq!(read_bounded("abcd".as_bytes(), 4).unwrap(), "abcd");
        assert!(read_bounded("abcde".as_bytes(), 4).is_err());
        assert!(read_bounded(&b"\xff"[..], 4).is_err());
    }

    #[test]
    fn links_and_pipes_are_not_regular() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        let error = open_regular(&dir.path().join("link")).unwrap_err();
        assert!(format!("{error:#}").contains("symbolic link"));
        assert!(open_regular(dir.path()).is_err());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, dir.path()] {
            let error = read_text_if_there(path).unwrap_err();
            assert!(format!("{error:#}").contains("not a regular file"));
        }
    }

    #[test]
    fn leftovers_of_one_name_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            ".tasks.abcDE1-0",
            ".tasks.swp",
            ".tasks.backup",
            ".other.abcDE1-0",
            "tasks",
        ] {
            replace(&dir.path().join(name), b"", 0o600, Durability::Crash).unwrap();
        }
        remove_leftovers(dir.path(), "tasks").unwrap();
        let mut left = names_in(dir.path()).unwrap();
        left.sort();
        assert_eq!(
            left,
            [".other.abcDE1-0", ".tasks.backup", ".tasks.swp", "tasks"]
        );
    }
}
