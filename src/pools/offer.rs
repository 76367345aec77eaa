//! A pool as a start reads it: only what the choice depends on.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use super::{CpuList, Kind, Pool, PoolDirectory, owners, trusted_directory};
use crate::cpulist::CpuSet;
use crate::files::{self, DirectoryEntry, trusted};
use crate::isolation::Options;

/// A pool whose lists can be given.
#[derive(Debug, Clone)]
pub struct OfferedPool {
    /// The name of its directory.
    pub name: String,
    /// Exclusive or shared.
    pub kind: Kind,
    /// Its CPU lists, by first CPU.
    pub lists: Vec<OfferedList>,
    /// Its options. A shared pool's are not read: they mean nothing.
    pub options: Options,
}

/// A CPU list.
#[derive(Debug, Clone)]
pub struct OfferedList {
    /// The name of its directory.
    pub name: String,
    /// The CPUs that the name means.
    pub cpus: CpuSet,
    /// The pids in `tasks`; `None` for a list that has a claim, whose `tasks` was not read.
    pub tasks: Option<Vec<i32>>,
}

impl OfferedList {
    /// The number of owners; 1 where they were not read.
    pub fn owners(&self) -> usize {
        self.tasks.as_ref().map_or(1, Vec::len)
    }
}

impl From<CpuList> for OfferedList {
    fn from(list: CpuList) -> Self {
        let CpuList { name, cpus, tasks } = list;
        OfferedList {
            name,
            cpus,
            tasks: Some(tasks),
        }
    }
}

impl From<Pool> for OfferedPool {
    fn from(pool: Pool) -> Self {
        OfferedPool {
            name: pool.name,
            kind: pool.kind,
            lists: pool.lists.into_iter().map(OfferedList::from).collect(),
            options: Options::default(),
        }
    }
}

impl PoolDirectory {
    /// Reads what a choice depends on, and checks that the pool's lists can be given, as
    /// [`PoolDirectory::sound_pool`] does. In an exclusive pool, a list named by `claimed` has an
    /// owner, so its `tasks` is not read.
    ///
    /// Whether others can change a list's directory is not checked: whoever takes the list does
    /// that.
    ///
    /// # Errors
    /// As [`PoolDirectory::sound_pool`], or an option cannot be read.
    pub fn offered_pool(
        &self,
        name: &str,
        claimed: impl FnOnce() -> Result<BTreeSet<String>>,
    ) -> Result<OfferedPool> {
        let glance = self.glance(name, claimed);
        // Where the short way finds anything odd, reading the whole pool says what it is.
        match glance {
            Some(pool) => Ok(pool),
            None => {
                let mut pool = OfferedPool::from(self.sound_pool(name)?);
                if pool.kind == Kind::Exclusive {
                    pool.options = self.options(name)?;
                }
                Ok(pool)
            }
        }
    }

    /// Reads an exclusive pool the short way; `None` if the pool is shared, or anything is odd.
    fn glance(
        &self,
        name: &str,
        claimed: impl FnOnce() -> Result<BTreeSet<String>>,
    ) -> Option<OfferedPool> {
        let path = self.pools().join(name);
        trusted_directory(&path).ok()?;
        if self.kind(name).ok()? == Kind::Shared {
            return None;
        }
        let mut given = self.given_by_others(name)?;
        let claimed = claimed().ok()?;
        let mut lists = Vec::new();
        let mut tasks_path = path.clone();
        let mut keys = Vec::new();
        for entry in files::entries_in(&path).ok()? {
            keys.extend(PoolDirectory::key_of(&entry.name));
            if let Some(list) = offered_list(entry, &claimed, &mut tasks_path).ok()? {
                if !given.is_disjoint(&list.cpus) {
                    return None;
                }
                given.extend(&list.cpus);
                lists.push(list);
            }
        }
        lists.sort_by(|a, b| a.cpus.cmp(&b.cpus));
        Some(OfferedPool {
            name: name.to_owned(),
            kind: Kind::Exclusive,
            lists,
            // Most pools have none, and then nothing is looked for.
            options: self.options_of(name, keys).ok()?,
        })
    }

