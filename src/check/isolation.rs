//! Who else can run on the CPUs of exclusive pools, that is, what "exclusive" means on this
//! machine.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Report;
use crate::cgroup::{Group, Version, cpuset, partition};
use crate::cpulist::CpuSet;
use crate::isolation::{Kind, Wanted};
use crate::outside::{self, Keeping, Obstacle};
use crate::placement::{Owner, OwnerState, Site, Survey, SurveyedPool};
use crate::pools;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;

/// The name of this check in the report.
const WHAT: &str = "isolation";

pub(super) fn check(site: &Site, survey: &Survey, report: &mut Report) {
    if let Err(error) = outside::ensure_readable(&site.host) {
        report.error(WHAT, &error);
    }
    let isolated = match topology::isolated(&site.host) {
        Ok(isolated) => isolated,
        Err(error) => return report.error(WHAT, &error),
    };
    let slices = slices(site);
    let mut kept = isolated.clone();
    slices.iter().for_each(|slice| kept.extend(&slice.cpus));
    lost(site, report);
    let exclusive = |pool: &&SurveyedPool| pool.kind == pools::Kind::Exclusive;
    let mut wanting = Wanting::default();
    let mut all = CpuSet::new();
    for pool in survey.pools.iter().filter(exclusive) {
        let cpus = pool.cpus();
        all.extend(&cpus);
        if let Some(wanted) = wanted(pool, report) {
            at_boot(pool, wanted, &cpus.intersection(&isolated), report);
            wanting.add(pool, wanted, &slices, report);
        }
    }
    let obstacle = match wanting.obstacle(site) {
        Ok(obstacle) => obstacle,
        Err(error) => return report.error(WHAT, &error),
    };
    let mut told = wanting.owners(site, survey, obstacle.as_ref(), report);
    told.extend(&held(site, survey, &told, report));
    if topology::online(&site.host).is_ok_and(|online| online.is_subset(&wanting.cpus)) {
        let Refusal { what, remedy, .. } = outside::none_left_for_others(&wanting.cpus);
        report.warn(WHAT, what, remedy);
    }
    match obstacle {
        Some(obstacle) => wanting.by_masks(&isolated, &obstacle, report),
        None => {
            let others = wanting.cpus.difference(&told);
            keeps_off(site, &wanting.cpus, &others, report);
            kept.extend(&others);
        }
    }
    in_the_books(site, &all, &all.difference(&kept), &told, report);
}

/// A slice that the operator made a partition.
struct Slice {
    path: String,
    cpus: CpuSet,
    kind: Kind,
}

fn slices(site: &Site) -> Vec<Slice> {
    let top = cpuset::hierarchy(&site.host).and_then(|hierarchy| hierarchy.top());
    let found = top.and_then(|top| cpuset::partitions(&top));
    let found = found.unwrap_or_default().into_iter();
    let slice = |(group, cpus): (Group, CpuSet)| {
        let state = partition::state(&group).ok()??;
        Some(Slice {
            path: group.path().to_owned(),
            cpus,
            kind: Kind::by_word(&state).ok()??,
        })
    };
    found.filter_map(slice).collect()
}

/// What the pools that want others kept off their owners' CPUs come to.
#[derive(Default)]
struct Wanting<'a> {
    pools: BTreeMap<&'a str, Wanted>,
    /// The CPUs that no slice keeps others off.
    cpus: CpuSet,
    /// Those of them whose pools refuse a start otherwise.
    needed: CpuSet,
}

impl<'a> Wanting<'a> {
    /// Adds a pool. What a slice keeps others off needs no partition of ours.
    fn add(
        &mut self,
        pool: &'a SurveyedPool,
        wanted: Wanted,
        slices: &[Slice],
        report: &mut Report,
    ) {
        self.pools.insert(&pool.name, wanted);
        let mut balanced = BTreeMap::<&str, CpuSet>::new();
        for list in &pool.lists {
            let cpus = list.cpus.difference(&list.offline);
            let slice = slices.iter().find(|slice| cpus.is_subset(&slice.cpus));
            match slice.filter(|_| !cpus.is_empty()) {
                Some(slice) if outside::suits(slice.kind, wanted.kind) => {}
                Some(slice) => balanced.entry(&slice.path).or_default().extend(&cpus),
                None => {
                    self.cpus.extend(&list.cpus);
                    if wanted.is_needed {
                        self.needed.extend(&list.cpus);
                    }
                }
            }
        }
        for (path, cpus) in balanced {
            tell(
                report,
                wanted.is_needed,
                format!(
                    "pool {} says isolation=isolated, and the slice {} balances load on its CPUs \
                     {cpus}",
                    Shown(&pool.name),
                    Shown(path)
                ),
                format!(
                    "`pinfold pool set {} isolation=root`, or write isolated to the slice's \
                     cpuset.cpus.partition",
                    Shown(&pool.name)
                ),
            );
        }
    }

