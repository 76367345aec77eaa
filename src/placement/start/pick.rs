//! Picking CPU lists for a request: those that are free; and those of dead owners, which are freed
//! first.

use std::time::Instant;

use anyhow::{Error, Result, bail, ensure};

use crate::cgroup::cpuset::Bound;
use crate::choose::{NoChoice, Offer, Reach, Situation, Want, choose, cpus_that_matter};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::isolation::Wanted;
use crate::isolation::tuning::Tuning;
use crate::outside;
use crate::placement::Books;
use crate::placement::end::reap::Owners;
use crate::placement::refusal::{Considered, no_such_node};
use crate::pools::{CpuList, Kind, OfferedList, OfferedPool};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::topology::{self, Levels};

/// How many lists are looked at for dead owners before choosing again; twice as many each time. A
/// usual pool is looked at in one go, so that its best lists are found.
const FIRST_LOOK: usize = 64;

/// How many owners a start frees of a shared pool before it leaves the rest to the next start.
const MOST_FREED: usize = 32;

/// A pool as it was read, and the lists that were picked of it.
pub(crate) struct Picked {
    pub(crate) pool: OfferedPool,
    /// Indices into the pool's lists, ascending.
    pub(crate) chosen: Vec<usize>,
    /// How others are to be kept off, if at all.
    pub(crate) isolation: Option<Wanted>,
    /// What else of the machine is to be set for the owner?
    pub(crate) tuning: Tuning,
}

impl Picked {
    pub(crate) fn cpus(&self) -> CpuSet {
        let lists = self.chosen.iter().map(|index| &self.pool.lists[*index]);
        lists.map(|list| &list.cpus).collect()
    }

    /// The directory names of the lists.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = self
            .chosen
            .iter()
            .map(|index| &self.pool.lists[*index].name);
        names.cloned().collect()
    }
}

/// A request, with all that can be known of it without the lock.
pub(crate) struct Demand<'a> {
    pub(crate) request: &'a Request,
    /// The request, resolved for this machine.
    pub(crate) want: Want,
    /// The CPUs that are online.
    pub(crate) online: CpuSet,
    /// The lists that the container had before it came back.
    pub(crate) former: &'a [String],
}

