//! The cores that pools are cut from.

use anyhow::Result;

use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::carve::Core;
use crate::pools::plan::Stock;
use crate::topology::{Gap, Group, Levels, isolated, online};

/// The machine's cores, and which of them are for the host's own work: those of these CPUs, or of CPU 0.
///
/// # Errors
/// A machine whose topology cannot be read.
pub fn stock(host: &Host, reserve: Option<&CpuSet>) -> Result<Stock> {
    let online = online(host)?;
    let levels = Levels::of(host, &online);
    let group_of = |groups: &[Group], gap: &Gap, cpus: &CpuSet| {
        let mut groups = groups.iter();
        let found = groups.find(|group| !group.cpus.is_disjoint(cpus))?;
        gap.cpus.is_disjoint(cpus).then_some(found.id)
    };
    let gaps = &levels.gaps;
    let core = |core: &Group| Core {
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
