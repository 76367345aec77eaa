//! Pure: dividing a machine's cores among pools.

use std::str::FromStr;

use anyhow::{Result, bail};

use super::Kind;
use super::carve::{Core, Cut, FromCaches, FromNodes, take};
use crate::cpulist::CpuSet;
use crate::isolation::Options;
use crate::refusal::{OrRefuse, Refusal};

/// The longest name of a file, in bytes (`NAME_MAX`, limits.h).
const LONGEST_NAME: usize = 255;

/// A pool that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: String,
    /// How many physical cores it gets.
    pub cores: Cores,
    /// An exclusive pool gets a list per core, a shared one a list with all of its cores.
    pub kind: Kind,
    /// Where its cores come from.
    pub cut: Cut,
    /// What a list of it is, if it is exclusive.
    pub unit: ListUnit,
    /// Its options.
    pub options: Options,
}

/// How many physical cores a pool gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// This many; at least 1.
    Count(usize),
    /// All that no other pool gets; at least 1.
    Rest,
}

/// The most cores that a pool can ask for.
const MOST_CORES: usize = 9999;

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Cores, String> {
        match (text, text.parse()) {
            ("rest", _) => Ok(Cores::Rest),
            (_, Ok(count @ 1..=MOST_CORES)) => Ok(Cores::Count(count)),
            _ => Err("the number of cores must be from 1 to 9999, or rest".to_owned()),
        }
    }
}

/// What a list of an exclusive pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListUnit {
    /// A physical core with its SMT siblings.
    #[default]
    Core,
    /// One CPU. Two owners may then share a core.
    Thread,
}

impl FromStr for ListUnit {
    type Err = String;

    fn from_str(text: &str) -> Result<ListUnit, String> {
        match text {
            "whole" => Ok(ListUnit::Core),
            "threads" => Ok(ListUnit::Thread),
            _ => Err("it is whole or threads".to_owned()),
        }
    }
}

/// The CPUs for the host's own work. No exclusive pool gets their cores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve(pub CpuSet);

impl FromStr for Reserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Reserve, String> {
        match text {
            "none" => Ok(Reserve(CpuSet::new())),
            list => list
                .parse()
                .map(Reserve)
                .map_err(|error| format!("{error:#}")),
        }
    }
}

/// The cores that can be divided among pools.
#[derive(Debug, Clone, Default)]
pub struct Stock {
    /// The physical cores, by first CPU.
    pub cores: Vec<Core>,
    /// The CPUs of the cores that `isolcpus=` isolates. If the machine has any, exclusive pools get
    /// only isolated cores, and shared pools only others, even when none are left.
    pub isolated: CpuSet,
    /// The CPUs for the host's own work. No exclusive pool gets their cores.
    pub reserved: CpuSet,
    /// The name of a shared pool that gets isolated cores: KCM's controlplane does.
    pub shared_isolated: Option<String>,
}

/// A pool that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPool {
    /// Its name.
    pub name: String,
    /// Exclusive or shared.
    pub kind: Kind,
    /// Its CPU lists.
    pub lists: Vec<CpuSet>,
    /// Its options.
    pub options: Options,
}

/// The name of a list's directory. KCM's tools need CPU numbers joined by commas; ranges are used
/// only where that is too long for a name.
pub fn list_name(cpus: &CpuSet) -> String {
    let numbers = cpus.to_numbers();
    if numbers.len() <= LONGEST_NAME {
        numbers
    } else {
        cpus.to_string()
    }
}

