//! Reading files, writing kernel files, and replacing files atomically. Every error names its path.

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

/// The most that is read of any one file, in bytes; `/proc/self/mountinfo` of a busy host is the largest.
pub const MOST_BYTES: u64 = 16 << 20;

/// What is asked for in the first read(2) of a file, in bytes.
const READ_BYTES: usize = 8 << 10;
/// The smallest page of a kernel, in bytes.
const PAGE_BYTES: usize = 4 << 10;

/// When an inode was made, in nanoseconds since the epoch: another file can have its number later. 0
/// where the file system does not say.
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

/// Reads a whole file as text, U+FFFD for what is not UTF-8 (a process can call itself anything, and a mount point
/// too); `None` where there is none, or where its process is gone
/// (reading below `/proc/<pid>` then gives ESRCH, proc(5)).
///
/// A symbolic link as the last component is followed: callers that read what others can write
/// open it themselves with `O_NOFOLLOW`.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    let attempt = File::open(path).and_then(|file| read_bytes(file, MOST_BYTES));
    lossy(attempt, path)
}

/// The same of a file that one read(2) tells whole, so that it is not asked again whether there is
/// more: a regular file, and what the kernel makes as one record, a value of sysfs or of a cgroup,
/// `stat` and `cgroup` of a process.
///
/// A list that the kernel makes record by record (`mountinfo`, `locks`, `cgroup.procs`) comes in pieces: it is read by
/// [`read_if_there`].
pub fn read_record_if_there(path: &Path) -> Result<Option<String>> {
    let attempt = File::open(path).and_then(|file| read_record(file, MOST_BYTES));
    lossy(attempt, path)
}

/// The same; a file that is missing is an error.
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

/// Reads a whole file as text that is written back; `None` where there is none.
///
/// # Errors
/// Also what is not UTF-8: it could not be written back as it was; and what is no regular file: a FIFO would be waited for.
pub fn read_text_if_there(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_bytes_if_there(path)? else {
        return Ok(None);
    };
    text_of(&bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8(bytes).ok())
}

/// The same of a file whose text may have been torn.
///
/// # Errors
/// What is no regular file: a FIFO would be waited for.
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

/// Does this error say that the file, or the process or device behind it, is not there (any more)? Every other error says
/// that nobody knows.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)
    )
}

/// The same of an error with context.
pub fn says_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(is_gone)
}

/// Does it say that somebody else may do this, and we may not?
pub fn is_denied_to_us(error: &anyhow::Error) -> bool {
    let says = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    !geteuid().is_root() && error.downcast_ref::<io::Error>().is_some_and(says)
}

/// What a path leads to, links followed; `None` where there is nothing.
///
/// `exists`, `is_dir` and `is_file` of the standard library take every error for "not there".
pub fn metadata_if_there(path: &Path) -> Result<Option<Metadata>> {
    if_there(path.metadata(), path)
}

/// What a path itself is, a link perhaps; `None` where there is nothing.
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