    /// What on this machine keeps every owner from a partition.
    fn obstacle(&self, site: &Site) -> Result<Option<Obstacle>> {
        match self.cpus.is_empty() {
            true => Ok(None),
            false => outside::obstacle_to_all(&site.host),
        }
    }

    /// Reports what keeps every owner from a partition. Where none is needed, CPUs of `isolcpus=`
    /// do without.
    fn by_masks(&self, isolated: &CpuSet, obstacle: &Obstacle, report: &mut Report) {
        let others = self.cpus.difference(&self.needed).difference(isolated);
        for (cpus, is_needed) in [(&self.needed, true), (&others, false)] {
            if !cpus.is_empty() {
                let what = &obstacle.what;
                let text = format!("the owners of {cpus} have them by their masks alone: {what}");
                tell(report, is_needed, text, obstacle.remedy.clone());
            }
        }
    }

    /// Reports the live owners whose CPUs others can run on although their pool wants them kept
    /// off, and returns those CPUs. What holds for every owner is said elsewhere.
    fn owners(
        &self,
        site: &Site,
        survey: &Survey,
        of_all: Option<&Obstacle>,
        report: &mut Report,
    ) -> CpuSet {
        let mut told = CpuSet::new();
        for owner in &survey.owners {
            let Some(wanted) = self.pools.get(owner.pool.as_str()) else {
                continue;
            };
            let is_there = !matches!(
                owner.state,
                OwnerState::Gone | OwnerState::Starting | OwnerState::Unknown
            );
            let is_as_wanted = match &owner.keeping {
                // No start was given that where it is refused otherwise.
                Keeping::Isolcpus => !wanted.is_needed,
                keeping => !keeping.lets_others_in(),
            };
            if !is_there || is_as_wanted {
                continue;
            }
            let why = match why(site, owner, *wanted) {
                Ok(why) => why,
                Err(error) => {
                    report.error(WHAT, &error);
                    continue;
                }
            };
            if of_all.is_some_and(|of_all| of_all.what == why.what) {
                continue;
            }
            told.extend(&owner.cpus);
            let by = match owner.keeping {
                Keeping::Books => "in the books alone",
                _ => "by its mask alone",
            };
            let text = format!(
                "others can run on {} of pool {}, which {} has {by}: {}",
                owner.cpus,
                Shown(&owner.pool),
                Shown(&owner.shown()),
                why.what
            );
            tell(report, wanted.is_needed, text, why.remedy);
        }
        told
    }
}

/// Why others can run on an owner's CPUs.
fn why(site: &Site, owner: &Owner, wanted: Wanted) -> Result<Obstacle> {
    match (&owner.group, &owner.keeping) {
        (Some(group), Keeping::Mask | Keeping::Isolcpus) => {
            let group = cpuset::hierarchy(&site.host)?.group(group)?;
            outside::why_by_mask(&site.host, &group, &owner.cpus, wanted.kind)
        }
        (Some(_), _) => Ok(outside::not_confined()),
        (None, _) => Ok(outside::of_another_tool()),
    }
}

/// Reports a warning, or a fault where a start is refused otherwise.
fn tell(report: &mut Report, is_needed: bool, text: String, remedy: String) {
    match is_needed {
        true => report.fault(WHAT, text, remedy),
        false => report.warn(WHAT, text, remedy),
    }
}

/// What a pool's options ask for. Invalid options are reported.
fn wanted(pool: &SurveyedPool, report: &mut Report) -> Option<Wanted> {
    match pool.options.wanted(&pool.name) {
        Ok(wanted) => wanted,
        Err(refusal) => {
            match pool.options.is_needed(&pool.name) {
                Ok(false) => report.warn(WHAT, refusal.what, refusal.remedy),
                _ => report.fault(WHAT, refusal.what, refusal.remedy),
            }
            None
        }
    }
}

/// Warns of a pool with `isolation=root` and CPUs of `isolcpus=`: with those the kernel makes only
/// isolated partitions.
fn at_boot(pool: &SurveyedPool, wanted: Wanted, isolated: &CpuSet, report: &mut Report) {
    if wanted.kind == Kind::Root && !isolated.is_empty() {
        let Refusal { what, remedy, .. } = outside::pool_at_boot(&pool.name, isolated);
        report.warn(WHAT, what, remedy);
    }
}