/// Chooses the cores of each pool.
///
/// # Errors
/// There are too few cores (the message says how many were asked for, and how many there are), or
/// two pools ask for the rest.
pub fn plan(stock: &Stock, specs: &[PoolSpec]) -> Result<Vec<PlannedPool>> {
    stock.ensure_one_rest(specs)?;
    for is_isolated in [false, true] {
        stock.ensure_enough(specs, is_isolated)?;
    }
    let mut left = stock.clone();
    let mut planned: Vec<(usize, PlannedPool)> = Vec::new();
    let is_rest = |spec: &PoolSpec| spec.cores == Cores::Rest;
    // What is left is known once all other pools have their cores.
    for last in [false, true] {
        let numbered = specs.iter().enumerate();
        for (index, spec) in numbered.filter(|(_, spec)| is_rest(spec) == last) {
            let cores = left.cut_out(spec)?;
            planned.push((index, planned_pool(spec, cores)));
        }
    }
    planned.sort_by_key(|(index, _)| *index);
    Ok(planned.into_iter().map(|(_, pool)| pool).collect())
}

fn planned_pool(spec: &PoolSpec, cores: Vec<CpuSet>) -> PlannedPool {
    let cpus = || cores.iter().flat_map(CpuSet::iter);
    let lists = match (spec.kind, spec.unit) {
        (Kind::Shared, _) => vec![cpus().collect()],
        (Kind::Exclusive, ListUnit::Thread) => cpus().map(|cpu| CpuSet::from_iter([cpu])).collect(),
        (Kind::Exclusive, ListUnit::Core) => cores,
    };
    PlannedPool {
        name: spec.name.clone(),
        kind: spec.kind,
        lists,
        options: spec.options.clone(),
    }
}

impl Stock {
    /// Does this pool get isolated cores? On a machine without any, all pools get the same cores.
    fn is_from_isolated(&self, spec: &PoolSpec) -> bool {
        let wants =
            spec.kind == Kind::Exclusive || self.shared_isolated.as_ref() == Some(&spec.name);
        wants && !self.isolated.is_empty()
    }

    /// Is no core left that this pool could get?
    pub fn is_used_up(&self, spec: &PoolSpec) -> bool {
        !self
            .cores_for(spec)
            .iter()
            .any(|core| spec.cut.numa.has(core))
    }

    fn is_isolated(&self, core: &Core) -> bool {
        core.cpus.is_subset(&self.isolated)
    }

    /// The cores that a pool can get, by first CPU. A shared pool gets those of the host's own work
    /// first.
    pub fn cores_for(&self, spec: &PoolSpec) -> Vec<Core> {
        let from_isolated = self.is_from_isolated(spec);
        let is_reserved = |core: &Core| !core.cpus.is_disjoint(&self.reserved);
        let mut cores = self.cores.clone();
        cores.retain(|core| self.is_isolated(core) == from_isolated);
        match spec.kind {
            Kind::Exclusive => cores.retain(|core| !is_reserved(core)),
            Kind::Shared => cores.sort_by_key(|core| !is_reserved(core)),
        }
        cores
    }

    /// Where a pool's cores come from. An exclusive pool's cores are near each other, unless a node
    /// is named, or they shall be spread over caches; KCM takes them by number.
    pub(super) fn cut_of(&self, spec: &PoolSpec) -> Cut {
        let may_be_far = self.shared_isolated.is_some() || spec.cut.cache == FromCaches::Spread;
        match (spec.kind, spec.cut.numa) {
            (Kind::Exclusive, FromNodes::Any) if !may_be_far => Cut {
                numa: FromNodes::Pack,
                ..spec.cut
            },
            _ => spec.cut,
        }
    }

    fn cut_out(&mut self, spec: &PoolSpec) -> Result<Vec<CpuSet>> {
        let mut free = self.cores_for(spec);
        let count = match (spec.cores, spec.cut.numa) {
            (Cores::Count(count), _) => count,
            (Cores::Rest, numa) => free.iter().filter(|core| numa.has(core)).count().max(1),
        };
        let taken = take(&mut free, count, self.cut_of(spec));
        let taken = taken.or_refuse(|| {
            let which = self.which(spec);
            Refusal::new(
                format!("pool {}: {count} {which} asked for", spec.name),
                "ask for fewer, or cut them elsewhere",
            )
        })?;
        self.cores.retain(|core| !taken.contains(&core.cpus));
        Ok(taken)
    }