impl<'a> Demand<'a> {
    pub(crate) fn of(host: &Host, request: &'a Request) -> Result<Demand<'a>> {
        Ok(Demand {
            request,
            want: want(host, request)?,
            online: topology::online(host)?,
            former: &[],
        })
    }

    pub(crate) fn with_former(self, former: &'a [String]) -> Demand<'a> {
        Demand { former, ..self }
    }
}

/// Resolves a request for this machine: finds the NUMA nodes of the device that it names.
pub(crate) fn want(host: &Host, request: &Request) -> Result<Want> {
    let near = match &request.locality.near {
        Some(device) => topology::nodes_near(host, device)?,
        None => CpuSet::new(),
    };
    Ok(Want {
        size: request.size,
        numa: request.locality.numa,
        one_cache: request.locality.one_cache,
        near,
        rather_near: request.locality.rather_near.clone(),
    })
}

/// How far the search for dead owners in a pool has come.
struct Progress {
    /// The first list that was not looked at.
    next: usize,
    /// How many lists are looked at next.
    portion: usize,
    /// Lists whose dead owners are slow to free: chosen last.
    slow: Vec<usize>,
    /// The first error in telling who owns a list.
    untold: Option<Error>,
}

impl Progress {
    fn is_over(&self, pool: &OfferedPool) -> bool {
        self.next >= pool.lists.len() && self.slow.is_empty()
    }
}

impl Books<'_> {
    /// Picks lists. Where dead owners are in the way, frees what they hold of the lists to be
    /// given; the rest is left to those who need it, and to `reconcile`.
    pub(crate) fn pick(&self, demand: &Demand<'_>, bound: &Bound) -> Result<Picked> {
        let Demand {
            request,
            want,
            online,
            former,
        } = demand;
        let mut reach = Reach {
            online: online.clone(),
            allowed: bound.cpus.clone(),
        };
        let offered = self.directory.offered_pool(&request.pool, || {
            Ok(self.ledger.lists()?.into_iter().collect())
        });
        let mut pool = match offered {
            Err(_) if request.by_default && !self.has_pool(&request.pool)? => {
                bail!(self.directory.no_such_pool(&request.pool, Kind::Shared)?)
            }
            offered => offered?,
        };
        ensure!(
            !request.by_default || pool.kind == Kind::Shared,
            Refusal::new(
                format!(
                    "pool {} is the configuration's default-pool, and is exclusive",
                    pool.name
                ),
                "name a shared pool there"
            )
        );
        if let Some(cpus) = &request.exact {
            return self.pick_exact(pool, cpus, demand, bound);
        }
        let isolation = self.isolation_of(&pool)?;
        let tuning = self.tuning_of(&pool, &request.tuning)?;
        if isolation.is_some() {
            // CPUs that dead owners still keep from others are allowed once those are freed.
            reach.allowed.extend(&outside::kept(self.host));
        }
        if pool.kind == Kind::Shared {
            self.reap_shared(&mut pool)?;
        }
        let mut owners: Vec<usize> = pool.lists.iter().map(OfferedList::owners).collect();
        let former = self.former_of(&pool, former, &mut owners)?;
        let mut look = Progress {
            next: 0,
            portion: FIRST_LOOK,
            slow: Vec::new(),
            untold: None,
        };
        let mut levels = None;
        loop {
            let offers = pool.lists.iter().zip(&owners);
            let offers = offers.map(|(list, owners)| Offer {
                cpus: &list.cpus,
                owners: *owners,
            });
            let offers: Vec<Offer<'_>> = offers.collect();
            let situation = Situation {
                kind: pool.kind,
                offers: &offers,
                former: &former,
                reach: &reach,
            };
            let known = match levels.take() {
                Some(levels) => levels,
                None => levels_for(self.host, &situation, want),
            };
            let choice = choose(&situation, want, &known);
            match choice {
                Ok(chosen) => {
                    let held = self.held_of(&pool, &chosen)?;
                    if held.is_empty() {
                        return Ok(Picked {
                            tuning,
                            pool,
                            chosen,
                            isolation,
                        });
                    }
                    held.into_iter().for_each(|index| owners[index] += 1);
                    levels = Some(known);
                }
                Err(
                    NoChoice::Exhausted { .. } | NoChoice::Scattered(_) | NoChoice::Untold { .. },
                ) if !look.is_over(&pool) => {
                    self.look_on(&pool, &mut look, &mut owners)?;
                }
                Err(refusal) => {
                    let refused = self.refused(&refusal, &reach, demand, bound)?;
                    return Err(look.untold.unwrap_or_else(|| refused.into()));
                }
            }
        }
    }

    /// The former lists of a container, by index. Those that only dead owners hold count as free:
    /// engines can start a container anew before they end its predecessor.
    fn former_of(
        &self,
        pool: &OfferedPool,
        names: &[String],
        owners: &mut [usize],
    ) -> Result<Vec<usize>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let lists = pool.lists.iter().enumerate();
        let former = lists.filter(|(_, list)| names.contains(&list.name));
        let former: Vec<usize> = former.map(|(index, _)| index).collect();
        for index in &former {
            if pool.kind == Kind::Exclusive && owners[*index] > 0 {
                self.ensure_time_to_look(&pool.name)?;
                let list = &pool.lists[*index].name;
                // What cannot be told counts as held.
                if let Ok(Owners::Dead) = self.owners_of(&pool.name, list) {
                    owners[*index] = 0;
                }
            }
        }
        Ok(former)
    }

