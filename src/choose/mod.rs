//! Chooses the CPU lists of a pool that an owner gets. Pure.
//!
//! The chosen lists lie in the fewest NUMA nodes, then packages, then last-level caches, and leave
//! what stays free least broken up. The yardstick is the best fit of the kubelet's static CPU
//! manager.

mod again;
mod fit;
mod pack;
mod place;
mod refusal;
mod spread;

pub use refusal::{NoChoice, Scattered, Within};

use std::collections::BTreeMap;

use again::{again, is_no_worse};
use pack::{Pull, pack};
use place::{Cell, FreeList, Map, Spot, cells};
use spread::spread;

use crate::cpulist::CpuSet;
use crate::pools::Kind;
use crate::request::{Numa, Size};
use crate::topology::Levels;

/// A CPU list of the pool.
#[derive(Debug, Clone)]
pub struct Offer<'a> {
    /// Its CPUs.
    pub cpus: &'a CpuSet,
    /// The number of its owners.
    pub owners: usize,
}

/// The CPUs on which the owner could run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The online CPUs.
    pub online: CpuSet,
    /// The CPUs that the groups above the owner's allow.
    pub allowed: CpuSet,
}

/// A pool as it is now.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Exclusive, with one owner for each list, or shared.
    pub kind: Kind,
    /// Its lists.
    pub offers: &'a [Offer<'a>],
    /// The lists that the owner had before it ended and came back, as indices of `offers`.
    pub former: &'a [usize],
    /// Where the owner could run.
    pub reach: &'a Reach,
}

/// What is wanted, and where.
#[derive(Debug, Clone)]
pub struct Want {
    /// The amount, in lists or CPUs.
    pub size: Size,
    /// On which NUMA nodes.
    pub numa: Numa,
    /// Must all of it share one last-level cache?
    pub one_cache: bool,
    /// The NUMA nodes that it was asked to be near; empty for none. They count unless that takes
    /// more nodes.
    pub near: CpuSet,
    /// The NUMA nodes that it had better be near; empty for none. They count unless that takes more
    /// nodes, packages or caches.
    pub rather_near: CpuSet,
}

impl From<Size> for Want {
    /// This amount, wherever it fits best.
    fn from(size: Size) -> Want {
        Want {
            size,
            numa: Numa::Best,
            one_cache: false,
            near: CpuSet::new(),
            rather_near: CpuSet::new(),
        }
    }
}

impl Want {
    /// Can it be refused though enough is free?
    fn is_strict(&self) -> bool {
        self.one_cache || matches!(self.numa, Numa::Single | Numa::Node(_))
    }
}

/// The CPUs whose place on the machine the choice depends on; none if there is no choice.
pub fn cpus_that_matter(situation: &Situation<'_>, want: &Want) -> CpuSet {
    let usable = situation.usable();
    let free: Vec<usize> = match situation.kind {
        Kind::Exclusive => situation.free(&usable),
        Kind::Shared => usable.clone(),
    };
    let is_open = match (situation.kind, want.size) {
        (Kind::Exclusive, Size::Lists(lists)) => lists < free.len(),
        (Kind::Exclusive, Size::Cpus(_)) => free.len() > 1,
        (Kind::Shared, _) => {
            free.len() > 1 && !(want.near.is_empty() && want.rather_near.is_empty())
        }
    };
    let matter = match (want.is_strict(), is_open) {
        // Lists with owners matter too: they tell whether the request could ever be met.
        (true, _) => usable,
        (false, true) => free,
        (false, false) => Vec::new(),
    };
    let offers = matter.into_iter().map(|index| &situation.offers[index]);
    offers.map(|offer| offer.cpus).collect()
}

/// Chooses lists, and returns their indices in ascending order. `levels` has to know the place of
/// at least the [`cpus_that_matter`].
///
/// An exclusive pool gives free lists: those that the owner had before, unless others fit its
/// request better. A shared pool gives one list: the one with the fewest owners among those that
/// are near, and of equal ones the one that the owner had before.
///
/// # Errors
/// Why nothing can be chosen.
pub fn choose(
    situation: &Situation<'_>,
    want: &Want,
    levels: &Levels,
) -> Result<Vec<usize>, NoChoice> {
    let usable = situation.usable_or_why()?;
    let map = Map::of(levels);
    match situation.kind {
        Kind::Shared => choose_shared(situation, &usable, want, &map),
        Kind::Exclusive => choose_exclusive(situation, &usable, want, &map),
    }
}

