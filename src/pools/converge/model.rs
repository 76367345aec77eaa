//! The pools as the steps found so far leave them.

use anyhow::{Result, bail, ensure};

use super::fit::{cores_of, misfit};
use super::{Course, Declared, Deviation, HeldPool, Present, Step, Undeclared};
use crate::cpulist::CpuSet;
use crate::isolation::Options;
use crate::pools::plan::{Cores, ListUnit, PlannedPool, PoolSpec, Stock, list_name, plan};
use crate::pools::resize::{PoolStanding, Resized, cpus_of, resize};
use crate::pools::{CpuList, Kind, Pool};
use crate::refusal::Refusal;

/// The remedy for an owner that is in the way.
const STOP: &str = "stop it first (`pinfold describe` shows it)";

#[derive(Debug, Clone)]
pub(super) struct Model<'a> {
    pub(super) stock: &'a Stock,
    pools: Vec<HeldPool>,
    owned: CpuSet,
    steps: Vec<Step>,
    pub(super) kept: Vec<Deviation>,
    /// The names of pools that stay as they are.
    fixed: Vec<String>,
}

impl<'a> Model<'a> {
    pub(super) fn of(present: Present<'a>) -> Model<'a> {
        Model {
            stock: present.stock,
            pools: present.pools,
            owned: present.owned,
            steps: Vec::new(),
            kept: Vec::new(),
            fixed: Vec::new(),
        }
    }

    /// What is there after the steps.
    pub(super) fn present(&self) -> Present<'a> {
        Present {
            stock: self.stock,
            pools: self.pools.clone(),
            owned: self.owned.clone(),
        }
    }

