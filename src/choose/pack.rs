//! Packs lists into the fewest NUMA nodes, then packages, then last-level caches. Of equally few it
//! takes those with the least free, so that what stays free is in one piece.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::fit::{fewest, sets_of, tightest};
use super::place::{Cell, FreeList};

/// The most sets of nodes, or of packages, that are compared. If there are more, a tight one is
/// taken.
pub(super) const MOST_SETS: usize = 1000;

/// The most sets of caches that are compared if the number of whole cores matters. If it does not,
/// a tight set is as good as any.
const MOST_CACHE_SETS: usize = 64;

/// The NUMA nodes, by index, that the chosen lists should be near.
#[derive(Debug, Clone, Default)]
pub(super) struct Pull {
    /// Asked for: they count for more than few packages and caches, but for less than few nodes.
    pub(super) near: Vec<usize>,
    /// Found out: they count for less than few packages and caches, but for more than whole cores
    /// and what stays free.
    pub(super) rather_near: Vec<usize>,
}

/// A set of nodes and packages that suffices, with the cells in it.
#[derive(Debug, Clone)]
struct Cover<'a> {
    nodes: Vec<usize>,
    packages: Vec<usize>,
    cells: Vec<&'a Cell>,
}

/// Chooses lists that amount to `need`, and returns their indices; none if all lists do not
/// suffice.
pub(super) fn pack(cells: &[Cell], need: usize, pull: &Pull) -> Vec<usize> {
    let all: Vec<&Cell> = cells.iter().collect();
    let mut plans: Vec<Cover<'_>> = smallest_sets(&all, |cell| &cell.nodes, need, MOST_SETS)
        .into_iter()
        .map(|(nodes, cells)| Cover {
            nodes,
            packages: Vec::new(),
            cells,
        })
        .collect();
    keep_least(&mut plans, |plan| missed(&plan.nodes, &pull.near));
    plans = plans
        .into_iter()
        .flat_map(|plan| by_packages(plan, need))
        .collect();
    keep_least(&mut plans, |plan| plan.packages.len());
    keep_least(&mut plans, |plan| {
        fewest(&free_by(&plan.cells, |cell| &cell.caches), need)
    });
    keep_least(&mut plans, |plan| missed(&plan.nodes, &pull.rather_near));
    let are_threads = are_threads(cells);
    if are_threads {
        keep_least(&mut plans, |plan| fewest_cores(&plan.cells, need));
    }
    let package_free = |plan: &Cover<'_>| {
        let touched = all
            .iter()
            .filter(|cell| overlaps(&cell.packages, &plan.packages));
        touched.map(|cell| cell.free).sum::<usize>()
    };
    keep_least(&mut plans, |plan| {
        let free = free_of(&plan.cells);
        (free != need, package_free(plan), free)
    });
    match plans.into_iter().next() {
        Some(plan) => fill(&by_caches(&plan, need, are_threads), need, pull),
        None => Vec::new(),
    }
}

fn by_packages<'a>(plan: Cover<'a>, need: usize) -> impl Iterator<Item = Cover<'a>> {
    let sets = smallest_sets(&plan.cells, |cell| &cell.packages, need, MOST_SETS);
    sets.into_iter().map(move |(packages, cells)| Cover {
        nodes: plan.nodes.clone(),
        packages,
        cells,
    })
}

/// The cells of the fewest caches that suffice.
fn by_caches<'a>(plan: &Cover<'a>, need: usize, are_threads: bool) -> Vec<&'a Cell> {
    let most = if are_threads { MOST_CACHE_SETS } else { 0 };
    let mut sets = smallest_sets(&plan.cells, |cell| &cell.caches, need, most);
    keep_least(&mut sets, |(_, cells)| {
        (fewest_cores(cells, need), free_of(cells))
    });
    sets.into_iter()
        .next()
        .map_or_else(Vec::new, |(_, cells)| cells)
}

/// The smallest sets of groups of a level that suffice, in lexical order, each with the cells in
/// it. If there are more than `most` sets of that size, it is only one, a tight one.
fn smallest_sets<'a>(
    cells: &[&'a Cell],
    groups_of: impl Fn(&Cell) -> &[usize],
    need: usize,
    most: usize,
) -> Vec<(Vec<usize>, Vec<&'a Cell>)> {
    let free = free_by_group(cells, &groups_of);
    let (groups, free): (Vec<usize>, Vec<usize>) = free.into_iter().unzip();
    let within = |set: &[usize]| -> Option<(Vec<usize>, Vec<&'a Cell>)> {
        let set: Vec<usize> = set.iter().map(|place| groups[*place]).collect();
        let lies_within = |cell: &&&Cell| groups_of(cell).iter().all(|group| set.contains(group));
        let cells: Vec<&Cell> = cells.iter().filter(lies_within).copied().collect();
        (free_of(&cells) >= need).then_some((set, cells))
    };
    let Some(least) = fewest(&free, need) else {
        return Vec::new();
    };
    // A cell that spans groups was counted for each of them, so that more groups may be needed.
    for size in least..=groups.len() {
        let sets = match sets_of(size, groups.len(), most) {
            Some(sets) => sets.iter().filter_map(|set| within(set)).collect(),
            None => Vec::from_iter(within(&tightest(&free, need))),
        };
        if !sets.is_empty() {
            return sets;
        }
    }
    Vec::from_iter(within(&Vec::from_iter(0..groups.len())))
}

