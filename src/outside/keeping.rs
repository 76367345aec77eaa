//! How everybody else is kept off a live owner's CPUs, and why they are not.

use anyhow::Result;

use super::machine;
use super::obstacle::{self, Asked, Obstacle};
use crate::cgroup::cpuset::{self, effective_cpus};
use crate::cgroup::{Group, Version, partition};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::isolation::Kind;
use crate::text::Shown;
use crate::topology;

/// How everybody else is kept off a live owner's CPUs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Keeping {
    /// By the kernel: its own group is a partition.
    Own(Kind),
    /// By the kernel: a group above its own is a partition that has its CPUs.
    Above {
        /// The path of that group.
        path: String,
        /// What that one is.
        kind: Kind,
    },
    /// By `isolcpus=`: only who asks for such a CPU by an affinity runs there.
    Isolcpus,
    /// Not at all: its mask keeps it on its CPUs, and others can run there too.
    #[default]
    Mask,
    /// Not at all, and no mask of ours keeps it on its CPUs.
    Books,
}

impl Keeping {
    /// What keeps everybody else off, as one word.
    pub fn word(&self) -> &'static str {
        match self {
            Keeping::Own(kind) | Keeping::Above { kind, .. } => kind.word(),
            Keeping::Isolcpus => "isolcpus",
            Keeping::Mask | Keeping::Books => "none",
        }
    }

    /// The kind of the partition that keeps them off; `None` if none does.
    pub fn partition(&self) -> Option<Kind> {
        match self {
            Keeping::Own(kind) | Keeping::Above { kind, .. } => Some(*kind),
            Keeping::Isolcpus | Keeping::Mask | Keeping::Books => None,
        }
    }

    /// Can others run there as on any other CPU?
    pub fn lets_others_in(&self) -> bool {
        matches!(self, Keeping::Mask | Keeping::Books)
    }
}

/// The machine's CPUs, as far as they matter here.
#[derive(Debug, Default, Clone)]
pub struct CpusOfMachine {
    /// Those that are online; `None` where that is not known.
    pub online: Option<CpuSet>,
    /// Those of `isolcpus=`.
    pub isolated: CpuSet,
}

impl CpusOfMachine {
    /// Reads them, as far as they can be read.
    pub fn read(host: &Host) -> CpusOfMachine {
        CpusOfMachine {
            online: topology::online(host).ok(),
            isolated: topology::isolated(host).unwrap_or_default(),
        }
    }

    /// How everybody else is kept off these CPUs of a live owner. `group` is the one that confines
    /// it; `None` if none does. A partition has those of its CPUs that are online.
    ///
    /// # Errors
    /// A group cannot be looked at.
    pub fn keeping(&self, group: Option<&Group>, cpus: &CpuSet) -> Result<Keeping> {
        let now = match &self.online {
            Some(online) => cpus.intersection(online),
            None => cpus.clone(),
        };
        if let (Some(group), false) = (group, now.is_empty()) {
            if let Some(kind) = kind_of(group)? {
                if effective_cpus(group)?.as_ref() == Some(&now) {
                    return Ok(Keeping::Own(kind));
                }
            }
            if let Some((above, kind)) = above(group, &now)? {
                let path = above.path().to_owned();
                return Ok(Keeping::Above { path, kind });
            }
        }
        Ok(match group {
            _ if !now.is_empty() && now.is_subset(&self.isolated) => Keeping::Isolcpus,
            Some(_) => Keeping::Mask,
            None => Keeping::Books,
        })
    }
}

/// The kind of a valid partition; `None` for any other group.
pub(super) fn kind_of(group: &Group) -> Result<Option<Kind>> {
    let state = match group.version() {
        Version::V1 => None,
        Version::V2 => partition::state(group)?,
    };
    Ok(state.and_then(|state| Kind::by_word(&state).ok().flatten()))
}

/// The nearest group above that is a valid partition, and has all of these CPUs.
fn above(group: &Group, cpus: &CpuSet) -> Result<Option<(Group, Kind)>> {
    for above in partition::ancestors(group).into_iter().rev() {
        if let Some(kind) = kind_of(&above)? {
            let has_them = effective_cpus(&above)?.is_some_and(|all| cpus.is_subset(&all));
            return Ok(has_them.then_some((above, kind)));
        }
    }
    Ok(None)
}

/// Does a partition above this group keep everybody outside off these CPUs already, as `kind` says?
/// An isolated one balances no load, which is what `root` is not about: it suits both.
///
/// # Errors
/// A group cannot be looked at.
pub fn is_kept_above(host: &Host, group: &Group, cpus: &CpuSet, kind: Kind) -> Result<bool> {
    let online = topology::online(host);
    let now = online.map_or_else(|_| cpus.clone(), |online| cpus.intersection(&online));
    let above = above(group, &now)?;
    Ok(above.is_some_and(|(_, found)| suits(found, kind)))
}