/// Reads to the end, but refuses input of more than `most` bytes and input that is not UTF-8.
pub fn read_bounded(source: impl Read, most: u64) -> io::Result<String> {
    let bytes = read_bytes(source, most)?;
    text_of(&bytes)?;
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// Text out of bytes that have to be UTF-8.
pub fn text_of(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| {
        let message = "stream did not contain valid UTF-8";
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn read_bytes(source: impl Read, most: u64) -> io::Result<Vec<u8>> {
    // A kernel file is made anew at each read(2): the fewer, the less it can change in between.
    let mut bytes = Vec::with_capacity(READ_BYTES);
    source.take(most + 1).read_to_end(&mut bytes)?;
    ensure_at_most(bytes.len(), most)?;
    Ok(bytes)
}

/// Reads a file that mostly one read(2) tells whole: it is over with the first that gives no whole
/// pages. Of sysfs's binary attributes, as a long list of CPUs is one, each read(2) gives one page
/// at most (kernel: fs/kernfs/file.c).
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

/// Gives a kernel file a value with one write(2); the file is neither made nor truncated.
///
/// An empty value is refused, because the kernel takes an empty write for none at all: a file is
/// cleared by writing a newline.
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

/// What a replaced file has to live through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process: the rename alone. For records that a reboot makes void.
    Crash,
    /// A power loss as well: the file and its directory are synced. For what an operator made.
    PowerLoss,
}

/// How many letters and digits, chosen at random, tell one temporary file from another.
const NONCE_CHARACTERS: usize = 6;
/// What is behind them, so that no word that somebody else puts there (`.NAME.backup`) is one of
/// ours.
const NONCE_END: &str = "-0";

/// Where a file that is being replaced is put together: `.NAME.<nonce>` beside it.
pub fn temporary_prefix(name: &str) -> String {
    format!(".{name}.")
}

/// Replaces a file, or makes it, in one step that readers see wholly or not at all (rename(2)).
pub fn replace(path: &Path, content: &[u8], mode: u32, durability: Durability) -> Result<()> {
    put(path, content, (mode, None), durability)
}

/// Replaces a file, or makes it, with the mode and the owner of another that may be the same; synced.
pub fn replace_like(path: &Path, content: &[u8], like: &Metadata) -> Result<()> {
    put(path, content, looks_of(like), Durability::PowerLoss)
}

/// A file that is put together, and not in its place yet: dropping it removes it.
#[derive(Debug)]
pub struct Replacement {
    temporary: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Replacement {
    /// Puts together what is to be in the place of a file, with the mode and the owner of another.
    /// It lives through the death of any process; it is not synced.
    pub fn like(path: &Path, content: &[u8], like: &Metadata) -> Result<Replacement> {
        let temporary = put_together(path, content, looks_of(like));
        Ok(Replacement {
            temporary: temporary.with_context(|| format!("replace {}", path.display()))?,
            path: path.to_owned(),
        })
    }

    /// What tells it from every other file, in its place too.
    pub fn metadata(&self) -> Result<Metadata> {
        let metadata = self.temporary.as_file().metadata();
        metadata.with_context(|| format!("replace {}", self.path.display()))
    }

    /// Puts it in its place.
    pub fn put(self) -> Result<()> {
        let put = self.temporary.persist(&self.path);
        put.map_err(|error| error.error)
            .with_context(|| format!("replace {}", self.path.display()))?;
        Ok(())
    }
}

/// Does all that replacing a file takes, but for the last step: nothing stays.
pub fn try_replacing(path: &Path) -> Result<()> {
    let attempt = || -> io::Result<()> { temporary_beside(path)?.write_all(&[0; TRIAL_BYTES]) };
    attempt().with_context(|| format!("replace {}", path.display()))
}

/// What a trial writes, in bytes: a page, as much as most files of ours take.
const TRIAL_BYTES: usize = 4096;

/// A file's mode, and its owner and group where they are not those of whoever writes it.
type Looks = (u32, Option<(u32, u32)>);

fn looks_of(file: &Metadata) -> Looks {
    (file.mode() & 0o7777, Some((file.uid(), file.gid())))
}

/// A file with a name of its own beside the one that it is to replace.
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
    // The process's umask is whatever the engine had: the mode is set, not asked for.
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

/// Makes what was done to the entries of a directory last over a power loss (fsync(2)).
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file; one that is not there is success.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_gone(&error) => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes an empty directory; `false` where it is not empty or in use, `true` where it is not there any more.
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
/// Who replaces that file meanwhile fails: hold the lock under which that is done, or have it done
/// again.
pub fn remove_leftovers(directory: &Path, name: &str) -> Result<()> {
    for entry in names_in(directory)? {
        if is_leftover(&entry, name) {
            remove(&directory.join(entry))?;
        }
    }
    Ok(())
}

/// Is this the name of a file in which another was put together?
pub fn is_leftover(entry: &str, name: &str) -> bool {
    let nonce = entry.strip_prefix(&temporary_prefix(name));
    let nonce = nonce.and_then(|nonce| nonce.strip_suffix(NONCE_END));
    nonce.is_some_and(|nonce| nonce.len() == NONCE_CHARACTERS)
}

/// The names in a directory, unsorted; empty where there is none. Names that are not UTF-8 are left
/// out: nothing of ours or KCM's has such a name.
pub fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = entries_in(directory)?.into_iter();
    Ok(entries.filter_map(DirectoryEntry::into_name).collect())
}

/// The names of the directories in a directory, likewise.
pub fn directories_in(directory: &Path) -> Result<Vec<String>> {
    let entries = entries_in(directory)?.into_iter();
    let directories = entries.filter(DirectoryEntry::is_directory);
    Ok(directories.filter_map(DirectoryEntry::into_name).collect())
}

/// The paths of the directories in a directory, whatever their names are made of.
pub fn directory_paths_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = entries_in(directory)?.into_iter();
    let directories = entries.filter(DirectoryEntry::is_directory);
    Ok(directories
        .map(|entry| directory.join(entry.name))
        .collect())
}

/// What a path is, without following a link, if nobody but root, its group and we can change it.
pub fn trusted(path: &Path) -> Result<Metadata> {
    trusted_of_machine(path, || None)
}

/// The same for what belongs to the machine: in a user namespace without root, where `unknown_root` says as whom its files
/// are shown, those belong to nobody that can be named.
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

/// Makes sure that nobody but root, its group and we can change what was found at a path, without
/// following a link; [`trusted_of_machine`] looks first.
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
    // Of a device everybody else has a use, too: nobody is told to change it.
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

/// Opens a regular file that others may have put there: a symbolic link is refused (`O_NOFOLLOW`,
/// open(2)) and a FIFO does not block.
pub fn open_regular(path: &Path) -> Result<File> {
    open_regular_with(path, OpenOptions::new().read(true))
}

/// The same to read and write, made where it is not there.
pub fn open_or_make_regular(path: &Path, mode: u32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(mode);
    open_regular_with(path, &mut options)
}

/// The same of a file that was looked at a moment ago, where nobody else can put another in its
/// place.
pub fn open_seen(path: &Path, seen: &Metadata) -> Result<File> {
    match seen.is_file() {
        true => open_unfollowed(path, OpenOptions::new().read(true)),
        false => open_regular(path),
    }
}

/// Opens a regular file, as [`open_regular`] does, and tells what it is.
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

/// How often a lock is tried that others have for microseconds.
const PAUSE: Duration = Duration::from_millis(1);

/// Takes the flock(2) of a file of our own, which it has until it is closed: an unlocking that
/// fails is nobody's trouble.
///
/// # Errors
/// Somebody else has it for longer than that, or it cannot be locked.
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
