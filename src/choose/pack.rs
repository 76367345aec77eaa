//! Packing: the fewest NUMA nodes, then packages, then last-level caches; and of those that are as
//! few the fullest, so that what stays free is in one piece.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::fit::{fewest, sets_of, tightest};
use super::place::{Cell, FreeList};

/// The most sets of nodes, or of packages, that are weighed against each other; beyond it one that
/// is tight is taken.
pub(super) const MOST_SETS: usize = 1000;

/// The same of caches where it matters how many cores are whole. Where it does not, a tight one is
/// as good as any.
const MOST_CACHE_SETS: usize = 64;

/// The NUMA nodes, by index, that a choice would rather be on.
#[derive(Debug, Clone, Default)]
pub(super) struct Pull {
    /// Asked for: weighs more than packages and caches, but not more than few nodes.
    pub(super) near: Vec<usize>,
    /// Found out: weighs more than what stays free alone.
    pub(super) rather_near: Vec<usize>,
}

/// A set of nodes and packages that suffices, with the cells that lie within.
#[derive(Debug, Clone)]
struct Cover<'a> {
    nodes: Vec<usize>,
    packages: Vec<usize>,
    cells: Vec<&'a Cell>,
}

/// Chooses units for so much, and returns their indices; all there are where they do not suffice.
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

/// The cells of the few caches that suffice.
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

/// All smallest sets of the groups of a level whose cells suffice, in lexical order, each with the
/// cells that lie within it. Where there are more than `most` it is one, a tight one.
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
    // A cell that spans groups counts for each of them, so that it can take more of them than it
    // seems.
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

/// What is free in each group of a level.
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

/// How many of the nodes are not among those that it would rather be on; of no interest where there
/// are none.
pub(super) fn missed(nodes: &[usize], wanted: &[usize]) -> usize {
    let is_missed = |node: &&usize| !wanted.is_empty() && !wanted.contains(node);
    nodes.iter().filter(is_missed).count()
}

/// Keeps those with the least key, in their order.
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

/// Are lists smaller than a core, so that two of them can share one?
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

/// Takes cells whole, but for one, the fullest, and the last of those, which what is over stays in:
/// no cell could be left out, so that what is over is less than any of them has.
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

/// The same for the cores of one cell: few, whole, and broken ones rather than whole ones broken.
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
    // The fullest last: what is over stays in it.
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
