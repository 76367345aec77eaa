//! Changing a pool directory that is in use. Each step is one rename, so a reader, with the lock or
//! without it, sees a list wholly or not at all, and never two lists that overlap.
//!
//! What is being made or removed lies in a directory `.pools.<nonce>` beside `pools`. No tool reads
//! it, and whoever changes pools next removes it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::make::{put_list, put_pool, set_directory_mode};
use super::plan::{PlannedPool, list_name};
use super::{Lock, PoolDirectory};
use crate::cpulist::CpuSet;
use crate::files;

impl PoolDirectory {
    /// Adds a pool.
    ///
    /// # Errors
    /// A file cannot be made, or there is a pool of this name.
    pub fn add_pool(&self, lock: &Lock, pool: &PlannedPool) -> Result<()> {
        let aside = self.aside(lock)?;
        let made = aside.path().join(&pool.name);
        put_pool(&made, pool)?;
        rename(&made, &self.pools().join(&pool.name))
    }

    /// Removes a pool, whether it has owners or not. A pool that is not there is success.
    ///
    /// # Errors
    /// It cannot be moved away.
    pub fn remove_pool(&self, lock: &Lock, pool: &str) -> Result<()> {
        self.set_aside(lock, &self.pools().join(pool))
    }

    /// Adds a list without owners to a pool.
    ///
    /// # Errors
    /// A file cannot be made, or there is such a list.
    pub fn add_list(&self, lock: &Lock, pool: &str, cpus: &CpuSet) -> Result<()> {
        let aside = self.aside(lock)?;
        let made = aside.path().join("list");
        put_list(&made)?;
        rename(&made, &self.list_path(pool, &list_name(cpus)))
    }

    /// Removes a list, whether it has owners or not. A list that is not there is success.
    ///
    /// # Errors
    /// It cannot be moved away.
    pub fn remove_list(&self, lock: &Lock, pool: &str, list: &str) -> Result<()> {
        self.set_aside(lock, &self.list_path(pool, list))
    }

    /// Changes the CPUs of a list, whose owners stay. `from` and `to` are names of directories.
    ///
    /// # Errors
    /// The directory cannot be renamed.
    pub fn rename_list(&self, _lock: &Lock, pool: &str, from: &str, to: &str) -> Result<()> {
        rename(&self.list_path(pool, from), &self.list_path(pool, to))
    }

    fn aside(&self, lock: &Lock) -> Result<TempDir> {
        self.remove_unfinished_pools(lock)?;
        let aside = tempfile::Builder::new()
            .prefix(&files::temporary_prefix("pools"))
            .tempdir_in(&self.path);
        let aside =
            aside.with_context(|| format!("make a directory in {}", self.path.display()))?;
        set_directory_mode(aside.path())?;
        Ok(aside)
    }

    /// Moves `path` into a temporary directory, and removes it with that.
    fn set_aside(&self, lock: &Lock, path: &Path) -> Result<()> {
        if files::entry_if_there(path)?.is_none() {
            return Ok(());
        }
        let aside = self.aside(lock)?;
        rename(path, &aside.path().join("removed"))
    }
}

/// Renames, and syncs both directories: an operator's change must outlast a power loss.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let attempt = || {
        fs::rename(from, to)?;
        for directory in [to.parent(), from.parent()].into_iter().flatten() {
            files::sync_directory(directory)?;
        }
        Ok::<_, std::io::Error>(())
    };
    attempt().with_context(|| format!("move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::isolation::Options;
    use crate::pools::Kind;
    use std::time::Duration;

    #[test]
    fn pools_and_lists_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        let lock = directory.lock(&Host::new("/"), Duration::ZERO).unwrap();
        directory.put_pools(&lock, &[]).unwrap();
        let pool = PlannedPool {
            name: "dp".into(),
            kind: Kind::Exclusive,
            lists: vec!["4,12".parse().unwrap()],
            options: Options::default(),
        };
        directory.add_pool(&lock, &pool).unwrap();
        directory
            .add_list(&lock, "dp", &"5,13".parse().unwrap())
            .unwrap();
        directory
            .rename_list(&lock, "dp", "4,12", "4,6,12,14")
            .unwrap();
        let lists = || -> Vec<String> {
            let pool = directory.pool("dp").unwrap();
            pool.lists.into_iter().map(|list| list.name).collect()
        };
        assert_eq!(lists(), ["4,6,12,14", "5,13"]);
        for _ in 0..2 {
            directory.remove_list(&lock, "dp", "5,13").unwrap();
            assert_eq!(lists(), ["4,6,12,14"]);
        }
        for _ in 0..2 {
            directory.remove_pool(&lock, "dp").unwrap();
            assert!(directory.pool_names().unwrap().is_empty());
        }
        let mut names = files::names_in(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["lock", "pools"]);
    }
}
