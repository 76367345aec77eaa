//! The lock of a pool directory: flock(2) on one inode that KCM's tools lock too.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use super::PoolDirectory;
use crate::files;
use crate::host::Host;
use crate::refusal::{OrRefuse, Refusal};
use crate::text::{Shown, shell_word};

/// The longest pause between two tries. Short beside a start, long beside the work under the lock.
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// The pool directory, held. Dropping it lets go.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Why the lock was not had.
#[derive(Debug)]
pub enum LockError {
    /// We may not open it: it is root's alone.
    Denied(anyhow::Error),
    /// Somebody else held it all the time.
    Held(anyhow::Error),
    /// It is missing or broken.
    Unusable(anyhow::Error),
}

impl From<LockError> for anyhow::Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Denied(error) | LockError::Held(error) | LockError::Unusable(error) => error,
        }
    }
}

impl PoolDirectory {
    /// The lock for one who only looks: where it has not been made yet nobody can hold it, and the directory itself
    /// stands for it.
    pub fn lock_to_look(&self, host: &Host, patience: Duration) -> Result<Lock, LockError> {
        match self.lock_path().symlink_metadata() {
            Err(error) if files::is_gone(&error) => File::open(&self.path)
                .map(|file| Lock { file })
                .context("open the pool directory")
                .map_err(LockError::Unusable),
            _ => self.lock(host, patience),
        }
    }

    /// Takes the lock, waiting at most `patience`; with none it is tried once.
    pub fn lock(&self, host: &Host, patience: Duration) -> Result<Lock, LockError> {
        let path = self.lock_path();
        let file = files::open_regular(&path).map_err(|error| {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind == Some(io::ErrorKind::PermissionDenied) {
                LockError::Denied(self.denied(error))
            } else {
                let half_made = Err::<File, _>(error).or_refuse(|| {
                    let word = shell_word(&path);
                    self.half_made(format!("make its lock: `install -m 600 /dev/null {word}`"))
                });
                LockError::Unusable(half_made.expect_err("it was an error"))
            }
        })?;
        let started = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            // Polled: a blocking flock(2) can only be bounded with a signal handler.
            match fs2::FileExt::try_lock_exclusive(&file) {
                Ok(()) => break,
                Err(error)
                    if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let context = format!("lock {}", path.display());
                    return Err(LockError::Unusable(
                        anyhow::Error::new(error).context(context),
                    ));
                }
            }
            let waited = started.elapsed();
            if waited >= patience {
                let (who, remedy) = match holder(host, &file) {
                    Some((pid, who)) => (
                        who,
                        format!(
                            "let that finish, or end it (`kill {pid}`), or wait longer with --lock-timeout"
                        ),
                    ),
                    None => (
                        "somebody else".to_owned(),
                        "let that finish, or wait longer with --lock-timeout".to_owned(),
                    ),
                };
                let what = format!(
                    "the lock {} is held by {who}; gave up after {:.1} s",
                    path.display(),
                    waited.as_secs_f64()
                );
                return Err(LockError::Held(Refusal::new(what, remedy).into()));
            }
            sleep(pause.min(patience - waited));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let waited = started.elapsed();
        if pause > Duration::from_micros(50) {
            log::info!("waited {:.1} ms for the lock", waited.as_secs_f64() * 1e3);
        }
        Ok(Lock { file })
    }

    fn denied(&self, error: anyhow::Error) -> anyhow::Error {
        let owner = self.lock_path().symlink_metadata().map(|lock| lock.uid());
        let remedy = match owner {
            Ok(uid) if uid != 0 => format!("run this as the user with the uid {uid}"),
            _ => "run this as root".to_owned(),
        };
        let remedy = remedy
            + ", or name a pool directory and a run directory of your own (--conf-dir, --run-dir)";
        let what = "only its owner may lock the pool directory";
        let denied = Err::<File, _>(error).or_refuse(|| Refusal::new(what, remedy));
        denied.expect_err("it was an error")
    }
}

impl Lock {
    /// What tells this lock, and so its pool directory, from every other on the machine.
    pub fn key(&self) -> Result<String> {
        let metadata = self.file.metadata().context("look at the lock")?;
        Ok(format!("{:x}-{}", metadata.dev(), metadata.ino()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = fs2::FileExt::unlock(&self.file) {
            log::warn!("unlock the pool directory: {error}");
        }
    }
}

/// Who holds the flock on this file, from `/proc/locks` (proc_locks(5)): a pid, and how to show it.
fn holder(host: &Host, file: &File) -> Option<(i32, String)> {
    let metadata = file.metadata().ok()?;
    let locks = files::read_if_there(&host.proc_locks()).ok()??;
    let pid = holder_in(&locks, metadata.dev(), metadata.ino())?;
    let name = files::read_if_there(&host.proc_pid(pid, "comm")).ok()?;
    let name = name.unwrap_or_default();
    Some((pid, format!("process {pid} {}", Shown(name.trim_end()))))
}

fn holder_in(locks: &str, device: u64, inode: u64) -> Option<i32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, place, ..] if *place == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, PoolDirectory) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pools")).unwrap();
        files::replace(
            &dir.path().join("lock"),
            b"",
            0o600,
            files::Durability::Crash,
        )
        .unwrap();
        let opened = PoolDirectory::open(dir.path()).unwrap();
        (dir, opened)
    }

    #[test]
    fn a_held_lock_is_refused_after_the_patience_and_names_the_holder() {
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let held = directory.lock(&host, Duration::ZERO).unwrap();
        let started = Instant::now();
        match directory.lock(&host, Duration::from_millis(30)) {
            Err(LockError::Held(error)) => {
                let own_pid = format!("process {} ", std::process::id());
                assert!(error.to_string().contains(&own_pid), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() >= Duration::from_millis(30));
        drop(held);
        directory.lock(&host, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_missing_lock_is_a_half_made_directory() {
        let (dir, directory) = directory();
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        match directory.lock(&Host::new("/"), Duration::ZERO) {
            Err(LockError::Unusable(error)) => assert!(error.to_string().contains("half-made")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn holders_are_read_from_the_lock_table() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 14 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n";
        assert_eq!(
            holder_in(locks, nix::sys::stat::makedev(0xfe, 0), 77),
            Some(13)
        );
        assert_eq!(holder_in(locks, nix::sys::stat::makedev(0xfd, 0), 77), None);
    }
}
