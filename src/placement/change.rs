//! Changing the pools while containers run: CPUs that are in no pool are given to one, and lists without owners taken
//! out of one. A shared list grows under its owners, who get the new CPUs.

use anyhow::{Context, Result, bail, ensure};

use super::{Books, Site};
use crate::cgroup::{Hierarchy, cpuset};
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::pools::plan::{Cores, PlannedPool, PoolSpec, Stock, Unit, list_name, plan};
use crate::pools::{CpuList, Kind, Pool};
use crate::topology;

/// What is to become of the pools.
#[derive(Debug)]
pub enum Change {
    /// A pool more, cut as it says.
    Add(PoolSpec),
    /// A pool more, of these lists.
    AddLists(PlannedPool),
    /// A pool less.
    Remove(String),
    /// A pool of another size: so many lists, or cores of its one shared list. The name and the size are used, and how
    /// more is to be cut.
    Resize(PoolSpec),
}

/// What changed, or would.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The pool is new.
    pub is_new: bool,
    /// Lists that it got.
    pub added: Vec<CpuSet>,
    /// Lists that it lost.
    pub removed: Vec<CpuSet>,
    /// A shared list that became another.
    pub renamed: Option<(CpuSet, CpuSet)>,
    /// The ids of the owners who were given other CPUs.
    pub owners: Vec<String>,
}

/// Changes the pools; done twice it is done once. `stock` has the machine's cores; those of them that are free are found
/// out under the lock. A trial changes nothing.
///
/// # Errors
/// An owner in the way, by name; too few free cores; CPUs that are in a pool already, or offline.
pub fn change(site: &Site, stock: Stock, change: &Change, is_trial: bool) -> Result<Changed> {
    let books = site.open_books(Hierarchy::discover(&site.host)?)?;
    let steps = match change {
        Change::Add(spec) => books.adding(spec, &stock)?,
        Change::AddLists(pool) => books.adding_lists(pool)?,
        Change::Remove(name) => books.removing(name)?,
        Change::Resize(spec) => books.resizing(spec, &stock)?,
    };
    if !is_trial {
        books.carry_out(change, &steps)?;
    }
    Ok(steps)
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Change::Add(spec) | Change::Resize(spec) => &spec.name,
            Change::AddLists(pool) => &pool.name,
            Change::Remove(name) => name,
        }
    }
}