    /// The pools of `next`, with the steps of both.
    pub(super) fn followed_by(mut self, mut next: Model<'a>) -> Model<'a> {
        self.steps.append(&mut next.steps);
        Model {
            steps: self.steps,
            ..next
        }
    }

    /// The pools, sorted by name.
    pub(super) fn planned(&self) -> Vec<PlannedPool> {
        let planned = |held: &HeldPool| PlannedPool {
            name: held.pool.name.clone(),
            kind: held.pool.kind,
            lists: held
                .pool
                .lists
                .iter()
                .map(|list| list.cpus.clone())
                .collect(),
            options: Options::default(),
        };
        let mut all: Vec<PlannedPool> = self.pools.iter().map(planned).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    pub(super) fn into_course(self) -> Course {
        Course {
            after: self.planned(),
            steps: self.steps,
            kept: self.kept,
        }
    }

    pub(super) fn keep(&mut self, pool: &str, why: Refusal) {
        self.fixed.push(pool.to_owned());
        self.kept.push(Deviation {
            pool: pool.to_owned(),
            why,
        });
    }

    pub(super) fn is_fixed(&self, name: &str) -> bool {
        self.fixed.iter().any(|fixed| fixed == name)
    }

    /// Removes what is in the way of the declared pools.
    pub(super) fn clear(&mut self, declared: &[Declared], undeclared: Undeclared) {
        if undeclared == Undeclared::Go {
            let names: Vec<&str> = declared.iter().map(Declared::name).collect();
            self.remove_others(&names);
        }
        for one in declared {
            if !self.is_fixed(one.name()) {
                self.clear_way(one);
            }
        }
    }

    /// Removes all pools but those of these names.
    fn remove_others(&mut self, names: &[&str]) {
        let others = self.pools.iter().map(|held| held.pool.name.clone());
        let others: Vec<String> = others
            .filter(|name| !names.contains(&name.as_str()))
            .collect();
        for name in others {
            self.remove_or_keep(&name, "it is not declared");
        }
    }

    fn remove_or_keep(&mut self, name: &str, why: &str) -> bool {
        let Some(at) = self.at(name) else {
            return true;
        };
        match self.pools[at].owners.iter().flatten().next() {
            Some(owner) => {
                let what = format!("{owner} owns CPUs in pool {name}, which stays though {why}");
                self.keep(name, Refusal::new(what, STOP));
                false
            }
            None => {
                self.pools.remove(at);
                self.steps.push(Step::Remove(name.to_owned()));
                true
            }
        }
    }

    /// Removes what keeps a pool from being as declared, and what it has too much.
    fn clear_way(&mut self, declared: &Declared) {
        let Some(at) = self.at(declared.name()) else {
            return;
        };
        match declared {
            Declared::Cut(spec) => match misfit(&self.pools[at], spec, self.stock) {
                Some(why) => {
                    self.remove_or_keep(&spec.name, &format!("it {why}"));
                }
                None => self.shrink(spec),
            },
            Declared::Lists(planned) => self.clear_lists(planned, at),
        }
    }

    /// Gives up what the pool has more than declared, as far as owners allow.
    fn shrink(&mut self, spec: &PoolSpec) {
        let wanted = match self.wanted_size(spec) {
            Some(wanted) if wanted < self.size_of(&spec.name) => wanted,
            _ => return,
        };
        let Err(refused) = self.resize(spec, Cores::Count(wanted)) else {
            return;
        };
        for more in wanted + 1..self.size_of(&spec.name) {
            if self.resize(spec, Cores::Count(more)).is_ok() {
                break;
            }
        }
        self.keep(&spec.name, Refusal::of(&refused));
    }

    /// The size to which an existing pool must be resized, counted as a resize counts; `None` where
    /// it has that size, or gets the rest.
    fn wanted_size(&self, spec: &PoolSpec) -> Option<usize> {
        let Cores::Count(count) = spec.cores else {
            return None;
        };
        let held = &self.pools[self.at(&spec.name)?];
        let lists = held.pool.lists.len();
        match (spec.kind, spec.unit) {
            (Kind::Exclusive, ListUnit::Core) => (lists != count).then_some(count),
            (Kind::Shared, _) => (!cores_of(held, self.stock).contains(&count)).then_some(count),
            (Kind::Exclusive, ListUnit::Thread) => {
                let cores = cores_of(held, self.stock);
                let is_whole = |siblings: &CpuSet| siblings.is_empty();
                let is_so = cores.contains(&count)
                    && self.standing_resize(spec, Cores::Count(lists + 1)).map_or(
                        true,
                        |resized| {
                            // The next CPU that it would get belongs to another core.
                            resized
                                .added
                                .iter()
                                .all(|list| !self.shares_core(held, list))
                        },
                    );
                if is_so {
                    return None;
                }
                let most = self.stock.cores.iter().map(|core| core.cpus.len()).sum();
                let sizes: Vec<usize> = match *cores.start() > count {
                    true => (1..lists).rev().collect(),
                    false => (lists + 1..=most).collect(),
                };
                sizes.into_iter().find(|size| {
                    let Ok(resized) = self.standing_resize(spec, Cores::Count(*size)) else {
                        return false;
                    };
                    let mut then = held.clone();
                    then.become_resized(&resized);
                    cores_of(&then, self.stock).contains(&count) && is_whole(&resized.siblings)
                })
            }
        }
    }

    fn shares_core(&self, held: &HeldPool, list: &CpuSet) -> bool {
        let own = cpus_of(&held.pool.lists);
        let mut cores = self.stock.cores.iter();
        cores.any(|core| !core.cpus.is_disjoint(list) && !core.cpus.is_disjoint(&own))
    }

    /// Makes the pool, or gives it what it lacks.
    pub(super) fn grow(&mut self, declared: &Declared) -> Result<()> {
        let name = declared.name();
        if self.is_fixed(name) {
            return Ok(());
        }
        match (declared, self.at(name)) {
            (Declared::Cut(spec), None) => {
                let left = self.stock.without(&self.taken());
                for pool in plan(&left, std::slice::from_ref(spec))? {
                    self.add(pool);
                }
                Ok(())
            }
            (Declared::Cut(spec), Some(_)) if spec.cores == Cores::Rest => {
                self.resize(spec, Cores::Rest)
            }
            (Declared::Cut(spec), Some(at)) => match self.wanted_size(spec) {
                Some(size) => self.resize(spec, Cores::Count(size)),
                // No size gives it that many whole cores: too few CPUs are free.
                None if spec.unit == ListUnit::Thread && !self.has_count(spec, at) => {
                    let Cores::Count(count) = spec.cores else {
                        return Ok(());
                    };
                    bail!(Refusal::new(
                        format!("pool {name} cannot have {count} cores"),
                        "take some from another pool first (`pinfold pool show`)"
                    ))
                }
                None => Ok(()),
            },
            (Declared::Lists(planned), at) => self.put_lists(planned, at),
        }
    }

    fn has_count(&self, spec: &PoolSpec, at: usize) -> bool {
        let cores = cores_of(&self.pools[at], self.stock);
        matches!(spec.cores, Cores::Count(count) if cores.contains(&count))
    }

    /// The number of an exclusive pool's lists, or of a shared pool's cores.
    pub(super) fn size_of(&self, name: &str) -> usize {
        let taken = CpuSet::new();
        self.at(name).map_or(0, |at| {
            let standing = PoolStanding {
                pool: &self.pools[at].pool,
                owners: &self.pools[at].owners,
                stock: self.stock,
                taken: &taken,
            };
            standing.size()
        })
    }

    fn standing_resize(&self, spec: &PoolSpec, cores: Cores) -> Result<Resized> {
        let Some(at) = self.at(&spec.name) else {
            return Ok(Resized::default());
        };
        let standing = PoolStanding {
            pool: &self.pools[at].pool,
            owners: &self.pools[at].owners,
            stock: self.stock,
            taken: &self.taken(),
        };
        resize(&standing, cores, spec.cut)
    }

    /// Gives a pool another size, as one step.
    pub(super) fn resize(&mut self, spec: &PoolSpec, cores: Cores) -> Result<()> {
        let resized = self.standing_resize(spec, cores)?;
        let Some(at) = self.at(&spec.name) else {
            return Ok(());
        };
        if !resized.changes_lists() {
            return Ok(());
        }
        self.pools[at].become_resized(&resized);
        self.steps.push(Step::Resize {
            name: spec.name.clone(),
            cores,
            cut: spec.cut,
        });
        Ok(())
    }

    /// Removes the lists that are not declared and have no owners.
    fn clear_lists(&mut self, planned: &PlannedPool, at: usize) {
        let name = &planned.name;
        if self.pools[at].pool.kind != planned.kind {
            let why = format!("it is {}", self.pools[at].pool.kind.word());
            self.remove_or_keep(name, &why);
            return;
        }
        // A shared list can get more CPUs while it has owners.
        if planned.kind == Kind::Shared && planned.lists.len() == 1 {
            let is_part = |list: &CpuList| list.cpus.is_subset(&planned.lists[0]);
            if self.pools[at].pool.lists.len() == 1 && is_part(&self.pools[at].pool.lists[0]) {
                return;
            }
        }
        let held = &self.pools[at];
        let mut stay = Vec::new();
        let mut kept = Vec::new();
        for (list, owner) in held.pool.lists.iter().zip(&held.owners) {
            match owner {
                _ if planned.lists.contains(&list.cpus) => stay.push(list.cpus.clone()),
                Some(owner) => {
                    stay.push(list.cpus.clone());
                    kept.push(format!("{owner} owns {}", list.name));
                }
                None => {}
            }
        }
        if !kept.is_empty() {
            let what = format!("pool {name} keeps lists with owners: {}", kept.join(", "));
            self.kept.push(Deviation {
                pool: name.clone(),
                why: Refusal::new(what, STOP),
            });
        }
        match stay.is_empty() {
            true => {
                self.remove_or_keep(name, "its lists are others");
            }
            false => self.relist(at, stay),
        }
    }

    /// Gives a pool the declared lists, besides those that owners keep.
    fn put_lists(&mut self, planned: &PlannedPool, at: Option<usize>) -> Result<()> {
        let own = at.map_or(CpuSet::new(), |at| cpus_of(&self.pools[at].pool.lists));
        let there: Vec<CpuSet> = at.map_or(Vec::new(), |at| {
            let lists = self.pools[at].pool.lists.iter();
            lists.map(|list| list.cpus.clone()).collect()
        });
        let grows = planned.kind == Kind::Shared
            && matches!((&there[..], &planned.lists[..]), ([from], [to]) if from.is_subset(to));
        let others = self.taken().difference(&own);
        let mut lists = there.clone();
        for list in planned.lists.iter().filter(|list| !there.contains(list)) {
            let taken = match grows {
                true => others.intersection(list),
                false => self.taken().intersection(list),
            };
            ensure!(
                taken.is_empty(),
                Refusal::new(
                    format!(
                        "pool {} cannot have the list {}: CPU {taken} is {}",
                        planned.name,
                        list_name(list),
                        self.whose(&taken)
                    ),
                    "name CPUs that are in no pool (`pinfold pool show` shows them)"
                )
            );
            match grows {
                true => lists = vec![list.clone()],
                false => lists.push(list.clone()),
            }
        }
        lists.sort();
        match at {
            None => self.add(PlannedPool {
                lists,
                ..planned.clone()
            }),
            Some(at) => self.relist(at, lists),
        }
        Ok(())
    }

    fn whose(&self, cpus: &CpuSet) -> String {
        let has = |held: &&HeldPool| !cpus_of(&held.pool.lists).is_disjoint(cpus);
        match self.pools.iter().find(has) {
            Some(held) => format!("in pool {}", held.pool.name),
            None => "owned by somebody".to_owned(),
        }
    }

    fn add(&mut self, planned: PlannedPool) {
        let lists: Vec<CpuList> = planned.lists.iter().map(list_of).collect();
        self.pools.push(HeldPool {
            owners: vec![None; lists.len()],
            pool: Pool {
                name: planned.name.clone(),
                kind: planned.kind,
                lists,
            },
        });
        self.steps.push(Step::Add(planned));
    }

    fn relist(&mut self, at: usize, mut lists: Vec<CpuSet>) {
        lists.sort();
        let held = &mut self.pools[at];
        if held.pool.lists.iter().map(|list| &list.cpus).eq(&lists) {
            return;
        }
        let is_single = held.pool.lists.len() == 1 && lists.len() == 1;
        held.become_lists(&lists, is_single && held.pool.kind == Kind::Shared);
        self.steps.push(Step::Relist(PlannedPool {
            name: held.pool.name.clone(),
            kind: held.pool.kind,
            lists,
            options: Options::default(),
        }));
    }

    /// Notes the pools that get the rest and cannot give up lists because of owners.
    pub(super) fn note_owned_rest(&mut self, declared: &[Declared]) {
        for one in declared {
            let Declared::Cut(spec) = one else { continue };
            let Some(at) = self.at(&spec.name).filter(|_| spec.cores == Cores::Rest) else {
                continue;
            };
            let held = &self.pools[at];
            let pairs = held.pool.lists.iter().zip(&held.owners);
            let owners = pairs.filter_map(|(list, owner)| {
                let owner = owner.as_ref()?;
                Some(format!("{owner} owns {}", list.name))
            });
            let owners: Vec<String> = owners.collect();
            if !owners.is_empty() {
                let what = format!("pool {} keeps its CPUs: {}", spec.name, owners.join(", "));
                let pool = spec.name.clone();
                let why = Refusal::new(what, STOP);
                self.kept.push(Deviation { pool, why });
            }
        }
    }

    /// The CPUs that are in a pool or have an owner.
    fn taken(&self) -> CpuSet {
        let mut taken = self.owned.clone();
        for held in &self.pools {
            taken.extend(&cpus_of(&held.pool.lists));
        }
        taken
    }

    /// The CPUs that are taken, but not by a pool of `specs`.
    pub(super) fn cpus_of_others(&self, specs: &[PoolSpec]) -> CpuSet {
        let mut cpus = self.owned.clone();
        for held in &self.pools {
            if !specs.iter().any(|spec| spec.name == held.pool.name) {
                cpus.extend(&cpus_of(&held.pool.lists));
            }
        }
        cpus
    }

    fn at(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|held| held.pool.name == name)
    }
}

impl HeldPool {
    fn become_resized(&mut self, resized: &Resized) {
        let lists = std::mem::take(&mut self.pool.lists).into_iter();
        let mut pairs: Vec<(CpuList, Option<String>)> =
            lists.zip(std::mem::take(&mut self.owners)).collect();
        pairs.retain(|(list, _)| !resized.removed.contains(&list.cpus));
        if let Some((from, to)) = &resized.renamed {
            for (list, _) in pairs.iter_mut().filter(|(list, _)| list.cpus == *from) {
                *list = list_of(to);
            }
        }
        pairs.extend(resized.added.iter().map(|cpus| (list_of(cpus), None)));
        pairs.sort_by(|(one, _), (other, _)| one.cpus.cmp(&other.cpus));
        (self.pool.lists, self.owners) = pairs.into_iter().unzip();
    }

    /// Replaces the lists. A list that stays keeps its owner; a list that is renamed passes its
    /// owner on.
    fn become_lists(&mut self, lists: &[CpuSet], is_renamed: bool) {
        let owner_of = |cpus: &CpuSet| {
            let at = self.pool.lists.iter().position(|list| list.cpus == *cpus);
            at.and_then(|at| self.owners[at].clone())
        };
        let owners = match is_renamed {
            true => self.owners.clone(),
            false => lists.iter().map(owner_of).collect(),
        };
        self.pool.lists = lists.iter().map(list_of).collect();
        self.owners = owners;
    }
}

fn list_of(cpus: &CpuSet) -> CpuList {
    CpuList {
        name: list_name(cpus),
        cpus: cpus.clone(),
        tasks: Vec::new(),
    }
}
