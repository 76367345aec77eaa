//! Reasons why a partition cannot be made, and what to do about each.

use std::fmt::{self, Display};
use std::path::Path;

use anyhow::{Error, Result};

use super::irqs::Irq;
use super::keeping;
use super::knobs::LeftToIrqs;
use super::machine::Failure;
use super::records::Owner;
use crate::cgroup::cpuset::{self, effective_cpus};
use crate::cgroup::{Group, Version, partition};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::isolation::Kind;
use crate::refusal::Refusal;
use crate::text::{Shown, one_line};
use crate::topology;

/// Why others cannot be kept off an owner's CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The reason.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// For an obstacle that holds for the whole machine: its name, usable in a file name.
    pub of_machine: Option<&'static str>,
}

impl Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

impl Obstacle {
    /// Makes an obstacle of an error, for a caller that can do without a partition.
    pub fn of(error: &Error) -> Obstacle {
        let Refusal { what, remedy, .. } = Refusal::of(error);
        Obstacle::of_owner(what, remedy)
    }

    pub(super) fn of_owner(what: impl Into<String>, remedy: impl Into<String>) -> Obstacle {
        Obstacle {
            what: what.into(),
            remedy: remedy.into(),
            of_machine: None,
        }
    }

    pub(super) fn of_machine(
        name: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Obstacle {
        Obstacle {
            of_machine: Some(name),
            ..Obstacle::of_owner(what, remedy)
        }
    }
}

/// No mask keeps a command on its CPUs, so that it needs no partition, and can have none.
pub fn not_confined() -> Obstacle {
    Obstacle::of_machine(
        "no-affinity",
        "it runs with --no-affinity, and so on any CPU",
        "run it without --no-affinity",
    )
}

/// Nothing confines a process that another tool wrote into `tasks`.
pub fn of_another_tool() -> Obstacle {
    Obstacle::of_owner(
        "another tool gave it these CPUs, and confines it as it likes",
        "run it by `pinfold isolate`, or in a container that asks for CPUs",
    )
}

/// There is no limit that is an owner's own, where one was to be lifted.
pub fn no_own_limit() -> Obstacle {
    Obstacle::of_machine(
        "no-own-limit",
        "it has no limit of CPU time of its own that could be lifted: a command has that of \
         whoever runs it, and so has a container without a cgroup of its own",
        "say quota=keep",
    )
}

/// Interrupts can come to CPUs whose owners want them away, or irqbalance can move them there.
pub(super) fn left_to_irqs(left: &LeftToIrqs) -> Vec<Obstacle> {
    let LeftToIrqs {
        by_all,
        by_irqbalance,
    } = left;
    let mut obstacles = Vec::new();
    if !by_all.is_empty() {
        obstacles.push(Obstacle::of_machine(
            "no-cpu-for-irqs",
            format!("interrupts are not kept away from {by_all}: no other CPU is left for them"),
            "leave a CPU out of the pools that say irqs=away (`pinfold pool resize --help`)",
        ));
    }
    if !by_irqbalance.is_empty() {
        obstacles.push(Obstacle::of_machine(
            "irqbalance-few-cpus",
            format!(
                "irqbalance can move interrupts back to {by_irqbalance}: it is not told of them, \
                 for it ends itself where it is left fewer than two CPUs"
            ),
            FEW_FOR_IRQBALANCE,
        ));
    }
    obstacles
}

/// What to do where irqbalance would be left too few CPUs.
pub const FEW_FOR_IRQBALANCE: &str = "stop it (`systemctl disable --now irqbalance`), or leave \
                                      two CPUs out of the pools that say irqs=away";

/// The partition that is asked for.
pub(super) struct Asked<'a> {
    pub(super) group: &'a Group,
    pub(super) cpus: &'a CpuSet,
    pub(super) kind: Kind,
    /// The CPUs of all recorded partitions.
    pub(super) kept: &'a CpuSet,
}

