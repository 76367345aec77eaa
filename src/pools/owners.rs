//! Who owns a CPU list: reading and changing `tasks`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{FILE_MODE, Lock, Pool, PoolDirectory, subdirectories, tasks};
use crate::files::{self, Durability, trusted};
use crate::refusal::{OrRefuse, Refusal};
use crate::text::shell_word;

impl PoolDirectory {
    /// The owners of one list now.
    pub fn tasks(&self, pool: &str, list: &str) -> Result<Vec<i32>> {
        let path = self.list_path(pool, list).join("tasks");
        let metadata = match trusted(&path) {
            Ok(metadata) => metadata,
            Err(_)
                if !subdirectories(&self.list_path(pool, list))?.is_empty() && !path.exists() =>
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
                return Err(error).or_refuse(|| self.half_made(remedy));
            }
        };
        // Most lists have no owner: then the size says it all.
        if metadata.len() == 0 {
            return Ok(Vec::new());
        }
        let file = files::open_regular(&path)?;
        let text = files::read_bounded(file, tasks::MOST_BYTES)
            .with_context(|| format!("read {}", path.display()))?;
        tasks::parse(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Changes the owners of a list in one step, for all who hold the lock after us: drops one occurrence of
    /// each pid of `drop`, and adds those of `add`. Nothing is written where that changes nothing.
    ///
    /// One occurrence: in a shared list the same number can stand for a dead owner and a live one.
    pub fn change_tasks(&self, _lock: &Lock, change: &TasksChange<'_>) -> Result<()> {
        let list_path = self.list_path(change.pool, change.list);
        if change.add.is_empty() && !list_path.is_dir() {
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
        write_tasks(&list_path, &after)
    }

    /// Empties every `tasks` that was last written before a time, whatever is in it, but for the pids to keep.
    /// What cannot be read or written is reported, and does not stop the rest.
    pub fn forget_tasks_before(&self, _lock: &Lock, time: i64, keep: &BTreeSet<i32>) -> Result<()> {
        for pool in self.pool_names()? {
            for list in files::directories_in(&self.pools().join(&pool))? {
                if !self.is_from_before(time, &pool, &list) {
                    continue;
                }
                let path = self.list_path(&pool, &list);
                let mut pids = self.tasks(&pool, &list).unwrap_or_default();
                pids.retain(|pid| keep.contains(pid));
                if let Err(error) = write_tasks(&path, &pids) {
                    log::warn!("{error:#}");
                }
            }
        }
        Ok(())
    }

    /// Has a list owners that were last written before a time? One that cannot be looked at has none.
    pub fn is_from_before(&self, time: i64, pool: &str, list: &str) -> bool {
        let metadata = trusted(&self.list_path(pool, list).join("tasks"));
        metadata.is_ok_and(|metadata| metadata.len() > 0 && metadata.mtime() < time)
    }

    /// Tries to write the owners of a list of each pool, and leaves them as they are.
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

    /// Removes what killed writers of this pool's `tasks` left behind.
    pub fn remove_leftovers(&self, _lock: &Lock, pool: &Pool) -> Result<()> {
        for list in &pool.lists {
            files::remove_leftovers(&self.list_path(&pool.name, &list.name), "tasks")?;
        }
        Ok(())
    }
}

/// A change of one list's owners.
#[derive(Debug, Clone, Copy)]
pub struct TasksChange<'a> {
    /// The pool's name.
    pub pool: &'a str,
    /// The list's directory name.
    pub list: &'a str,
    /// Pids to drop; one that is not there is success.
    pub drop: &'a [i32],
    /// Pids to add at the end.
    pub add: &'a [i32],
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
    use std::fs;

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
    fn what_was_written_before_a_time_is_forgotten_but_for_what_is_kept() {
        let (dir, directory) = directory("dp! dp/1=5,6 dp/2=rubbish dp/3=7");
        let old = |list: &str, seconds: u64| {
            let path = dir.path().join("pools/dp").join(list).join("tasks");
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(time)
                .unwrap();
        };
        for (list, seconds) in [("1", 99), ("2", 99), ("3", 100)] {
            old(list, seconds);
        }
        directory
            .forget_tasks_before(&lock(&directory), 100, &BTreeSet::from([6]))
            .unwrap();
        let lists = directory.pool("dp").unwrap().lists;
        let tasks: Vec<_> = lists.into_iter().map(|list| list.tasks).collect();
        assert_eq!(tasks, [vec![6], vec![], vec![7]]);
    }

    fn lock(directory: &PoolDirectory) -> Lock {
        let host = crate::host::Host::new("/");
        directory.lock(&host, std::time::Duration::ZERO).unwrap()
    }
}
