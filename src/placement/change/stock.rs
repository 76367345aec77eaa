//! Finds the cores that pools are cut from.

use anyhow::{Result, ensure};

use crate::cgroup::cpuset;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::carve::Core;
use crate::pools::plan::Stock;
use crate::refusal::Refusal;
use crate::topology::{CpuGroup, Gap, Levels, isolated, online};

/// The CPUs that are online and that containers here can be given. In a container, for one, the
/// topmost cgroup in sight may have only a part of the machine.
pub(crate) fn givable(host: &Host) -> Result<CpuSet> {
    let online = online(host)?;
    // A captured tree may have no cgroups.
    let top = cpuset::hierarchy(host).and_then(|hierarchy| hierarchy.top());
    let Ok(top) = top else {
        return Ok(online);
    };
    let ceiling = cpuset::ceiling(&top)?;
    Ok(ceiling.map_or(online.clone(), |ceiling| online.intersection(&ceiling)))
}

/// [`givable`] CPUs; warns if they are not all that are online, and fails if there are none.
fn givable_or_warn(host: &Host) -> Result<CpuSet> {
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
            "the topmost cgroup here allows the CPUs {givable} alone, and pools are cut from \
             those: for {lacking} run this on the host itself"
        );
    }
    Ok(givable)
}

/// The machine's cores. `reserve` are the CPUs for the host's own work; by default CPU 0.
///
/// # Errors
/// The topology cannot be read; no CPU can be given.
pub fn stock(host: &Host, reserve: Option<&CpuSet>) -> Result<Stock> {
    let online = givable_or_warn(host)?;
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
    // A core counts as isolated only if all its CPUs are.
    let isolated = isolated(host)?;
    let sets = cores.iter().map(|core| &core.cpus);
    let whole = sets.filter(|core| core.is_subset(&isolated)).collect();
    Ok(Stock {
        cores,
        isolated: whole,
        reserved: reserve.cloned().unwrap_or_else(|| CpuSet::from_iter([0])),
        shared_isolated: None,
    })
}
