//! The cpuset controller: which CPUs and memory nodes a group's processes may use (cpuset(7);
//! kernel: Documentation/admin-guide/cgroup-v1/cpusets.rst and cgroup-v2.rst, "Cpuset").

use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;

use super::{Group, Hierarchy, Mounts, Version};
use crate::cpulist::{self, CpuSet};
use crate::files;
use crate::host::Host;
use crate::text::Shown;

const NAME: &str = "cpuset";
const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// How often enabling a controller is tried while the kernel says that somebody else is at it.
const ENABLE_TRIES: u32 = 20;

/// The hierarchy of this controller.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(host: &Host) -> Result<Hierarchy> {
    Hierarchy::of(host, NAME)
}

/// The same, where the mounts are read already.
///
/// # Errors
/// None is mounted.
pub fn hierarchy_among(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy(NAME)
}

/// Where it is on most machines: for a captured one that does not say.
pub fn usual_hierarchy(host: &Host) -> Hierarchy {
    Hierarchy::usual(host, NAME)
}

/// The values of a group's two files, as they were read; either can be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masks {
    /// `cpuset.cpus`.
    pub cpus: String,
    /// `cpuset.mems`.
    pub mems: String,
}

impl Masks {
    /// Are these the CPUs, and none besides?
    pub fn has_cpus(&self, cpus: &CpuSet) -> bool {
        self.cpus.parse().is_ok_and(|own: CpuSet| own == *cpus)
    }
}

/// What a group's processes can be given at most, and the group that sets that bound.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The CPUs.
    pub cpus: CpuSet,
    /// The nearest group whose effective CPUs these are.
    nearest: Group,
}

impl Bound {
    /// The same where a group has CPUs of its own besides, which whoever made it chose; empty for
    /// none.
    ///
    /// # Errors
    /// They are no CPU list.
    pub fn within(self, group: &Group, cpus: &str) -> Result<Bound> {
        let own: CpuSet = cpus
            .parse()
            .with_context(|| format!("read {}", group.dir().join(CPUS).display()))?;
        Ok(match own.is_empty() {
            true => self,
            false => Bound {
                cpus: self.cpus.intersection(&own),
                nearest: group.clone(),
            },
        })
    }

    /// The slices that are partitions and so keep their CPUs from everybody outside, this group
    /// too; none that cannot be read.
    pub fn partitions(&self) -> Vec<(Group, CpuSet)> {
        let mut top = self.nearest.clone();
        while let Some(above) = top.parent() {
            top = above;
        }
        partitions(&top).unwrap_or_default()
    }

    /// What a group allows those below it.
    pub fn by(nearest: Group, cpus: CpuSet) -> Bound {
        Bound { cpus, nearest }
    }

    /// The topmost group that has no more than these CPUs: those below inherit them from it.
    pub fn origin(&self) -> Group {
        let mut origin = self.nearest.clone();
        while let Some(above) = origin.parent() {
            // One that cannot be read excludes nothing that we know of.
            match effective_cpus(&above) {
                Ok(Some(cpus)) if cpus == self.cpus => origin = above,
                _ => break,
            }
        }
        origin
    }

    /// The path of that group.
    pub fn group(&self) -> String {
        self.origin().path().to_owned()
    }
}

/// The file that says which CPUs a group really has.
fn effective_cpus_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpuset.effective_cpus",
        Version::V2 => "cpuset.cpus.effective",
    }
}

fn effective_mems_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "cpuset.effective_mems",
        Version::V2 => "cpuset.mems.effective",
    }
}

fn read_set(group: &Group, file: &str) -> Result<Option<CpuSet>> {
    let path = group.dir().join(file);
    let Some(text) = files::read_record_if_there(&path)? else {
        return Ok(None);
    };
    let set = cpulist::of_kernel(&text)
        .parse()
        .with_context(|| format!("read {}", path.display()))?;
    Ok(Some(set))
}

/// The CPUs that a group really has; `None` where the controller is not enabled for it, or it is
/// gone.
pub fn effective_cpus(group: &Group) -> Result<Option<CpuSet>> {
    read_set(group, effective_cpus_file(group.version()))
}

