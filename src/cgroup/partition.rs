//! Partitions of the cpuset controller: CPUs that nobody outside a group has (kernel:
//! cgroup-v2.rst, "Cpuset Interface Files", `cpuset.cpus.exclusive` and `cpuset.cpus.partition`).
//! Ours are remote partitions: no group above them is a partition.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cpuset::{self, effective_cpus};
use super::{Group, Version};
use crate::cpulist::{self, CpuSet};
use crate::files;

const EXCLUSIVE: &str = "cpuset.cpus.exclusive";
const PARTITION: &str = "cpuset.cpus.partition";

/// The value of `cpuset.cpus.partition` for a group that is no partition.
pub const MEMBER: &str = "member";

/// A group's `cpuset.cpus.partition`. The kernel wakes whoever polls it when it changes.
pub fn file(group: &Group) -> PathBuf {
    group.dir().join(PARTITION)
}

/// The text of a group's `cpuset.cpus.partition`: a kind, followed by `invalid` and a reason if it
/// is invalid. `None` where the group is gone, or has no such file.
///
/// # Errors
/// It cannot be read.
pub fn state(group: &Group) -> Result<Option<String>> {
    let text = files::read_record_if_there(&file(group))?;
    Ok(text.map(|text| text.trim().to_owned()))
}

/// The kind in the text of a partition file, valid or not.
pub fn kind_in(state: &str) -> &str {
    state.split_whitespace().next().unwrap_or_default()
}

/// The text of a group's `cpuset.cpus.exclusive`; `None` where the group is gone, the kernel has no
/// remote partitions (before Linux 6.7), or the group has no such file.
///
/// # Errors
/// It cannot be read.
pub fn exclusive(group: &Group) -> Result<Option<String>> {
    let text = files::read_record_if_there(&group.dir().join(EXCLUSIVE))?;
    Ok(text.map(|text| cpulist::of_kernel(&text).to_owned()))
}

/// Writes a group's exclusive CPUs. With an empty value, a group that is gone is success.
///
/// # Errors
/// The kernel refuses: a group beside this one, or beside one above it, has some of the CPUs.
pub fn set_exclusive(group: &Group, cpus: &str) -> Result<()> {
    put(group, EXCLUSIVE, cpus, cpus.is_empty())
}

/// Writes a group's kind of partition. The kernel accepts any kind, even if the partition is then
/// invalid: only [`state`] tells. With [`MEMBER`], a group that is gone is success.
///
/// # Errors
/// It cannot be written.
pub fn set_kind(group: &Group, kind: &str) -> Result<()> {
    put(group, PARTITION, kind, kind == MEMBER)
}

/// Writes a group's `cpuset.cpus` unless it has just these CPUs: somebody may have emptied it
/// (systemd 262 does at a daemon-reload).
///
/// # Errors
/// It cannot be read or written.
pub fn set_mask(group: &Group, cpus: &CpuSet) -> Result<()> {
    let has_them = cpuset::masks(group)?.is_some_and(|masks| masks.has_cpus(cpus));
    match has_them {
        true => Ok(()),
        false => put(group, "cpuset.cpus", &cpus.to_string(), false),
    }
}

fn put(group: &Group, file: &str, value: &str, may_be_gone: bool) -> Result<()> {
    let path = group.dir().join(file);
    let text = if value.is_empty() { "\n" } else { value };
    match files::write_kernel(&path, text) {
        Err(error) if may_be_gone && files::is_gone(&error) => Ok(()),
        written => written.with_context(|| format!("write {value:?} to {}", path.display())),
    }
}

/// Is the group a valid partition of this kind, with exactly these CPUs?
///
/// # Errors
/// It cannot be looked at.
pub fn stands(group: &Group, kind: &str, cpus: &CpuSet) -> Result<bool> {
    Ok(state(group)?.as_deref() == Some(kind) && effective_cpus(group)?.as_ref() == Some(cpus))
}

/// The groups above `group` that have to name its exclusive CPUs, topmost first: all but the root.
pub fn ancestors(group: &Group) -> Vec<Group> {
    let mut all = Vec::new();
    let mut next = group.parent();
    while let Some(above) = next {
        next = above.parent();
        // The root has no `cpuset.cpus.exclusive`.
        if next.is_some() {
            all.push(above);
        }
    }
    all.reverse();
    all
}

/// The valid partitions below a group, at any depth, with their CPUs. Empty on version 1.
///
/// # Errors
/// A group cannot be looked at.
pub fn all(group: &Group) -> Result<Vec<(Group, CpuSet)>> {
    let mut found = Vec::new();
    if group.version() == Version::V1 {
        return Ok(found);
    }
    for child in group.children()? {
        if cpuset::is_partition(&child)? {
            let cpus = effective_cpus(&child)?.unwrap_or_default();
            found.push((child.clone(), cpus));
        }
        found.extend(all(&child)?);
    }
    Ok(found)
}

