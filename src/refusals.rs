//! The last refusals, for whoever asks why a container does not start: a small file that only a hook that failed writes, and
//! that is lost with the boot, as claims are. The system log has them, too, and for longer.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::names::Names;

/// Of each of the two files that there are at most, in bytes: a few hundred refusals.
const MOST_BYTES: u64 = 64 << 10;
/// A line of JSON a refusal, and what was in it before it grew too large.
const FILES: [&str; 2] = ["refusals", "refusals.old"];

/// A start or an end of a container that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// The container's id, as its runtime said it: text of others.
    pub container: String,
    /// What people call it; older versions kept none.
    #[serde(default, skip_serializing_if = "Names::is_empty")]
    pub names: Names,
    /// The sentence that the engine was told.
    pub message: String,
}

/// Adds a refusal. The run directory is there, and nobody else can write in it.
///
/// # Errors
/// The file cannot be written: nothing depends on it.
pub fn record(run_dir: &Path, refusal: &Refused) -> Result<()> {
    let [path, old] = FILES.map(|name| run_dir.join(name));
    let attempt = || -> io::Result<()> {
        let is_full = |metadata: std::fs::Metadata| metadata.len() > MOST_BYTES;
        if path.symlink_metadata().is_ok_and(is_full) {
            // Two that do so at once lose the older half.
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

/// The refusals that are kept, the oldest first; what cannot be made out is left out.
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
