//! Pure: the choice of the physical cores that a pool is made of.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail};

use crate::cpulist::CpuSet;
use crate::isolation;

/// A physical core that a pool can get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its online CPUs.
    pub cpus: CpuSet,
    /// The number of its NUMA node; `None` where the kernel does not tell it.
    pub node: Option<u32>,
    /// The lowest CPU of its last-level cache, which stands for the cache; `None` where the kernel
    /// does not tell it.
    pub cache: Option<u32>,
}

/// Where a pool's cores come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// The NUMA nodes they come from.
    pub numa: FromNodes,
    /// The last-level caches they come from.
    pub cache: FromCaches,
}

/// Which NUMA nodes a pool's cores come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FromNodes {
    /// The free cores in their order, whatever their node.
    #[default]
    Any,
    /// As few nodes as possible. Of the nodes with enough free cores, the one with the fewest.
    Pack,
    /// The same number from each node, as far as each has enough.
    Spread,
    /// Only the node of this number.
    Node(u32),
}

/// Which last-level caches a pool's cores come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FromCaches {
    /// The free cores in their order, whatever their cache.
    #[default]
    Any,
    /// As few caches as possible. Of the caches with enough free cores, the one with the fewest.
    Pack,
    /// The same number from each cache, as far as each has enough.
    Spread,
    /// One cache has all of them.
    Single,
}

impl FromStr for FromNodes {
    type Err = String;

    fn from_str(text: &str) -> Result<FromNodes, String> {
        match (text, text.parse()) {
            ("pack", _) => Ok(FromNodes::Pack),
            ("spread", _) => Ok(FromNodes::Spread),
            (_, Ok(node @ 0..=9999)) => Ok(FromNodes::Node(node)),
            _ => Err("numa= is pack, spread or the number of a node".to_owned()),
        }
    }
}

impl FromStr for FromCaches {
    type Err = String;

    fn from_str(text: &str) -> Result<FromCaches, String> {
        match text {
            "pack" => Ok(FromCaches::Pack),
            "spread" => Ok(FromCaches::Spread),
            "single" => Ok(FromCaches::Single),
            _ => Err("cache= is pack, spread or single".to_owned()),
        }
    }
}

impl FromNodes {
    /// May the core be taken?
    pub(super) fn has(self, core: &Core) -> bool {
        match self {
            FromNodes::Node(node) => core.node == Some(node),
            FromNodes::Any | FromNodes::Pack | FromNodes::Spread => true,
        }
    }
}

impl Cut {
    /// Sets `numa` or `cache`, from a word as `numa=pack` that follows a pool's kind.
    ///
    /// # Errors
    /// There is no such key, or it cannot have this value; the message lists what there is.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "numa" => self.numa = value.parse()?,
            "cache" => self.cache = value.parse()?,
            _ => {
                let options = isolation::keys().collect::<Vec<_>>().join("=, ");
                return Err(format!(
                    "after the kind there can be numa=, cache= and cores=, and for an exclusive \
                     pool {options}="
                ));
            }
        }
        Ok(())
    }
}

/// Takes `count` cores out of `free`, and returns the CPUs of each, by first CPU. On an error
/// `free` is unchanged.
///
/// # Errors
/// There are too few free cores where `cut` allows them; the message says how many there are.
pub fn take(free: &mut Vec<Core>, count: usize, cut: Cut) -> Result<Vec<CpuSet>> {
    let mut taken: Vec<CpuSet> = Vec::new();
    for (share, of_node) in shares_of_nodes(free, count, cut.numa)? {
        for (share, of_cache) in shares_of_caches(&of_node, share, cut.cache)? {
            let cores = of_cache.into_iter().take(share);
            taken.extend(cores.map(|core| core.cpus));
        }
    }
    taken.sort();
    free.retain(|core| !taken.contains(&core.cpus));
    Ok(taken)
}

/// Numbers of cores to take, each with the cores to take them from.
type Shares = Vec<(usize, Vec<Core>)>;

fn shares_of_nodes(free: &[Core], count: usize, numa: FromNodes) -> Result<Shares> {
    let nodes = grouped(free, |core| core.node);
    match numa {
        FromNodes::Any if free.len() >= count => Ok(vec![(count, free.to_vec())]),
        FromNodes::Any => bail!("{} cores are free", free.len()),
        FromNodes::Pack => pack(nodes, count),
        FromNodes::Spread => spread(nodes, count),
        FromNodes::Node(node) => {
            let mut of_node = free.to_vec();
            of_node.retain(|core| numa.has(core));
            match of_node.len() {
                free if free >= count => Ok(vec![(count, of_node)]),
                on_node => {
                    let unknown = free.iter().filter(|core| core.node.is_none()).count();
                    bail!(
                        "{on_node} cores are free on NUMA node {node}{}",
                        untold(unknown, "node")
                    )
                }
            }
        }
    }
}

fn shares_of_caches(free: &[Core], count: usize, cache: FromCaches) -> Result<Shares> {
    let caches = grouped(free, |core| core.cache);
    match cache {
        FromCaches::Any => Ok(vec![(count, free.to_vec())]),
        FromCaches::Pack => pack(caches, count),
        FromCaches::Spread => spread(caches, count),
        FromCaches::Single => {
            let mut told = free.to_vec();
            told.retain(|core| core.cache.is_some());
            let caches = grouped(&told, |core| core.cache);
            match fullest_that_does(&caches, count) {
                Some(index) => Ok(vec![(count, caches[index].clone())]),
                None => bail!(
                    "{} cores are free below one last-level cache{}",
                    caches.iter().map(Vec::len).max().unwrap_or(0),
                    untold(free.len() - told.len(), "cache")
                ),
            }
        }
    }
}

