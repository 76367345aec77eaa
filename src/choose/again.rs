//! Gives an owner that comes back the lists that it had, if they are free and no others fit its
//! request better. Keeping free lists in one piece counts for less than that.

use std::collections::BTreeMap;

use super::Want;
use super::pack::{Pull, missed, pack};
use super::place::{Cell, FreeList, Groups, cells};
use crate::request::Numa;

/// Chooses as much as is needed of the former lists, and the rest near them; `None` if none of them
/// is among the candidates.
pub(super) fn again(
    former: &[usize],
    candidates: &[Cell],
    need: usize,
    pull: &Pull,
) -> Option<Vec<usize>> {
    if former.is_empty() {
        return None;
    }
    let units = candidates
        .iter()
        .flat_map(|cell| cell.units.iter().cloned());
    let (had, others): (Vec<FreeList>, Vec<FreeList>) =
        units.partition(|unit| former.contains(&unit.index));
    let size: usize = had.iter().map(|unit| unit.size).sum();
    match size {
        0 => None,
        _ if size >= need => Some(pack(&cells(had), need, pull)),
        _ => {
            let mut rest = pull.clone();
            if rest.rather_near.is_empty() {
                rest.rather_near = groups_of(had.iter(), |unit| &unit.spot.nodes);
            }
            let mut chosen: Vec<usize> = had.iter().map(|unit| unit.index).collect();
            chosen.extend(pack(&cells(others), need - size, &rest));
            Some(chosen)
        }
    }
}

/// Is a choice as good as another in everything that is wanted? Both have ascending indices.
pub(super) fn is_no_worse(
    choice: &[usize],
    other: &[usize],
    candidates: &[Cell],
    want: &Want,
    pull: &Pull,
) -> bool {
    let of = |choice: &[usize]| {
        let units = candidates.iter().flat_map(|cell| &cell.units);
        let chosen = units.filter(|unit| choice.binary_search(&unit.index).is_ok());
        Worth::of(&chosen.collect::<Vec<_>>(), pull)
    };
    let (worth, other) = (of(choice), of(other));
    let mut pairs = worth.least.iter().zip(&other.least);
    let is_even = want.numa != Numa::Spread || worth.by_nodes == other.by_nodes;
    is_even && pairs.all(|(one, other)| one <= other)
}

/// How well some lists meet a request.
struct Worth {
    /// Numbers of which less is better: nodes, nodes that are not near, packages, caches, cores,
    /// size.
    least: [usize; 7],
    /// The amounts in each set of nodes, ascending.
    by_nodes: Vec<usize>,
}

impl Worth {
    fn of(units: &[&FreeList], pull: &Pull) -> Worth {
        let groups = |of: fn(&FreeList) -> &Groups| groups_of(units.iter().copied(), of);
        let nodes = groups(|unit| &unit.spot.nodes);
        let mut by_nodes: BTreeMap<&Groups, usize> = BTreeMap::new();
        for unit in units {
            *by_nodes.entry(&unit.spot.nodes).or_default() += unit.size;
        }
        let mut by_nodes: Vec<usize> = by_nodes.into_values().collect();
        by_nodes.sort_unstable();
        Worth {
            least: [
                nodes.len(),
                missed(&nodes, &pull.near),
                missed(&nodes, &pull.rather_near),
                groups(|unit| &unit.spot.packages).len(),
                groups(|unit| &unit.spot.caches).len(),
                groups(|unit| &unit.spot.cores).len(),
                units.iter().map(|unit| unit.size).sum(),
            ],
            by_nodes,
        }
    }
}

/// The groups of one level in which some lists lie, ascending.
fn groups_of<'a>(
    units: impl Iterator<Item = &'a FreeList>,
    of: impl Fn(&'a FreeList) -> &'a Groups,
) -> Groups {
    let mut groups: Groups = units.flat_map(|unit| of(unit).iter().copied()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}