/// Reports that the kernel can keep others off CPUs while they are owned: off `others`, for what
/// is wrong with the rest was told. `cpus` are all of them.
fn keeps_off(site: &Site, cpus: &CpuSet, others: &CpuSet, report: &mut Report) {
    if cpus.is_empty() {
        return;
    }
    if others.is_empty() {
        return;
    }
    let release = crate::files::read(&site.host.kernel_release()).unwrap_or_default();
    if partition::is_broken_by_siblings(&release) {
        report.ok(
            WHAT,
            format!(
                "Linux {} keeps others off {others} while they are owned, where no other container \
                 is beside the owner: by crun, or below pinfold.slice",
                crate::text::one_line(release.trim())
            ),
        );
    } else {
        report.ok(
            WHAT,
            format!("the kernel keeps others off {others} while they are owned"),
        );
    }
}

/// What keeps this machine from any partition, a slice's too; `None` on cgroup version 2.
fn version_1(site: &Site) -> Option<Obstacle> {
    let hierarchy = cpuset::hierarchy(&site.host).ok()?;
    match hierarchy.version {
        Version::V1 => outside::obstacle_to_all(&site.host).ok()?,
        Version::V2 => None,
    }
}

fn lost(site: &Site, report: &mut Report) {
    let top = cpuset::hierarchy(&site.host).and_then(|hierarchy| hierarchy.top());
    let (Ok(top), Ok(online)) = (top, topology::online(&site.host)) else {
        return;
    };
    match partition::lost(&top, &online, &CpuSet::new()) {
        Ok(lost) if lost.is_empty() => {}
        Ok(lost) => {
            let obstacle = outside::lost_cpus(&lost);
            report.fault(WHAT, obstacle.what, obstacle.remedy);
        }
        Err(error) => report.error(WHAT, &error),
    }
}

/// Warns of exclusive CPUs of groups that are nobody's partition, and returns them: no owner of a
/// list with one of them can be kept apart, unless its own group is below. The owners of those
/// `told` were reported, with the reason.
fn held(site: &Site, survey: &Survey, told: &CpuSet, report: &mut Report) -> CpuSet {
    let mut all = CpuSet::new();
    let top = cpuset::hierarchy(&site.host).and_then(|hierarchy| hierarchy.top());
    let Ok(top) = top else {
        return all;
    };
    let found = partition::held(&top).unwrap_or_else(|error| {
        report.error(WHAT, &error);
        Vec::new()
    });
    let owners = outside::owners(&site.host);
    for (group, cpus) in found {
        let path = group.path();
        let mut cpus = cpus.difference(told);
        // What was written there for an owner is not in its way.
        for owner in owners.iter().filter(|owner| owner.is_at_or_below(path)) {
            cpus = cpus.difference(&owner.cpus);
        }
        let ours = outside::exclusive_for_owners(&site.host, &group);
        let file = group.dir().join("cpuset.cpus.exclusive");
        for pool in survey.pools.iter().filter(|pool| pool.wants_isolation()) {
            let held = cpus.intersection(&pool.cpus());
            all.extend(&held);
            for (held, remedy) in [
                (held.intersection(&ours), "`pinfold reconcile` puts it back"),
                (
                    held.difference(&ours),
                    "who wrote it has to write others there, or nothing",
                ),
            ] {
                if !held.is_empty() {
                    let text = format!(
                        "{} keeps {held} of pool {} from being its owners' alone, unless their \
                         cgroups are below {}, and is no partition's",
                        Shown(&file.display().to_string()),
                        Shown(&pool.name),
                        Shown(path)
                    );
                    report.warn(WHAT, text, remedy);
                }
            }
        }
    }
    all
}

/// Reports whether processes that were not pinned can run on the CPUs of exclusive pools: the open
/// ones. What is wrong with those `told` was reported.
fn in_the_books(site: &Site, cpus: &CpuSet, open: &CpuSet, told: &CpuSet, report: &mut Report) {
    let others = open.difference(told);
    if cpus.is_empty() || open.is_empty() {
        report.ok(
            WHAT,
            "the kernel can keep others off the CPUs of exclusive pools (isolcpus=, or a partition \
             while they are owned)",
        );
    } else if !others.is_empty() {
        report.warn(
            WHAT,
            format!(
                "processes that nobody pinned can run on the CPUs {others} of exclusive pools, \
                 which have one owner in the books alone"
            ),
            match version_1(site) {
                Some(obstacle) => obstacle.remedy,
                None => {
                    format!("boot with isolcpus={others}, or keep others off by a cpuset partition")
                }
            },
        );
    }
}
