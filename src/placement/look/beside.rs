//! Finds who else was told to run on CPUs of exclusive pools: cgroups whose cpuset somebody chose
//! by hand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::cgroup::{Group, cpuset};
use crate::claims::{Entry, Ledger};
use crate::containers::Container;
use crate::cpulist::CpuSet;
use crate::files;
use crate::placement::Site;

/// How many groups are looked at: a user who may make groups can make any number.
const MOST_GROUPS: usize = 20_000;

/// How many of the groups that cannot be looked at are reported.
const MOST_UNREAD: usize = 3;

/// A group of somebody else that was given CPUs, and in which processes run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The group's path.
    pub path: String,
    /// The CPUs that it really has.
    pub cpus: CpuSet,
    /// The container that it belongs to, by index into those passed in.
    pub container: Option<usize>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// The groups, from the top of the hierarchy.
    pub groups: Vec<Neighbour>,
    /// Were there more groups than are looked at?
    pub is_cut: bool,
    /// The first few things that could not be looked at, a sentence each.
    pub unread: Vec<String>,
}

/// Finds the groups in which processes run on any of `cpus` because the group itself says so, and
/// not only one above it. Not among them: groups that have all CPUs of their parent, owners'
/// groups, and partitions.
///
/// # Errors
/// There is no hierarchy with cpusets; the claims cannot be read.
pub fn neighbours(site: &Site, cpus: &CpuSet, containers: &[Container]) -> Result<Neighbours> {
    let hierarchy = cpuset::hierarchy(&site.host)?;
    let group_of = |(place, container): (usize, &Container)| {
        let group = hierarchy.group_of(&site.host, container.process.pid);
        Some((group.ok()??.path().to_owned(), place))
    };
    let mut walk = Walk {
        cpus,
        containers: containers.iter().enumerate().filter_map(group_of).collect(),
        owners: owners(site)?,
        found_paths: BTreeSet::new(),
        found: Neighbours::default(),
    };
    walk.all(hierarchy.top()?);
    Ok(walk.found)
}

/// The groups of owners, by path and inode.
fn owners(site: &Site) -> Result<BTreeSet<(String, u64)>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(BTreeSet::new());
    };
    let entries = ledger.all()?;
    let claims = entries.iter().filter_map(Entry::claim);
    let groups = claims.filter_map(|claim| claim.cgroup.as_ref());
    Ok(groups
        .map(|group| (group.path.clone(), group.inode))
        .collect())
}

struct Walk<'a> {
    cpus: &'a CpuSet,
    containers: BTreeMap<String, usize>,
    owners: BTreeSet<(String, u64)>,
    /// The paths of the groups found so far.
    found_paths: BTreeSet<String>,
    found: Neighbours,
}

/// A group to look at. `giver` is the nearest group, itself or above it, that has CPUs of its own.
struct Next {
    group: Group,
    giver: Option<Group>,
}

impl Walk<'_> {
    /// What was seen; `None` if it is gone, or if it cannot be looked at, which is noted.
    fn seen<T>(&mut self, looked: Result<T>) -> Option<T> {
        match looked {
            Ok(seen) => Some(seen),
            Err(error) => {
                let unread = &mut self.found.unread;
                let text = format!("{error:#}");
                let is_new = !unread.contains(&text) && unread.len() < MOST_UNREAD;
                if !files::says_gone(&error) && is_new {
                    unread.push(text);
                }
                None
            }
        }
    }

    fn all(&mut self, top: Group) {
        let mut waiting = vec![Next {
            group: top,
            giver: None,
        }];
        let mut count = 0;
        while let Some(next) = waiting.pop() {
            count += 1;
            if count > MOST_GROUPS {
                self.found.is_cut = true;
                return;
            }
            let inode = self.seen(next.group.inode()).flatten();
            let place = inode.map(|inode| (next.group.path().to_owned(), inode));
            if place.is_some_and(|place| self.owners.contains(&place)) {
                continue;
            }
            // A partition and all below it use its CPUs rightly: conmon and the engine's other
            // helpers have to run there.
            let is_partition = self.seen(cpuset::is_partition(&next.group));
            let own = self.seen(cpuset::own_cpus(&next.group)).flatten();
            let giver = match own {
                _ if is_partition == Some(true) => None,
                Some(_) => Some(next.group.clone()),
                None => next.giver,
            };
            if let Some(giver) = &giver {
                self.look_at(&next.group, giver);
            }
            let children = self.seen(next.group.children()).unwrap_or_default();
            let children = children.into_iter().rev();
            waiting.extend(children.map(|group| Next {
                group,
                giver: giver.clone(),
            }));
        }
    }

    fn look_at(&mut self, group: &Group, giver: &Group) {
        if self.found_paths.contains(giver.path()) {
            return;
        }
        let Some(cpus) = self.seen(cpuset::effective_cpus(giver)).flatten() else {
            return;
        };
        if cpus.is_disjoint(self.cpus) {
            return;
        }
        if self.seen(group.pids()).is_some_and(|pids| !pids.is_empty()) {
            self.found_paths.insert(giver.path().to_owned());
            self.found.groups.push(Neighbour {
                path: giver.path().to_owned(),
                cpus,
                container: self.container(giver),
            });
        }
    }

    /// The container that a group belongs to: the group is the container's, or below it, or the
    /// scope around it.
    fn container(&self, giver: &Group) -> Option<usize> {
        let mut above = Some(giver.clone());
        while let Some(group) = above {
            if let Some(place) = self.containers.get(group.path()) {
                return Some(*place);
            }
            above = group.parent();
        }
        let mut below = self.containers.iter();
        let is_its = |path: &str| {
            let rest = path.strip_prefix(giver.path());
            giver.path().ends_with(".scope") && rest.is_some_and(|rest| rest.starts_with('/'))
        };
        below
            .find(|(path, _)| is_its(path))
            .map(|(_, place)| *place)
    }
}
