//! What was last read of each owner that has no record yet: `samples/<id>@<pid>-<start>` in the run
//! directory.
//!
//! A new sample is written over the former one ([`files::summed`]).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::account::{Mark, Noise};
use crate::files;

/// What was last read of an owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was read, in seconds since the epoch.
    pub at: i64,
    /// What its meter showed.
    pub mark: Mark,
    /// What others used on its CPUs since the first sample.
    pub noise: Noise,
    /// Is the account complete, so that nothing is added any more?
    pub is_final: bool,
}

impl Sample {
    /// The sample that follows `before`, with a new mark that was read at `at`.
    pub fn after(before: Option<&Sample>, at: i64, mark: Mark, is_final: bool) -> Sample {
        let noise = before.map_or(Noise::default(), |before| {
            before.noise.and(mark.noise_since(&before.mark))
        });
        Sample {
            at,
            mark,
            noise,
            is_final,
        }
    }
}

/// The length of every file, in bytes. A sample that is longer is kept without its CPUs, such as
/// every second one of 8192.
const LENGTH: usize = 2048;

/// The directory of samples.
#[derive(Debug, Clone)]
pub struct Samples {
    dir: PathBuf,
}

impl Samples {
    /// The samples in a run directory, which nobody else can write.
    pub fn of(run_dir: &Path) -> Samples {
        Samples {
            dir: run_dir.join("samples"),
        }
    }

    /// An owner's sample, by file name; `None` if there is none, or it is damaged.
    pub fn of_owner(&self, name: &str) -> Option<Sample> {
        let text = files::read_if_there(&self.dir.join(name)).ok()??;
        serde_json::from_str(files::unsummed(&text)?).ok()
    }

    /// Writes an owner's sample.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, name: &str, sample: &Sample) -> Result<()> {
        let whole = match files::summed(&serde_json::to_string(sample)?, LENGTH) {
            Some(whole) => whole,
            None => {
                let mut short = sample.clone();
                short.mark.cpus = None;
                let short = files::summed(&serde_json::to_string(&short)?, LENGTH);
                short.with_context(|| format!("a sample of {name} is too long"))?
            }
        };
        let path = self.dir.join(name);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            file.write_all(whole.as_bytes())
        };
        let written = match write() {
            Err(error) if files::is_gone(&error) => {
                let mut made = std::fs::DirBuilder::new();
                made.mode(0o700).recursive(true).create(&self.dir)?;
                write()
            }
            other => other,
        };
        written.with_context(|| format!("write {}", path.display()))
    }

    /// The names of all owners that have a sample.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        files::names_in(&self.dir)
    }

    /// Removes an owner's sample.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        files::remove(&self.dir.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Source;
    use crate::account::mark::CpuTotals;

    fn sample(total: f64, cpus: String) -> Sample {
        let mark = Mark {
            clock: 1.5,
            total,
            user: total,
            system: 0.0,
            source: Source::Group,
            on_its_cpus: Some(0.5),
            cpus: Some(CpuTotals {
                cpus,
                count: 2,
                quiet: 3.25,
                counted: Some(7.5),
            }),
        };
        Sample::after(None, 7, mark, false)
    }

    #[test]
    fn the_last_sample_counts_and_a_damaged_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let samples = Samples::of(dir.path());
        assert_eq!(samples.of_owner("a@1-2"), None);
        assert!(samples.names().unwrap().is_empty());
        for total in [123_456.789, 1.0] {
            let one = sample(total, "2-3".into());
            samples.keep("a@1-2", &one).unwrap();
            assert_eq!(samples.of_owner("a@1-2"), Some(one));
        }
        assert_eq!(samples.names().unwrap(), ["a@1-2"]);
        let path = dir.path().join("samples/a@1-2");
        let whole = files::read(&path).unwrap();
        for damaged in [
            whole.replace("2-3", "2-4"),
            whole[..900].to_owned(),
            String::new(),
        ] {
            files::replace(&path, damaged.as_bytes(), 0o600, files::Durability::Crash).unwrap();
            assert_eq!(samples.of_owner("a@1-2"), None, "{damaged}");
        }
        samples.forget("a@1-2").unwrap();
        samples.forget("a@1-2").unwrap();
        assert!(samples.names().unwrap().is_empty());
    }

    #[test]
    fn a_list_of_cpus_that_is_too_long_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let samples = Samples::of(dir.path());
        let long = sample(1.0, "0,2,4,".repeat(400));
        samples.keep("a", &long).unwrap();
        let kept = samples.of_owner("a").unwrap();
        assert_eq!((kept.mark.cpus, kept.mark.total), (None, 1.0));
    }
}
