//! Counts that outlive the counting process: the file `counters` in the run directory, lost at
//! reboot as claims are. Only slow events are counted: a refusal, a wait for the lock, the freeing
//! of a dead owner's lists.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::files;

const FILE: &str = "counters";
/// The length of the file, in bytes.
const LENGTH: usize = 1024;
/// How long to wait for others who count: they take microseconds.
const PATIENCE: Duration = Duration::from_millis(200);

/// The counts since the boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Refused starts, by the reason's word.
    pub refusals: BTreeMap<String, u64>,
    /// How often a process waited for the lock.
    pub lock_waits: u64,
    /// The sum of those waits, in seconds.
    pub lock_wait_seconds: f64,
    /// CPU lists of dead owners that another process than their own end freed.
    pub reclaimed_lists: u64,
}

/// Changes the counts. The run directory must exist, and others must not be able to write in it.
///
/// # Errors
/// The file cannot be written; nothing depends on it.
pub fn count(run_dir: &Path, change: impl FnOnce(&mut Counters)) -> Result<()> {
    let path = run_dir.join(FILE);
    let attempt = || -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)?;
        files::lock_within(&file, PATIENCE)?;
        let mut counters = parse(&read_all(&file)?);
        change(&mut counters);
        let text = files::summed(&serde_json::to_string(&counters)?, LENGTH);
        let text = text.context("there are too many counters")?;
        Ok(file.write_all_at(text.as_bytes(), 0)?)
    };
    attempt().with_context(|| format!("write {}", path.display()))
}

/// Reads the counts.
///
/// # Errors
/// The file cannot be read. A missing or damaged file counts nothing.
pub fn read(run_dir: &Path) -> Result<Counters> {
    let text = files::read_if_there(&run_dir.join(FILE))?;
    Ok(parse(&text.unwrap_or_default()))
}

fn parse(text: &str) -> Counters {
    let whole = files::unsummed(text);
    let counters = whole.and_then(|text| serde_json::from_str(text).ok());
    counters.unwrap_or_default()
}

fn read_all(file: &File) -> io::Result<String> {
    let mut bytes = [0; LENGTH];
    let mut length = 0;
    while length < LENGTH {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Counters::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let count_one = |counters: &mut Counters| {
                            *counters.refusals.entry("exhausted".into()).or_default() += 1;
                            counters.lock_wait_seconds += 0.5;
                        };
                        count(dir.path(), count_one).unwrap();
                    }
                });
            }
        });
        let counters = read(dir.path()).unwrap();
        assert_eq!(counters.refusals["exhausted"], 200);
        assert_eq!(counters.lock_wait_seconds, 100.0);
    }

    #[test]
    fn what_is_damaged_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        files::replace(&path, b"nonsense", 0o600, files::Durability::Crash).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Counters::default());
        count(dir.path(), |counters| counters.reclaimed_lists += 2).unwrap();
        assert_eq!(read(dir.path()).unwrap().reclaimed_lists, 2);
    }
}