/// What prevents every partition on this machine: cgroup v1, or a kernel without
/// `cpuset.cpus.exclusive` (before Linux 6.7). `group` is any group with the cpuset controller.
/// `None` where nothing is known to prevent it.
///
/// # Errors
/// A file of the group, or the kernel's release, cannot be read.
fn obstacle(host: &Host, group: &Group) -> Result<Option<Obstacle>> {
    if group.version() == Version::V1 {
        return Ok(Some(Obstacle::of_machine(
            "version-1",
            "cgroup version 1 keeps nobody else off",
            "boot with version 2, or keep the host off with isolcpus=",
        )));
    }
    if partition::exclusive(group)?.is_none() {
        return Ok(Some(Obstacle::of_machine(
            "no-partitions",
            format!(
                "Linux {} cannot keep others off a container's CPUs",
                one_line(&release(host)?)
            ),
            "run Linux 6.7 or later, best 7.0 or later",
        )));
    }
    Ok(None)
}

/// The same, told by the groups right below the root; `None` also while none of them has the
/// controller, or there are no cgroups.
///
/// # Errors
/// As [`obstacle`], or the groups cannot be listed.
pub fn obstacle_to_all(host: &Host) -> Result<Option<Obstacle>> {
    let Ok(hierarchy) = cpuset::hierarchy(host) else {
        return Ok(None);
    };
    let top = hierarchy.top()?;
    if top.version() == Version::V1 {
        return obstacle(host, &top);
    }
    let mut found = None;
    for group in top.children()? {
        if cpuset::masks(&group)?.is_some() {
            match obstacle(host, &group)? {
                None => return Ok(None),
                there => found = there,
            }
        }
    }
    Ok(found)
}

/// The kernel's release, if it is one that makes partitions, and on which another container beside
/// an owner's can break one.
pub fn broken_by_siblings(host: &Host) -> Option<String> {
    let top = cpuset::hierarchy(host).and_then(|hierarchy| hierarchy.top());
    let groups = top.ok()?.children().ok()?;
    let makes = |group: &Group| partition::exclusive(group).is_ok_and(|text| text.is_some());
    let release = one_line(&release(host).ok()?);
    let is_broken = partition::is_broken_by_siblings(&release);
    (is_broken && groups.iter().any(makes)).then_some(release)
}

/// The first obstacle to the partition that is asked for, as far as it can be told before a write.
pub(super) fn before(host: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    let found = [
        within_another,
        of_the_machine,
        too_many,
        at_boot,
        beside,
        lost,
    ];
    for find in found {
        if let Some(obstacle) = find(host, asked)? {
            return Ok(Some(obstacle));
        }
    }
    Ok(None)
}

/// What prevents this partition whatever its owner's CPUs are: one above its group, or what
/// [`obstacle`] says of the machine.
///
/// # Errors
/// A file of a group, or the kernel's release, cannot be read.
pub fn obstacle_here(
    host: &Host,
    group: &Group,
    cpus: &CpuSet,
    kind: Kind,
) -> Result<Option<Obstacle>> {
    let asked = Asked {
        group,
        cpus,
        kind,
        kept: &CpuSet::new(),
    };
    match within_another(host, &asked)? {
        None => of_the_machine(host, &asked),
        found => Ok(found),
    }
}

fn of_the_machine(host: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    obstacle(host, asked.group)
}

/// A partition above the group, which is known not to keep others off as is asked.
fn within_another(_: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    for above in partition::ancestors(asked.group).into_iter().rev() {
        let Some(kind) = keeping::kind_of(&above)? else {
            continue;
        };
        let path = Shown(above.path());
        let has_them = effective_cpus(&above)?.is_some_and(|all| asked.cpus.is_subset(&all));
        return Ok(Some(match has_them && kind == Kind::Root {
            true => Obstacle::of_owner(
                format!(
                    "its cgroup is in the partition {path}, which keeps others off as \
                     isolation=root does and balances load"
                ),
                "say isolation=root for its pool, or have that partition be `isolated`",
            ),
            false => Obstacle::of_owner(
                format!("its cgroup is in the partition {path} of somebody else"),
                "that keeps off whoever is outside: say isolation=none for its pool",
            ),
        }));
    }
    Ok(None)
}

