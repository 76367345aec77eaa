//! The cores that pools are cut from.

use anyhow::{Result, ensure};

use crate::cgroup::cpuset;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::carve::Core;
use crate::pools::plan::Stock;
use crate::refusal::Refusal;
use crate::topology::{CpuGroup, Gap, Levels, isolated, online};

/// The CPUs that are online, and that containers here can be given. In a container, or wherever
/// else the topmost cgroup that is seen has a part of the machine alone, pools of other CPUs could
/// never be given.
pub(crate) fn givable(host: &Host) -> Result<CpuSet> {
    let online = online(host)?;
    // A captured tree has no cgroups.
    let top = cpuset::hierarchy(host).and_then(|hierarchy| hierarchy.top());
    let Ok(top) = top else {
        return Ok(online);
    };
    let ceiling = cpuset::ceiling(&top)?;
    Ok(ceiling.map_or(online.clone(), |ceiling| online.intersection(&ceiling)))
}

/// The same for somebody who makes pools, and is told.
fn givable_and_told(host: &Host) -> Result<CpuSet> {
    let (online, givable) = (online(host)?, givable(host)?);
    let lacking = online.difference(&givable);
    ensure!(
        !givable.is_empty(),
        Refusal::new(
            format!("the topmost cgroup here allows none of the CPUs {online}"),
            "run this on the host itself"
        )
    );
    if !lacking.is_empty() {
        log::warn!(
            "the topmost cgroup here allows the CPUs {givable} alone, and pools are cut from those: for {lacking} run this on the host itself"
        );
    }
    Ok(givable)
}

/// The machine's cores, and which of them are for the host's own work: those of these CPUs, or of
/// CPU 0.
///
/// # Errors
/// A machine whose topology cannot be read.
pub fn stock(host: &Host, reserve: Option<&CpuSet>) -> Result<Stock> {
    let online = givable_and_told(host)?;
    let levels = Levels::of(host, &online);
    let group_of = |groups: &[CpuGroup], gap: &Gap, cpus: &CpuSet| {
        let mut groups = groups.iter();
        let found = groups.find(|group| !group.cpus.is_disjoint(cpus))?;
        gap.cpus.is_disjoint(cpus).then_some(found.id)
    };
    let gaps = &levels.gaps;
    let core = |core: &CpuGroup| Core {
        cpus: core.cpus.clone(),
        node: group_of(&levels.nodes, &gaps.nodes, &core.cpus),
        cache: group_of(&levels.caches, &gaps.caches, &core.cpus),
    };
    let cores: Vec<Core> = levels.cores.iter().map(core).collect();
    // A core of which a part is isolated is none of the isolated ones.
    let isolated = isolated(host)?;
    let mut whole = CpuSet::new();
    for core in cores.iter().filter(|core| core.cpus.is_subset(&isolated)) {
        whole.extend(&core.cpus);
    }
    Ok(Stock {
        cores,
        isolated: whole,
        reserved: reserve.cloned().unwrap_or_else(|| CpuSet::from_iter([0])),
        shared_isolated: None,
    })
}