/// The amount that is free in each group of a level.
fn free_by_group(cells: &[&Cell], groups_of: impl Fn(&Cell) -> &[usize]) -> BTreeMap<usize, usize> {
    let mut free = BTreeMap::new();
    for cell in cells {
        for group in groups_of(cell) {
            *free.entry(*group).or_default() += cell.free;
        }
    }
    free
}

fn free_by(cells: &[&Cell], groups_of: impl Fn(&Cell) -> &[usize]) -> Vec<usize> {
    free_by_group(cells, groups_of).into_values().collect()
}

fn free_of(cells: &[&Cell]) -> usize {
    cells.iter().map(|cell| cell.free).sum()
}

fn overlaps(some: &[usize], others: &[usize]) -> bool {
    some.iter().any(|one| others.contains(one))
}

/// How many of the nodes are not among the wanted ones; 0 if none is wanted.
pub(super) fn missed(nodes: &[usize], wanted: &[usize]) -> usize {
    let is_missed = |node: &&usize| !wanted.is_empty() && !wanted.contains(node);
    nodes.iter().filter(is_missed).count()
}

/// Keeps the items with the least key, in their order.
fn keep_least<T, K: Ord>(items: &mut Vec<T>, key: impl Fn(&T) -> K) {
    if items.len() < 2 {
        return;
    }
    let keys: Vec<K> = items.iter().map(key).collect();
    let Some(least) = keys.iter().min() else {
        return;
    };
    let mut is_least = keys.iter().map(|key| key == least);
    items.retain(|_| is_least.next().unwrap_or(false));
}

/// Do lists share cores, because they are smaller than one?
fn are_threads(cells: &[Cell]) -> bool {
    let mut cores: Vec<&[usize]> = cells
        .iter()
        .flat_map(|cell| cell.units.iter().map(|unit| &*unit.spot.cores))
        .collect();
    cores.sort_unstable();
    cores.windows(2).any(|pair| pair[0] == pair[1])
}

fn fewest_cores(cells: &[&Cell], need: usize) -> Option<usize> {
    let mut free: BTreeMap<&[usize], usize> = BTreeMap::new();
    for unit in cells.iter().flat_map(|cell| &cell.units) {
        *free.entry(&unit.spot.cores).or_default() += unit.size;
    }
    fewest(&free.into_values().collect::<Vec<_>>(), need)
}

/// Takes all cells whole but one, in which the rest stays free: preferably one that is far from the
/// wanted nodes, then the one with the least free, then the last one. No cell could be left out, so
/// the rest is less than what any of them has.
fn fill(cells: &[&Cell], need: usize, pull: &Pull) -> Vec<usize> {
    let over = free_of(cells).saturating_sub(need);
    let far = |cell: &Cell| {
        let rather = missed(&cell.nodes, &pull.rather_near) > 0;
        (missed(&cell.nodes, &pull.near) > 0, rather)
    };
    let places = 0..cells.len();
    let partial = places
        .filter(|place| cells[*place].free > over)
        .max_by_key(|place| (far(cells[*place]), Reverse(cells[*place].free)));
    let mut chosen = Vec::new();
    for (place, cell) in cells.iter().enumerate() {
        let units: Vec<&FreeList> = cell.units.iter().collect();
        chosen.extend(match partial == Some(place) {
            true => fill_cores(&units, cell.free - over),
            false => units,
        });
    }
    chosen.into_iter().map(|unit| unit.index).collect()
}

/// Chooses lists of one cell, from few cores with little left over in them: a core that is partly
/// in use is taken before a whole one is broken up.
fn fill_cores<'a>(units: &[&'a FreeList], need: usize) -> Vec<&'a FreeList> {
    let mut cores: BTreeMap<&[usize], Vec<&FreeList>> = BTreeMap::new();
    for unit in units {
        cores.entry(&unit.spot.cores).or_default().push(unit);
    }
    let cores: Vec<Vec<&FreeList>> = cores.into_values().collect();
    let free: Vec<usize> = cores.iter().map(|units| size_of(units)).collect();
    let set = tightest(&free, need);
    let mut missing = need;
    let mut chosen = Vec::new();
    // The core with the least free comes last: the rest stays in it.
    let mut order = set;
    order.sort_by_key(|place| Reverse(free[*place]));
    for place in order {
        let units = &cores[place];
        if free[place] <= missing {
            chosen.extend(units);
        } else {
            let sizes: Vec<usize> = units.iter().map(|unit| unit.size).collect();
            chosen.extend(
                tightest(&sizes, missing)
                    .into_iter()
                    .map(|place| units[place]),
            );
        }
        missing = missing.saturating_sub(free[place]);
    }
    chosen
}

fn size_of(units: &[&FreeList]) -> usize {
    units.iter().map(|unit| unit.size).sum()
}
