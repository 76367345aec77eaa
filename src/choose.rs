//! Which CPU lists of a pool an owner gets. Pure.

use crate::cpulist::CpuSet;
use crate::pools::Kind;
use crate::request::Size;

/// One CPU list as a choice sees it.
#[derive(Debug, Clone)]
pub struct Offer<'a> {
    /// Its CPUs.
    pub cpus: &'a CpuSet,
    /// How many owners it has.
    pub owners: usize,
}

/// Where the owner could run at all.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The CPUs that can run something now.
    pub online: CpuSet,
    /// The CPUs that the groups above the owner's allow.
    pub allowed: CpuSet,
}

/// Why there is nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too much is in use now; so much (lists, or CPUs) is free.
    Exhausted {
        /// How many of what was asked for are free.
        free: usize,
    },
    /// The whole pool has less than was asked for; it has so much (lists, or CPUs) that the owner could use.
    TooSmall {
        /// How much the pool has.
        all: usize,
    },
    /// A shared pool gives one list, and it was asked for more.
    OneListOnly,
    /// Every list has a CPU that is offline.
    Offline,
    /// Every list that is online has a CPU that the groups above do not allow.
    NotAllowed,
}

/// Chooses lists by their index in `offers`, ascending.
///
/// Exclusive: for a number of lists the first free ones; for a number of CPUs the smallest free list that
/// suffices, or else the largest first. Shared: the list with the fewest owners, then the first.
pub fn choose(
    kind: Kind,
    offers: &[Offer<'_>],
    reach: &Reach,
    size: Size,
) -> Result<Vec<usize>, Refusal> {
    let online: Vec<usize> = (0..offers.len())
        .filter(|index| offers[*index].cpus.is_subset(&reach.online))
        .collect();
    let usable: Vec<usize> = online
        .iter()
        .copied()
        .filter(|index| offers[*index].cpus.is_subset(&reach.allowed))
        .collect();
    match (online.is_empty(), usable.is_empty()) {
        (true, _) if !offers.is_empty() => return Err(Refusal::Offline),
        (false, true) => return Err(Refusal::NotAllowed),
        _ => {}
    }
    match kind {
        Kind::Shared => choose_shared(offers, &usable, size),
        Kind::Exclusive => choose_exclusive(offers, &usable, size),
    }
}

fn choose_shared(
    offers: &[Offer<'_>],
    usable: &[usize],
    size: Size,
) -> Result<Vec<usize>, Refusal> {
    let cpus = match size {
        Size::Lists(1) => 1,
        Size::Lists(_) => return Err(Refusal::OneListOnly),
        Size::Cpus(cpus) => cpus,
    };
    let large_enough = usable
        .iter()
        .filter(|index| offers[**index].cpus.len() >= cpus);
    match large_enough.min_by_key(|index| offers[**index].owners) {
        Some(index) => Ok(vec![*index]),
        None => {
            let largest = usable.iter().map(|index| offers[*index].cpus.len()).max();
            Err(Refusal::TooSmall {
                all: largest.unwrap_or(0),
            })
        }
    }
}

fn choose_exclusive(
    offers: &[Offer<'_>],
    usable: &[usize],
    size: Size,
) -> Result<Vec<usize>, Refusal> {
    let mut free: Vec<usize> = usable
        .iter()
        .copied()
        .filter(|index| offers[*index].owners == 0)
        .collect();
    let cpus_of = |indices: &[usize]| {
        indices
            .iter()
            .map(|index| offers[*index].cpus.len())
            .sum::<usize>()
    };
    let (asked, all, available) = match size {
        Size::Lists(lists) => (lists, usable.len(), free.len()),
        Size::Cpus(cpus) => (cpus, cpus_of(usable), cpus_of(&free)),
    };
    if asked > all {
        return Err(Refusal::TooSmall { all });
    }
    if asked > available {
        return Err(Refusal::Exhausted { free: available });
    }
    if let Size::Lists(lists) = size {
        free.truncate(lists);
        return Ok(free);
    }
    let mut chosen = Vec::new();
    let mut missing = asked;
    while missing > 0 {
        let suffices = |index: &&usize| offers[**index].cpus.len() >= missing;
        let smallest = free
            .iter()
            .filter(suffices)
            .min_by_key(|index| offers[**index].cpus.len());
        // Of equally large ones the first: max_by_key would take the last.
        let largest = free
            .iter()
            .rev()
            .max_by_key(|index| offers[**index].cpus.len());
        let Some(index) = smallest.or(largest).copied() else {
            return Err(Refusal::Exhausted { free: available });
        };
        missing = missing.saturating_sub(offers[index].cpus.len());
        free.retain(|other| *other != index);
        chosen.push(index);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words `cpulist:owners`.
    fn pick(
        kind: Kind,
        words: &str,
        online: &str,
        allowed: &str,
        size: Size,
    ) -> Result<Vec<usize>, Refusal> {
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
        choose(kind, &offers, &reach, size)
    }

    #[test]
    fn exclusive_lists() {
        use Refusal::*;
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
    fn shared_lists() {
        use Size::{Cpus, Lists};
        for (words, size, expected) in [
            ("0-1:3 2-3:1 4-5:1", Lists(1), Ok(vec![1])),
            ("0-1:0 2-5:9", Cpus(3), Ok(vec![1])),
            ("0-1:0 2-5:9", Cpus(5), Err(Refusal::TooSmall { all: 4 })),
            ("0-1:0 2-5:0", Lists(2), Err(Refusal::OneListOnly)),
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
            assert_eq!(pick(kind, words, "0-3", "0-7", one), Err(Refusal::Offline));
            assert_eq!(
                pick(kind, words, "0-6", "0-3", one),
                Err(Refusal::NotAllowed)
            );
        }
        let busy = pick(Kind::Exclusive, "0:1 1:0", "0", "0-1", Size::Lists(1));
        assert_eq!(busy, Err(Refusal::Exhausted { free: 0 }));
    }
}
