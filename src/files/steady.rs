//! A kernel file that is read again and again.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};

use super::{MOST_BYTES, is_gone};

/// The size of the first pread(2), in bytes: most files are shorter.
const READ_BYTES: usize = 512;

/// How many descriptors are left for other uses.
const SPARED: RawFd = 64;

/// A kernel file that stays open between readings, as long as there are enough descriptors: a
/// reading is then one pread(2). An open file stays the same whatever comes to its path: it says
/// that its group (`ENODEV`) or its thread (`ESRCH`) is gone.
#[derive(Debug)]
pub struct SteadyFile {
    path: PathBuf,
    file: Option<File>,
    /// The size of the next read, in bytes: more than the file ever had.
    room: usize,
}

/// How much of a file one read(2) returns (kernel: Documentation/filesystems/seq_file.rst).
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadForm {
    /// All of it, if the buffer is large enough.
    OneRecord,
    /// About a page: reads go on until one returns nothing.
    ManyRecords,
}

impl SteadyFile {
    /// The file at `path`, which need not exist.
    pub fn new(path: PathBuf) -> SteadyFile {
        SteadyFile {
            path,
            file: None,
            room: READ_BYTES,
        }
    }

    /// Reads a file that the kernel makes as one record, such as a controller's figures; `None` if
    /// the file is gone.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&mut self) -> Result<Option<String>> {
        self.read_as(ReadForm::OneRecord)
    }

    /// Reads a file that the kernel makes record by record, such as a list of processes; `None` if
    /// the file is gone.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_list(&mut self) -> Result<Option<String>> {
        self.read_as(ReadForm::ManyRecords)
    }

    fn read_as(&mut self, form: ReadForm) -> Result<Option<String>> {
        if let Some(file) = self.file.take() {
            match bytes_of(&file, form, &mut self.room) {
                Err(error) if is_gone(&error) => {}
                read => {
                    self.file = Some(file);
                    return self.text(read);
                }
            }
        }
        let room = &mut self.room;
        let opened = File::open(&self.path);
        let opened = opened.and_then(|file| Ok((bytes_of(&file, form, room)?, file)));
        match opened {
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => self.text(Err(error)),
            Ok((bytes, file)) => {
                self.file = (file.as_raw_fd() < most_kept()).then_some(file);
                self.text(Ok(bytes))
            }
        }
    }

    fn text(&self, read: io::Result<Vec<u8>>) -> Result<Option<String>> {
        let bytes = read.with_context(|| format!("read {}", self.path.display()))?;
        let text = String::from_utf8(bytes);
        let text =
            text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(Some(text))
    }
}

fn bytes_of(file: &File, form: ReadForm, room: &mut usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; *room];
    let mut length = 0;
    loop {
        // The buffer was too small, and the kernel makes the text anew: read it again from the
        // start.
        if length == bytes.len() {
            if bytes.len() as u64 >= MOST_BYTES {
                return Err(io::Error::from(io::ErrorKind::FileTooLarge));
            }
            bytes.resize(4 * bytes.len(), 0);
            *room = bytes.len();
            if form == ReadForm::OneRecord {
                length = 0;
            }
        }
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if form == ReadForm::OneRecord && length < bytes.len() {
            break;
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// The lowest descriptor that is not kept open: the kernel gives the lowest free one (open(2)).
fn most_kept() -> RawFd {
    static MOST: OnceLock<RawFd> = OnceLock::new();
    *MOST.get_or_init(|| {
        let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        RawFd::try_from(most).unwrap_or(RawFd::MAX) - SPARED
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    #[test]
    fn it_is_read_anew_each_time_however_long_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu.stat");
        let mut file = SteadyFile::new(path.clone());
        assert_eq!(file.read().unwrap(), None);
        for length in [
            3,
            READ_BYTES - 1,
            READ_BYTES,
            READ_BYTES + 1,
            9 * READ_BYTES,
        ] {
            let text = "x".repeat(length);
            // The path is replaced: the open file is still the former one.
            if path.metadata().is_err() {
                replace(&path, b"", 0o600, Durability::Crash).unwrap();
            }
            let write = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            write.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(file.read().unwrap().as_deref(), Some(&text[..]), "{length}");
            assert_eq!(file.read_list().unwrap(), Some(text), "{length}");
        }
        assert!(file.file.is_some());
        let mut odd = SteadyFile::new(dir.path().to_owned());
        assert!(odd.read().is_err());
    }

    #[test]
    fn a_list_of_many_pieces_is_whole() {
        let own = SteadyFile::new("/proc/self/maps".into())
            .read_list()
            .unwrap()
            .unwrap();
        assert!(own.contains("[stack]") && own.ends_with('\n'));
    }

    #[test]
    fn a_process_that_is_gone_is_told_and_no_other_is_taken_for_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let mut file = SteadyFile::new(format!("/proc/{}/stat", child.id()).into());
        assert!(
            file.read()
                .unwrap()
                .is_some_and(|text| text.contains("sleep"))
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(file.read().unwrap(), None);
    }
}
