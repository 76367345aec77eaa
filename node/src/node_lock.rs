//! The lock that keeps a second process from serving the same site.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use pinfold::claims::Ledger;
use pinfold::files;
use pinfold::refusal::Refusal;

/// The lock's file in the run directory. It holds the process's number, and stays.
const FILE: &str = "node.lock";
/// More than the digits of a process's number.
const MOST_DIGITS: u64 = 16;

/// The lock, which is held until it is dropped, or the process ends.
#[derive(Debug)]
pub struct NodeLock {
    _file: File,
}

impl NodeLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another process has it; the run directory cannot be made or written.
    pub fn take(run_dir: &Path) -> Result<NodeLock> {
        // Makes the run directory where it is missing.
        Ledger::open(run_dir)?;
        let path = run_dir.join(FILE);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path);
        let mut file = opened.with_context(|| format!("open {}", path.display()))?;
        if let Err(error) = files::lock_within(&file, Duration::ZERO) {
            if error.kind() != std::io::ErrorKind::WouldBlock {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
            let mut holder = String::new();
            let _ = (&file).take(MOST_DIGITS).read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>();
            let holder = holder.map_or(String::new(), |pid| format!(" as process {pid}"));
            bail!(Refusal::new(
                format!(
                    "pinfold-node runs already{holder}: it holds {}",
                    path.display()
                ),
                "end that one, or give this one other directories: --run-dir"
            ));
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.with_context(|| format!("write {}", path.display()))?;
        Ok(NodeLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let first = NodeLock::take(&run_dir).unwrap();
        let error = NodeLock::take(&run_dir).unwrap_err();
        let own = format!("as process {}", std::process::id());
        assert!(format!("{error:#}").contains(&own), "{error:#}");
        drop(first);
        NodeLock::take(&run_dir).unwrap();
    }
}