impl Books<'_> {
    fn adding(&self, spec: &PoolSpec, stock: &Stock) -> Result<Changed> {
        if self.has_pool(&spec.name)? {
            let pool = self.directory.pool(&spec.name)?;
            let lists = match (spec.kind, spec.unit) {
                (Kind::Shared, _) => 1,
                (Kind::Exclusive, Unit::Core) => cores_of(&pool, stock),
                (Kind::Exclusive, Unit::Thread) => {
                    pool.lists.iter().map(|list| list.cpus.len()).sum()
                }
            };
            let has_all = match spec.cores {
                Cores::Count(count) => count == cores_of(&pool, stock),
                Cores::Rest => self.free_of(stock)?.is_used_up(pool.kind),
            };
            ensure!(
                has_all && pool.kind == spec.kind && pool.lists.len() == lists,
                "there is a pool {} already: see pinfold pool show, and pinfold pool resize",
                spec.name
            );
            return Ok(Changed::default());
        }
        let planned = plan(&self.free_of(stock)?, std::slice::from_ref(spec))?;
        Ok(Changed {
            is_new: true,
            added: planned.into_iter().flat_map(|pool| pool.lists).collect(),
            ..Changed::default()
        })
    }

    fn adding_lists(&self, planned: &PlannedPool) -> Result<Changed> {
        let PlannedPool { name, kind, lists } = planned;
        if self.has_pool(name)? {
            let pool = self.directory.pool(name)?;
            let mut wanted = lists.clone();
            wanted.sort();
            let there: Vec<CpuSet> = pool.lists.iter().map(|list| list.cpus.clone()).collect();
            ensure!(
                pool.kind == *kind && there == wanted,
                "there is a pool {name} already, with other lists: see pinfold pool show"
            );
            return Ok(Changed::default());
        }
        let online = topology::online(self.host)?;
        let mut taken = self.taken()?;
        for list in lists {
            ensure!(!list.is_empty(), "a CPU list without a CPU: leave it out");
            let offline = list.difference(&online);
            ensure!(
                offline.is_empty(),
                "CPU {offline} is not online: put it online first"
            );
            let common = taken.intersection(list);
            ensure!(
                common.is_empty(),
                "CPU {common} is in a pool already, or owned: see pinfold pool show"
            );
            taken.extend(list);
        }
        Ok(Changed {
            is_new: true,
            added: lists.clone(),
            ..Changed::default()
        })
    }

    fn removing(&self, name: &str) -> Result<Changed> {
        if !self.has_pool(name)? {
            return Ok(Changed::default());
        }
        let pool = self.directory.sound_pool(name)?;
        let mut lists = Vec::new();
        for list in &pool.lists {
            if let Some(owner) = self.owner_of(list)? {
                bail!(
                    "{owner} owns {} of pool {name}: stop it first (pinfold describe)",
                    list.name
                );
            }
            lists.push(list.cpus.clone());
        }
        Ok(Changed {
            removed: lists,
            ..Changed::default()
        })
    }

    fn resizing(&self, spec: &PoolSpec, stock: &Stock) -> Result<Changed> {
        let pool = self.directory.sound_pool(&spec.name)?;
        let there = size(&pool, stock);
        let more = match spec.cores {
            Cores::Rest => Cores::Rest,
            Cores::Count(wanted) if wanted > there => Cores::Count(wanted - there),
            Cores::Count(wanted) if wanted < there => return self.shrinking(&pool, wanted, stock),
            Cores::Count(_) => return self.growing(&pool, Vec::new()),
        };
        let free = self.free_of(stock)?;
        if more == Cores::Rest && free.is_used_up(pool.kind) {
            return self.growing(&pool, Vec::new());
        }
        let unit = unit_of(&pool, stock);
        let wanted = match (more, unit) {
            (Cores::Count(lists), Unit::Thread) => Cores::Count(lists.div_ceil(threads(stock))),
            _ => more,
        };
        let spec = PoolSpec {
            cores: wanted,
            kind: pool.kind,
            unit,
            ..spec.clone()
        };
        let planned = plan(&free, &[spec]);
        let planned = planned.with_context(|| format!("pool {} has {there} now", pool.name))?;
        let mut lists: Vec<CpuSet> = planned.into_iter().flat_map(|pool| pool.lists).collect();
        if let Cores::Count(count) = more {
            lists.truncate(count);
        }
        self.growing(&pool, lists)
    }

    fn growing(&self, pool: &Pool, lists: Vec<CpuSet>) -> Result<Changed> {
        if pool.kind == Kind::Exclusive {
            return Ok(Changed {
                added: lists,
                ..Changed::default()
            });
        }
        let list = the_one_list(pool)?;
        let mut grown = list.cpus.clone();
        lists.iter().for_each(|cpus| grown.extend(cpus));
        let owners = self.claims_to_follow(pool, &list.name, &grown)?;
        Ok(Changed {
            renamed: (grown != list.cpus).then_some((list.cpus.clone(), grown)),
            owners: owners.into_iter().map(|claim| claim.id).collect(),
            ..Changed::default()
        })
    }

    /// The last lists without owners go first; of a shared list, which nobody may own, the last cores.
    fn shrinking(&self, pool: &Pool, wanted: usize, stock: &Stock) -> Result<Changed> {
        if pool.kind == Kind::Shared {
            let list = the_one_list(pool)?;
            if let Some(owner) = self.owner_of(list)? {
                bail!(
                    "{owner} owns {} of pool {}: a shared list with owners does not shrink; stop them first (pinfold describe)",
                    list.name,
                    pool.name
                );
            }
            let kept = cores_in(&list.cpus, stock).take(wanted);
            let shrunk = kept
                .flat_map(|cpus| cpus.iter().collect::<Vec<_>>())
                .collect();
            return Ok(Changed {
                renamed: Some((list.cpus.clone(), shrunk)),
                ..Changed::default()
            });
        }
        let mut owners = Vec::new();
        let mut free = Vec::new();
        for list in pool.lists.iter().rev() {
            match self.owner_of(list)? {
                Some(owner) => owners.push(format!("{owner} owns {}", list.name)),
                None => free.push(list.cpus.clone()),
            }
        }
        let surplus = pool.lists.len() - wanted;
        ensure!(
            free.len() >= surplus,
            "pool {} cannot have {wanted} lists: {}: stop them first (pinfold describe)",
            pool.name,
            owners.join(", ")
        );
        free.truncate(surplus);
        Ok(Changed {
            removed: free,
            ..Changed::default()
        })
    }

    fn carry_out(&self, change: &Change, steps: &Changed) -> Result<()> {
        let name = change.name();
        if steps.is_new {
            let kind = match change {
                Change::Add(spec) | Change::Resize(spec) => spec.kind,
                Change::AddLists(pool) => pool.kind,
                Change::Remove(_) => return Ok(()),
            };
            let pool = PlannedPool {
                name: name.to_owned(),
                kind,
                lists: steps.added.clone(),
            };
            return self.directory.add_pool(&self.lock, &pool);
        }
        // A resize that was interrupted may have to be finished for its owners alone, and a pool have no list.
        let is_addition = matches!(change, Change::Add(_) | Change::AddLists(_));
        if (*steps == Changed::default() && is_addition) || !self.has_pool(name)? {
            return Ok(());
        }
        let shrunk = steps.renamed.iter().filter(|(from, to)| to.is_subset(from));
        let given_up: Vec<CpuSet> = shrunk
            .map(|(from, _)| from.clone())
            .chain(steps.removed.clone())
            .collect();
        self.clear(name, &given_up)?;
        if let Change::Remove(_) = change {
            return self.directory.remove_pool(&self.lock, name);
        }
        for cpus in &steps.added {
            self.directory.add_list(&self.lock, name, cpus)?;
        }
        let pool = self.directory.pool(name)?;
        for list in pool
            .lists
            .iter()
            .filter(|list| steps.removed.contains(&list.cpus))
        {
            self.directory.remove_list(&self.lock, name, &list.name)?;
        }
        if pool.kind == Kind::Shared {
            let list = the_one_list(&pool)?;
            let to = steps.renamed.as_ref().map_or(&list.cpus, |(_, to)| to);
            self.follow(&pool, list, to)?;
        }
        Ok(())
    }

    /// Renames a shared list and gives its owners its CPUs. Whoever is killed in between leaves owners within the list that
    /// they are in; doing it again goes on.
    fn follow(&self, pool: &Pool, list: &CpuList, to: &CpuSet) -> Result<()> {
        let name = if *to == list.cpus {
            list.name.clone()
        } else {
            list_name(to)
        };
        for claim in self.claims_to_follow(pool, &list.name, to)? {
            // While the list is renamed, a claim names both: release finds the owner under either.
            let mut both = claim.clone();
            both.lists = vec![list.name.clone(), name.clone()];
            both.lists.dedup();
            self.ledger.rewrite(&claim, &both)?;
        }
        if name != list.name {
            self.directory
                .rename_list(&self.lock, &pool.name, &list.name, &name)?;
        }
        let mut errors = Vec::new();
        for entry in self.ledger.on_list(&name)? {
            let claim = entry.claim().filter(|claim| claim.pool == pool.name);
            if let Some(claim) = claim {
                let given = self.give_list(claim, &name, to);
                errors.extend(given.err().map(|error| format!("{}: {error:#}", claim.id)));
            }
        }
        ensure!(
            errors.is_empty(),
            "the pool has its new size, and not all of its owners have: {}; do it again",
            errors.join("; ")
        );
        Ok(())
    }

    /// The record first, and then the kernel.
    fn give_list(&self, claim: &Claim, list: &str, cpus: &CpuSet) -> Result<()> {
        let mut after = claim.clone();
        after.lists = vec![list.to_owned()];
        after.cpus = cpus.clone();
        if !claim.mems.is_empty() {
            after.mems = topology::local_memory_nodes(self.host, cpus)?;
        }
        if after != *claim {
            self.ledger.rewrite(claim, &after)?;
        }
        let Some(group) = self.confined_group_of(&after)? else {
            return Ok(());
        };
        // Telling systemd takes time, and others wait for the lock.
        if after == *claim && cpuset::effective_cpus(&group)?.as_ref() == Some(cpus) {
            return Ok(());
        }
        self.set_cpus(&group, cpus, &after.mems)
    }

    /// The claims on a list of this pool that do not name it and its CPUs alone.
    fn claims_to_follow(&self, pool: &Pool, list: &str, cpus: &CpuSet) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for entry in self.ledger.on_list(list)? {
            match entry {
                Entry::Claim(claim) if claim.pool != pool.name => {}
                Entry::Claim(claim) if claim.cpus == *cpus && claim.lists == [list] => {}
                Entry::Claim(claim) if !self.life_of(&claim)?.is_alive() => {}
                Entry::Claim(claim) => claims.push(*claim),
                Entry::Opaque { path, reason } => {
                    bail!("the claim {} counts as held: {reason}", path.display())
                }
            }
        }
        Ok(claims)
    }

    fn has_pool(&self, name: &str) -> Result<bool> {
        Ok(self
            .directory
            .pool_names()?
            .iter()
            .any(|other| other == name))
    }

    /// Whoever keeps a list from being taken away: a claim by its id, another tool's process by its number.
    fn owner_of(&self, list: &CpuList) -> Result<Option<String>> {
        let mut claimed = Vec::new();
        for entry in self.ledger.on_list(&list.name)? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)?.is_alive() => {
                    return Ok(Some(claim.id));
                }
                Entry::Claim(claim) => claimed.extend(claim.pids()),
                Entry::Opaque { path, .. } => {
                    return Ok(Some(format!("the claim {}", path.display())));
                }
            }
        }
        let mut others = list.tasks.iter().filter(|pid| !claimed.contains(pid));
        let owner = others.find(|pid| self.is_pid_alive(**pid));
        Ok(owner.map(|pid| format!("process {pid}")))
    }

    /// Frees what dead owners hold of a pool, and makes sure that the lists to be taken away are then nobody's.
    fn clear(&self, name: &str, lists: &[CpuSet]) -> Result<()> {
        self.reap_pool(&self.directory.pool(name)?)?;
        let pool = self.directory.pool(name)?;
        for list in pool.lists.iter().filter(|list| lists.contains(&list.cpus)) {
            let is_held = !list.tasks.is_empty() || !self.ledger.on_list(&list.name)?.is_empty();
            ensure!(
                !is_held,
                "what a dead owner held of {} could not be freed: see pinfold reconcile",
                list.name
            );
        }
        Ok(())
    }

    /// The CPUs that are in any pool, or that anybody owns.
    fn taken(&self) -> Result<CpuSet> {
        let mut taken = CpuSet::new();
        for name in self.directory.pool_names()? {
            let pool = self.directory.pool(&name);
            let pool = pool.context("no pool can be changed while one cannot be read")?;
            pool.lists.iter().for_each(|list| taken.extend(&list.cpus));
        }
        for entry in self.ledger.all()? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)?.is_alive() => {
                    taken.extend(&claim.cpus)
                }
                Entry::Claim(_) => {}
                Entry::Opaque { path, reason } => {
                    bail!("the claim {} counts as held: {reason}", path.display())
                }
            }
        }
        Ok(taken)
    }

    /// The cores of the machine that are wholly in no pool and nobody's.
    fn free_of(&self, stock: &Stock) -> Result<Stock> {
        let taken = self.taken()?;
        let mut free = stock.clone();
        free.cores.retain(|core| core.cpus.is_disjoint(&taken));
        Ok(free)
    }
}