/// The CPUs that the valid partitions right below a group have or name for themselves, offline ones
/// too. Empty on version 1.
///
/// # Errors
/// A group cannot be looked at.
pub fn named_below(group: &Group) -> Result<CpuSet> {
    let mut named = CpuSet::new();
    if group.version() == Version::V1 {
        return Ok(named);
    }
    for child in group.children()? {
        if !cpuset::is_partition(&child)? {
            continue;
        }
        named.extend(&effective_cpus(&child)?.unwrap_or_default());
        // Its own `cpuset.cpus` may name more than `cpuset.cpus.exclusive`, which is what counts.
        let exclusive = exclusive(&child)?.filter(|text| !text.is_empty());
        let own = match exclusive {
            Some(text) => text,
            None => cpuset::masks(&child)?.unwrap_or_default().cpus,
        };
        named.extend(&own.parse().unwrap_or_default());
    }
    Ok(named)
}

/// The CPUs that the kernel has lost: they are online, and neither in the root group nor in any
/// partition. Before Linux 7 the kernel loses a partition's CPUs when another group breaks the
/// partition and its group is then removed; they are back after a reboot. `kept` are the CPUs of
/// known partitions: the groups are searched for others only if those do not explain all that is
/// missing. Empty on version 1 and in a container.
///
/// # Errors
/// A group cannot be looked at.
pub fn lost(top: &Group, online: &CpuSet, kept: &CpuSet) -> Result<CpuSet> {
    let is_the_machines = cpuset::ceiling(top)?.is_none();
    let effective = match top.version() {
        Version::V2 if is_the_machines => effective_cpus(top)?,
        _ => None,
    };
    let Some(effective) = effective else {
        return Ok(CpuSet::new());
    };
    let missing = online.difference(&effective).difference(kept);
    if missing.is_empty() {
        return Ok(missing);
    }
    let partitions = all(top)?;
    let missing = partitions
        .iter()
        .fold(missing, |missing, (_, cpus)| missing.difference(cpus));
    // A partition may have been made or taken down during the search.
    let now = effective_cpus(top)?.unwrap_or_default();
    Ok(missing.difference(&now))
}

/// The files that keep some of these CPUs from a group, with what is in them: they belong to the
/// groups beside it, and beside each group above it. Exclusive CPUs always count. `cpuset.cpus`
/// counts if it names none but these CPUs, and beside the group itself also if it names one of them
/// and this release of the kernel [`is_broken_by_siblings`].
///
/// # Errors
/// A group cannot be looked at.
pub fn in_the_way(group: &Group, cpus: &CpuSet, release: &str) -> Result<Vec<(String, CpuSet)>> {
    let is_broken = is_broken_by_siblings(release);
    let mut found = Vec::new();
    for below in ancestors(group).iter().chain([group]) {
        let Some(parent) = below.parent() else {
            continue;
        };
        let one_counts = is_broken && below.path() == group.path();
        for other in parent.children()? {
            if other.dir() == below.dir() {
                continue;
            }
            let exclusive = exclusive(&other)?.unwrap_or_default();
            let exclusive: CpuSet = exclusive.parse().unwrap_or_default();
            let mask = cpuset::masks(&other)?.unwrap_or_default().cpus;
            let mask: CpuSet = mask.parse().unwrap_or_default();
            let mask_is = !mask.is_disjoint(cpus) && (one_counts || mask.is_subset(cpus));
            let (file, named) = match (exclusive.is_disjoint(cpus), mask_is) {
                (false, _) => (EXCLUSIVE, exclusive),
                (true, true) => ("cpuset.cpus", mask),
                (true, false) => continue,
            };
            found.push((other.dir().join(file).display().to_string(), named));
        }
    }
    Ok(found)
}

/// The groups below `top` that have exclusive CPUs and are no valid partition, with those of them
/// that no partition below has. Nobody is kept off these, and no group elsewhere than below can be
/// made a partition with them.
///
/// # Errors
/// A group cannot be looked at.
pub fn held(top: &Group) -> Result<Vec<(Group, CpuSet)>> {
    let mut found = Vec::new();
    add_held(top, &mut found)?;
    Ok(found)
}