    /// The refusal, with all that its reader needs. It may take its time.
    ///
    /// # Errors
    /// The pool is broken in a part that was not read before.
    fn refused(
        &self,
        refusal: &NoChoice,
        reach: &Reach,
        demand: &Demand<'_>,
        bound: &Bound,
    ) -> Result<Refusal> {
        let levels = Levels::without_cores(self.host, &demand.online);
        if let Some(refusal) = no_such_node(demand.request, &levels) {
            return Ok(refusal);
        }
        let pool = self.directory.pool(&demand.request.pool)?;
        let offer = |list: &'_ CpuList| -> Result<usize> {
            let claims = self.ledger.on_list(&list.name)?.len();
            Ok(list.tasks.len().max(claims))
        };
        // A list that cannot be looked at counts as owned.
        let owners: Vec<usize> = pool
            .lists
            .iter()
            .map(|list| offer(list).unwrap_or(1))
            .collect();
        let offers = pool.lists.iter().zip(owners);
        let offers: Vec<Offer<'_>> = offers
            .map(|(list, owners)| Offer {
                cpus: &list.cpus,
                owners,
            })
            .collect();
        let seen = Considered {
            pool: &pool,
            offers: &offers,
            reach,
            levels: &levels,
            request: demand.request,
            bound: Some(bound),
            host: self.host,
        };
        Ok(seen.refusal(refusal))
    }

    /// Which of the chosen lists are held although they seemed free: another tool may have dropped
    /// a pid that it took for dead. What dead owners hold of them is freed.
    fn held_of(&self, pool: &OfferedPool, chosen: &[usize]) -> Result<Vec<usize>> {
        let mut held = Vec::new();
        if pool.kind == Kind::Exclusive {
            for index in chosen {
                self.ensure_time_to_look(&pool.name)?;
                if !self.clear_list(&pool.name, &pool.lists[*index].name)? {
                    // Not known to be held if time ran out before all owners were looked at.
                    self.ensure_time_to_look(&pool.name)?;
                    held.push(*index);
                }
            }
        }
        Ok(held)
    }

    /// Looks at the owners of some more lists. Lists of dead owners count as free from then on.
    fn look_on(&self, pool: &OfferedPool, look: &mut Progress, owners: &mut [usize]) -> Result<()> {
        if look.next >= pool.lists.len() {
            look.slow.drain(..).for_each(|index| owners[index] = 0);
            return Ok(());
        }
        let end = pool.lists.len().min(look.next + look.portion);
        let looked_at = pool.lists.iter().zip(owners).enumerate();
        for (index, (list, owners)) in looked_at.take(end).skip(look.next) {
            if *owners == 0 {
                continue;
            }
            self.ensure_time_to_look(&pool.name)?;
            match self.owners_of(&pool.name, &list.name) {
                Ok(Owners::Living) => {}
                Ok(Owners::Dead) => *owners = 0,
                Ok(Owners::Slow) => look.slow.push(index),
                // It counts as owned.
                Err(error) => {
                    look.untold.get_or_insert(error);
                }
            }
        }
        look.next = end;
        look.portion *= 2;
        Ok(())
    }

    /// Frees some dead owners of a shared pool at each start: such a pool is never exhausted, and
    /// would fill with them.
    pub(crate) fn reap_shared(&self, pool: &mut OfferedPool) -> Result<()> {
        let mut freed = 0;
        for list in &mut pool.lists {
            let mut pids = list.tasks.iter().flatten();
            if freed >= MOST_FREED || !pids.any(|pid| !self.is_pid_alive(*pid)) {
                continue;
            }
            if Instant::now() < self.until {
                let most = MOST_FREED - freed;
                freed += self.reap_list(&pool.name, &list.name, most)?.freed.len();
                list.tasks = Some(self.directory.tasks(&pool.name, &list.name)?);
            }
        }
        Ok(())
    }
}

/// Reads only what the choice depends on. Lists of several CPUs count as whole cores.
fn levels_for(host: &Host, situation: &Situation<'_>, want: &Want) -> Levels {
    let cpus = cpus_that_matter(situation, want);
    let may_share_cores = situation.offers.iter().any(|offer| offer.cpus.len() == 1);
    match (
        cpus.is_empty(),
        may_share_cores && situation.kind == Kind::Exclusive,
    ) {
        (true, _) => Levels::default(),
        (false, true) => Levels::of(host, &cpus),
        (false, false) => Levels::without_cores(host, &cpus),
    }
}
