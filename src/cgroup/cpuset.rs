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

/// How often enabling the controller is tried while the kernel answers EBUSY.
const ENABLE_TRIES: u32 = 20;

/// The hierarchy of this controller.
///
/// # Errors
/// None is mounted.
pub fn hierarchy(host: &Host) -> Result<Hierarchy> {
    Hierarchy::of(host, NAME)
}

/// The hierarchy of this controller, from mounts that were read before.
///
/// # Errors
/// None is mounted.
pub fn hierarchy_among(mounts: &Mounts<'_>) -> Result<Hierarchy> {
    mounts.hierarchy(NAME)
}

/// The hierarchy as most machines have it, for a captured machine without mountinfo.
pub fn usual_hierarchy(host: &Host) -> Hierarchy {
    Hierarchy::usual(host, NAME)
}

/// The values of a group's two files as they were read. Either can be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masks {
    /// `cpuset.cpus`.
    pub cpus: String,
    /// `cpuset.mems`.
    pub mems: String,
}

impl Masks {
    /// Are the CPUs exactly these?
    pub fn has_cpus(&self, cpus: &CpuSet) -> bool {
        self.cpus.parse().is_ok_and(|own: CpuSet| own == *cpus)
    }
}

/// The CPUs that a group's processes can have at most, and the group above that limits them to
/// these.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The CPUs.
    pub cpus: CpuSet,
    /// The nearest group with this limit.
    nearest: Group,
}

impl Bound {
    /// The bound below `group`, whose `cpuset.cpus` is `cpus`: both limits together. An empty value
    /// limits nothing.
    ///
    /// # Errors
    /// `cpus` is not a CPU list.
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

    /// The slices on this machine that are partitions, with their CPUs, which nobody outside has;
    /// empty where they cannot be read.
    pub fn partitions(&self) -> Vec<(Group, CpuSet)> {
        let mut top = self.nearest.clone();
        while let Some(above) = top.parent() {
            top = above;
        }
        partitions(&top).unwrap_or_default()
    }

    /// The bound that a group with these CPUs sets for the groups below it.
    pub fn by(nearest: Group, cpus: CpuSet) -> Bound {
        Bound { cpus, nearest }
    }

    /// The topmost group with this limit; the groups between it and the nearest one inherit from
    /// it.
    pub fn origin(&self) -> Group {
        let mut origin = self.nearest.clone();
        while let Some(above) = origin.parent() {
            // A group that cannot be read is not known to limit anything.
            match effective_cpus(&above) {
                Ok(Some(cpus)) if cpus == self.cpus => origin = above,
                _ => break,
            }
        }
        origin
    }

    /// The path of [`Bound::origin`].
    pub fn group(&self) -> String {
        self.origin().path().to_owned()
    }
}

/// The file with the CPUs that a group's processes really have.
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

/// The CPUs that a group's processes really have; `None` where the group is gone, or the controller
/// is not enabled for it.
///
/// # Errors
/// The file cannot be read, or is not a CPU list.
pub fn effective_cpus(group: &Group) -> Result<Option<CpuSet>> {
    read_set(group, effective_cpus_file(group.version()))
}

/// The current values of a group's two files; `None` where the group is gone, or the controller is
/// not enabled for it.
///
/// # Errors
/// A file cannot be read.
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

/// The values of a group for which nobody chose any: empty on version 2, a copy of the parent's on
/// version 1.
///
/// # Errors
/// A file of the parent cannot be read.
pub fn inherited(group: &Group) -> Result<Masks> {
    let parent = match group.version() {
        Version::V1 => group.parent(),
        Version::V2 => None,
    };
    let masks = parent.map(|parent| masks(&parent)).transpose()?.flatten();
    Ok(masks.unwrap_or_default())
}

/// The bound that the groups above set: the effective CPUs of the nearest group above that has the
/// controller. On version 1 a group without CPUs is passed over: it is new, has no processes, and a
/// runtime will copy its parent's CPUs into it.
///
/// # Errors
/// A file cannot be read; that group has no CPU left; no group above has the controller.
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

/// The CPUs to which everything seen from here is limited, as in a container, where the topmost
/// group is the container's own; `None` on the machine itself.
///
/// # Errors
/// A file cannot be read.
pub fn ceiling(top: &Group) -> Result<Option<CpuSet>> {
    // The root group of version 2 has no `cpuset.cpus` (kernel: cgroup-v2.rst, "Cpuset Interface
    // Files"); that of the root group of version 1 names all CPUs.
    match read_set(top, CPUS)? {
        None => Ok(None),
        Some(_) => effective_cpus(top),
    }
}

/// The slices at any depth that are valid partitions, `root` or `isolated`, with their CPUs, which
/// nobody outside has (kernel: cgroup-v2.rst, "cpuset.cpus.partition"). Empty on version 1.
///
/// # Errors
/// A group cannot be looked at.
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

/// Is the group a valid partition? One that the kernel calls invalid is not; version 1 has none.
///
/// # Errors
/// The file cannot be read.
pub fn is_partition(group: &Group) -> Result<bool> {
    let kind = files::read_if_there(&group.dir().join("cpuset.cpus.partition"))?;
    Ok(matches!(
        kind.unwrap_or_default().trim(),
        "root" | "isolated"
    ))
}