/// Chooses lists of an exclusive pool that together with those of `must`, indices of offers whoever
/// owns them, are `count`: such as make few NUMA nodes, packages and caches of what is added, near
/// the lists of `must`. Returns all indices in ascending order. `levels` has to know the place of
/// all lists. Nothing is added where `must` has as many already.
///
/// # Errors
/// Fewer lists are free.
pub fn choose_around(
    situation: &Situation<'_>,
    must: &[usize],
    count: usize,
    levels: &Levels,
) -> Result<Vec<usize>, NoChoice> {
    let mut chosen = must.to_vec();
    chosen.sort_unstable();
    chosen.dedup();
    let need = count.saturating_sub(chosen.len());
    let mut free = situation.free(&situation.usable());
    free.retain(|index| !chosen.contains(index));
    if need > free.len() {
        return Err(NoChoice::Exhausted { free: free.len() });
    }
    let map = Map::of(levels);
    let spots = chosen.iter();
    let spots = spots.map(|index| map.spot(situation.offers[*index].cpus));
    let near = spots.flat_map(|spot| spot.nodes).collect();
    let pull = Pull {
        near,
        rather_near: Vec::new(),
    };
    let units = situation.units(&free, Size::Lists(need), &map);
    if need > 0 {
        chosen.extend(pack(&cells(units), need, &pull));
    }
    chosen.sort_unstable();
    Ok(chosen)
}

impl Situation<'_> {
    fn within(&self, cpus: &CpuSet) -> impl Fn(&usize) -> bool {
        move |index| self.offers[*index].cpus.is_subset(cpus)
    }

    /// The indices of the lists on which the owner could run.
    fn usable(&self) -> Vec<usize> {
        let all = 0..self.offers.len();
        let online = all.filter(self.within(&self.reach.online));
        online.filter(self.within(&self.reach.allowed)).collect()
    }

    fn usable_or_why(&self) -> Result<Vec<usize>, NoChoice> {
        let usable = self.usable();
        let mut all = 0..self.offers.len();
        match all.any(|index| self.within(&self.reach.online)(&index)) {
            _ if self.offers.is_empty() || !usable.is_empty() => Ok(usable),
            true => Err(NoChoice::NotAllowed),
            false => Err(NoChoice::Offline),
        }
    }

    fn free(&self, usable: &[usize]) -> Vec<usize> {
        let is_free = |index: &usize| self.offers[*index].owners == 0;
        usable.iter().copied().filter(is_free).collect()
    }

    /// These lists as packing sees them, measured in lists or CPUs like the request.
    fn units(&self, indices: &[usize], size: Size, map: &Map<'_>) -> Vec<FreeList> {
        let unit = |index: &usize| {
            let cpus = self.offers[*index].cpus;
            FreeList {
                index: *index,
                size: match size {
                    Size::Lists(_) => 1,
                    Size::Cpus(_) => cpus.len(),
                },
                spot: map.spot(cpus),
            }
        };
        indices.iter().map(unit).collect()
    }
}

fn choose_shared(
    situation: &Situation<'_>,
    usable: &[usize],
    want: &Want,
    map: &Map<'_>,
) -> Result<Vec<usize>, NoChoice> {
    let cpus = match want.size {
        Size::Lists(1) => 1,
        Size::Lists(_) => return Err(NoChoice::OneListOnly),
        Size::Cpus(cpus) => cpus,
    };
    let offers = situation.offers;
    let large_enough: Vec<usize> = usable
        .iter()
        .copied()
        .filter(|index| offers[*index].cpus.len() >= cpus)
        .collect();
    if large_enough.is_empty() {
        let largest = usable.iter().map(|index| offers[*index].cpus.len()).max();
        return Err(NoChoice::TooSmall {
            all: largest.unwrap_or(0),
        });
    }
    let spots: Vec<(usize, Spot)> = large_enough
        .into_iter()
        .map(|index| (index, map.spot(offers[index].cpus)))
        .filter(|(_, spot)| fits(spot, want, map))
        .collect();
    let pull = pull(want, map);
    let misses = |spot: &Spot, nodes: &[usize]| {
        !nodes.is_empty() && !spot.nodes.iter().any(|node| nodes.contains(node))
    };
    let best = spots.iter().min_by_key(|(index, spot)| {
        let owners = offers[*index].owners;
        (
            misses(spot, &pull.near),
            owners,
            misses(spot, &pull.rather_near),
            !situation.former.contains(index),
        )
    });
    best.map(|(index, _)| vec![*index])
        .ok_or_else(|| NoChoice::untold(want, map).unwrap_or(NoChoice::Spans(Within::of(want))))
}

