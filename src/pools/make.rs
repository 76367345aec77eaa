//! Making a pool directory, so that it is there wholly or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, access};

use super::plan::{PlannedPool, list_name};
use super::{
    DIRECTORY_MODE, FILE_MODE, Kind, LOCK_MODE, Lock, Pool, PoolDirectory, trusted_directory,
};
use crate::files::{self, Durability};

/// The levels of directories below `pools` in the deepest of KCM's layouts: pools, sockets, lists.
const MOST_LEVELS: usize = 3;

/// What is in a directory that is to become a pool directory.
#[derive(Debug)]
pub enum FoundPools {
    /// No pools.
    Nothing,
    /// Something that no tool can use; says why.
    HalfMade(String),
    /// Pools.
    Pools(Vec<Pool>),
}

impl PoolDirectory {
    /// Makes the directory and its lock where they are missing. Pools need not be there.
    ///
    /// # Errors
    /// One of them cannot be made, or others can change the directory.
    pub fn begin(path: &Path) -> Result<PoolDirectory> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path);
        made.with_context(|| format!("make {}", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("open {}", path.display()))?;
        trusted_directory(&path)?;
        let directory = PoolDirectory { path };
        let lock = directory.lock_path();
        let attempt = || match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(LOCK_MODE)
            .open(&lock)
        {
            // A lock that is there is left as it is: others may hold it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(LOCK_MODE))?;
                file.sync_all()?;
                files::sync_directory(&directory.path)
            }
            Err(error) => Err(error),
        };
        attempt().with_context(|| format!("make {}", lock.display()))?;
        Ok(directory)
    }

    /// The directory as [`PoolDirectory::begin`] returns it; `None` where it is not there. Makes
    /// nothing.
    ///
    /// # Errors
    /// The directory cannot be opened, or others can change it.
    pub fn begun(path: &Path) -> Result<Option<PoolDirectory>> {
        let path = match path.canonicalize() {
            Err(error) if files::is_gone(&error) => return Ok(None),
            other => other.with_context(|| format!("open {}", path.display()))?,
        };
        trusted_directory(&path)?;
        Ok(Some(PoolDirectory { path }))
    }

    /// Checks that we could make the directory, or something in it.
    ///
    /// # Errors
    /// What [`PoolDirectory::begin`] would fail with.
    pub fn ensure_can_begin(path: &Path) -> Result<()> {
        let mut there = Path::new(".");
        for parent in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if files::entry_if_there(parent)?.is_some() {
                there = parent;
                break;
            }
        }
        access(there, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(io::Error::from)
            .and_then(|()| match there.metadata()?.is_dir() {
                true => Ok(()),
                false => Err(io::ErrorKind::NotADirectory.into()),
            })
            .with_context(|| format!("make {}", path.display()))
    }

    /// Reads what pools there are.
    ///
    /// # Errors
    /// The directory cannot be looked at. Pools that cannot be read are [`FoundPools::HalfMade`].
    pub fn found(&self) -> Result<FoundPools> {
        if files::entry_if_there(&self.pools())?.is_none() {
            return Ok(FoundPools::Nothing);
        }
        let read = || -> Result<Vec<Pool>> {
            trusted_directory(&self.pools())?;
            self.pool_names()?
                .iter()
                .map(|name| self.pool(name))
                .collect()
        };
        Ok(match read() {
            Ok(pools) if pools.iter().all(|pool| pool.lists.is_empty()) => {
                FoundPools::HalfMade("it has no CPU list".to_owned())
            }
            Ok(pools) => FoundPools::Pools(pools),
            Err(error) => FoundPools::HalfMade(format!("{error:#}")),
        })
    }

    /// Every number in every `tasks` below `pools`, in any of KCM's layouts, so that no possible
    /// owner is overlooked.
    ///
    /// # Errors
    /// Anything there that cannot be read, or does not belong there.
    pub fn all_numbers_in_tasks(&self) -> Result<Vec<i32>> {
        let mut numbers = Vec::new();
        if files::entry_if_there(&self.pools())?.is_none() {
            return Ok(numbers);
        }
        collect_numbers(&self.pools(), MOST_LEVELS, &mut numbers)
            .with_context(|| format!("look for owners in {}", self.pools().display()))?;
        Ok(numbers)
    }

    /// Are all pools and lists that are there also in `plan`? Then completing them takes nothing
    /// away.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn is_part_of(&self, plan: &[PlannedPool]) -> Result<bool> {
        for name in files::names_in(&self.pools())? {
            let Some(planned) = plan.iter().find(|pool| pool.name == name) else {
                return Ok(false);
            };
            let pool = self.pools().join(&name);
            for list in files::directories_in(&pool)? {
                let is_planned = list.parse().is_ok_and(|cpus| planned.lists.contains(&cpus));
                let tasks = pool.join(&list).join("tasks");
                let is_readable =
                    files::entry_if_there(&tasks)?.is_none() || self.tasks(&name, &list).is_ok();
                if !is_planned
                    || !is_readable
                    || !files::directories_in(&pool.join(&list))?.is_empty()
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes directories `.pools.<nonce>` that killed programs left.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_unfinished_pools(&self, _lock: &Lock) -> Result<()> {
        let prefix = files::temporary_prefix("pools");
        for name in files::directories_in(&self.path)? {
            if name.starts_with(&prefix) {
                let path = self.path.join(&name);
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Replaces whatever is at `pools` by these pools, in one step.
    ///
    /// # Errors
    /// A file cannot be made or put in place.
    pub fn put_pools(&self, lock: &Lock, pools: &[PlannedPool]) -> Result<()> {
        self.remove_unfinished_pools(lock)?;
        let prefix = files::temporary_prefix("pools");
        let new = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&self.path);
        let new = new.with_context(|| format!("make a directory in {}", self.path.display()))?;
        for pool in pools {
            put_pool(&new.path().join(&pool.name), pool)?;
        }
        set_directory_mode(new.path())?;
        files::sync_directory(new.path())
            .with_context(|| format!("sync {}", new.path().display()))?;
        let put = || -> Result<()> {
            if files::entry_if_there(&self.pools())?.is_some() {
                // The exchange leaves the old pools in the temporary directory, which is removed.
                renameat2(
                    AT_FDCWD,
                    new.path(),
                    AT_FDCWD,
                    &self.pools(),
                    RenameFlags::RENAME_EXCHANGE,
                )?;
            } else {
                fs::rename(new.path(), self.pools())?;
            }
            Ok(files::sync_directory(&self.path)?)
        };
        put().with_context(|| format!("put {} in place", self.pools().display()))
    }

    /// Are both the pools and the lock missing?
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn is_empty(&self) -> Result<bool> {
        let of = |path: &Path| files::entry_if_there(path).map(|entry| entry.is_none());
        Ok(of(&self.pools())? && of(&self.lock_path())?)
    }

    /// Removes the pools (in one step, for readers), then the lock, and then the directory if
    /// nothing else is in it.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove(&self, lock: &Lock) -> Result<()> {
        self.remove_unfinished_pools(lock)?;
        let prefix = files::temporary_prefix("pools");
        let aside = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&self.path);
        let aside =
            aside.with_context(|| format!("make a directory in {}", self.path.display()))?;
        if files::entry_if_there(&self.pools())?.is_some() {
            fs::rename(self.pools(), aside.path().join("pools"))
                .with_context(|| format!("remove {}", self.pools().display()))?;
        }
        let path = aside.path().display().to_string();
        aside.close().with_context(|| format!("remove {path}"))?;
        files::remove(&self.lock_path())?;
        files::remove_empty_directory(&self.path).map(drop)
    }
}

pub(super) fn put_pool(path: &Path, pool: &PlannedPool) -> Result<()> {
    put_directory(path)?;
    let content = pool.kind.content().as_bytes();
    files::replace(
        &path.join("exclusive"),
        content,
        FILE_MODE,
        Durability::PowerLoss,
    )?;
    for (key, value) in pool.options.said() {
        let path = path.join(key);
        files::replace(&path, value.as_bytes(), FILE_MODE, Durability::PowerLoss)?;
    }
    for list in &pool.lists {
        put_list(&path.join(list_name(list)))?;
    }
    files::sync_directory(path).with_context(|| format!("sync {}", path.display()))
}

/// Makes a list without owners.
pub(super) fn put_list(path: &Path) -> Result<()> {
    put_directory(path)?;
    files::replace(&path.join("tasks"), b"", FILE_MODE, Durability::PowerLoss)
}

fn put_directory(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
    set_directory_mode(path)
}

/// Sets the mode afterwards, because the umask can take bits from the mode that mkdir(2) is given.
pub(super) fn set_directory_mode(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
        .with_context(|| format!("set the mode of {}", path.display()))
}

fn collect_numbers(path: &Path, levels: usize, numbers: &mut Vec<i32>) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let unexpected = kind.is_symlink() || (kind.is_dir() && levels == 0);
        if unexpected {
            let path = entry.path();
            let message = format!("{} does not belong there: remove it", path.display());
            return Err(io::Error::other(message));
        }
        if kind.is_dir() {
            collect_numbers(&entry.path(), levels - 1, numbers)?;
        } else if entry.file_name() == "tasks" {
            let mut bytes = Vec::new();
            File::open(entry.path())?
                .take(super::tasks::MOST_BYTES)
                .read_to_end(&mut bytes)?;
            let digits = bytes.split(|byte| !byte.is_ascii_digit());
            let texts = digits.filter_map(|digits| std::str::from_utf8(digits).ok());
            numbers.extend(texts.filter_map(|text| text.parse::<i32>().ok()));
        }
    }
    Ok(())
}

