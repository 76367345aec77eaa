//! Changes pools while containers run: adds CPUs that are in no pool, and takes out lists that
//! nobody owns. If a shared list grows, its owners get the new CPUs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::cpuset;
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::isolation::{self, Options};
use crate::outside;
use crate::placement::change::stock::givable;
use crate::placement::life::Life;
use crate::placement::look::survey::trial;
use crate::placement::{Books, Site, View};
use crate::pools::plan::{Cores, ListUnit, PlannedPool, PoolSpec, Stock, plan};
use crate::pools::resize::{PoolStanding, cpus_of, resize};
use crate::pools::{CpuList, Kind, LockError, Pool, PoolDirectory};
use crate::refusal::Refusal;
use crate::topology;

/// The remedy if CPUs are already in use.
const OTHERS: &str = "name CPUs that are in no pool (`pinfold pool show` shows them)";

/// A change of one pool.
#[derive(Debug)]
pub enum Change {
    /// Make a pool, cut as the spec says.
    Add(PoolSpec),
    /// Make a pool of these lists.
    AddLists(PlannedPool),
    /// Give an existing pool these lists. Lists that it loses must have no owners.
    Relist(PlannedPool),
    /// Remove a pool.
    Remove(String),
    /// Remove a pool, if it exists.
    RemoveIfThere(String),
    /// Resize a pool to so many lists, or cores in its one shared list. Name, cores and cut of the
    /// spec are used.
    Resize(PoolSpec),
}

/// What was changed, or would be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Is the pool new?
    pub is_new: bool,
    /// The lists that were added.
    pub added: Vec<CpuSet>,
    /// The lists that were removed.
    pub removed: Vec<CpuSet>,
    /// The shared list that became another: from, to.
    pub renamed: Option<(CpuSet, CpuSet)>,
    /// The owners who got other CPUs, as a sentence names them.
    pub owners: Vec<String>,
    /// Processes that another tool put into the list that changed; they keep the CPUs that they
    /// have.
    pub strangers: Vec<i32>,
    /// In a pool of single threads: the CPUs that share its cores and are in no pool.
    pub siblings: CpuSet,
}

impl Changed {
    fn becomes<'a>(&'a self, list: &'a CpuSet) -> &'a CpuSet {
        let renamed = self.renamed.as_ref().filter(|(from, _)| from == list);
        renamed.map_or(list, |(_, to)| to)
    }
}

/// Changes the pools. Can be repeated. `stock` are all cores of the machine; which of them are free
/// is found out under the lock.
///
/// # Errors
/// An owner is in the way, and is named; too few cores are free; CPUs are in another pool, or
/// offline.
pub fn change(site: &Site, stock: Stock, change: &Change) -> Result<Changed> {
    let books = site.open_books(cpuset::hierarchy(&site.host)?)?;
    let steps = books.steps(change, &stock)?;
    books.carry_out(change, &steps)?;
    drop(books);
    let options = match change {
        Change::Add(spec) => Some(&spec.options),
        Change::AddLists(pool) => Some(&pool.options),
        _ => None,
    };
    if let Some(options) = options {
        let cpus = steps.added.iter().collect();
        warn_of_isolcpus(site, change.name(), &cpus, options);
    }
    site.confine_host_or_warn();
    Ok(steps)
}

/// What [`change`] would do. Changes nothing, and does not wait for the lock.
///
/// # Errors
/// As [`change`].
pub fn try_change(site: &Site, stock: Stock, change: &Change) -> Result<Changed> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    // A trial does not need the right to take the lock.
    if let Err(LockError::Unusable(error)) = directory.ensure_let_go(&site.host, Duration::ZERO) {
        return Err(error);
    }
    trial(site, &directory, || {
        site.view(&directory)?.steps(change, &stock)
    })
}

/// Sets options of a pool for starts to come; `false` if nothing was to change.
///
/// # Errors
/// There is no such pool; it is shared, so its owners have no CPUs to keep others off; the files
/// cannot be written.
pub fn set_options(site: &Site, name: &str, options: &Options) -> Result<bool> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    let lock = directory.lock(&site.host, site.patience)?;
    let pool = directory.pool(name)?;
    ensure!(pool.kind == Kind::Exclusive, isolation::of_shared(name));
    let there = directory.options(name)?;
    warn_of_isolcpus(site, name, &cpus_of(&pool.lists), options);
    if options.or(there.clone()) == there {
        return Ok(false);
    }
    for (key, value) in options.said() {
        directory.set_option(&lock, name, key, value)?;
    }
    drop(lock);
    site.confine_host_or_warn();
    Ok(true)
}