/// The values of a group's files now; `None` where the controller is not enabled for it, or it is
/// gone.
pub fn masks(group: &Group) -> Result<Option<Masks>> {
    let read = |file: &str| files::read_record_if_there(&group.dir().join(file));
    let (Some(cpus), Some(mems)) = (read(CPUS)?, read(MEMS)?) else {
        return Ok(None);
    };
    Ok(Some(Masks {
        cpus: cpulist::of_kernel(&cpus).to_owned(),
        mems: cpulist::of_kernel(&mems).to_owned(),
    }))
}

/// What a group's files hold where nobody chose anything for it: nothing; on version 1 a copy of
/// the parent's.
pub fn inherited(group: &Group) -> Result<Masks> {
    let parent = match group.version() {
        Version::V1 => group.parent(),
        Version::V2 => None,
    };
    let masks = parent.map(|parent| masks(&parent)).transpose()?.flatten();
    Ok(masks.unwrap_or_default())
}

/// What the groups above allow: the nearest of them that has the controller says it. On version 1
/// one without CPUs is new: nobody runs there yet, and a runtime gives it those of the group above
/// it.
pub fn bound(group: &Group) -> Result<Bound> {
    let mut above = group.parent();
    while let Some(group) = above {
        let cpus = effective_cpus(&group)?;
        let says = |cpus: &CpuSet| group.version() == Version::V2 || !cpus.is_empty();
        if let Some(cpus) = cpus.filter(says) {
            ensure!(
                !cpus.is_empty(),
                "{} names no CPU: partitions below {} have all of them",
                group
                    .dir()
                    .join(effective_cpus_file(group.version()))
                    .display(),
                Shown(group.path())
            );
            return Ok(Bound {
                cpus,
                nearest: group,
            });
        }
        above = group.parent();
    }
    bail!(
        "no group above {} has the cpuset controller: enable it in the kernel",
        group.dir().display()
    )
}

/// What bounds every group that can be seen here; `None` where that is the machine itself. In a
/// container the topmost group is the container's own.
pub fn ceiling(top: &Group) -> Result<Option<CpuSet>> {
    // The root of version 2 has no such file (kernel: cgroup-v2.rst, "Cpuset Interface Files"); on
    // version 1 the root's names all CPUs.
    match read_set(top, CPUS)? {
        None => Ok(None),
        Some(_) => effective_cpus(top),
    }
}

/// The slices that are a partition of their own, `root` or `isolated`, with their CPUs, which
/// nobody outside has (kernel: cgroup-v2.rst, "cpuset.cpus.partition"). One that the kernel calls
/// invalid is none.
pub fn partitions(top: &Group) -> Result<Vec<(Group, CpuSet)>> {
    let mut found = Vec::new();
    if top.version() == Version::V1 {
        return Ok(found);
    }
    for slice in top.children()? {
        if !slice.path().ends_with(".slice") {
            continue;
        }
        if is_partition(&slice)? {
            let cpus = effective_cpus(&slice)?.unwrap_or_default();
            found.push((slice.clone(), cpus));
        }
        found.extend(partitions(&slice)?);
    }
    Ok(found)
}

/// Is a group a partition of its own? One that the kernel calls invalid is none, and version 1 has
/// none.
pub fn is_partition(group: &Group) -> Result<bool> {
    let kind = files::read_if_there(&group.dir().join("cpuset.cpus.partition"))?;
    Ok(matches!(
        kind.unwrap_or_default().trim(),
        "root" | "isolated"
    ))
}

/// The CPUs that whoever made a group chose for it; none where it inherits them.
///
/// On version 2 an empty value inherits; crun runs a container in a group below its scope, and sets
/// the scope's, or both.
pub fn chosen_cpus(group: &Group, masks: &Masks) -> Result<Option<String>> {
    let effective = effective_cpus_file(group.version());
    chosen(group, masks, |masks| &masks.cpus, CPUS, effective)
}

/// The same of memory nodes.
pub fn chosen_mems(group: &Group, masks: &Masks) -> Result<Option<String>> {
    let effective = effective_mems_file(group.version());
    chosen(group, masks, |masks| &masks.mems, MEMS, effective)
}

