//! Whether a pool that is there has the form that is declared. Its size is checked elsewhere.

use super::HeldPool;
use crate::cpulist::CpuSet;
use crate::pools::Kind;
use crate::pools::carve::{Core, FromNodes};
use crate::pools::plan::{ListUnit, PoolSpec, Stock};
use crate::pools::resize::cpus_of;

/// How a pool differs from its declaration in a way that resizing cannot change; `None` where it
/// does not.
pub(super) fn misfit(held: &HeldPool, spec: &PoolSpec, stock: &Stock) -> Option<String> {
    let pool = &held.pool;
    if pool.kind != spec.kind {
        return Some(format!("is {}", pool.kind.word()));
    }
    let cpus = cpus_of(&pool.lists);
    if spec.kind == Kind::Exclusive && !has_unit(held, spec.unit, stock) {
        return Some(match spec.unit {
            ListUnit::Core => "has lists that are not a core each".to_owned(),
            ListUnit::Thread => "has lists of several CPUs".to_owned(),
        });
    }
    if let FromNodes::Node(node) = spec.cut.numa {
        let is_away = |core: &Core| core.node.is_some_and(|its| its != node);
        let mut cores = stock.cores.iter().filter(|core| touches(core, &cpus));
        if cores.any(is_away) {
            return Some(format!("has cores that are not of NUMA node {node}"));
        }
    }
    None
}

fn touches(core: &Core, cpus: &CpuSet) -> bool {
    !core.cpus.is_disjoint(cpus)
}

/// Is each list a unit? CPUs that are offline belong to no known core, and are ignored.
fn has_unit(held: &HeldPool, unit: ListUnit, stock: &Stock) -> bool {
    let lists = &held.pool.lists;
    if unit == ListUnit::Thread {
        return lists.iter().all(|list| list.cpus.len() == 1);
    }
    let touched = |core: &Core| {
        lists
            .iter()
            .filter(|list| touches(core, &list.cpus))
            .count()
    };
    let is_whole = |list: &CpuSet| {
        let mut of = stock.cores.iter().filter(|core| touches(core, list));
        let first = of.next();
        of.next().is_none() && first.is_none_or(|core| core.cpus.is_subset(list))
    };
    stock.cores.iter().all(|core| touched(core) <= 1)
        && lists.iter().all(|list| is_whole(&list.cpus))
}

/// How many cores the pool has: at least those that are online, and at most one more for each CPU
/// that is offline.
pub(super) fn cores_of(held: &HeldPool, stock: &Stock) -> std::ops::RangeInclusive<usize> {
    let cpus = cpus_of(&held.pool.lists);
    let online = stock
        .cores
        .iter()
        .filter(|core| touches(core, &cpus))
        .count();
    online..=stock.cores_in(&cpus).len()
}
