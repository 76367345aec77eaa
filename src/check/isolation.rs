//! Who else can run on the CPUs of exclusive pools, that is, what "exclusive" means on this
//! machine.

use super::{Report, machine};
use crate::cgroup::{Version, cpuset, partition};
use crate::cpulist::CpuSet;
use crate::isolation::{Kind, Wanted};
use crate::outside;
use crate::placement::{Site, Survey, SurveyedPool};
use crate::pools;
use crate::text::Shown;
use crate::topology;

/// The name of this check in the report.
const WHAT: &str = "isolation";

pub(super) fn check(site: &Site, survey: &Survey, report: &mut Report) {
    let isolated = match topology::isolated(&site.host) {
        Ok(isolated) => isolated,
        Err(error) => return report.error(WHAT, &error),
    };
    let mut kept = isolated.clone();
    for (_, partition) in machine::partitions(site) {
        kept.extend(&partition);
    }
    lost(site, report);
    let exclusive = |pool: &&SurveyedPool| pool.kind == pools::Kind::Exclusive;
    let mut wanting = CpuSet::new();
    let mut all = CpuSet::new();
    for pool in survey.pools.iter().filter(exclusive) {
        let cpus = pool.cpus();
        all.extend(&cpus);
        if let Some(wanted) = wanted(pool, report) {
            at_boot(pool, wanted, &cpus.intersection(&isolated), report);
            wanting.extend(&cpus);
        }
    }
    if !wanting.is_empty() && keeps_off(site, &wanting, report) {
        kept.extend(&wanting);
    }
    in_the_books(&all, &all.difference(&kept), report);
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
        report.warn(
            WHAT,
            format!(
                "pool {} says isolation=root, and isolcpus= has its CPUs {isolated} already, \
                 without balancing load there",
                Shown(&pool.name)
            ),
            format!(
                "`pinfold pool set {} isolation=isolated`, or take them out of isolcpus=",
                Shown(&pool.name)
            ),
        );
    }
}

/// Reports whether the kernel can keep others off these CPUs while they are owned, and returns
/// that.
fn keeps_off(site: &Site, cpus: &CpuSet, report: &mut Report) -> bool {
    let Ok(hierarchy) = cpuset::hierarchy(&site.host) else {
        return false;
    };
    let group = match hierarchy.version {
        Version::V1 => hierarchy.top().ok(),
        Version::V2 => machine::group_with_cpusets(&hierarchy),
    };
    // While no group has the controller, nothing is known.
    let obstacle = group.map(|group| outside::obstacle(&site.host, &group));
    match obstacle.transpose() {
        Ok(Some(Some(obstacle))) => {
            let text = format!(
                "the owners of {cpus} have them by their masks alone: {}",
                obstacle.what
            );
            report.warn(WHAT, text, obstacle.remedy);
            return false;
        }
        Ok(_) => {}
        Err(error) => {
            report.error(WHAT, &error);
            return false;
        }
    }
    if topology::online(&site.host).is_ok_and(|online| online.is_subset(cpus)) {
        report.warn(
            WHAT,
            format!(
                "pools that keep others off have all CPUs, {cpus}: the last of them cannot be kept"
            ),
            "leave CPUs out of them for the host: `pinfold pool resize --help`",
        );
    }
    let release = crate::files::read(&site.host.kernel_release()).unwrap_or_default();
    if partition::is_broken_by_siblings(&release) {
        report.ok(
            WHAT,
            format!(
                "Linux {} keeps others off {cpus} while they are owned, where no other container \
                 is beside the owner: by crun, or below pinfold.slice",
                crate::text::one_line(release.trim())
            ),
        );
    } else {
        report.ok(
            WHAT,
            format!("the kernel keeps others off {cpus} while they are owned"),
        );
    }
    true
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

/// Reports whether processes that were not pinned can run on the CPUs of exclusive pools.
fn in_the_books(cpus: &CpuSet, open: &CpuSet, report: &mut Report) {
    if cpus.is_empty() || open.is_empty() {
        report.ok(
            WHAT,
            "the kernel can keep others off the CPUs of exclusive pools (isolcpus=, or a partition \
             while they are owned)",
        );
    } else {
        report.warn(
            WHAT,
            format!(
                "processes that nobody pinned can run on the CPUs {open} of exclusive pools, which \
                 have one owner in the books alone"
            ),
            format!("boot with isolcpus={open}, or keep others off by a cpuset partition"),
        );
    }
}