/// Adds what is held below a group, and returns the CPUs of the partitions there.
fn add_held(group: &Group, found: &mut Vec<(Group, CpuSet)>) -> Result<CpuSet> {
    let mut all = CpuSet::new();
    for child in group.children()? {
        // Where no group has the file, none below has it.
        let Some(text) = exclusive(&child)? else {
            continue;
        };
        let mut of_partitions = add_held(&child, found)?;
        let named: CpuSet = text.parse().unwrap_or_default();
        if cpuset::is_partition(&child)? {
            of_partitions.extend(&effective_cpus(&child)?.unwrap_or_default());
            of_partitions.extend(&named);
        }
        let held = named.difference(&of_partitions);
        if !held.is_empty() {
            found.push((child, held));
        }
        all.extend(&of_partitions);
    }
    Ok(all)
}

/// Does this kernel break a partition when a group beside it names one of its CPUs, so that it may
/// lose them? Linux 6.7, which made remote partitions, up to before 7.0 does (commit 2a3602030d80).
/// A release that cannot be parsed counts as one that does.
pub fn is_broken_by_siblings(release: &str) -> bool {
    let major = release
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major < 7)
}

/// Is it certain that no group beside this one will name its CPUs? It is for crun's group of a
/// container, which is alone in its scope. It is in `pinfold.slice` too, which holds pinned
/// containers only, and below a parent of ours: the groups there have CPUs that we chose.
///
/// # Errors
/// The groups beside it cannot be listed.
pub fn is_alone(group: &Group) -> Result<bool> {
    let Some(parent) = group.parent() else {
        return Ok(false);
    };
    let path = parent.path();
    if parent.is_parent_of_ours() || is_slice_of_ours(path) {
        return Ok(true);
    }
    Ok(path.ends_with(".scope") && parent.children()?.len() == 1)
}