fn chosen(
    group: &Group,
    masks: &Masks,
    value: impl Fn(&Masks) -> &str,
    file: &str,
    effective: &str,
) -> Result<Option<String>> {
    let own = excluding(group, value(masks), file, effective)?;
    match scope_above(group).filter(|_| own.is_none()) {
        Some(scope) => {
            let above = self::masks(&scope)?.unwrap_or_default();
            excluding(&scope, value(&above), file, effective)
        }
        None => Ok(own),
    }
}

/// The CPUs that a group was given, as they are written, where it has fewer for it than the group
/// above; `None` where the controller is not enabled for it, or it is gone.
pub fn own_cpus(group: &Group) -> Result<Option<String>> {
    let Some(masks) = masks(group)? else {
        return Ok(None);
    };
    excluding(
        group,
        &masks.cpus,
        CPUS,
        effective_cpus_file(group.version()),
    )
}

/// A group's value where it excludes anything that the group above has: on version 1 runtimes copy
/// that one's value, and on version 2 [`restore`] leaves all of it where the kernel empties no
/// file.
fn excluding(group: &Group, value: &str, file: &str, effective: &str) -> Result<Option<String>> {
    let own: CpuSet = value
        .parse()
        .with_context(|| format!("read {}", group.dir().join(file).display()))?;
    let file = match group.version() {
        Version::V1 => file,
        Version::V2 => effective,
    };
    let parent = group.parent();
    let all = parent.map(|parent| read_set(&parent, file)).transpose()?;
    let excludes = match all.flatten() {
        Some(all) => !all.is_subset(&own),
        // On version 1 the group at the top has all that there are.
        None => group.version() == Version::V2,
    };
    Ok((excludes && !own.is_empty()).then(|| value.to_owned()))
}

/// The scope right above a group that has CPUs of its own, lacks some of these, and holds nothing
/// but the group: crun makes one for each container on version 2, and gives it what the
/// configuration says at the start.
pub fn scope_in_the_way(group: &Group, cpus: &CpuSet) -> Result<Option<Group>> {
    let Some(scope) = scope_above(group) else {
        return Ok(None);
    };
    let own = read_set(&scope, CPUS)?.unwrap_or_default();
    let is_in_the_way = !own.is_empty()
        && !cpus.is_subset(&own)
        && scope.pids()?.is_empty()
        && scope.children()?.len() == 1;
    Ok(is_in_the_way.then_some(scope))
}

fn scope_above(group: &Group) -> Option<Group> {
    let is_scope = |parent: &Group| parent.path().ends_with(".scope");
    let parent = group.parent().filter(|_| group.version() == Version::V2);
    parent.filter(is_scope)
}

/// Gives a group these CPUs, and these memory nodes where there are any, and makes sure that it got
/// just those CPUs; a scope that is in the way gets them first.
pub fn confine(group: &Group, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
    if let Some(scope) = scope_in_the_way(group, cpus)? {
        set(&scope, cpus, mems)?;
    }
    set(group, cpus, mems)?;
    let effective = effective_cpus(group)?.unwrap_or_default();
    ensure!(
        effective == *cpus,
        "{} has the CPUs {:?} after {cpus} was written: its parents allow no others",
        group.dir().display(),
        effective.to_string()
    );
    Ok(())
}

/// Gives these CPUs back to the groups above that have lost them: version 1 drops one that goes
/// offline from every cpuset but the root's for good. Version 2 keeps what was written.
pub fn widen_above(group: &Group, cpus: &CpuSet) -> Result<()> {
    let mut above = Vec::new();
    let mut next = group.parent().filter(|_| group.version() == Version::V1);
    while let Some(group) = next {
        next = group.parent();
        // The root has all that there are.
        if next.is_some() {
            above.push(group);
        }
    }
    for group in above.iter().rev() {
        let mut own = read_set(group, CPUS)?.unwrap_or_default();
        if !cpus.is_subset(&own) {
            own.extend(cpus);
            write(group, CPUS, &own.to_string())?;
        }
    }
    Ok(())
}

/// Prepares a group that we made: on version 1 a new one has nothing at all and takes no process,
/// so it inherits like one of version 2. Its parents of ours do so again each time: a CPU that went
/// offline is dropped from them for good, and may be back.
pub fn inherit(group: &Group) -> Result<()> {
    let parent = match group.parent() {
        Some(parent) if group.version() == Version::V1 => parent,
        _ => return Ok(()),
    };
    if parent.is_parent_of_ours() {
        inherit(&parent)?;
    }
    for (file, effective) in [
        (MEMS, effective_mems_file(group.version())),
        (CPUS, effective_cpus_file(group.version())),
    ] {
        let inherited = read_set(&parent, effective)?.unwrap_or_default();
        if read_set(group, file)?.unwrap_or_default() != inherited {
            write(group, file, &inherited.to_string())?;
        }
    }
    Ok(())
}

