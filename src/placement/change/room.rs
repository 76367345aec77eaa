//! Finds a pool that could give up cores that another one lacks.

use anyhow::Result;

use crate::cpulist::CpuSet;
use crate::placement::View;
use crate::pools::carve::Cut;
use crate::pools::plan::{Cores, Stock};
use crate::pools::resize::{PoolStanding, cpus_of, resize};
use crate::pools::{Kind, Pool};
use crate::refusal::Refusal;
use crate::request::is_pool_name;

/// How the remedies begin that ask for fewer cores.
const ASK: &str = "ask for ";

impl View<'_> {
    /// Adds to a refusal for lack of cores the command by which another pool gives up enough of
    /// them. `fits` tells whether the refused change would do if exactly these CPUs were taken.
    pub(crate) fn with_room(
        &self,
        refused: anyhow::Error,
        wanted_for: &str,
        stock: &Stock,
        fits: impl Fn(&CpuSet) -> bool,
    ) -> anyhow::Error {
        let mut refusal = Refusal::of(&refused);
        match self.room(wanted_for, stock, fits) {
            Ok(Some(command)) if refusal.remedy.starts_with(ASK) => {
                refusal.remedy += &format!(", or make room first: {command}");
            }
            Ok(Some(command)) => refusal.remedy = format!("make room first: {command}"),
            Ok(None) => {}
            Err(error) => log::info!("look for room: {error:#}"),
        }
        refusal.into()
    }

    /// The command by which a pool gives up enough and no more: of the pools that can, the one that
    /// loses the fewest CPUs; among equals a shared one.
    fn room(
        &self,
        wanted_for: &str,
        stock: &Stock,
        fits: impl Fn(&CpuSet) -> bool,
    ) -> Result<Option<String>> {
        let taken = self.taken()?;
        let mut pools = Vec::new();
        for name in self.directory.pool_names()? {
            if name != wanted_for && is_pool_name(&name) {
                pools.push(self.directory.pool(&name)?);
            }
        }
        pools.sort_by_key(|pool| pool.kind == Kind::Exclusive);
        let mut found: Vec<(usize, String)> = Vec::new();
        for pool in &pools {
            found.extend(self.smaller_pool(pool, stock, &taken, &fits)?);
        }
        // A stable sort: shared pools stay first among equals.
        found.sort_by_key(|(loss, _)| *loss);
        Ok(found.into_iter().next().map(|(_, command)| command))
    }

    /// How many CPUs a pool would lose to make room, and by which command.
    fn smaller_pool(
        &self,
        pool: &Pool,
        stock: &Stock,
        taken: &CpuSet,
        fits: impl Fn(&CpuSet) -> bool,
    ) -> Result<Option<(usize, String)>> {
        let owners = pool.lists.iter().map(|list| self.owner_of(list));
        let owners = owners.collect::<Result<Vec<_>>>()?;
        let standing = PoolStanding {
            pool,
            owners: &owners,
            stock,
            taken,
        };
        for size in (1..standing.size()).rev() {
            let Ok(smaller) = resize(&standing, Cores::Count(size), Cut::default()) else {
                break;
            };
            let mut lost: CpuSet = smaller.removed.iter().flat_map(CpuSet::iter).collect();
            if let Some((from, to)) = &smaller.renamed {
                lost.extend(&from.difference(to));
            }
            if fits(&taken.difference(&lost)) {
                let command = format!("`pinfold pool resize {} {size}`", pool.name);
                return Ok(Some((lost.len(), command)));
            }
        }
        let all = cpus_of(&pool.lists);
        if owners.iter().all(Option::is_none) && fits(&taken.difference(&all)) {
            let command = format!("`pinfold pool remove {}`", pool.name);
            return Ok(Some((all.len(), command)));
        }
        Ok(None)
    }
}