    pub(super) fn which(&self, spec: &PoolSpec) -> &'static str {
        match (self.is_from_isolated(spec), self.isolated.is_empty()) {
            (true, _) => "isolated cores",
            (false, false) => "cores that are not isolated",
            (false, true) => "cores",
        }
    }

    /// Checks that at most one pool asks for the rest of the isolated cores, and at most one for
    /// the rest of the others. Pools that ask for the rest of a NUMA node do not count.
    ///
    /// # Errors
    /// Two do.
    pub fn ensure_one_rest(&self, specs: &[PoolSpec]) -> Result<()> {
        for is_isolated in [false, true] {
            let rests = specs.iter().filter(|spec| {
                self.is_from_isolated(spec) == is_isolated
                    && spec.cores == Cores::Rest
                    && !matches!(spec.cut.numa, FromNodes::Node(_))
            });
            let rests: Vec<&PoolSpec> = rests.collect();
            if let [first, _, ..] = rests[..] {
                bail!(Refusal::new(
                    format!("two pools are to get the rest of the {}", self.which(first)),
                    "give one a number"
                ));
            }
        }
        Ok(())
    }

    /// Checks that there are enough cores for all pools that get isolated cores (`is_isolated`), or
    /// for all that get others.
    fn ensure_enough(&self, specs: &[PoolSpec], is_isolated: bool) -> Result<()> {
        let mut wanted: Vec<&PoolSpec> = specs.iter().collect();
        wanted.retain(|spec| self.is_from_isolated(spec) == is_isolated);
        let Some(first) = wanted.first() else {
            return Ok(());
        };
        let what = self.which(first);
        wanted.sort_by_key(|spec| spec.kind == Kind::Shared);
        // The exclusive pools have fewer cores to choose from, so they are counted alone first.
        let exclusive = wanted.iter().filter(|spec| spec.kind == Kind::Exclusive);
        for some in [&wanted[..exclusive.count()], &wanted[..]] {
            self.ensure_enough_for(some, what)?;
        }
        Ok(())
    }

    /// The part of a refusal about the cores that no exclusive pool gets.
    pub(super) fn reservation(&self) -> String {
        if self.reserved.is_empty() {
            return String::new();
        }
        format!(
            ", without those of the host's own work, CPUs {} (--reserve)",
            self.reserved
        )
    }

    fn ensure_enough_for(&self, wanted: &[&PoolSpec], what: &str) -> Result<()> {
        let Some(last) = wanted.last() else {
            return Ok(());
        };
        let least = |spec: &PoolSpec| match spec.cores {
            Cores::Count(count) => count,
            Cores::Rest => 1,
        };
        let asked: usize = wanted.iter().map(|spec| least(spec)).sum();
        let there = self.cores_for(last).len();
        if asked <= there {
            return Ok(());
        }
        let each: Vec<String> = wanted
            .iter()
            .map(|spec| format!("{} for {}", least(spec), spec.name))
            .collect();
        let kept = match last.kind {
            Kind::Exclusive => self.reservation(),
            Kind::Shared => String::new(),
        };
        let remedy = match (there, kept.is_empty()) {
            (1.., _) => format!("ask for {there} at most"),
            (_, false) => "give it those too: --reserve none".to_owned(),
            (_, true) => "take some from another pool first (`pinfold pool show`)".to_owned(),
        };
        bail!(Refusal::new(
            format!(
                "too few {what}: {asked} asked for ({}), and there are {there}{kept}",
                each.join(", ")
            ),
            remedy
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses words `name=N:kind` and `name=rest:kind`; the kind is `x`, `xt` (by threads), or `s`.
    fn specs(words: &str) -> Vec<PoolSpec> {
        let spec = |word: &str| {
            let (name, rest) = word.split_once('=').unwrap();
            let (cores, kind) = rest.split_once(':').unwrap();
            PoolSpec {
                name: name.into(),
                cores: cores.parse().map_or(Cores::Rest, Cores::Count),
                kind: if kind.starts_with('x') {
                    Kind::Exclusive
                } else {
                    Kind::Shared
                },
                cut: Cut::default(),
                unit: if kind == "xt" {
                    ListUnit::Thread
                } else {
                    ListUnit::Core
                },
                options: Options::default(),
            }
        };
        words.split_whitespace().map(spec).collect()
    }

    /// Plans on cores of one node. A pool named `cp` is KCM's controlplane.
    fn planned(cores: &str, isolated: &str, reserved: &str, words: &str) -> Result<String> {
        let core = |core: &str| Core {
            cpus: core.parse().unwrap(),
            node: Some(0),
            cache: Some(0),
        };
        let stock = Stock {
            cores: cores.split_whitespace().map(core).collect(),
            isolated: isolated.parse().unwrap(),
            reserved: reserved.parse().unwrap(),
            shared_isolated: Some("cp".into()),
        };
        let pools = plan(&stock, &specs(words))?;
        let show = |pool: &PlannedPool| {
            let lists: Vec<String> = pool.lists.iter().map(list_name).collect();
            format!("{}={}", pool.name, lists.join("/"))
        };
        Ok(pools.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn cores_are_divided() {
        for (cores, isolated, reserved, words, expected) in [
            (
                "0,8 1,9 2,10",
                "",
                "",
                "dp=1:x cp=1:s infra=rest:s",
                "dp=0,8 cp=1,9 infra=2,10",
            ),
            ("0 1 2 3", "", "", "infra=rest:s dp=2:x", "infra=2,3 dp=0/1"),
            ("0 1 2 3", "", "", "a=2:s b=rest:x", "a=0,1 b=2/3"),
            (
                "0 1 2 3 4",
                "2-4",
                "",
                "dp=2:x cp=1:s infra=rest:s",
                "dp=2/3 cp=4 infra=0,1",
            ),
            (
                "0,4 1,5 2,6",
                "1,2,6",
                "",
                "dp=1:x infra=rest:s",
                "dp=2,6 infra=0,1,4,5",
            ),
            ("0 1", "", "", "dp=1:x infra=rest:s", "dp=0 infra=1"),
            (
                "0,4 1,5 2,6",
                "",
                "0,4",
                "dp=2:x infra=rest:s",
                "dp=1,5/2,6 infra=0,4",
            ),
            ("0,4 1,5 2,6", "", "0,4", "dp=rest:x", "dp=1,5/2,6"),
            ("0 1 2", "", "2", "a=1:s dp=2:x", "a=2 dp=0/1"),
            ("0,4 1,5", "", "0", "dp=1:xt a=rest:s", "dp=1/5 a=0,4"),
        ] {
            let planned = planned(cores, isolated, reserved, words).unwrap();
            assert_eq!(planned, expected, "{words}");
        }
    }

    #[test]
    fn too_few_cores_are_counted() {
        for (cores, isolated, reserved, words, parts) in [
            (
                "0 1",
                "",
                "",
                "dp=1:x cp=4:s infra=rest:s",
                [
                    "6 asked for (1 for dp, 4 for cp, 1 for infra)",
                    "there are 2",
                ],
            ),
            (
                "0 1 2",
                "2",
                "",
                "dp=2:x",
                ["too few isolated cores: 2 asked for", "there are 1"],
            ),
            (
                "0 1",
                "0-1",
                "",
                "dp=2:x infra=rest:s",
                ["too few cores that are not isolated", "there are 0"],
            ),
            (
                "0 1 2",
                "",
                "",
                "a=rest:s b=rest:s",
                ["two pools", "give one a number"],
            ),
            (
                "0,2 1,3",
                "",
                "0",
                "dp=2:x",
                ["there are 1, without", "CPUs 0 (--reserve)"],
            ),
        ] {
            let error = planned(cores, isolated, reserved, words)
                .unwrap_err()
                .to_string();
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