/// How many cores a pool has CPUs of.
fn cores_of(pool: &Pool, stock: &Stock) -> usize {
    let all: CpuSet = pool
        .lists
        .iter()
        .flat_map(|list| list.cpus.iter())
        .collect();
    cores_in(&all, stock).count()
}

/// What a list of this pool is: a CPU of a core that has more, or as much as cores are.
fn unit_of(pool: &Pool, stock: &Stock) -> Unit {
    let is_part = |list: &CpuList| {
        let mut cores = stock.cores.iter();
        list.cpus.len() == 1
            && cores.any(|core| core.cpus.len() > 1 && list.cpus.is_subset(&core.cpus))
    };
    let is_by_threads = pool.kind == Kind::Exclusive && !pool.lists.is_empty();
    match is_by_threads && pool.lists.iter().all(is_part) {
        true => Unit::Thread,
        false => Unit::Core,
    }
}

/// The most CPUs that a core has.
fn threads(stock: &Stock) -> usize {
    let threads = stock.cores.iter().map(|core| core.cpus.len());
    threads.max().unwrap_or(1)
}

/// The lists of an exclusive pool; the cores of a shared one.
fn size(pool: &Pool, stock: &Stock) -> usize {
    match pool.kind {
        Kind::Exclusive => pool.lists.len(),
        Kind::Shared => {
            let lists = pool.lists.iter();
            lists.map(|list| cores_in(&list.cpus, stock).count()).sum()
        }
    }
}

/// The parts of a set that are of one core each; a CPU that is offline is one by itself.
fn cores_in<'a>(cpus: &'a CpuSet, stock: &'a Stock) -> impl Iterator<Item = CpuSet> + 'a {
    let known = stock.cores.iter().map(|core| core.cpus.intersection(cpus));
    let online: CpuSet = stock
        .cores
        .iter()
        .flat_map(|core| core.cpus.iter())
        .collect();
    let offline: Vec<u32> = cpus.difference(&online).iter().collect();
    let others = offline.into_iter().map(|cpu| CpuSet::from_iter([cpu]));
    known.filter(|part| !part.is_empty()).chain(others)
}

fn the_one_list(pool: &Pool) -> Result<&CpuList> {
    match &pool.lists[..] {
        [list] => Ok(list),
        lists => bail!(
            "the shared pool {} has {} lists: only one with a single list can be resized",
            pool.name,
            lists.len()
        ),
    }
}