fn too_many(_: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    let top = top_of(asked.group);
    let Some(all) = effective_cpus(&top)? else {
        return Ok(None);
    };
    Ok(all.is_subset(asked.cpus).then(|| {
        Obstacle::of_owner(
            "no CPU would be left for anybody else",
            "leave CPUs out of exclusive pools (`pinfold pool resize --help`)",
        )
    }))
}

/// With CPUs of `isolcpus=` the kernel makes only isolated partitions.
fn at_boot(host: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    let isolated = topology::isolated(host)?.intersection(asked.cpus);
    let is_odd = asked.kind == Kind::Root && !isolated.is_empty();
    Ok(is_odd.then(|| {
        Obstacle::of_owner(
            format!("isolcpus= keeps others off {isolated} already, without balancing load there"),
            "say isolation=isolated for its pool, or take those CPUs out of isolcpus=",
        )
    }))
}

/// The same, said of a pool: its owners' partitions cannot be made.
pub fn pool_at_boot(pool: &str, isolated: &CpuSet) -> Refusal {
    Refusal::new(
        format!(
            "pool {} says isolation=root, and isolcpus= has its CPUs {isolated} already, without \
             balancing load there",
            Shown(pool)
        ),
        format!(
            "`pinfold pool set {} isolation=isolated`, or take them out of isolcpus=",
            Shown(pool)
        ),
    )
}

fn beside(host: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    let release = release(host)?;
    if !partition::is_broken_by_siblings(&release) || partition::is_alone(asked.group)? {
        return Ok(None);
    }
    let slice = asked.group.parent();
    let slice = slice.map_or_else(|| "/".to_owned(), |slice| slice.path().to_owned());
    Ok(Some(Obstacle::of_owner(
        format!(
            "on Linux {} another container of {} could break that, and the CPUs be lost",
            one_line(&release),
            Shown(&slice)
        ),
        "run it by crun, or with `--cgroup-parent pinfold.slice`, or on Linux 7.0 or later",
    )))
}

fn lost(host: &Host, asked: &Asked<'_>) -> Result<Option<Obstacle>> {
    let online = topology::online(host)?;
    let lost = partition::lost(&top_of(asked.group), &online, asked.kept)?;
    Ok((!lost.is_empty()).then(|| lost_cpus(&lost)))
}

/// Said of pools that want others kept off all CPUs there are.
pub fn none_left_for_others(cpus: &CpuSet) -> Refusal {
    Refusal::new(
        format!(
            "pools that keep others off have all CPUs, {cpus}: the last of them cannot be kept"
        ),
        "leave CPUs out of them for the host: `pinfold pool resize --help`",
    )
}

/// The obstacle that CPUs were lost by the kernel, so that no group has them.
pub fn lost_cpus(lost: &CpuSet) -> Obstacle {
    Obstacle::of_owner(
        format!("the kernel has lost the CPUs {lost}: no group has them"),
        "reboot: nothing else brings them back",
    )
}

/// Interrupts of those CPUs that the kernel lets nobody move.
pub(super) fn irqs_stay(irqs: &[Irq], cpus: &CpuSet) -> Obstacle {
    Obstacle::of_machine(
        "irqs-stay",
        format!(
            "the kernel does not let {} be moved, which can come to {cpus}",
            named(irqs)
        ),
        STAYING,
    )
}

/// What to do about interrupts that cannot be moved.
pub const STAYING: &str = "boot with isolcpus=managed_irq and the CPUs, or give the device fewer \
                           queues";

/// How many interrupts are named.
const NAMED: usize = 4;

/// Interrupts by number, each with its users.
pub fn named(irqs: &[Irq]) -> String {
    let names = irqs.iter().take(NAMED).map(|irq| {
        let users: Vec<String> = irq.users.iter().map(|user| one_line(user)).collect();
        format!("{} ({})", irq.number, users.join(", "))
    });
    let mut names: Vec<String> = names.collect();
    if irqs.len() > NAMED {
        names.push(format!("{} more", irqs.len() - NAMED));
    }
    let (noun, count) = match irqs.len() {
        1 => ("interrupt", String::new()),
        count => ("interrupts", format!("{count} ")),
    };
    format!("{count}{noun} {}", names.join(", "))
}

