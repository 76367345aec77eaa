//! Changing the pools while containers run: CPUs that are in no pool are given to one, and lists without owners taken
//! out of one. A shared list grows under its owners, who get the new CPUs.

use anyhow::{Context, Result, bail, ensure};

use super::{Books, Site};
use crate::cgroup::Hierarchy;
use crate::claims::Entry;
use crate::cpulist::CpuSet;
use crate::pools::plan::{Cores, PlannedPool, PoolSpec, Stock, Unit, plan};
use crate::pools::resize::{Standing, cpus_of, resize};
use crate::pools::{CpuList, Kind};
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
    /// The pool that was to be removed is not there.
    pub is_unknown: bool,
    /// Lists that it got.
    pub added: Vec<CpuSet>,
    /// Lists that it lost.
    pub removed: Vec<CpuSet>,
    /// A shared list that became another.
    pub renamed: Option<(CpuSet, CpuSet)>,
    /// The ids of the owners who were given other CPUs.
    pub owners: Vec<String>,
    /// The processes that another tool put into the list that became another: they keep the CPUs that they have.
    pub strangers: Vec<i32>,
    /// Of a pool by threads: the CPUs that are in no pool now and share a core with it.
    pub siblings: CpuSet,
}

impl Changed {
    fn becomes<'a>(&'a self, list: &'a CpuSet) -> &'a CpuSet {
        let renamed = self.renamed.as_ref().filter(|(from, _)| from == list);
        renamed.map_or(list, |(_, to)| to)
    }
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
    /// The pool's name.
    pub fn name(&self) -> &str {
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
            let cores = stock.cores_in(&cpus_of(&pool.lists)).len();
            let lists = match (spec.kind, spec.unit) {
                (Kind::Shared, _) => 1,
                (Kind::Exclusive, Unit::Core) => cores,
                (Kind::Exclusive, Unit::Thread) => cpus_of(&pool.lists).len(),
            };
            let has_all = match spec.cores {
                Cores::Count(count) => count == cores,
                Cores::Rest => stock.without(&self.taken()?).is_used_up(spec),
            };
            ensure!(
                has_all && pool.kind == spec.kind && pool.lists.len() == lists,
                "there is a pool {} already: see pinfold pool show, and pinfold pool resize",
                spec.name
            );
            return Ok(Changed::default());
        }
        let planned = plan(&stock.without(&self.taken()?), std::slice::from_ref(spec))?;
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
            return Ok(Changed {
                is_unknown: true,
                ..Changed::default()
            });
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
        let owners = pool.lists.iter().map(|list| self.owner_of(list));
        let standing = Standing {
            pool: &pool,
            owners: &owners.collect::<Result<Vec<_>>>()?,
            stock,
            taken: &self.taken()?,
        };
        let resized = resize(&standing, spec.cores, spec.cut)?;
        let mut changed = Changed {
            added: resized.added,
            removed: resized.removed,
            renamed: resized.renamed,
            siblings: resized.siblings,
            ..Changed::default()
        };
        if pool.kind == Kind::Shared {
            for list in &pool.lists {
                let to = changed.becomes(&list.cpus).clone();
                let claims = self.claims_to_follow(&pool, &list.name, &to)?;
                changed
                    .owners
                    .extend(claims.into_iter().map(|claim| claim.id));
                if to != list.cpus {
                    changed.strangers.extend(self.strangers_in(list)?);
                }
            }
        }
        Ok(changed)
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
            for list in &self.directory.pool(name)?.lists {
                self.follow(&pool, list, steps.becomes(&list.cpus))?;
            }
        }
        Ok(())
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
        for entry in self.ledger.on_list(&list.name)? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)?.is_alive() => {
                    return Ok(Some(claim.shown()));
                }
                Entry::Claim(_) => {}
                Entry::Opaque { path, .. } => {
                    return Ok(Some(format!("the claim {}", path.display())));
                }
            }
        }
        let strangers = self.strangers_in(list)?;
        Ok(strangers.first().map(|pid| format!("process {pid}")))
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
}