/// Says of what is asked for now where the kernel will refuse it each time: with CPUs of
/// `isolcpus=` it makes only isolated partitions.
fn warn_of_isolcpus(site: &Site, name: &str, cpus: &CpuSet, options: &Options) {
    let wanted = options.wanted(name).ok().flatten();
    if wanted.is_none_or(|wanted| wanted.kind != isolation::Kind::Root) {
        return;
    }
    let isolated = topology::isolated(&site.host).unwrap_or_default();
    let isolated = isolated.intersection(cpus);
    if !isolated.is_empty() {
        log::warn!("{}", outside::pool_at_boot(name, &isolated));
    }
}

impl Change {
    /// The pool's name.
    pub fn name(&self) -> &str {
        match self {
            Change::Add(spec) | Change::Resize(spec) => &spec.name,
            Change::AddLists(pool) | Change::Relist(pool) => &pool.name,
            Change::Remove(name) | Change::RemoveIfThere(name) => name,
        }
    }
}

impl View<'_> {
    pub(crate) fn steps(&self, change: &Change, stock: &Stock) -> Result<Changed> {
        match change {
            Change::Add(spec) => self.adding(spec, stock),
            Change::AddLists(pool) => self.adding_lists(pool),
            Change::Relist(pool) => self.relisting(pool),
            Change::RemoveIfThere(name) if !self.has_pool(name)? => Ok(Changed::default()),
            Change::Remove(name) | Change::RemoveIfThere(name) => self.removing(name),
            Change::Resize(spec) => self.resizing(spec, stock),
        }
    }

    fn adding(&self, spec: &PoolSpec, stock: &Stock) -> Result<Changed> {
        if self.has_pool(&spec.name)? {
            let pool = self.directory.pool(&spec.name)?;
            let cores = stock.cores_in(&cpus_of(&pool.lists)).len();
            let lists = match (spec.kind, spec.unit) {
                (Kind::Shared, _) => 1,
                (Kind::Exclusive, ListUnit::Core) => cores,
                (Kind::Exclusive, ListUnit::Thread) => cpus_of(&pool.lists).len(),
            };
            let has_all = match spec.cores {
                Cores::Count(count) => count == cores,
                Cores::Rest => stock.without(&self.taken()?).is_used_up(spec),
            };
            ensure!(
                has_all && pool.kind == spec.kind && pool.lists.len() == lists,
                Refusal::new(
                    format!("there is a pool {} already, and it is another", spec.name),
                    self.existing_pool_remedy(&pool, spec)
                )
            );
            self.ensure_options(&spec.name, &spec.options)?;
            return Ok(Changed::default());
        }
        let specs = std::slice::from_ref(spec);
        let cut = |taken: &CpuSet| plan(&stock.without(taken), specs);
        let planned = cut(&self.taken()?).map_err(|refused| {
            self.with_room(refused, &spec.name, stock, |taken| cut(taken).is_ok())
        })?;
        Ok(Changed {
            is_new: true,
            added: planned.into_iter().flat_map(|pool| pool.lists).collect(),
            ..Changed::default()
        })
    }

    /// Checks that an existing pool has the options that are asked for.
    fn ensure_options(&self, name: &str, options: &Options) -> Result<()> {
        let there = self.directory.options(name)?;
        let said: Vec<String> = options
            .said()
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        ensure!(
            options.or(there.clone()) == there,
            Refusal::new(
                format!(
                    "there is a pool {name} already, without {}",
                    said.join(" and ")
                ),
                format!("`pinfold pool set {name} {}`", said.join(" "))
            )
        );
        Ok(())
    }

    fn adding_lists(&self, planned: &PlannedPool) -> Result<Changed> {
        let PlannedPool {
            name, kind, lists, ..
        } = planned;
        if self.has_pool(name)? {
            let pool = self.directory.pool(name)?;
            let mut wanted = lists.clone();
            wanted.sort();
            let there: Vec<CpuSet> = pool.lists.iter().map(|list| list.cpus.clone()).collect();
            ensure!(
                pool.kind == *kind && there == wanted,
                Refusal::new(
                    format!("there is a pool {name} already, with other lists"),
                    format!(
                        "name the new one otherwise, or remove the old one: \
                         `pinfold pool remove {name}`"
                    )
                )
            );
            self.ensure_options(name, &planned.options)?;
            return Ok(Changed::default());
        }
        self.taken()?;
        for list in lists {
            self.ensure_givable(list)?;
            if let Some(refusal) = self.who_has(list)? {
                bail!(refusal);
            }
        }
        Ok(Changed {
            is_new: true,
            added: lists.clone(),
            ..Changed::default()
        })
    }

    /// Checks that all CPUs of a list are online, and that containers here can be given them.
    pub(crate) fn ensure_givable(&self, list: &CpuSet) -> Result<()> {
        let online = topology::online(self.host)?;
        let givable = givable(self.host)?;
        let lacking = list.intersection(&online).difference(&givable);
        ensure!(
            lacking.is_empty(),
            Refusal::new(
                format!("no cgroup here allows CPU {lacking}"),
                "run this on the host itself"
            )
        );
        let offline = list.difference(&online);
        ensure!(
            offline.is_empty(),
            Refusal::new(
                format!("CPU {offline} is not online"),
                "put it online in /sys/devices/system/cpu first, or leave it out"
            )
        );
        Ok(())
    }

    /// What giving a pool other lists would change. A shared pool's one list may grow under its
    /// owners.
    fn relisting(&self, planned: &PlannedPool) -> Result<Changed> {
        let pool = self.directory.pool(&planned.name)?;
        let there: Vec<CpuSet> = pool.lists.iter().map(|list| list.cpus.clone()).collect();
        let without = |some: &[CpuSet], others: &[CpuSet]| -> Vec<CpuSet> {
            let is_apart = |list: &&CpuSet| !others.contains(list);
            some.iter().filter(is_apart).cloned().collect()
        };
        let mut changed = Changed {
            added: without(&planned.lists, &there),
            removed: without(&there, &planned.lists),
            ..Changed::default()
        };
        if let (Kind::Shared, [from], [to]) = (pool.kind, &there[..], &planned.lists[..]) {
            if from != to && from.is_subset(to) {
                let claims = self.claims_to_follow(&pool, &pool.lists[0].name, to)?;
                return Ok(Changed {
                    renamed: Some((from.clone(), to.clone())),
                    owners: claims.iter().map(Claim::shown).collect(),
                    strangers: self.strangers_in(&pool.lists[0])?,
                    ..Changed::default()
                });
            }
        }
        for list in pool
            .lists
            .iter()
            .filter(|list| changed.removed.contains(&list.cpus))
        {
            if let Some(owner) = self.owner_of(list)? {
                bail!(Refusal::new(
                    format!("{owner} owns {} of pool {}", list.name, planned.name),
                    "stop it first (`pinfold describe` shows it)"
                ));
            }
        }
        changed.added.sort();
        Ok(changed)
    }

    fn removing(&self, name: &str) -> Result<Changed> {
        // A pool that overlaps another can be removed, which may be what mends it.
        let pool = self.directory.pool(name)?;
        let mut lists = Vec::new();
        for list in &pool.lists {
            if let Some(owner) = self.owner_of(list)? {
                bail!(Refusal::new(
                    format!("{owner} owns {} of pool {name}", list.name),
                    "stop it first (`pinfold describe` shows it)"
                ));
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
        let owners = owners.collect::<Result<Vec<_>>>()?;
        let with = |taken: &CpuSet| {
            let standing = PoolStanding {
                pool: &pool,
                owners: &owners,
                stock,
                taken,
            };
            let is_more = matches!(spec.cores, Cores::Count(count) if count > standing.size());
            resize(&standing, spec.cores, spec.cut).map_err(|refused| (refused, is_more))
        };
        let resized = with(&self.taken()?).map_err(|(refused, is_more)| match is_more {
            true => self.with_room(refused, &spec.name, stock, |taken| with(taken).is_ok()),
            false => refused,
        })?;
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
                changed.owners.extend(claims.iter().map(Claim::shown));
                if to != list.cpus {
                    changed.strangers.extend(self.strangers_in(list)?);
                }
            }
        }
        Ok(changed)
    }

    pub(crate) fn has_pool(&self, name: &str) -> Result<bool> {
        Ok(self
            .directory
            .pool_names()?
            .iter()
            .any(|other| other == name))
    }

    /// The owner that keeps a list from being removed: a claim's owner, or a process that another
    /// tool recorded.
    pub(crate) fn owner_of(&self, list: &CpuList) -> Result<Option<String>> {
        for entry in self.ledger.on_list(&list.name)? {
            match entry {
                Entry::Claim(claim) if self.life_of(&claim)?.is_alive() => {
                    return Ok(Some(claim.shown()));
                }
                Entry::Claim(_) => {}
                Entry::Unreadable(one) => {
                    return Ok(Some(format!("the claim {}", one.path.display())));
                }
            }
        }
        let strangers = self.strangers_in(list)?;
        Ok(strangers.first().map(|pid| format!("process {pid}")))
    }

    /// The CPUs that are in a pool, or that an owner has.
    pub(crate) fn taken(&self) -> Result<CpuSet> {
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
                Entry::Unreadable(one) => bail!(one.refusal()),
            }
        }
        Ok(taken)
    }

    /// Says who has any of these CPUs: a list of a pool, or an owner without a list; `None` if
    /// nobody.
    fn who_has(&self, cpus: &CpuSet) -> Result<Option<Refusal>> {
        for name in self.directory.pool_names()? {
            let pool = self.directory.pool(&name)?;
            let Some(list) = pool.lists.iter().find(|list| !list.cpus.is_disjoint(cpus)) else {
                continue;
            };
            let common = list.cpus.intersection(cpus);
            let what = format!("CPU {common} is in list {} of pool {name}", list.name);
            let mut is_free = true;
            for other in &pool.lists {
                is_free &= self.owner_of(other)?.is_none();
            }
            let remedy = match (self.owner_of(list)?, is_free) {
                (Some(owner), _) => {
                    let what = format!("{what}, which {owner} owns");
                    return Ok(Some(Refusal::new(what, OTHERS)));
                }
                (None, true) => {
                    format!("{OTHERS}, or remove that pool: `pinfold pool remove {name}`")
                }
                (None, false) => OTHERS.to_owned(),
            };
            return Ok(Some(Refusal::new(what, remedy)));
        }
        let owners = self.ledger.all()?;
        let owner = owners.iter().filter_map(Entry::claim).find(|claim| {
            !claim.cpus.is_disjoint(cpus) && self.life_of(claim).map_or(true, Life::is_alive)
        });
        Ok(owner.map(|claim| {
            let common = claim.cpus.intersection(cpus);
            Refusal::new(
                format!("CPU {common} is in no pool, and {} owns it", claim.shown()),
                OTHERS,
            )
        }))
    }

    /// The remedy if a pool of this name exists that differs from the spec.
    fn existing_pool_remedy(&self, pool: &Pool, spec: &PoolSpec) -> String {
        let name = &spec.name;
        let size = match spec.cores {
            Cores::Count(count) => count.to_string(),
            Cores::Rest => "rest".to_owned(),
        };
        match pool.kind == spec.kind && spec.unit == ListUnit::Core {
            true => format!("give it its new size: `pinfold pool resize {name} {size}`"),
            false => format!(
                "it is {}: name the new one otherwise, or remove the old one: \
                 `pinfold pool remove {name}`",
                pool.kind.word()
            ),
        }
    }
}