/// The part of a refusal about cores that might be suitable, if the kernel told their node or
/// cache.
fn untold(cores: usize, what: &str) -> String {
    match cores {
        0 => String::new(),
        cores => {
            format!(", and of {cores} the kernel does not tell the {what} (pinfold check says why)")
        }
    }
}

fn grouped(cores: &[Core], key: impl Fn(&Core) -> Option<u32>) -> Vec<Vec<Core>> {
    let mut groups: BTreeMap<Option<u32>, Vec<Core>> = BTreeMap::new();
    for core in cores {
        groups.entry(key(core)).or_default().push(core.clone());
    }
    groups.into_values().collect()
}

fn fullest_that_does(groups: &[Vec<Core>], count: usize) -> Option<usize> {
    (0..groups.len())
        .filter(|index| groups[*index].len() >= count)
        .min_by_key(|index| groups[*index].len())
}

/// If one group has enough, the one with the fewest of those; otherwise all of the largest group,
/// and the rest packed in the same way.
fn pack(mut groups: Vec<Vec<Core>>, count: usize) -> Result<Shares> {
    ensure_enough(&groups, count)?;
    let mut left = count;
    let mut shares = Vec::new();
    while left > 0 {
        let most = (0..groups.len()).rev().max_by_key(|i| groups[*i].len());
        let index = fullest_that_does(&groups, left).or(most);
        let group = groups.remove(index.expect("there are enough cores in the groups"));
        let share = left.min(group.len());
        left -= share;
        shares.push((share, group));
    }
    Ok(shares)
}

/// Takes one core from each group in turn, until there are enough.
fn spread(groups: Vec<Vec<Core>>, count: usize) -> Result<Shares> {
    ensure_enough(&groups, count)?;
    let mut shares = vec![0; groups.len()];
    let mut left = count;
    while left > 0 {
        for (share, group) in shares.iter_mut().zip(&groups) {
            if left > 0 && *share < group.len() {
                *share += 1;
                left -= 1;
            }
        }
    }
    Ok(shares.into_iter().zip(groups).collect())
}

fn ensure_enough(groups: &[Vec<Core>], count: usize) -> Result<()> {
    let all: usize = groups.iter().map(Vec::len).sum();
    if all < count {
        bail!("{all} cores are free");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes with four cores of two siblings each, and two caches a node.
    fn machine() -> Vec<Core> {
        let core = |number: u32| Core {
            cpus: [number, number + 8].into_iter().collect(),
            node: Some(number / 4),
            cache: Some(number / 2 * 2),
        };
        (0..8).map(core).collect()
    }

    fn first_cpus(cores: &[CpuSet]) -> Vec<u32> {
        cores.iter().filter_map(CpuSet::first).collect()
    }

    #[test]
    fn cores_come_from_where_they_are_to() {
        let (any, single) = (FromCaches::Any, FromCaches::Single);
        for (free, count, numa, cache, expected) in [
            ("0-7", 3, FromNodes::Any, any, &[0, 1, 2][..]),
            ("0-7", 4, FromNodes::Spread, any, &[0, 1, 4, 5]),
            ("0-7", 5, FromNodes::Spread, any, &[0, 1, 2, 4, 5]),
            ("0,4-7", 4, FromNodes::Spread, any, &[0, 4, 5, 6]),
            ("0-7", 2, FromNodes::Node(1), any, &[4, 5]),
            ("0-4,6,7", 3, FromNodes::Pack, any, &[4, 6, 7]),
            ("1-7", 4, FromNodes::Pack, any, &[4, 5, 6, 7]),
            ("1-7", 5, FromNodes::Pack, any, &[1, 4, 5, 6, 7]),
            ("1-7", 2, FromNodes::Any, single, &[2, 3]),
            ("0-7", 1, FromNodes::Any, single, &[0]),
            ("1-7", 1, FromNodes::Any, single, &[1]),
            ("1-7", 3, FromNodes::Any, FromCaches::Pack, &[1, 2, 3]),
            ("0-7", 4, FromNodes::Any, FromCaches::Spread, &[0, 2, 4, 6]),
            (
                "0-7",
                4,
                FromNodes::Spread,
                FromCaches::Spread,
                &[0, 2, 4, 6],
            ),
            ("0-7", 4, FromNodes::Spread, single, &[0, 1, 4, 5]),
        ] {
            let free: CpuSet = free.parse().unwrap();
            let mut cores = machine();
            cores.retain(|core| free.iter().any(|cpu| core.cpus.contains(cpu)));
            let before = cores.len();
            let taken = take(&mut cores, count, Cut { numa, cache }).unwrap();
            assert_eq!(first_cpus(&taken), expected, "{free} {numa:?} {cache:?}");
            assert_eq!(cores.len(), before - count);
        }
    }

    #[test]
    fn too_few_are_counted_and_none_is_taken() {
        for (count, numa, cache, said) in [
            (9, FromNodes::Any, FromCaches::Any, "8 cores are free"),
            (9, FromNodes::Pack, FromCaches::Any, "8 cores are free"),
            (9, FromNodes::Spread, FromCaches::Any, "8 cores are free"),
            (
                5,
                FromNodes::Node(1),
                FromCaches::Any,
                "4 cores are free on NUMA node 1",
            ),
            (
                1,
                FromNodes::Node(7),
                FromCaches::Any,
                "0 cores are free on NUMA node 7",
            ),
            (
                3,
                FromNodes::Any,
                FromCaches::Single,
                "2 cores are free below one",
            ),
        ] {
            let mut cores = machine();
            let error = take(&mut cores, count, Cut { numa, cache }).unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            assert_eq!(cores, machine());
        }
    }
}
