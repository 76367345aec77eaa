//! An exclusive pool on a machine, and asking for some of it.

use pinfold::choose::{NoChoice, Offer, Reach, Situation, Want, choose, cpus_that_matter};
use pinfold::cpulist::CpuSet;
use pinfold::pools::Kind;
use pinfold::request::{Numa, Size};
use pinfold::topology::Levels;

use crate::machines::set;

pub(crate) struct Pool {
    pub(crate) levels: Levels,
    pub(crate) lists: Vec<CpuSet>,
    /// A list is owned if any of its CPUs is not in here.
    pub(crate) free: CpuSet,
}

impl Pool {
    /// A list a core.
    pub(crate) fn of_cores(levels: Levels) -> Pool {
        let lists: Vec<CpuSet> = levels.cores.iter().map(|core| core.cpus.clone()).collect();
        Pool {
            free: lists.iter().flat_map(CpuSet::iter).collect(),
            levels,
            lists,
        }
    }

    /// A list a CPU.
    pub(crate) fn of_threads(levels: Levels) -> Pool {
        let pool = Pool::of_cores(levels);
        Pool {
            lists: pool
                .free
                .iter()
                .map(|cpu| CpuSet::from_iter([cpu]))
                .collect(),
            ..pool
        }
    }

    pub(crate) fn with_free(mut self, free: &str) -> Pool {
        self.free = set(free);
        self
    }

    pub(crate) fn is_free(&self, index: usize) -> bool {
        self.lists[index].is_subset(&self.free)
    }

    /// The indices of the chosen lists. The choice is told of the CPUs that matter alone.
    pub(crate) fn choose(&self, want: &Want) -> Result<Vec<usize>, NoChoice> {
        self.choose_again(want, &[])
    }

    /// The same for who had these lists before.
    pub(crate) fn choose_again(
        &self,
        want: &Want,
        former: &[usize],
    ) -> Result<Vec<usize>, NoChoice> {
        let offers: Vec<Offer<'_>> = self
            .lists
            .iter()
            .enumerate()
            .map(|(index, cpus)| Offer {
                cpus,
                owners: usize::from(!self.is_free(index)),
            })
            .collect();
        let online: CpuSet = self.lists.iter().flat_map(CpuSet::iter).collect();
        let reach = Reach {
            online: online.clone(),
            allowed: online,
        };
        let situation = Situation {
            kind: Kind::Exclusive,
            offers: &offers,
            former,
            reach: &reach,
        };
        let matter = cpus_that_matter(&situation, want);
        choose(&situation, want, &restricted(&self.levels, &matter))
    }

    /// The CPUs of the chosen lists, or the refusal.
    pub(crate) fn cpus(&self, want: &Want) -> Result<CpuSet, NoChoice> {
        let chosen = self.choose(want)?;
        Ok(chosen
            .iter()
            .flat_map(|index| self.lists[*index].iter())
            .collect())
    }
}

fn restricted(levels: &Levels, cpus: &CpuSet) -> Levels {
    let part = |groups: &[pinfold::topology::CpuGroup]| {
        let mut groups = groups.to_vec();
        for group in &mut groups {
            group.cpus = group.cpus.intersection(cpus);
        }
        groups.retain(|group| !group.cpus.is_empty());
        groups
    };
    Levels {
        nodes: part(&levels.nodes),
        packages: part(&levels.packages),
        caches: part(&levels.caches),
        cores: part(&levels.cores),
        gaps: levels.gaps.clone(),
    }
}

/// Words as in annotations: `lists=2 numa=single cache=single near=1`, where `near` and `rather`
/// are nodes.
pub(crate) fn want(words: &str) -> Want {
    let mut want = Want::from(Size::Lists(1));
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        match (key, value) {
            ("lists", number) => want.size = Size::Lists(number.parse().unwrap()),
            ("cpus", number) => want.size = Size::Cpus(number.parse().unwrap()),
            ("numa", "single") => want.numa = Numa::Single,
            ("numa", "spread") => want.numa = Numa::Spread,
            ("numa", number) => want.numa = Numa::Node(number.parse().unwrap()),
            ("cache", "single") => want.one_cache = true,
            ("near", nodes) => want.near = set(nodes),
            ("rather", nodes) => want.rather_near = set(nodes),
            _ => panic!("{word}"),
        }
    }
    want
}