/// Is each pool that is planned exclusive or shared as planned? Pools that are not planned do not
/// matter.
pub fn has_planned_kinds(found: &[Pool], planned: &[PlannedPool]) -> bool {
    let has_kind = |pool: &Pool| {
        let mut same_name = planned.iter().filter(|planned| planned.name == pool.name);
        same_name.all(|planned| planned.kind == pool.kind)
    };
    found.iter().all(has_kind)
}

/// Are the pools, their kinds and their lists exactly those planned?
pub fn is_as_planned(found: &[Pool], planned: &[PlannedPool]) -> bool {
    let mut found: Vec<_> = found
        .iter()
        .map(|pool| (&pool.name, pool.kind, lists_of(pool)))
        .collect();
    let mut planned: Vec<(&String, Kind, Vec<_>)> = planned
        .iter()
        .map(|pool| (&pool.name, pool.kind, pool.lists.clone()))
        .collect();
    found.sort_by(|a, b| a.0.cmp(b.0));
    planned.sort_by(|a, b| a.0.cmp(b.0));
    planned.iter_mut().for_each(|(_, _, lists)| lists.sort());
    found == planned
}

fn lists_of(pool: &Pool) -> Vec<crate::cpulist::CpuSet> {
    pool.lists.iter().map(|list| list.cpus.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::isolation::Options;
    use std::time::Duration;

    fn planned() -> Vec<PlannedPool> {
        let pool = |name: &str, kind, lists: &[&str]| PlannedPool {
            name: name.into(),
            kind,
            lists: lists.iter().map(|list| list.parse().unwrap()).collect(),
            options: Options::default(),
        };
        vec![
            pool("dp", Kind::Exclusive, &["4,12", "1,9"]),
            pool("cp", Kind::Shared, &["0,8"]),
        ]
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn makes_kcms_layout_and_puts_it_in_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/kcm");
        let directory = PoolDirectory::begin(&path).unwrap();
        let lock = directory.lock(&Host::new("/"), Duration::ZERO).unwrap();
        assert!(matches!(directory.found().unwrap(), FoundPools::Nothing));
        fs::create_dir(path.join(".pools.killed")).unwrap();
        for _ in 0..2 {
            directory.put_pools(&lock, &planned()).unwrap();
            match directory.found().unwrap() {
                FoundPools::Pools(pools) => assert!(is_as_planned(&pools, &planned())),
                other => panic!("{other:?}"),
            }
            let mut names = files::names_in(&path).unwrap();
            names.sort();
            assert_eq!(names, ["lock", "pools"]);
        }
        assert_eq!(fs::read(path.join("pools/dp/exclusive")).unwrap(), b"1");
        assert_eq!(fs::read(path.join("pools/cp/exclusive")).unwrap(), b"0");
        assert_eq!(fs::read(path.join("pools/dp/4,12/tasks")).unwrap(), b"");
        assert_eq!(
            (mode(&path.join("lock")), mode(&path.join("pools"))),
            (0o600, 0o755)
        );
        assert_eq!(mode(&path.join("pools/dp/4,12/tasks")), 0o644);
    }

    #[test]
    fn half_made_ones_are_told_and_their_numbers_found() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        let tasks = dir.path().join("pools/dp/0/4,12/tasks");
        fs::create_dir_all(tasks.parent().unwrap()).unwrap();
        files::replace(&tasks, b"12,x7\xff", 0o644, Durability::Crash).unwrap();
        assert!(matches!(
            directory.found().unwrap(),
            FoundPools::HalfMade(_)
        ));
        assert_eq!(directory.all_numbers_in_tasks().unwrap(), [12, 7]);
        assert!(!directory.is_part_of(&planned()).unwrap());
        std::os::unix::fs::symlink("0", dir.path().join("pools/dp/1")).unwrap();
        assert!(directory.all_numbers_in_tasks().is_err());
        fs::remove_dir_all(dir.path().join("pools/dp")).unwrap();
        assert!(matches!(
            directory.found().unwrap(),
            FoundPools::HalfMade(_)
        ));
    }

    /// KCM's layouts end with lists: nothing known makes directories below them.
    #[test]
    fn what_lies_deeper_than_lists_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("pools/dp/0/4,12")).unwrap();
        assert!(directory.all_numbers_in_tasks().unwrap().is_empty());
        fs::create_dir(dir.path().join("pools/dp/0/4,12/deeper")).unwrap();
        let error = format!("{:#}", directory.all_numbers_in_tasks().unwrap_err());
        assert!(error.contains("4,12/deeper does not belong"), "{error}");
    }

    #[test]
    fn a_directory_with_pools_or_a_lock_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        let is_empty = || directory.is_empty().unwrap();
        assert!(!is_empty());
        fs::create_dir(dir.path().join("pools")).unwrap();
        assert!(!is_empty());
        fs::remove_file(dir.path().join("lock")).unwrap();
        assert!(!is_empty());
        fs::remove_dir(dir.path().join("pools")).unwrap();
        assert!(is_empty());
    }

    #[test]
    fn a_pool_of_another_kind_than_planned_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        let lock = directory.lock(&Host::new("/"), Duration::ZERO).unwrap();
        directory.put_pools(&lock, &planned()).unwrap();
        let FoundPools::Pools(found) = directory.found().unwrap() else {
            panic!("there are no pools");
        };
        let mut other = planned();
        assert!(has_planned_kinds(&found, &other));
        other[1].kind = Kind::Exclusive;
        assert!(!has_planned_kinds(&found, &other));
        // A pool that is not planned does not matter.
        other.pop();
        assert!(has_planned_kinds(&found, &other));
    }

    #[test]
    fn only_what_is_planned_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PoolDirectory::begin(dir.path()).unwrap();
        for (path, content, is_part) in [
            ("pools/dp/1,9/tasks", &b""[..], true),
            ("pools/cp/exclusive", b"0", true),
            ("pools/dp/4,12/tasks", b"7\n", true),
            ("pools/dp/4,12/tasks", b"rubbish", false),
            ("pools/dp/4,12/tasks", b"\xff", false),
            ("pools/dp/4,12/tasks", b"", true),
            ("pools/dp/5/tasks", b"", false),
        ] {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            files::replace(&dir.path().join(path), content, 0o644, Durability::Crash).unwrap();
            assert_eq!(
                directory.is_part_of(&planned()).unwrap(),
                is_part,
                "{path} {content:?}"
            );
        }
    }

    #[test]
    fn the_lock_stays_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let inode = || {
            PoolDirectory::begin(dir.path())
                .unwrap()
                .lock_path()
                .metadata()
                .unwrap()
                .ino()
        };
        assert_eq!(inode(), inode());
    }
}
