//! Picking CPU lists for a request: what is free in `tasks`, what live claims hold all the same, what dead owners
//! can be relieved of.

use anyhow::Result;

use super::Books;
use super::refusal::{Seen, no_such_node};
use crate::cgroup::cpuset::Bound;
use crate::choose::{Offer, Reach, Refusal, Situation, Want, choose, cpus_that_matter};
use crate::claims::Entry;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::{CpuList, Kind, Pool};
use crate::request::Request;
use crate::topology::{self, Levels};

/// A pool as it was read, and the lists of it that were picked.
pub(super) struct Picked {
    pub(super) pool: Pool,
    /// Indices into the pool's lists, ascending.
    pub(super) chosen: Vec<usize>,
}

impl Picked {
    /// All CPUs of the lists.
    pub(super) fn cpus(&self) -> CpuSet {
        let mut cpus = CpuSet::new();
        for index in &self.chosen {
            cpus.extend(&self.pool.lists[*index].cpus);
        }
        cpus
    }

    /// The directory names of the lists.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self
            .chosen
            .iter()
            .map(|index| &self.pool.lists[*index].name);
        names.cloned().collect()
    }
}

/// A request, with everything about it that can be known without the lock.
pub(super) struct Wish<'a> {
    pub(super) request: &'a Request,
    /// What that is on this machine.
    pub(super) want: Want,
    /// What the machine can run on now.
    pub(super) online: CpuSet,
}

impl<'a> Wish<'a> {
    pub(super) fn of(host: &Host, request: &'a Request) -> Result<Wish<'a>> {
        Ok(Wish {
            request,
            want: want(host, request)?,
            online: topology::online(host)?,
        })
    }
}

/// What a request wants of this machine: the device that it names has a place here.
pub(super) fn want(host: &Host, request: &Request) -> Result<Want> {
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

impl Books<'_> {
    /// Picks; where dead owners are in the way, frees what they hold and picks again.
    pub(super) fn pick(&self, wish: &Wish<'_>, bound: &Bound) -> Result<Picked> {
        let Wish {
            request,
            want,
            online,
        } = wish;
        let reach = Reach {
            online: online.clone(),
            allowed: bound.cpus.clone(),
        };
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, want)? {
            Ok(chosen) if !self.has_dead_pids(&pool) => {
                return Ok(Picked { pool, chosen });
            }
            Ok(_)
            | Err(Refusal::Exhausted { .. } | Refusal::Scattered(_) | Refusal::Untold { .. }) => {}
            Err(refusal) => {
                return Err(self.refused(&refusal, &pool, &reach, wish, bound));
            }
        }
        self.reap_pool(&pool)?;
        let pool = self.directory.sound_pool(&request.pool)?;
        match self.choose_free(&pool, &reach, want)? {
            Ok(chosen) => Ok(Picked { pool, chosen }),
            Err(refusal) => Err(self.refused(&refusal, &pool, &reach, wish, bound)),
        }
    }

    /// A refusal with what whoever asked needs to know: it may take its time.
    fn refused(
        &self,
        refusal: &Refusal,
        pool: &Pool,
        reach: &Reach,
        wish: &Wish<'_>,
        bound: &Bound,
    ) -> anyhow::Error {
        let levels = Levels::without_cores(self.host, &wish.online);
        if let Some(refusal) = no_such_node(wish.request, &levels) {
            return refusal.into();
        }
        let offer = |list: &'_ CpuList| -> Result<usize> {
            let claims = self.ledger.on_list(&list.name)?.len();
            Ok(list.tasks.len().max(claims))
        };
        // One that cannot be looked at counts as owned.
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
        let seen = Seen {
            pool,
            offers: &offers,
            reach,
            levels: &levels,
            request: wish.request,
            bound: Some(bound),
        };
        seen.refusal(refusal).into()
    }

    /// A shared pool is never exhausted: there dead owners are seen by their numbers.
    fn has_dead_pids(&self, pool: &Pool) -> bool {
        let mut pids = pool.lists.iter().flat_map(|list| &list.tasks);
        pool.kind == Kind::Shared && pids.any(|pid| !self.is_pid_alive(*pid))
    }

    /// Chooses among the lists that are free in `tasks`, and passes over those that a live claim holds all
    /// the same: another tool may have dropped a pid that it took for dead. Only claims on chosen lists are read.
    fn choose_free(
        &self,
        pool: &Pool,
        reach: &Reach,
        want: &Want,
    ) -> Result<Result<Vec<usize>, Refusal>> {
        let mut offers: Vec<Offer<'_>> = pool
            .lists
            .iter()
            .map(|list| Offer {
                cpus: &list.cpus,
                owners: list.tasks.len(),
            })
            .collect();
        let levels = levels_for(self.host, &situation(pool, &offers, reach), want);
        loop {
            let chosen = match choose(&situation(pool, &offers, reach), want, &levels) {
                Ok(chosen) if pool.kind == Kind::Exclusive => chosen,
                other => return Ok(other),
            };
            let mut held = Vec::new();
            for index in &chosen {
                if self.is_held(&pool.lists[*index].name)? {
                    held.push(*index);
                }
            }
            if held.is_empty() {
                return Ok(Ok(chosen));
            }
            for index in held {
                offers[index].owners += 1;
            }
        }
    }

    /// Does any claim hold this list? What dead owners hold of it is freed on the way; a claim that makes trouble
    /// counts as held.
    fn is_held(&self, list: &str) -> Result<bool> {
        let mut held = false;
        for entry in self.ledger.on_list(list)? {
            held |= match entry {
                Entry::Claim(claim) => !self.free_if_gone(&claim).unwrap_or_else(|error| {
                    log::warn!("{} counts as held: {error:#}", claim.shown());
                    false
                }),
                Entry::Opaque { path, reason } => {
                    log::warn!("the claim {} counts as held: {reason}", path.display());
                    true
                }
            };
        }
        Ok(held)
    }
}

fn situation<'a>(pool: &Pool, offers: &'a [Offer<'a>], reach: &'a Reach) -> Situation<'a> {
    Situation {
        kind: pool.kind,
        offers,
        reach,
    }
}

/// Reads no more of the machine than the choice depends on. Lists of more than one CPU count as whole cores.
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
