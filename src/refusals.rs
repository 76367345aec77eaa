//! The last refusals, for whoever asks why a container does not start. Only failed hooks write this
//! small file; it is lost at reboot, as claims are. The system log has refusals too, and keeps them
//! longer.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::names::Names;

/// The largest size of each of the two files, in bytes: a few hundred refusals.
const MOST_BYTES: u64 = 64 << 10;
/// The file, one JSON object per line, and the former one, renamed when it grew too large.
const FILES: [&str; 2] = ["refusals", "refusals.old"];

/// A start or an end of a container that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// The container's id as its runtime gave it; not trusted.
    pub container: String,
    /// The names that people use for it; older versions recorded none.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// The message that the engine was told.
    pub message: String,
}

/// Adds a refusal. The run directory must exist, and others must not be able to write in it.
///
/// # Errors
/// The file cannot be written; nothing depends on it.
pub fn record(run_dir: &Path, refusal: &Refused) -> Result<()> {
    let [path, old] = FILES.map(|name| run_dir.join(name));
    let attempt = || -> io::Result<()> {
        let is_full = |metadata: std::fs::Metadata| metadata.len() > MOST_BYTES;
        if path.symlink_metadata().is_ok_and(is_full) {
            // Two processes that do this at once lose the older half.
            std::fs::rename(&path, &old)?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)?;
        let line = serde_json::to_string(refusal)?;
        file.write_all(format!("{line}\n").as_bytes())
    };
    attempt().with_context(|| format!("write {}", path.display()))
}

/// The recorded refusals, the oldest first; unreadable lines are left out.
///
/// # Errors
/// A file cannot be read.
pub fn all(run_dir: &Path) -> Result<Vec<Refused>> {
    let mut refusals = Vec::new();
    for name in FILES.iter().rev() {
        let text = files::read_if_there(&run_dir.join(name))?.unwrap_or_default();
        refusals.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str(line).ok()),
        );
    }
    Ok(refusals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_in_order_and_no_more_than_fit() {
        let dir = tempfile::tempdir().unwrap();
        assert!(all(dir.path()).unwrap().is_empty());
        let refusal = |at| Refused {
            at,
            container: "web\n".into(),
            names: Names::default(),
            message: "x".repeat(1000),
        };
        for at in 0..300 {
            record(dir.path(), &refusal(at)).unwrap();
        }
        let kept = all(dir.path()).unwrap();
        assert!((65..135).contains(&kept.len()), "{}", kept.len());
        let first = 300 - kept.len() as u64;
        let expected: Vec<Refused> = (first..300).map(refusal).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = Refused {
            at: 1,
            container: "a".into(),
            names: Names::default(),
            message: "b".into(),
        };
        let path = dir.path().join(FILES[0]);
        files::replace(&path, b"{\"at\":\n", 0o600, files::Durability::Crash).unwrap();
        record(dir.path(), &refusal).unwrap();
        assert_eq!(all(dir.path()).unwrap(), [refusal]);
    }
}