/// Puts a group's values back, the memory nodes where they were changed; a group that is gone is
/// success.
///
/// Where the kernel refuses what was there before (version 2 does not empty the CPUs of a group
/// with processes; a parent can have been narrowed, a CPU have gone offline), the group gets what
/// its parents allow; in place of an empty value without the CPUs that `spared` says, where any are
/// left: to name those would keep others from having them for their own.
pub fn restore(
    group: &Group,
    cpus: &str,
    mems: Option<&str>,
    spared: impl FnOnce() -> Result<CpuSet>,
) -> Result<()> {
    let put = |file: &str, value: &str| {
        let cleared = if value.is_empty() { "\n" } else { value };
        match files::write_kernel(&group.dir().join(file), cleared) {
            Err(error) if files::is_gone(&error) => Ok(()),
            other => other,
        }
    };
    let context = || format!("restore the cpuset of {}", group.dir().display());
    if let Some(mems) = mems {
        if put(MEMS, mems).is_err() {
            let parent = group.parent();
            let effective = effective_mems_file(group.version());
            let allowed = parent
                .map(|parent| read_set(&parent, effective))
                .transpose()?;
            let allowed = allowed.flatten().unwrap_or_default();
            put(MEMS, &allowed.to_string()).with_context(context)?;
        }
    }
    if put(CPUS, cpus).is_err() {
        let bound = bound(group)?.cpus;
        let rest = match cpus.is_empty() {
            true => bound.difference(&spared()?),
            false => bound.clone(),
        };
        let allowed = if rest.is_empty() { bound } else { rest };
        put(CPUS, &allowed.to_string()).with_context(context)?;
    }
    Ok(())
}

