//! A pool as a start reads it: no more of it than the choice depends on.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use super::{CpuList, Kind, Pool, PoolDirectory, owners, trusted_directory};
use crate::cpulist::CpuSet;
use crate::files::{self, Entry, trusted};

/// A pool that lists can be given from.
#[derive(Debug, Clone)]
pub struct OfferedPool {
    /// The directory's name.
    pub name: String,
    /// One owner a list, or many.
    pub kind: Kind,
    /// Its CPU lists, by first CPU.
    pub lists: Vec<OfferedList>,
}

/// One unit of allocation.
#[derive(Debug, Clone)]
pub struct OfferedList {
    /// The directory's name.
    pub name: String,
    /// The CPUs that the name means.
    pub cpus: CpuSet,
    /// The pids in `tasks`; `None` where there are owners, and nobody has looked who they are.
    pub tasks: Option<Vec<i32>>,
}

impl OfferedList {
    /// How many owners it has; where nobody has looked who they are, 1 stands for them.
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
        }
    }
}

impl PoolDirectory {
    /// Reads of a pool what a choice depends on, and makes sure that it can be given from, as
    /// [`PoolDirectory::sound_pool`] does. Of an exclusive pool's lists that are `claimed` no `tasks`
    /// is read: each has an owner.
    ///
    /// The directory of a list is not judged: whoever takes the list does that.
    pub fn offered_pool(
        &self,
        name: &str,
        claimed: impl FnOnce() -> Result<BTreeSet<String>>,
    ) -> Result<OfferedPool> {
        let glance = self.glance(name, claimed);
        // What is odd about it is told by whoever reads all of it.
        match glance {
            Some(pool) => Ok(pool),
            None => self.sound_pool(name).map(OfferedPool::from),
        }
    }

    /// `None` where the pool is shared, and where anything is odd.
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
        for entry in files::entries_in(&path).ok()? {
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
        })
    }

    /// The CPUs of all other pools.
    fn given_by_others(&self, name: &str) -> Option<CpuSet> {
        let mut given = CpuSet::new();
        for other in files::directories_in(&self.pools()).ok()? {
            if other == name {
                continue;
            }
            for list in files::directories_in(&self.pools().join(&other)).ok()? {
                // A name that does not parse is the trouble of whoever asks for that pool.
                if let Ok(cpus) = list.parse::<CpuSet>() {
                    given.extend(&cpus);
                }
            }
        }
        Some(given)
    }
}

/// The list that an entry of a pool is, if it is one. `path` is the pool's, and is so again
/// afterwards.
fn offered_list(
    entry: Entry,
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

/// Something is not as it should be; whoever reads all of the pool says what.
struct Odd;