/// Is this `pinfold.slice`, or a slice below it?
fn is_slice_of_ours(path: &str) -> bool {
    let top = path.split('/').nth(1).unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    top == "pinfold.slice" && last.ends_with(".slice")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::files::{Durability, replace};
    use crate::host::Host;

    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Tree {
            let tree = Tree {
                dir: tempfile::tempdir().unwrap(),
            };
            for (path, content) in files {
                tree.put(path, content);
            }
            tree
        }

        fn put(&self, path: &str, content: &str) {
            let path = self.dir.path().join("sys/fs/cgroup").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
        }

        fn group(&self, path: &str) -> Group {
            let hierarchy = Hierarchy::usual(&Host::new(self.dir.path()), "cpuset");
            hierarchy.group(path).unwrap()
        }
    }

    fn cpus(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn only_exactly_what_was_asked_for_stands() {
        let tree = Tree::new(&[("a/cpuset.cpus.effective", "4-5\n")]);
        let group = tree.group("/a");
        assert!(!stands(&group, "root", &cpus("4-5")).unwrap());
        for (state, stands_as) in [
            ("root\n", Some("root")),
            ("isolated\n", Some("isolated")),
            ("member\n", None),
            ("root invalid\n", None),
            ("root invalid (Parent is not a partition root)\n", None),
        ] {
            tree.put("a/cpuset.cpus.partition", state);
            for kind in ["root", "isolated"] {
                let stands = stands(&group, kind, &cpus("4-5")).unwrap();
                assert_eq!(stands, stands_as == Some(kind), "{state} {kind}");
            }
        }
        tree.put("a/cpuset.cpus.partition", "root\n");
        assert!(!stands(&group, "root", &cpus("4")).unwrap());
        assert_eq!(kind_in("root invalid (x)"), "root");
    }

    #[test]
    fn the_kernels_that_a_sibling_breaks_are_told_by_their_release() {
        for (release, is_broken) in [
            ("6.7.0", true),
            ("6.12.117+deb13-amd64", true),
            ("6.19", true),
            ("7.0.0-rc1", false),
            ("7.2.13-amd64", false),
            ("10.1", false),
            ("", true),
            ("odd", true),
        ] {
            assert_eq!(is_broken_by_siblings(release), is_broken, "{release}");
        }
    }

    #[test]
    fn who_can_get_a_sibling_is_told_by_where_it_is() {
        let tree = Tree::new(&[
            ("machine.slice/libpod-1.scope/container/cgroup.procs", ""),
            ("machine.slice/libpod-2.scope/container/cgroup.procs", ""),
            ("machine.slice/libpod-2.scope/other/cgroup.procs", ""),
            ("pinfold.slice/docker-3.scope/cgroup.procs", ""),
            ("pinfold/2-3/web-4-5/cgroup.procs", ""),
        ]);
        for (path, is_alone_there) in [
            ("/machine.slice/libpod-1.scope/container", true),
            ("/machine.slice/libpod-2.scope/container", false),
            ("/machine.slice/libpod-1.scope", false),
            ("/pinfold.slice/docker-3.scope", true),
            ("/pinfold.slice/pinfold-a.slice/docker-3.scope", true),
            ("/pinfold.slice/x.scope/container", false),
            ("/user.slice/pinfold.slice/x.scope", false),
            ("/pinfold/2-3/web-4-5", true),
            ("/web", false),
        ] {
            let is_alone = is_alone(&tree.group(path)).unwrap();
            assert_eq!(is_alone, is_alone_there, "{path}");
        }
    }

    #[test]
    fn whoever_names_the_cpus_is_found_with_the_path() {
        let tree = Tree::new(&[
            ("a.slice/x.scope/cpuset.cpus", ""),
            ("a.slice/y.scope/cpuset.cpus", "3-4\n"),
            ("a.slice/y.scope/cpuset.mems", "\n"),
            ("a.slice/z.scope/cpuset.cpus", "6\n"),
            ("a.slice/all.scope/cpuset.cpus", "0-7\n"),
            ("a.slice/all.scope/cpuset.mems", "\n"),
            ("a.slice/one.scope/cpuset.cpus", "5\n"),
            ("a.slice/one.scope/cpuset.mems", "\n"),
            ("b.slice/cpuset.cpus", "0-7\n"),
            ("b.slice/cpuset.mems", "\n"),
            ("c.slice/cpuset.cpus.exclusive", "5\n"),
        ]);
        let named = |release: &str| {
            let found = in_the_way(&tree.group("/a.slice/x.scope"), &cpus("4-5"), release);
            let found = found.unwrap().into_iter().map(|(path, cpus)| {
                let path = path.rsplit_once("/cgroup/").unwrap().1;
                format!("{path} {cpus}")
            });
            let mut found: Vec<String> = found.collect();
            // Those beside one group come in any order.
            found[1..].sort();
            found
        };
        let above = "c.slice/cpuset.cpus.exclusive 5";
        let (all, one) = (
            "a.slice/all.scope/cpuset.cpus 0-7",
            "a.slice/one.scope/cpuset.cpus 5",
        );
        let overlapping = "a.slice/y.scope/cpuset.cpus 3-4";
        assert_eq!(named("6.12.0"), [above, all, one, overlapping]);
        assert_eq!(named("7.2.0"), [above, one]);
    }

    #[test]
    fn cpus_that_no_group_has_are_lost() {
        let tree = Tree::new(&[
            ("cpuset.cpus.effective", "0-1,6-7\n"),
            ("a/b/cpuset.cpus.partition", "isolated\n"),
            ("a/b/cpuset.cpus.effective", "4\n"),
            ("a/c/cpuset.cpus.partition", "root invalid\n"),
            ("a/c/cpuset.cpus.effective", "5\n"),
        ]);
        let lost = |online: &str, kept: &str| {
            let top = tree.group("/");
            super::lost(&top, &cpus(online), &cpus(kept))
                .unwrap()
                .to_string()
        };
        assert_eq!(lost("0-7", ""), "2-3,5");
        assert_eq!(lost("0-7", "2-5"), "");
        assert_eq!(lost("0-1,6", ""), "");
        // In a container the topmost group is the container's own, and has `cpuset.cpus`.
        tree.put("cpuset.cpus", "0-1\n");
        assert_eq!(lost("0-7", ""), "");
    }

    #[test]
    fn the_cpus_of_partitions_right_below_are_those_that_they_have_and_name() {
        let tree = Tree::new(&[
            ("fast.slice/cpuset.cpus.partition", "root\n"),
            ("fast.slice/cpuset.cpus.effective", "4\n"),
            // 5 is offline.
            ("fast.slice/cpuset.cpus", "4-5\n"),
            ("fast.slice/cpuset.mems", "\n"),
            ("remote/cpuset.cpus.partition", "isolated\n"),
            ("remote/cpuset.cpus.effective", "6\n"),
            ("remote/cpuset.cpus", "0-7\n"),
            ("remote/cpuset.cpus.exclusive", "6-7\n"),
            ("remote/cpuset.mems", "\n"),
            ("broken/cpuset.cpus.partition", "root invalid\n"),
            ("broken/cpuset.cpus", "3\n"),
            ("system.slice/cpuset.cpus.partition", "member\n"),
            ("system.slice/x/cpuset.cpus.partition", "root\n"),
            ("system.slice/x/cpuset.cpus.effective", "2\n"),
        ]);
        let named = named_below(&tree.group("/")).unwrap();
        assert_eq!(named, cpus("4-7"));
    }

    #[test]
    fn the_root_names_no_exclusive_cpus() {
        let tree = Tree::new(&[]);
        let above = ancestors(&tree.group("/a/b/c"));
        let paths: Vec<&str> = above.iter().map(Group::path).collect();
        assert_eq!(paths, ["/a", "/a/b"]);
    }
}