    /// The CPUs of all lists of other pools; `None` if one cannot be listed.
    fn given_by_others(&self, name: &str) -> Option<CpuSet> {
        let mut given = CpuSet::new();
        for other in files::directories_in(&self.pools()).ok()? {
            if other == name {
                continue;
            }
            for list in files::directories_in(&self.pools().join(&other)).ok()? {
                // A name in another pool that is no CPU list is reported to whoever asks for that
                // pool.
                if let Ok(cpus) = list.parse::<CpuSet>() {
                    given.extend(&cpus);
                }
            }
        }
        Some(given)
    }
}

/// The list that an entry of a pool is; `None` for a file. `path` is the pool's directory, and is
/// the same again afterwards.
fn offered_list(
    entry: DirectoryEntry,
    claimed: &BTreeSet<String>,
    path: &mut PathBuf,
) -> Result<Option<OfferedList>, Odd> {
    if entry.is_symlink() {
        return Err(Odd);
    }
    if !entry.is_directory() {
        return Ok(None);
    }
    let name = entry.into_name().ok_or(Odd)?;
    let cpus: CpuSet = name.parse().map_err(|_| Odd)?;
    if cpus.is_empty() {
        return Err(Odd);
    }
    let tasks = match claimed.contains(&name) {
        true => None,
        false => {
            path.extend([name.as_str(), "tasks"]);
            let tasks = trusted(path).and_then(|seen| owners::tasks_in(path, &seen));
            path.pop();
            path.pop();
            Some(tasks.map_err(|_| Odd)?)
        }
    };
    Ok(Some(OfferedList { name, cpus, tasks }))
}

/// Something is odd. Reading the whole pool says what.
struct Odd;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};
    use crate::pools::tests::directory;

    fn offered(directory: &PoolDirectory, claimed: &[&str]) -> Result<Vec<(String, usize)>> {
        let claimed = claimed.iter().map(|list| (*list).to_owned()).collect();
        let pool = directory.offered_pool("dp", || Ok(claimed))?;
        let lists = pool.lists.into_iter();
        Ok(lists
            .map(|list| (list.name.clone(), list.owners()))
            .collect())
    }

    #[test]
    fn a_list_has_owners_where_a_claim_or_a_pid_says_so() {
        let (dir, directory) = directory("dp! dp/1=5 dp/2= dp/3=7,8 cp cp/9=");
        let lists = |owners: [usize; 3]| {
            let names = ["1", "2", "3"].map(str::to_owned);
            names.into_iter().zip(owners).collect::<Vec<_>>()
        };
        assert_eq!(offered(&directory, &[]).unwrap(), lists([1, 0, 2]));
        // Another tool may have removed the pid of an owner that is alive.
        let all = offered(&directory, &["2", "3", "9"]).unwrap();
        assert_eq!(all, lists([1, 1, 1]));
        // The `tasks` of a claimed list is not read here.
        let tasks = dir.path().join("pools/dp/3/tasks");
        replace(&tasks, b"rubbish", 0o644, Durability::Crash).unwrap();
        assert_eq!(offered(&directory, &["3"]).unwrap(), lists([1, 0, 1]));
        let error = offered(&directory, &["1"]).unwrap_err();
        assert!(format!("{error:#}").contains("rubbish"), "{error:#}");
    }

    #[test]
    fn what_is_odd_about_a_pool_is_refused_however_many_claims_there_are() {
        let odd: [(&str, &str, &str); 4] = [
            ("dp! dp/1= dp/zero=", "", "zero"),
            ("dp! dp/1= dp/0-1=", "", "overlaps"),
            ("dp! dp/1= cp cp/1=", "", "overlaps"),
            ("dp! dp/1=", "link", "symbolic link"),
        ];
        for (spec, link, part) in odd {
            let (dir, directory) = directory(spec);
            if !link.is_empty() {
                std::os::unix::fs::symlink("1", dir.path().join("pools/dp/4")).unwrap();
            }
            for claimed in [&[][..], &["1", "zero", "0-1", "4"]] {
                let error = offered(&directory, claimed).unwrap_err();
                assert!(format!("{error:#}").contains(part), "{spec}: {error:#}");
            }
        }
    }
}