/// The value of `cpuset.cpus` that the maker of a group chose; `None` where the group inherits its
/// CPUs. `masks` are the group's own.
///
/// crun runs a container on version 2 in a group below its scope, and sets the CPUs of the scope or
/// of both: where the group's value chooses nothing, the value of a scope right above it counts.
///
/// # Errors
/// A file cannot be read, or is not a CPU list.
pub fn chosen_cpus(group: &Group, masks: &Masks) -> Result<Option<String>> {
    let effective = effective_cpus_file(group.version());
    chosen(group, masks, |masks| &masks.cpus, CPUS, effective)
}

/// As [`chosen_cpus`], for memory nodes.
///
/// # Errors
/// As [`chosen_cpus`].
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

/// The value of a group's own `cpuset.cpus` where it excludes CPUs that the group above has; `None`
/// where it excludes none, the group is gone, or the controller is not enabled for it.
///
/// # Errors
/// A file cannot be read, or is not a CPU list.
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

/// The value of a group's file if it excludes anything that the group above has. A value that
/// excludes nothing was not chosen: on version 1 runtimes copy the parent's, and on version 2
/// [`restore`] writes the parent's where the kernel refuses the empty value.
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
        // The topmost group of version 1 has all there is, so it excludes nothing.
        None => group.version() == Version::V2,
    };
    Ok((excludes && !own.is_empty()).then(|| value.to_owned()))
}

/// The scope right above a group, if it limits its CPUs so that some of `cpus` are missing, and
/// holds nothing but the group. crun makes such a scope for each container on version 2, and gives
/// it the CPUs of the configuration at the start.
///
/// # Errors
/// The scope cannot be looked at.
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

/// Writes the CPUs to a group, and the memory nodes if there are any, and checks that the group got
/// exactly these CPUs. A scope in the way ([`scope_in_the_way`]) is written first.
///
/// # Errors
/// A write fails, or the groups above do not allow all of the CPUs.
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

/// Adds these CPUs again to the groups above that have lost them: version 1 drops a CPU that goes
/// offline from every cpuset but the root's, for good. Version 2 keeps what was written, so nothing
/// is done there.
///
/// # Errors
/// A group above cannot be read or written.
pub fn widen_above(group: &Group, cpus: &CpuSet) -> Result<()> {
    let mut above = Vec::new();
    let mut next = group.parent().filter(|_| group.version() == Version::V1);
    while let Some(group) = next {
        next = group.parent();
        // The root has all CPUs.
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

/// Prepares a group that we made: on version 1 a new group has no CPUs and takes no process, so it
/// gets its parent's, as a group of version 2 inherits them. Parents that are ours are written
/// again each time: a CPU that went offline was dropped from them for good, and may be back online.
///
/// # Errors
/// A group cannot be read or written.
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

/// Writes the former values back to a group; the memory nodes only where they were changed. A group
/// that is gone is success.
///
/// The kernel can refuse a former value: version 2 does not empty the CPUs of a group with
/// processes; a parent was narrowed; a CPU went offline; a group beside it has some for its own.
/// Then the group gets those of its former CPUs that its parents allow, or all that these allow,
/// without the CPUs of `spared` unless none are left: a group that names those would keep others
/// from having them for their own.
///
/// # Errors
/// The group, or one above it, cannot be read or written.
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
        let former = cpus.parse().unwrap_or_default();
        let mut done = Ok(());
        for cpus in instead(&former, &bound(group)?.cpus, &spared()?) {
            done = put(CPUS, &cpus.to_string());
            if done.is_ok() {
                break;
            }
        }
        done.with_context(context)?;
    }
    Ok(())
}

/// What a group gets in place of its former CPUs, the best first.
fn instead(former: &CpuSet, bound: &CpuSet, spared: &CpuSet) -> Vec<CpuSet> {
    let rest = bound.difference(spared);
    let mut all = vec![
        former.intersection(&rest),
        rest,
        former.intersection(bound),
        bound.clone(),
    ];
    all.retain(|cpus| !cpus.is_empty());
    all.dedup();
    all
}

/// Enables the controller for a group, in each group above where it is missing.
///
/// It stays enabled there: without a mask it changes nothing for anybody, and others may rely on it
/// by the time we would disable it.
///
/// # Errors
/// A group above cannot be read or written.
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
                "enable the cpuset controller in {}; where that belongs to somebody else, have it \
                 delegated (systemd: Delegate=cpuset)",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Repeats `attempt` after EBUSY, which two programs that enable controllers at once can get
/// (kernel: cgroup-v2.rst, "Enabling and Disabling").
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

    /// A tree of groups of either version, made from pairs of `path/file` and its content.
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

    /// CPUs 2-5 are of exclusive pools.
    #[test]
    fn what_the_kernel_refuses_is_not_replaced_by_what_others_may_want_for_their_own() {
        for (former, bound, tried) in [
            ("", "0-7", "0-1,6-7 0-7"),
            ("", "2-3", "2-3"),
            // A partition beside it has 4-5: the kernel refuses what was there before.
            ("0-7", "0-3,6-7", "0-1,6-7 0-3,6-7"),
            ("3-6", "0-3,6-7", "6 0-1,6-7 3,6 0-3,6-7"),
            ("3", "0-3", "0-1 3 0-3"),
        ] {
            let all = instead(&set(former), &set(bound), &set("2-5"));
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            assert_eq!(all.join(" "), tried, "{former:?} {bound}");
        }
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
            // A CPU went offline after `0-4` was written.
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
                // Our topmost parent has lost CPU 3.
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