/// Does a list at this place meet the strict parts of the request?
fn fits(spot: &Spot, want: &Want, map: &Map<'_>) -> bool {
    let on_nodes = match want.numa {
        Numa::Best | Numa::Spread => true,
        Numa::Single => map.is_one_node(&spot.nodes),
        Numa::Node(number) => spot
            .nodes
            .iter()
            .all(|node| map.node_number(*node) == number),
    };
    on_nodes && (!want.one_cache || map.is_one_cache(&spot.caches))
}

fn pull(want: &Want, map: &Map<'_>) -> Pull {
    let indices = |nodes: &CpuSet| {
        nodes
            .iter()
            .filter_map(|node| map.node_index(node))
            .collect()
    };
    Pull {
        near: indices(&want.near),
        rather_near: indices(&want.rather_near),
    }
}

fn choose_exclusive(
    situation: &Situation<'_>,
    usable: &[usize],
    want: &Want,
    map: &Map<'_>,
) -> Result<Vec<usize>, NoChoice> {
    let free = situation.free(usable);
    let sum = |units: &[FreeList]| units.iter().map(|unit| unit.size).sum::<usize>();
    let need = match want.size {
        Size::Lists(lists) => lists,
        Size::Cpus(cpus) => cpus,
    };
    let units = situation.units(&free, want.size, map);
    let all = sum(&situation.units(usable, want.size, map));
    if need > all {
        return Err(NoChoice::TooSmall { all });
    }
    let available = sum(&units);
    if need > available {
        return Err(NoChoice::Exhausted { free: available });
    }
    let free_cells = cells(units);
    let Some(candidates) = strictly(&free_cells, need, want, map) else {
        let all = cells(situation.units(usable, want.size, map));
        let ever = strictly(&all, need, want, map).is_some();
        if let Some(untold) = NoChoice::untold(want, map).filter(|_| !ever) {
            return Err(untold);
        }
        let scattered = Scattered::of(&free_cells, need, want, map);
        return Err(NoChoice::Scattered(Scattered { ever, ..scattered }));
    };
    let pull = pull(want, map);
    let spread = match want.numa {
        Numa::Spread => spread_lists(&candidates, need, &pull),
        _ => None,
    };
    let finished = |mut chosen: Vec<usize>| {
        chosen.sort_unstable();
        if let Size::Cpus(_) = want.size {
            drop_needless(&mut chosen, need, |index| {
                situation.offers[index].cpus.len()
            });
        }
        chosen
    };
    let chosen = finished(spread.unwrap_or_else(|| pack(&candidates, need, &pull)));
    let again = again(situation.former, &candidates, need, &pull).map(finished);
    let again = again.filter(|again| is_no_worse(again, &chosen, &candidates, want, &pull));
    Ok(again.unwrap_or(chosen))
}

/// Removes lists without which the rest still suffices: there can be some if lists differ in size.
fn drop_needless(chosen: &mut Vec<usize>, need: usize, size: impl Fn(usize) -> usize) {
    let taken: usize = chosen.iter().map(|index| size(*index)).sum();
    let mut over = taken.saturating_sub(need);
    loop {
        let needless = (0..chosen.len()).filter(|place| size(chosen[*place]) <= over);
        let Some(place) = needless.max_by_key(|place| size(chosen[*place])) else {
            return;
        };
        over -= size(chosen.remove(place));
    }
}