/// Is there a slice that keeps others off these CPUs, for whoever is in it?
///
/// # Errors
/// The groups cannot be looked at.
pub fn is_kept_by_a_slice(host: &Host, cpus: &CpuSet, kind: Kind) -> Result<bool> {
    let top = cpuset::hierarchy(host)?.top()?;
    for (slice, all) in cpuset::partitions(&top)? {
        if cpus.is_subset(&all) && kind_of(&slice)?.is_some_and(|found| suits(found, kind)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is a partition of this kind as good as the one that is wanted?
pub fn suits(found: Kind, wanted: Kind) -> bool {
    wanted == Kind::Root || found == wanted
}

/// Why a live owner, confined to `cpus` in `group`, has them by its mask alone although its pool
/// wants a partition of this kind.
///
/// # Errors
/// It cannot be looked at.
pub fn why_by_mask(host: &Host, group: &Group, cpus: &CpuSet, kind: Kind) -> Result<Obstacle> {
    let state = partition::state(group)?.unwrap_or_default();
    if obstacle::is_not_permitted(&state) {
        return Ok(obstacle::not_permitted());
    }
    let records = machine::read(host)?;
    let asked = Asked {
        group,
        cpus,
        kind,
        kept: &records.cpus(),
    };
    let found = match obstacle::before(host, &asked)? {
        Some(found) => Some(found),
        None => obstacle::in_the_way(host, group, cpus)?,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let is_recorded = records
        .owners
        .iter()
        .any(|owner| owner.group == group.path());
    let file = partition::file(group);
    Ok(match is_recorded {
        true => Obstacle::of_owner(
            format!("{} says {}", file.display(), Shown(&state)),
            "`pinfold reconcile` makes it again",
        ),
        false => Obstacle::of_owner(
            "it started before its pool said so, or when that could not be",
            "start it again",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::files::{Durability, replace};

    fn cpus(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn what_keeps_others_off_is_the_nearest_that_has_the_cpus_which_are_online() {
        let above = |kind| Keeping::Above {
            path: "/fast.slice".to_owned(),
            kind,
        };
        for (slice, own, effective, online, isolated, expected) in [
            ("member", "root", "4-5", "0-7", "", Keeping::Own(Kind::Root)),
            (
                "member",
                "isolated",
                "4-5",
                "0-7",
                "4-5",
                Keeping::Own(Kind::Isolated),
            ),
            // 5 is offline.
            ("member", "root", "4", "0-4", "", Keeping::Own(Kind::Root)),
            ("member", "root", "4", "0-7", "", Keeping::Mask),
            (
                "member",
                "root invalid (x)",
                "4-5",
                "0-7",
                "",
                Keeping::Mask,
            ),
            ("member", "root invalid", "4-5", "0-7", "", Keeping::Mask),
            ("member", "member", "4-5", "0-7", "4-6", Keeping::Isolcpus),
            ("member", "member", "4-5", "0-7", "4", Keeping::Mask),
            ("root", "member", "4-5", "0-7", "", above(Kind::Root)),
            (
                "isolated",
                "member",
                "4-5",
                "0-7",
                "",
                above(Kind::Isolated),
            ),
            ("root invalid", "member", "4-5", "0-7", "", Keeping::Mask),
            // All of them are offline: they run elsewhere.
            ("root", "root", "0-3", "0-3", "4-5", Keeping::Mask),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in [
                ("fast.slice/cpuset.cpus.partition", slice),
                ("fast.slice/cpuset.cpus.effective", "4-7"),
                ("fast.slice/web/cpuset.cpus.partition", own),
                ("fast.slice/web/cpuset.cpus.effective", effective),
            ] {
                let path = dir.path().join("sys/fs/cgroup").join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                replace(
                    &path,
                    format!("{text}\n").as_bytes(),
                    0o644,
                    Durability::Crash,
                )
                .unwrap();
            }
            let hierarchy = Hierarchy::usual(&Host::new(dir.path()), "cpuset");
            let group = hierarchy.group("/fast.slice/web").unwrap();
            let machine = CpusOfMachine {
                online: Some(cpus(online)),
                isolated: cpus(isolated),
            };
            let keeping = machine.keeping(Some(&group), &cpus("4-5")).unwrap();
            assert_eq!(keeping, expected, "{slice} {own} {effective} {online}");
            // A slice that lacks one of them keeps nobody off the others.
            let wide = machine.keeping(Some(&group), &cpus("3-5")).unwrap();
            assert!(wide.partition().is_none(), "{slice} {own}: {wide:?}");
        }
        let machine = CpusOfMachine::default();
        assert_eq!(machine.keeping(None, &cpus("4")).unwrap(), Keeping::Books);
    }
}