/// Makes sure that a group has the controller, enabling it in the groups above where it is missing.
///
/// It stays enabled there: without a mask it changes nothing for anybody, and others may rely on it
/// by the time that we would take it away.
pub fn enable(group: &Group) -> Result<()> {
    let is_enabled = || files::metadata_if_there(&group.dir().join(CPUS));
    if group.version() == Version::V1 || is_enabled()?.is_some() {
        return Ok(());
    }
    let mut above = Vec::new();
    let mut next = group.parent();
    while let Some(group) = next {
        next = group.parent();
        above.push(group);
    }
    for group in above.iter().rev() {
        let path = group.dir().join("cgroup.subtree_control");
        let enabled = files::read(&path)?;
        if enabled.split_whitespace().any(|name| name == "cpuset") {
            continue;
        }
        with_retries(|| files::write_kernel(&path, "+cpuset")).with_context(|| {
            format!(
                "enable the cpuset controller in {}; where that belongs to somebody else, have it delegated (systemd: Delegate=cpuset)",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Two that enable at once can meet in EBUSY (kernel: cgroup-v2.rst, "Enabling and Disabling").
fn with_retries(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..ENABLE_TRIES {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                sleep(Duration::from_millis(5))
            }
            other => return other,
        }
    }
    attempt()
}

fn set(group: &Group, cpus: &CpuSet, mems: Option<&CpuSet>) -> Result<()> {
    if let Some(mems) = mems {
        write(group, MEMS, &mems.to_string())?;
    }
    write(group, CPUS, &cpus.to_string())
}

fn write(group: &Group, file: &str, value: &str) -> Result<()> {
    let path = group.dir().join(file);
    files::write_kernel(&path, value)
        .with_context(|| format!("write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;
    use crate::files::{Durability, replace};
    use crate::host::Host;
    use std::path::PathBuf;

    /// A tree of groups of either version: `path/file` with content.
    struct Tree {
        dir: tempfile::TempDir,
        hierarchy: Hierarchy,
    }

    impl Tree {
        fn new(version: Version, files: &[(&str, &str)]) -> Tree {
            let dir = tempfile::tempdir().unwrap();
            let mount = match version {
                Version::V1 => "1 2 0:3 / /cg rw - cgroup cgroup rw,cpuset",
                Version::V2 => "1 2 0:3 / /cg rw - cgroup2 cgroup2 rw",
            };
            let put = |path: PathBuf, content: &str| {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
            };
            put(dir.path().join("proc/1/mountinfo"), mount);
            for (path, content) in files {
                put(dir.path().join("cg").join(path), content);
            }
            let hierarchy = hierarchy(&Host::new(dir.path())).unwrap();
            Tree { dir, hierarchy }
        }

        fn group(&self, path: &str) -> Group {
            self.hierarchy.group(path).unwrap()
        }

        fn content(&self, path: &str) -> String {
            files::read(&self.dir.path().join("cg").join(path)).unwrap()
        }
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn the_nearest_parent_with_the_controller_is_the_bound() {
        let tree = Tree::new(
            Version::V2,
            &[
                ("cpuset.cpus.effective", "0-7\n"),
                ("a/cpuset.cpus.effective", "0-3\n"),
                ("a/b/c/cgroup.procs", ""),
            ],
        );
        for (path, cpus, by) in [
            ("/a/b/c", "0-3", "/a"),
            ("/a", "0-7", "/"),
            ("/x", "0-7", "/"),
        ] {
            let bound = bound(&tree.group(path)).unwrap();
            assert_eq!(
                (&bound.cpus, bound.nearest.path(), bound.group().as_str()),
                (&set(cpus), by, by),
                "{path}"
            );
        }
        assert!(bound(&Tree::new(Version::V2, &[]).group("/a")).is_err());
    }

    #[test]
    fn a_new_parent_without_cpus_leaves_it_to_the_one_above() {
        let tree = Tree::new(
            Version::V1,
            &[
                ("cpuset.effective_cpus", "0-7\n"),
                ("a/cpuset.effective_cpus", "\n"),
            ],
        );
        let bound = bound(&tree.group("/a/b")).unwrap();
        assert_eq!((&bound.cpus, bound.nearest.path()), (&set("0-7"), "/"));
    }

    #[test]
    fn confining_is_verified_on_both_versions() {
        for (version, effective) in [
            (Version::V1, "c/cpuset.effective_cpus"),
            (Version::V2, "c/cpuset.cpus.effective"),
        ] {
            for (takes_effect, fine) in [("2-3", true), ("0-7", false), ("", false)] {
                let files = [
                    ("c/cpuset.cpus", ""),
                    ("c/cpuset.mems", ""),
                    (effective, takes_effect),
                ];
                let tree = Tree::new(version, &files);
                let result = confine(&tree.group("/c"), &set("2-3"), Some(&set("1")));
                assert_eq!(result.is_ok(), fine, "{version:?} {takes_effect:?}");
                assert_eq!(tree.content("c/cpuset.cpus"), "2-3");
                assert_eq!(tree.content("c/cpuset.mems"), "1");
            }
        }
    }

    #[test]
    fn a_scope_of_one_group_is_widened_and_no_other() {
        for (before, process, sibling, after) in [
            ("0\n", "", "a.scope/c/x", "0-1"),
            ("0-2\n", "", "a.scope/c/x", "0-2\n"),
            ("\n", "", "a.scope/c/x", "\n"),
            ("0\n", "7\n", "a.scope/c/x", "0\n"),
            ("0\n", "", "a.scope/d/x", "0\n"),
        ] {
            let files = [
                ("a.scope/cpuset.cpus", before),
                ("a.scope/cpuset.mems", "0"),
                ("a.scope/cgroup.procs", process),
                (sibling, ""),
                ("a.scope/c/cpuset.cpus", "0\n"),
                ("a.scope/c/cpuset.cpus.effective", "0-1\n"),
            ];
            let tree = Tree::new(Version::V2, &files);
            confine(&tree.group("/a.scope/c"), &set("0-1"), None).unwrap();
            assert_eq!(tree.content("a.scope/c/cpuset.cpus"), "0-1");
            assert_eq!(tree.content("a.scope/cpuset.cpus"), after);
        }
    }

    #[test]
    fn cpus_that_were_chosen_are_told_from_inherited_ones() {
        for (version, path, scope, own, chosen) in [
            (Version::V1, "c", "", "0-3", None),
            (Version::V1, "c", "", "0,1-3", None),
            (Version::V1, "c", "", "1", Some("1")),
            (Version::V1, "c", "", "", None),
            (Version::V2, "c", "", "", None),
            (Version::V2, "c", "", "0-3", None),
            // A CPU went offline since.
            (Version::V2, "c", "", "0-4", None),
            (Version::V2, "c", "", "1-2", Some("1-2")),
            (Version::V2, "a.scope/c", "2", "", Some("2")),
            (Version::V2, "a.scope/c", "2", "2", Some("2")),
            (Version::V2, "a.scope/c", "1-2", "2", Some("2")),
            (Version::V2, "a.scope/c", "0-3", "0-3", None),
            (Version::V2, "a.scope/c", "0-3", "", None),
            (Version::V2, "a.slice/c", "2", "2", None),
        ] {
            let file = |name: &str| format!("{path}/{name}");
            let files = [
                ("cpuset.cpus", "0-3\n"),
                ("cpuset.cpus.effective", "0-3\n"),
                ("a.scope/cpuset.cpus", scope),
                ("a.scope/cpuset.cpus.effective", scope),
                ("a.scope/cpuset.mems", ""),
                ("a.slice/cpuset.cpus.effective", scope),
                (&file("cpuset.cpus"), own),
                (&file("cpuset.mems"), ""),
            ];
            let group = Tree::new(version, &files);
            let group = group.group(&format!("/{path}"));
            let masks = masks(&group).unwrap().unwrap();
            assert_eq!(
                chosen_cpus(&group, &masks).unwrap().as_deref(),
                chosen,
                "{version:?} {path} {scope:?} {own:?}"
            );
        }
    }

    #[test]
    fn restoring_clears_what_was_empty_and_forgives_what_is_gone() {
        let tree = Tree::new(
            Version::V2,
            &[("c/cpuset.cpus", "2"), ("c/cpuset.mems", "0")],
        );
        restore(&tree.group("/c"), "", Some("1"), || Ok(CpuSet::new())).unwrap();
        assert_eq!(tree.content("c/cpuset.cpus"), "\n");
        assert_eq!(tree.content("c/cpuset.mems"), "1");
        restore(&tree.group("/gone"), "0", None, || Ok(CpuSet::new())).unwrap();
    }

    #[test]
    fn the_controller_is_enabled_only_where_it_is_missing() {
        let tree = Tree::new(
            Version::V2,
            &[
                ("cgroup.subtree_control", "cpu cpuset\n"),
                ("a/cgroup.subtree_control", "cpu\n"),
                ("a/b/cgroup.procs", ""),
                ("x/cpuset.cpus", ""),
            ],
        );
        enable(&tree.group("/a/b")).unwrap();
        assert_eq!(tree.content("cgroup.subtree_control"), "cpu cpuset\n");
        assert_eq!(tree.content("a/cgroup.subtree_control"), "+cpuset");
        enable(&tree.group("/x")).unwrap();
        enable(&Tree::new(Version::V1, &[]).group("/a")).unwrap();
    }

    #[test]
    fn a_new_group_of_version_1_inherits_from_above() {
        let files: Vec<(String, &str)> = ["", "pinfold/", "pinfold/k/", "pinfold/k/c/"]
            .iter()
            .flat_map(|dir| {
                // The first parent of ours has lost CPU 3.
                let cpus = if *dir == "pinfold/" { "0-2" } else { "0-3" };
                let own = if *dir == "pinfold/k/c/" { "" } else { cpus };
                [
                    (format!("{dir}cpuset.cpus"), own),
                    (
                        format!("{dir}cpuset.mems"),
                        if own.is_empty() { "" } else { "0" },
                    ),
                    (format!("{dir}cpuset.effective_cpus"), "0-3"),
                    (format!("{dir}cpuset.effective_mems"), "0"),
                ]
            })
            .collect();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        let tree = Tree::new(Version::V1, &files);
        inherit(&tree.group("/pinfold/k/c")).unwrap();
        for file in ["pinfold/cpuset.cpus", "pinfold/k/c/cpuset.cpus"] {
            assert_eq!(tree.content(file), "0-3", "{file}");
        }
        assert_eq!(tree.content("pinfold/k/c/cpuset.mems"), "0");
    }
}