/// A limit that is not the owner's own.
pub(super) fn quota_above(path: &Path, text: &str) -> Obstacle {
    Obstacle::of_machine(
        "quota-above",
        format!(
            "{} says {}, which limits its CPU time still",
            path.display(),
            one_line(text)
        ),
        "lift it there, or say quota=keep",
    )
}

/// The obstacle that we lack the permission.
pub(super) fn denied(error: &Error) -> Obstacle {
    Obstacle::of_machine(
        "denied",
        format!("only the machine's root can keep others off, or interrupts away ({error:#})"),
        "run the engine as root",
    )
}

/// The obstacle that we lack the capability (kernel/cgroup/cpuset.c, `remote_partition_enable`).
pub(super) fn not_permitted() -> Obstacle {
    Obstacle::of_machine(
        "denied",
        "the kernel lets nobody without CAP_SYS_ADMIN keep others off",
        "run Pinfold and the engine as root, outside of containers, and give a service of systemd \
         CAP_SYS_ADMIN in its CapabilityBoundingSet=",
    )
}

/// Why the kernel refused or broke a partition. The first group that names its CPUs is the
/// likeliest reason, then the first write that failed at its group or above it, then what the
/// partition file says.
pub(super) fn of_kernel(
    host: &Host,
    group: &Group,
    owner: &Owner,
    failed: &[Failure],
) -> Result<Obstacle> {
    if let Some(obstacle) = in_the_way(host, group, &owner.cpus)? {
        return Ok(obstacle);
    }
    let mut failed = failed.iter();
    if let Some(failed) = failed.find(|failed| owner.is_at_or_below(&failed.group)) {
        return Ok(Obstacle::of(&failed.error));
    }
    let path = partition::file(group);
    let state = partition::state(group)?.unwrap_or_default();
    if is_not_permitted(&state) {
        return Ok(not_permitted());
    }
    let cpus = effective_cpus(group)?.unwrap_or_default();
    Ok(Obstacle::of_owner(
        format!("{} says {} of {cpus}", path.display(), Shown(&state)),
        "look who else sets cpuset.cpus or cpuset.cpus.exclusive of the groups above it",
    ))
}

/// The first group that names some of these CPUs, which the kernel does not give to two.
pub(super) fn in_the_way(host: &Host, group: &Group, cpus: &CpuSet) -> Result<Option<Obstacle>> {
    let others = partition::in_the_way(group, cpus, &release(host)?)?;
    Ok(others.first().map(|(file, cpus)| {
        Obstacle::of_owner(
            format!("{file} names {cpus}"),
            "give those CPUs to one of the two, by one tool",
        )
    }))
}

/// Is this the kernel's text where CAP_SYS_ADMIN is missing (kernel/cgroup/cpuset.c,
/// `perr_strings`)?
pub(super) fn is_not_permitted(state: &str) -> bool {
    state.ends_with("(Enable partition not permitted)")
}

fn release(host: &Host) -> Result<String> {
    Ok(files::read(&host.kernel_release())?.trim().to_owned())
}

