//! The owners of a CPU list: reading and changing `tasks`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{FILE_MODE, Lock, PoolDirectory, subdirectories, tasks};
use crate::files::{self, Durability, trusted};
use crate::refusal::Refusal;
use crate::text::shell_word;

impl PoolDirectory {
    /// The pids in a list's `tasks`.
    ///
    /// # Errors
    /// The file is missing, damaged, or changeable by others.
    pub fn tasks(&self, pool: &str, list: &str) -> Result<Vec<i32>> {
        let path = self.list_path(pool, list).join("tasks");
        let metadata = match trusted(&path) {
            Ok(metadata) => metadata,
            Err(_)
                if files::entry_if_there(&path)?.is_none()
                    && !subdirectories(&self.list_path(pool, list))?.is_empty() =>
            {
                bail!(Refusal::new(
                    format!(
                        "the pool directory {} has a level for sockets, which is not supported",
                        self.path.display()
                    ),
                    format!(
                        "once nobody owns anything in it, take the pool away: `rm -r {}`",
                        shell_word(&self.pools().join(pool))
                    )
                ))
            }
            Err(error) => {
                let word = shell_word(&path);
                let remedy = format!("put an empty file there: `install -m 644 /dev/null {word}`");
                return self.or_half_made(Err(error), remedy);
            }
        };
        tasks_in(&path, &metadata)
    }

    /// Changes the owners of a list in one step: removes one occurrence of each pid of `drop`, and
    /// adds those of `add`. If that changes nothing, nothing is written. Only one occurrence is
    /// removed, because in a shared list the same number can stand for a dead owner and a live one.
    ///
    /// # Errors
    /// The file cannot be read or written, or the lock was replaced.
    pub fn change_tasks(&self, lock: &Lock, change: &TasksChange<'_>) -> Result<()> {
        let list_path = self.list_path(change.pool, change.list);
        if change.add.is_empty() && !self.has_list(change.pool, change.list)? {
            return Ok(());
        }
        let before = self.tasks(change.pool, change.list)?;
        let mut after = before.clone();
        for pid in change.drop {
            if let Some(index) = after.iter().position(|task| task == pid) {
                after.remove(index);
            }
        }
        after.extend(change.add);
        if after == before {
            return Ok(());
        }
        lock.ensure_in_place()?;
        write_tasks(&list_path, &after)
    }

    /// When a list's owners were last recorded, in seconds since the epoch; `None` where it has
    /// none. This is the file's `ctime` (inode(7)), which nobody can set.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn recorded_at(&self, pool: &str, list: &str) -> Result<Option<i64>> {
        let metadata = files::entry_if_there(&self.list_path(pool, list).join("tasks"))?;
        let recorded = metadata.filter(|metadata| metadata.len() > 0);
        Ok(recorded.map(|metadata| metadata.ctime()))
    }

    /// Replaces the owners of a list.
    ///
    /// # Errors
    /// The file cannot be written, or the lock was replaced.
    pub fn put_tasks(&self, lock: &Lock, pool: &str, list: &str, pids: &[i32]) -> Result<()> {
        lock.ensure_in_place()?;
        write_tasks(&self.list_path(pool, list), pids)
    }

    /// Tries to write `tasks` in each list of each pool, without changing it.
    ///
    /// # Errors
    /// What would keep a start from recording its owner.
    pub fn try_writing(&self, _lock: &Lock) -> Result<()> {
        for pool in self.pool_names()? {
            for list in files::directories_in(&self.pools().join(&pool))? {
                files::try_replacing(&self.list_path(&pool, &list).join("tasks"))?;
            }
        }
        Ok(())
    }

    /// Removes temporary files of `tasks` that killed programs left.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_leftovers(&self, _lock: &Lock, pool: &str, list: &str) -> Result<()> {
        files::remove_leftovers(&self.list_path(pool, list), "tasks")
    }
}

