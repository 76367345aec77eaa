//! Makes the pools as they are declared, by the changes that `pool` makes one at a time.

use anyhow::{Context, Result, bail};

use crate::cgroup::cpuset;
use crate::cpulist::CpuSet;
use crate::files;
use crate::isolation::Options;
use crate::placement::look::survey::trial;
use crate::placement::{Books, Change, Existing, Site, View, init, try_init};
use crate::pools::converge::{
    Course, Declared, Deviation, HeldPool, Present, Step, Undeclared, course,
};
use crate::pools::plan::{ListUnit, PlannedPool, PoolSpec, Stock};
use crate::pools::resize::cpus_of;
use crate::pools::{Kind, PoolDirectory};

/// What `apply` did, or would do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The pools before.
    pub before: Vec<PlannedPool>,
    /// The pools after.
    pub after: Vec<PlannedPool>,
    /// What stays otherwise than declared, because somebody owns it.
    pub kept: Vec<Deviation>,
    /// The owners who got other CPUs, as a sentence names them.
    pub owners: Vec<String>,
    /// Processes that another tool put into a list that changed; they keep the CPUs that they have.
    pub strangers: Vec<i32>,
}

/// Makes the pools as declared. If they are so already, nothing is written and the lock is not
/// taken.
///
/// # Errors
/// More is declared than the machine has; pools cannot be read or written. Reported before the
/// first change where possible.
pub fn apply(
    site: &Site,
    stock: &Stock,
    declared: &[Declared],
    undeclared: Undeclared,
) -> Result<Applied> {
    let (seen, course) = look(site, stock, declared, undeclared)?;
    if course.steps.is_empty() {
        return Ok(seen);
    }
    if !has_pools(site)? {
        init(site, &course.after, Existing::Keep)?;
        return Ok(seen);
    }
    let books = site.open_books(cpuset::hierarchy(&site.host)?)?;
    let applied = books.converge(stock, declared, undeclared);
    drop(books);
    site.confine_host_or_warn();
    applied
}

/// What [`apply`] would do. Changes nothing, and does not wait for the lock.
///
/// # Errors
/// As [`apply`].
pub fn try_apply(
    site: &Site,
    stock: &Stock,
    declared: &[Declared],
    undeclared: Undeclared,
) -> Result<Applied> {
    let (seen, course) = look(site, stock, declared, undeclared)?;
    if site.host.is_running_root() && !course.steps.is_empty() {
        PoolDirectory::ensure_can_begin(&site.conf_dir)?;
    }
    Ok(seen)
}

fn look(
    site: &Site,
    stock: &Stock,
    declared: &[Declared],
    undeclared: Undeclared,
) -> Result<(Applied, Course)> {
    if !has_pools(site)? {
        let present = Present {
            stock,
            pools: Vec::new(),
            owned: CpuSet::new(),
        };
        let course = course(present, declared, undeclared)?;
        try_init(site, &course.after, Existing::Keep)?;
        let applied = Applied {
            after: course.after.clone(),
            ..Applied::default()
        };
        return Ok((applied, course));
    }
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    trial(site, &directory, || {
        site.view(&directory)?.course(stock, declared, undeclared)
    })
}

fn has_pools(site: &Site) -> Result<bool> {
    Ok(files::entry_if_there(&site.conf_dir.join("pools"))?.is_some())
}

impl View<'_> {
    fn course(
        &self,
        stock: &Stock,
        declared: &[Declared],
        undeclared: Undeclared,
    ) -> Result<(Applied, Course)> {
        let mut present = Present {
            stock,
            pools: Vec::new(),
            owned: self.taken()?,
        };
        for name in self.directory.pool_names()? {
            let pool = self.directory.sound_pool(&name)?;
            let owners = pool.lists.iter().map(|list| self.owner_of(list));
            let owners = owners.collect::<Result<_>>()?;
            present.owned = present.owned.difference(&cpus_of(&pool.lists));
            present.pools.push(HeldPool { pool, owners });
        }
        let before = self.planned()?;
        let course = course(present, declared, undeclared)?;
        for one in declared {
            let Declared::Lists(pool) = one else { continue };
            let has = |list: &CpuSet| before.iter().any(|other| other.lists.contains(list));
            for list in pool.lists.iter().filter(|list| !has(list)) {
                self.ensure_givable(list)
                    .with_context(|| format!("pools.{}.lists", pool.name))?;
            }
        }
        let applied = Applied {
            before,
            after: course.after.clone(),
            kept: course.kept.clone(),
            ..Applied::default()
        };
        Ok((applied, course))
    }

    fn planned(&self) -> Result<Vec<PlannedPool>> {
        let names = self.directory.pool_names()?.into_iter();
        let planned = |name: String| {
            let pool = self.directory.pool(&name)?;
            Ok(PlannedPool {
                name,
                kind: pool.kind,
                lists: pool.lists.into_iter().map(|list| list.cpus).collect(),
                options: Options::default(),
            })
        };
        names.map(planned).collect()
    }
}

impl Books<'_> {
    fn converge(
        &self,
        stock: &Stock,
        declared: &[Declared],
        undeclared: Undeclared,
    ) -> Result<Applied> {
        let (mut applied, course) = self.course(stock, declared, undeclared)?;
        for step in &course.steps {
            let change = change_of(step);
            let steps = self.steps(&change, stock)?;
            self.carry_out(&change, &steps)?;
            applied.owners.extend(steps.owners);
            applied.strangers.extend(steps.strangers);
        }
        applied.owners.sort();
        applied.owners.dedup();
        applied.after = self.planned()?;
        if applied.after != course.after {
            bail!("the pools have become others than planned: `pinfold pool show` has them");
        }
        Ok(applied)
    }
}

fn change_of(step: &Step) -> Change {
    match step {
        Step::Add(pool) => Change::AddLists(pool.clone()),
        Step::Remove(name) => Change::Remove(name.clone()),
        Step::Relist(pool) => Change::Relist(pool.clone()),
        Step::Resize { name, cores, cut } => Change::Resize(PoolSpec {
            name: name.clone(),
            cores: *cores,
            // A resize does not change kind and unit.
            kind: Kind::Exclusive,
            cut: *cut,
            unit: ListUnit::Core,
            options: Options::default(),
        }),
    }
}