/// Spreads over NUMA nodes. If all lists have the same size, it divides lists instead of CPUs.
fn spread_lists(cells: &[Cell], need: usize, pull: &Pull) -> Option<Vec<usize>> {
    let mut sizes = cells
        .iter()
        .flat_map(|cell| cell.units.iter().map(|unit| unit.size));
    let size = sizes.next()?;
    if !sizes.all(|other| other == size) {
        return spread(cells, need, pull);
    }
    let mut counted = cells.to_vec();
    for cell in &mut counted {
        cell.free /= size;
        cell.units.iter_mut().for_each(|unit| unit.size = 1);
    }
    spread(&counted, need.div_ceil(size), pull)
}

/// The cells that meet the strict parts of the request; `None` if they do not suffice.
fn strictly(cells: &[Cell], need: usize, want: &Want, map: &Map<'_>) -> Option<Vec<Cell>> {
    let mut groups: Vec<Vec<Cell>> = vec![cells.to_vec()];
    if want.is_strict() {
        let fitting = cells.iter().filter(|cell| match want.numa {
            Numa::Best | Numa::Spread => true,
            Numa::Single => map.is_one_node(&cell.nodes),
            Numa::Node(number) => cell
                .nodes
                .iter()
                .all(|node| map.node_number(*node) == number),
        });
        let fitting = fitting.filter(|cell| !want.one_cache || map.is_one_cache(&cell.caches));
        groups = group_by(fitting.cloned(), |cell| match (want.one_cache, want.numa) {
            (true, _) => cell.caches.clone(),
            (false, Numa::Single) => cell.nodes.clone(),
            (false, _) => Vec::new(),
        });
    }
    let suffices = |cells: &Vec<Cell>| cells.iter().map(|cell| cell.free).sum::<usize>() >= need;
    groups.retain(suffices);
    (!groups.is_empty()).then(|| groups.into_iter().flatten().collect())
}

