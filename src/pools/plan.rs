//! Dividing a machine's cores among pools. Pure.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use super::Kind;
use crate::cpulist::CpuSet;

/// The longest name of a directory, in bytes (`NAME_MAX`, limits.h).
const LONGEST_NAME: usize = 255;

/// A pool that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: String,
    /// How many physical cores.
    pub cores: Cores,
    /// Exclusive: a list per core. Shared: one list with all of them.
    pub kind: Kind,
    /// From the cores that `isolcpus=` isolates, where there are any, or only from the others?
    pub from_isolated: bool,
}

/// How many physical cores a pool gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// So many, at least 1.
    Count(usize),
    /// All that no other pool gets, at least 1.
    Rest,
}

/// A pool as it is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPool {
    /// Its name.
    pub name: String,
    /// Exclusive or shared.
    pub kind: Kind,
    /// Its CPU lists.
    pub lists: Vec<CpuSet>,
}

/// The directory name of a list: numbers joined by commas, which KCM's tools need; ranges only where that is too long.
pub fn list_name(cpus: &CpuSet) -> String {
    let numbers = cpus.to_numbers();
    if numbers.len() <= LONGEST_NAME {
        numbers
    } else {
        cpus.to_string()
    }
}

/// Gives each pool its cores, in the order of their first CPU. A core counts as isolated when all its CPUs are.
///
/// # Errors
/// Too few cores: how many were asked for, and how many there are.
pub fn plan(cores: &[CpuSet], isolated: &CpuSet, specs: &[PoolSpec]) -> Result<Vec<PlannedPool>> {
    let (of_isolated, of_others): (VecDeque<_>, VecDeque<_>) = cores
        .iter()
        .cloned()
        .partition(|core| core.is_subset(isolated));
    // Without isolated cores, all pools share one supply.
    let has_isolated = !of_isolated.is_empty();
    let mut supplies = [
        Supply {
            cores: of_others,
            what: if has_isolated {
                "cores that are not isolated"
            } else {
                "cores"
            },
        },
        Supply {
            cores: of_isolated,
            what: "isolated cores",
        },
    ];
    let supply_of = |spec: &PoolSpec| usize::from(has_isolated && spec.from_isolated);
    for (index, supply) in supplies.iter().enumerate() {
        let wanted: Vec<&PoolSpec> = specs
            .iter()
            .filter(|spec| supply_of(spec) == index)
            .collect();
        supply.suffices(&wanted)?;
    }
    let mut taken: Vec<(usize, Vec<CpuSet>)> = Vec::new();
    let is_rest = |spec: &PoolSpec| spec.cores == Cores::Rest;
    // What is left is known when all the others have theirs.
    for last in [false, true] {
        for (index, spec) in specs
            .iter()
            .enumerate()
            .filter(|(_, spec)| is_rest(spec) == last)
        {
            let supply = &mut supplies[supply_of(spec)].cores;
            let count = match spec.cores {
                Cores::Count(count) => count,
                Cores::Rest => supply.len(),
            };
            taken.push((index, supply.drain(..count).collect()));
        }
    }
    taken.sort_by_key(|(index, _)| *index);
    Ok(taken
        .into_iter()
        .map(|(index, cores)| PlannedPool {
            name: specs[index].name.clone(),
            kind: specs[index].kind,
            lists: match specs[index].kind {
                Kind::Exclusive => cores,
                Kind::Shared => vec![cores.iter().flat_map(CpuSet::iter).collect()],
            },
        })
        .collect())
}

struct Supply {
    cores: VecDeque<CpuSet>,
    what: &'static str,
}