impl Books<'_> {
    pub(crate) fn carry_out(&self, change: &Change, steps: &Changed) -> Result<()> {
        let name = change.name();
        if steps.is_new {
            let (kind, options) = match change {
                Change::Add(spec) | Change::Resize(spec) => (spec.kind, &spec.options),
                Change::AddLists(pool) | Change::Relist(pool) => (pool.kind, &pool.options),
                Change::Remove(_) | Change::RemoveIfThere(_) => return Ok(()),
            };
            let pool = PlannedPool {
                name: name.to_owned(),
                kind,
                lists: steps.added.clone(),
                options: options.clone(),
            };
            return self.directory.add_pool(&self.lock, &pool);
        }
        // Only an addition ends here for lack of changes: an interrupted resize may have left
        // owners without their new CPUs, and a pool to remove may have no lists.
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
        if let Change::Remove(_) | Change::RemoveIfThere(_) = change {
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

    /// Frees what dead owners hold of these lists, and checks that nobody holds them then.
    fn clear(&self, name: &str, lists: &[CpuSet]) -> Result<()> {
        let pool = self.directory.pool(name)?;
        for list in pool.lists.iter().filter(|list| lists.contains(&list.cpus)) {
            self.ensure_time_to_look(&pool.name)?;
            self.reap_list(name, &list.name, usize::MAX)?;
            self.ensure_time_to_look(&pool.name)?;
        }
        let pool = self.directory.pool(name)?;
        for list in pool.lists.iter().filter(|list| lists.contains(&list.cpus)) {
            let is_held = !list.tasks.is_empty() || !self.ledger.on_list(&list.name)?.is_empty();
            ensure!(
                !is_held,
                Refusal::new(
                    format!("what a dead owner held of {} could not be freed", list.name),
                    "`pinfold reconcile` says why"
                )
            );
        }
        Ok(())
    }
}