/// A change of a list's owners.
#[derive(Debug, Clone, Copy)]
pub struct TasksChange<'a> {
    /// The pool's name.
    pub pool: &'a str,
    /// The name of the list's directory.
    pub list: &'a str,
    /// The pids to remove; one that is not there is success.
    pub drop: &'a [i32],
    /// The pids to add at the end.
    pub add: &'a [i32],
}

/// The pids in a `tasks`. `seen` is what it was when it was checked that others cannot change it.
pub(super) fn tasks_in(path: &Path, seen: &Metadata) -> Result<Vec<i32>> {
    // Most lists have no owner: then the file is empty, and need not be read.
    if seen.len() == 0 {
        return Ok(Vec::new());
    }
    let file = files::open_seen(path, seen)?;
    let read = || -> Result<Vec<i32>> {
        let text = files::read_record(file, tasks::MOST_BYTES)?;
        tasks::parse(files::text_of(&text)?)
    };
    read().with_context(|| format!("read {}", path.display()))
}

fn write_tasks(list: &Path, pids: &[i32]) -> Result<()> {
    let content = tasks::print(pids);
    files::replace(
        &list.join("tasks"),
        content.as_bytes(),
        FILE_MODE,
        Durability::Crash,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::directory;

    #[test]
    fn tasks_change_one_by_one_and_twice_is_success() {
        let (_dir, directory) = directory("cp cp/1=5,6,5");
        let lock = lock(&directory);
        let change = |list, drop: &[i32], add: &[i32]| {
            let change = TasksChange {
                pool: "cp",
                list,
                drop,
                add,
            };
            directory.change_tasks(&lock, &change)
        };
        for (drop, add, after) in [
            (&[5, 9][..], &[][..], &[6, 5][..]),
            (&[6], &[7], &[5, 7]),
            (&[5, 7], &[], &[]),
            (&[5, 7], &[], &[]),
        ] {
            change("1", drop, add).unwrap();
            assert_eq!(directory.pool("cp").unwrap().lists[0].tasks, after);
        }
        change("77", &[6], &[]).unwrap();
        assert!(change("77", &[], &[6]).is_err());
    }

    #[test]
    fn a_list_that_cannot_be_looked_at_is_none_that_is_gone() {
        let (dir, directory) = directory("cp cp/1=5");
        let lock = lock(&directory);
        let drop_owner = || {
            let change = TasksChange {
                pool: "cp",
                list: "1",
                drop: &[5],
                add: &[],
            };
            directory.change_tasks(&lock, &change)
        };
        let (pool, away) = (dir.path().join("pools/cp"), dir.path().join("away"));
        std::fs::rename(&pool, &away).unwrap();
        // The list is gone, so there is nothing to remove.
        drop_owner().unwrap();
        // These are errors for root too: ENOTDIR and ELOOP.
        files::replace(&pool, b"", 0o644, files::Durability::Crash).unwrap();
        assert!(drop_owner().is_err());
        std::fs::remove_file(&pool).unwrap();
        std::os::unix::fs::symlink("cp", &pool).unwrap();
        assert!(drop_owner().is_err());
        std::fs::remove_file(&pool).unwrap();
        std::fs::rename(&away, &pool).unwrap();
        assert_eq!(directory.tasks("cp", "1").unwrap(), [5]);
        drop_owner().unwrap();
        assert!(directory.tasks("cp", "1").unwrap().is_empty());
    }

    #[test]
    fn the_time_of_a_record_cannot_be_set() {
        let (dir, directory) = directory("dp! dp/1=5 dp/2=");
        let path = dir.path().join("pools/dp/1/tasks");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        let recorded = directory.recorded_at("dp", "1").unwrap().unwrap();
        assert!(recorded > 1_000_000_000, "{recorded}");
        assert_eq!(directory.recorded_at("dp", "2").unwrap(), None);
        assert_eq!(directory.recorded_at("dp", "9").unwrap(), None);
    }

    fn lock(directory: &PoolDirectory) -> Lock {
        let host = crate::host::Host::new("/");
        directory.lock(&host, std::time::Duration::ZERO).unwrap()
    }
}