impl Supply {
    fn suffices(&self, wanted: &[&PoolSpec]) -> Result<()> {
        let count = |spec: &&PoolSpec| match spec.cores {
            Cores::Count(count) => count,
            Cores::Rest => 1,
        };
        let rests = wanted
            .iter()
            .filter(|spec| spec.cores == Cores::Rest)
            .count();
        ensure!(
            rests <= 1,
            "two pools are to get the rest of the {}: give one a number",
            self.what
        );
        let asked: usize = wanted.iter().map(count).sum();
        if asked > self.cores.len() {
            let each: Vec<String> = wanted
                .iter()
                .map(|spec| format!("{} for {}", count(spec), spec.name))
                .collect();
            bail!(
                "too few {}: {asked} asked for ({}), and there are {}: ask for fewer",
                self.what,
                each.join(", "),
                self.cores.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words `name=N:kind`, `name=rest:kind`; `!` behind takes isolated cores.
    fn specs(words: &str) -> Vec<PoolSpec> {
        let spec = |word: &str| {
            let (name, rest) = word.trim_end_matches('!').split_once('=').unwrap();
            let (cores, kind) = rest.split_once(':').unwrap();
            PoolSpec {
                name: name.into(),
                cores: cores.parse().map_or(Cores::Rest, Cores::Count),
                kind: if kind == "x" {
                    Kind::Exclusive
                } else {
                    Kind::Shared
                },
                from_isolated: word.ends_with('!'),
            }
        };
        words.split_whitespace().map(spec).collect()
    }

    fn planned(cores: &str, isolated: &str, words: &str) -> Result<String> {
        let cores: Vec<CpuSet> = cores
            .split_whitespace()
            .map(|core| core.parse().unwrap())
            .collect();
        let pools = plan(&cores, &isolated.parse().unwrap(), &specs(words))?;
        let show = |pool: &PlannedPool| {
            let lists: Vec<String> = pool.lists.iter().map(list_name).collect();
            format!("{}={}", pool.name, lists.join("/"))
        };
        Ok(pools.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn cores_are_divided() {
        for (cores, isolated, words, expected) in [
            (
                "0,8 1,9 2,10",
                "",
                "dp=1:x cp=1:s infra=rest:s",
                "dp=0,8 cp=1,9 infra=2,10",
            ),
            ("0 1 2 3", "", "infra=rest:s dp=2:x", "infra=2,3 dp=0/1"),
            ("0 1 2 3", "", "a=2:s b=rest:x", "a=0,1 b=2/3"),
            (
                "0 1 2 3 4",
                "2-4",
                "dp=2:x! cp=1:s! infra=rest:s",
                "dp=2/3 cp=4 infra=0,1",
            ),
            (
                "0,4 1,5 2,6",
                "1,2,6",
                "dp=1:x! infra=rest:s",
                "dp=2,6 infra=0,1,4,5",
            ),
            ("0 1", "", "dp=1:x! infra=rest:s", "dp=0 infra=1"),
        ] {
            assert_eq!(
                planned(cores, isolated, words).unwrap(),
                expected,
                "{words}"
            );
        }
    }

    #[test]
    fn too_few_cores_are_counted() {
        for (cores, isolated, words, parts) in [
            (
                "0 1",
                "",
                "dp=4:x cp=1:s infra=rest:s",
                [
                    "6 asked for (4 for dp, 1 for cp, 1 for infra)",
                    "there are 2",
                ],
            ),
            (
                "0 1 2",
                "2",
                "dp=2:x! infra=rest:s",
                ["too few isolated cores: 2 asked for", "there are 1"],
            ),
            (
                "0 1",
                "0-1",
                "dp=2:x! infra=rest:s",
                ["too few cores that are not isolated", "there are 0"],
            ),
            (
                "0 1 2",
                "",
                "a=rest:s b=rest:s",
                ["two pools", "give one a number"],
            ),
        ] {
            let error = planned(cores, isolated, words).unwrap_err().to_string();
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{words}: {error}"
            );
        }
    }

    #[test]
    fn a_long_list_has_a_name_that_fits() {
        let many: CpuSet = (0..200).collect();
        assert_eq!(list_name(&many), "0-199");
        assert_eq!(list_name(&(0..4).collect()), "0,1,2,3");
    }
}