fn group_by(
    cells: impl Iterator<Item = Cell>,
    key: impl Fn(&Cell) -> Vec<usize>,
) -> Vec<Vec<Cell>> {
    let mut groups: BTreeMap<Vec<usize>, Vec<Cell>> = BTreeMap::new();
    for cell in cells {
        groups.entry(key(&cell)).or_default().push(cell);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::CpuGroup;

    /// Chooses from a pool that is given as words of the form `cpulist:owners`.
    fn pick(
        kind: Kind,
        words: &str,
        online: &str,
        allowed: &str,
        size: Size,
    ) -> Result<Vec<usize>, NoChoice> {
        let lists: Vec<(CpuSet, usize)> = words
            .split_whitespace()
            .map(|word| word.split_once(':').unwrap())
            .map(|(cpus, owners)| (cpus.parse().unwrap(), owners.parse().unwrap()))
            .collect();
        let offers: Vec<Offer> = lists
            .iter()
            .map(|(cpus, owners)| Offer {
                cpus,
                owners: *owners,
            })
            .collect();
        let reach = Reach {
            online: online.parse().unwrap(),
            allowed: allowed.parse().unwrap(),
        };
        let situation = Situation {
            kind,
            offers: &offers,
            former: &[],
            reach: &reach,
        };
        choose(&situation, &size.into(), &Levels::default())
    }

    #[test]
    fn exclusive_lists() {
        use NoChoice::*;
        use Size::{Cpus, Lists};
        for (words, size, expected) in [
            ("0:0 1:0", Lists(1), Ok(vec![0])),
            ("0:1 1:0", Lists(1), Ok(vec![1])),
            ("0:0 1:0", Lists(2), Ok(vec![0, 1])),
            ("0:1 1:1", Lists(1), Err(Exhausted { free: 0 })),
            ("0:1 1:0", Lists(2), Err(Exhausted { free: 1 })),
            ("0:0 1:0", Lists(3), Err(TooSmall { all: 2 })),
            ("0,8:0 1:0 2,3,4:0", Cpus(1), Ok(vec![1])),
            ("0,8:0 1:0 2,3,4:0", Cpus(2), Ok(vec![0])),
            ("0,8:0 1:0 2,3,4:0", Cpus(3), Ok(vec![2])),
            ("0,8:0 1:0 2,3,4:0", Cpus(4), Ok(vec![1, 2])),
            ("0,8:0 1:0 2,3,4:0", Cpus(6), Ok(vec![0, 1, 2])),
            ("0,8:0 1,9:0 2,10:0", Cpus(4), Ok(vec![0, 1])),
            ("0,8:0 1:0 2,3,4:1", Cpus(4), Err(Exhausted { free: 3 })),
            ("0,8:0 1:0 2,3,4:1", Cpus(7), Err(TooSmall { all: 6 })),
            ("", Lists(1), Err(TooSmall { all: 0 })),
        ] {
            assert_eq!(
                pick(Kind::Exclusive, words, "0-15", "0-15", size),
                expected,
                "{words} {size}"
            );
        }
    }

    #[test]
    fn what_goes_with_lists_that_are_given_already() {
        // Nodes of CPUs 0 to 3 and 4 to 7.
        let node = |id, cpus: &str| CpuGroup {
            id,
            cpus: cpus.parse().unwrap(),
        };
        let levels = Levels {
            nodes: vec![node(0, "0-3"), node(1, "4-7")],
            ..Levels::default()
        };
        let all: CpuSet = "0-7".parse().unwrap();
        let cpus: Vec<CpuSet> = all.iter().map(|cpu| [cpu].into_iter().collect()).collect();
        let reach = Reach {
            online: "0-6".parse().unwrap(),
            allowed: all,
        };
        let few = NoChoice::Exhausted { free: 1 };
        for (free, must, count, expected) in [
            ("0,1,4,5", &[][..], 2, Ok(vec![0, 1])),
            ("0,4,5", &[], 2, Ok(vec![4, 5])),
            ("0,1,4,5", &[6], 2, Ok(vec![4, 6])),
            ("0,1,4", &[5, 4], 3, Ok(vec![0, 4, 5])),
            ("0,1", &[2, 3, 2], 2, Ok(vec![2, 3])),
            ("0,1", &[2, 3], 1, Ok(vec![2, 3])),
            // One that is offline is not added, and kept where it is given.
            ("0,7", &[7], 2, Ok(vec![0, 7])),
            ("0,7", &[], 2, Err(few)),
        ] {
            let free: CpuSet = free.parse().unwrap();
            let offers: Vec<Offer> = cpus
                .iter()
                .map(|cpus| Offer {
                    cpus,
                    owners: usize::from(!cpus.is_subset(&free)),
                })
                .collect();
            let situation = Situation {
                kind: Kind::Exclusive,
                offers: &offers,
                former: &[],
                reach: &reach,
            };
            let chosen = choose_around(&situation, must, count, &levels);
            assert_eq!(chosen, expected, "{free} {must:?} {count}");
        }
    }

    #[test]
    fn shared_lists() {
        use Size::{Cpus, Lists};
        for (words, size, expected) in [
            ("0-1:3 2-3:1 4-5:1", Lists(1), Ok(vec![1])),
            ("0-1:0 2-5:9", Cpus(3), Ok(vec![1])),
            ("0-1:0 2-5:9", Cpus(5), Err(NoChoice::TooSmall { all: 4 })),
            ("0-1:0 2-5:0", Lists(2), Err(NoChoice::OneListOnly)),
        ] {
            assert_eq!(
                pick(Kind::Shared, words, "0-15", "0-15", size),
                expected,
                "{words} {size}"
            );
        }
    }

    #[test]
    fn offline_and_forbidden_lists_are_passed_over() {
        for kind in [Kind::Exclusive, Kind::Shared] {
            let words = "0,4:0 1,5:0 2,6:0";
            let one = Size::Lists(1);
            assert_eq!(pick(kind, words, "1-6", "0-7", one), Ok(vec![1]));
            assert_eq!(pick(kind, words, "1-6", "2,6", one), Ok(vec![2]));
            assert_eq!(pick(kind, words, "0-3", "0-7", one), Err(NoChoice::Offline));
            assert_eq!(
                pick(kind, words, "0-6", "0-3", one),
                Err(NoChoice::NotAllowed)
            );
        }
        let busy = pick(Kind::Exclusive, "0:1 1:0", "0", "0-1", Size::Lists(1));
        assert_eq!(busy, Err(NoChoice::Exhausted { free: 0 }));
    }
}
