//! Why there is nothing to choose, and what would have fitted.

use std::collections::BTreeMap;
use std::fmt;

use super::Want;
use super::fit::fewest;
use super::place::{Cell, Map};
use crate::request::Numa;
use crate::topology::Gap;

/// Why there is nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoChoice {
    /// Too much is in use now.
    Exhausted {
        /// How many lists, or CPUs, are free.
        free: usize,
    },
    /// The whole pool has less than was asked for.
    TooSmall {
        /// How many of its lists, or CPUs, the owner could use.
        all: usize,
    },
    /// Enough is free, but not in one place as it was asked for.
    Scattered(Scattered),
    /// Nothing of which the kernel tells meets the request, and the kernel does not tell of
    /// everything.
    Untold {
        /// What was asked for.
        within: Within,
        /// What the kernel does not tell.
        gap: Gap,
    },
    /// No list of a shared pool lies within what was asked for.
    Spans(Within),
    /// A shared pool gives one list, and more were asked for.
    OneListOnly,
    /// Every list has a CPU that is offline.
    Offline,
    /// Every list that is online has a CPU that the groups above do not allow.
    NotAllowed,
}

impl NoChoice {
    /// The refusal of a strict request for which the kernel does not tell enough; `None` if it
    /// tells everything.
    pub(super) fn untold(want: &Want, map: &Map<'_>) -> Option<NoChoice> {
        let within = Within::of(want);
        let gaps = map.gaps();
        let mut gaps = match within {
            Within::OneNode | Within::Node(_) => vec![&gaps.nodes],
            Within::OneCache => vec![&gaps.caches],
            Within::OneCacheOf(_) => vec![&gaps.caches, &gaps.nodes],
        }
        .into_iter();
        let gap = gaps.find(|gap| !gap.cpus.is_empty())?.clone();
        Some(NoChoice::Untold { within, gap })
    }
}

/// The place within which all lists have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Any one NUMA node.
    OneNode,
    /// The NUMA node of this number.
    Node(u32),
    /// Any one last-level cache.
    OneCache,
    /// Any one last-level cache of the NUMA node of this number.
    OneCacheOf(u32),
}

impl Within {
    pub(super) fn of(want: &Want) -> Within {
        match (want.one_cache, want.numa) {
            (true, Numa::Node(number)) => Within::OneCacheOf(number),
            (true, _) => Within::OneCache,
            (false, Numa::Node(number)) => Within::Node(number),
            (false, _) => Within::OneNode,
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Within::OneNode => f.write_str("one NUMA node"),
            Within::Node(number) => write!(f, "NUMA node {number}"),
            Within::OneCache => f.write_str("one last-level cache"),
            Within::OneCacheOf(number) => write!(f, "one last-level cache of NUMA node {number}"),
        }
    }
}

/// Enough is free, but not in one place. Amounts are in lists or CPUs, like the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scattered {
    /// What was asked for.
    pub within: Within,
    /// How much is free in the pool.
    pub free: usize,
    /// The least number of places (NUMA nodes or caches) that it would take.
    pub places: usize,
    /// The most that is free within one such place.
    pub fits: usize,
    /// The NUMA node of that place.
    pub node: u32,
    /// Could it be met if nothing were in use?
    pub ever: bool,
}

impl Scattered {
    pub(super) fn of(cells: &[Cell], need: usize, want: &Want, map: &Map<'_>) -> Scattered {
        let within = Within::of(want);
        let mut free: BTreeMap<&[usize], (usize, u32)> = BTreeMap::new();
        for cell in cells {
            let groups = match within {
                Within::OneNode | Within::Node(_) => &cell.nodes,
                Within::OneCache | Within::OneCacheOf(_) => &cell.caches,
            };
            let is_one = match within {
                Within::OneNode | Within::Node(_) => map.is_one_node(groups),
                Within::OneCache | Within::OneCacheOf(_) => map.is_one_cache(groups),
            };
            if is_one {
                let node = map.node_number(cell.nodes[0]);
                free.entry(groups).or_insert((0, node)).0 += cell.free;
            }
        }
        let amounts: Vec<usize> = free.values().map(|(free, _)| *free).collect();
        let asked_for = free.values().filter(|(_, node)| match within {
            Within::Node(number) | Within::OneCacheOf(number) => *node == number,
            Within::OneNode | Within::OneCache => true,
        });
        // max_by_key takes the last of equal ones: the first, once reversed.
        let best = asked_for.rev().max_by_key(|(free, _)| *free);
        let (fits, node) = match (best, within) {
            (Some(best), _) => *best,
            (None, Within::Node(number) | Within::OneCacheOf(number)) => (0, number),
            (None, _) => (0, 0),
        };
        Scattered {
            within,
            free: cells.iter().map(|cell| cell.free).sum(),
            places: fewest(&amounts, need).unwrap_or(amounts.len()),
            fits,
            node,
            ever: false,
        }
    }
}