fn top_of(group: &Group) -> Group {
    let mut top = group.clone();
    while let Some(above) = top.parent() {
        top = above;
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Mounts;
    use crate::files::{Durability, replace};

    const WEB: &str = "sys/fs/cgroup/machine.slice/web";

    /// Files of a machine, with their texts.
    type Files<'a> = &'a [(&'a str, &'a str)];

    /// A container without an obstacle, on CPUs 4-5 of eight, but for these files.
    fn machine(files: Files<'_>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let usual = [
            (
                "proc/1/mountinfo",
                "40 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            ),
            ("proc/sys/kernel/osrelease", "7.2.0"),
            ("sys/devices/system/cpu/online", "0-7"),
            ("sys/devices/system/cpu/isolated", ""),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-7"),
            (
                "sys/fs/cgroup/machine.slice/cpuset.cpus.partition",
                "member",
            ),
            ("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-7"),
            (&format!("{WEB}/cpuset.cpus.exclusive"), ""),
        ];
        for (path, text) in usual.iter().chain(files) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!("{text}\n");
            replace(&path, text.as_bytes(), 0o644, Durability::Crash).unwrap();
        }
        dir
    }

    #[test]
    fn each_obstacle_is_found_before_a_write_and_says_what_to_do() {
        use Kind::{Isolated, Root};
        let slice = "sys/fs/cgroup/machine.slice/cpuset.cpus.partition";
        let beside = "sys/fs/cgroup/machine.slice/other/cgroup.procs";
        let release = "proc/sys/kernel/osrelease";
        let top = "sys/fs/cgroup/cpuset.cpus.effective";
        let boot = "proc/cmdline";
        let mounts = "proc/1/mountinfo";
        let v1 = "40 30 0:28 / /sys/fs/cgroup rw - cgroup cgroup rw,cpuset";
        let cases: [(Files<'_>, Kind, &str); 13] = [
            (&[], Root, ""),
            (&[(beside, "")], Root, ""),
            (&[(boot, "isolcpus=4-5")], Isolated, ""),
            (
                &[(mounts, v1)],
                Root,
                "cgroup version 1 keeps nobody else off: boot with version 2, or keep the host off \
                 with isolcpus=",
            ),
            (
                &[(slice, "isolated")],
                Root,
                "its cgroup is in the partition \"/machine.slice\" of somebody else: that keeps \
                 off whoever is outside: say isolation=none for its pool",
            ),
            (
                &[(slice, "root")],
                Isolated,
                "its cgroup is in the partition \"/machine.slice\", which keeps others off as \
                 isolation=root does and balances load: say isolation=root for its pool, or have \
                 that partition be `isolated`",
            ),
            (&[(slice, "root invalid (x)")], Root, ""),
            (
                &[(top, "4-5")],
                Root,
                "no CPU would be left for anybody else: leave CPUs out of exclusive pools \
                 (`pinfold pool resize --help`)",
            ),
            (
                &[(boot, "isolcpus=5-6")],
                Root,
                "isolcpus= keeps others off 5 already, without balancing load there: say \
                 isolation=isolated for its pool, or take those CPUs out of isolcpus=",
            ),
            (
                &[(release, "6.19.3"), (beside, "")],
                Root,
                "on Linux 6.19.3 another container of \"/machine.slice\" could break that, and \
                 the CPUs be lost: run it by crun, or with `--cgroup-parent pinfold.slice`, or on \
                 Linux 7.0 or later",
            ),
            (
                &[(top, "0-1,4-7")],
                Root,
                "the kernel has lost the CPUs 2-3: no group has them: reboot: nothing else brings \
                 them back",
            ),
            // CPUs that are offline are not lost.
            (
                &[(top, "0-5"), ("sys/devices/system/cpu/online", "0-5")],
                Root,
                "",
            ),
            // Some of its CPUs are another partition's.
            (
                &[
                    (top, "0-5"),
                    ("sys/fs/cgroup/fast.slice/cpuset.cpus.partition", "root"),
                    ("sys/fs/cgroup/fast.slice/cpuset.cpus.effective", "6-7"),
                ],
                Root,
                "",
            ),
        ];
        for (files, kind, expected) in cases {
            // A partition above keeps others off as it is; where it lacks the CPUs it does not.
            let lacks = [("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "6-7")];
            let more = match expected.contains("somebody else") {
                true => lacks.as_slice(),
                false => &[],
            };
            let dir = machine(&[files, more].concat());
            let host = Host::new(dir.path());
            let hierarchy = Mounts::read(&host).unwrap().hierarchy("cpuset").unwrap();
            let asked = Asked {
                group: &hierarchy.group("/machine.slice/web").unwrap(),
                cpus: &"4-5".parse().unwrap(),
                kind,
                kept: &CpuSet::new(),
            };
            let found = before(&host, &asked).unwrap();
            let said = found.map(|found| found.to_string()).unwrap_or_default();
            assert!(said.starts_with(expected), "{files:?}: {said}");
            assert_eq!(said.is_empty(), expected.is_empty(), "{files:?}: {said}");
        }
    }
}
