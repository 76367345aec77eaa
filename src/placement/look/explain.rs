//! Explains what a request would get now, without taking it.

use anyhow::{Result, bail, ensure};

use crate::choose::{Offer, Reach, Situation, Want, choose};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::isolation::{NEEDED, Wanted, how_to_say};
use crate::outside::{self, Obstacle};
use crate::placement::Site;
use crate::placement::look::survey::{ListState, SurveyedList, survey};
use crate::placement::refusal::{Considered, by_node, no_such_node};
use crate::placement::start::pick::want;
use crate::pools::{Kind, Pool, PoolDirectory};
use crate::refusal::Refusal;
use crate::request::{Mems, Numa, Request, Size};
use crate::topology::{self, CpuGroup, Gap, Levels};

/// What a request would get now, and why.
#[derive(Debug)]
pub struct Explanation {
    /// The lists, by first CPU; or the refusal.
    pub taken: Result<Vec<Taken>, Refusal>,
    /// The NUMA nodes that its memory would be confined to; empty if it would not be.
    pub mems: CpuSet,
    /// The reasons, a sentence each.
    pub why: Vec<String>,
    /// What looks wrong, or could not be looked at.
    pub remarks: Vec<Refusal>,
}

/// A list, and where it lies.
#[derive(Debug)]
pub struct Taken {
    /// Its directory's name.
    pub list: String,
    /// Its NUMA nodes, by number.
    pub nodes: CpuSet,
    /// Its packages, by number.
    pub packages: CpuSet,
    /// The pool's CPUs that share a last-level cache with it.
    pub cache: CpuSet,
}

/// Chooses for a container whose cgroups allow all CPUs. What dead owners hold counts as free.
///
/// # Errors
/// The pool or the device does not exist; the pools or the claims cannot be read.
pub fn explain(site: &Site, request: &Request) -> Result<Explanation> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    let pool = directory.sound_pool(&request.pool)?;
    if pool.kind == Kind::Exclusive {
        // A start does not begin where it cannot read them.
        directory.options(&pool.name)?;
    }
    let want = want(&site.host, request)?;
    let mut survey = survey(site)?;
    if let Some(refusal) = survey.claims_unread {
        bail!(refusal);
    }
    let place = survey
        .pools
        .iter()
        .position(|other| other.name == pool.name);
    let place = place.map(|place| survey.pools.swap_remove(place));
    let (surveyed, options) = place
        .map(|pool| (pool.lists, pool.options))
        .unwrap_or_default();
    let is_same = surveyed
        .iter()
        .map(|list| &list.name)
        .eq(pool.lists.iter().map(|list| &list.name));
    ensure!(
        is_same,
        Refusal::new(
            format!("pool {} was changed meanwhile", pool.name),
            "try again"
        )
    );
    let wanted = match pool.kind {
        Kind::Shared => None,
        Kind::Exclusive => match options.wanted(&pool.name) {
            Err(refusal) if options.is_needed(&pool.name) == Ok(false) => {
                survey.remarks.push(refusal);
                None
            }
            wanted => wanted?,
        },
    };
    let online = topology::online(&site.host)?;
    let reach = Reach {
        online: online.clone(),
        allowed: online.clone(),
    };
    let offers: Vec<Offer<'_>> = pool
        .lists
        .iter()
        .zip(&surveyed)
        .map(|(list, surveyed)| Offer {
            cpus: &list.cpus,
            owners: owners(surveyed),
        })
        .collect();
    let all: CpuSet = pool.lists.iter().map(|list| &list.cpus).collect();
    let levels = Levels::of(&site.host, &all.intersection(&online));
    let situation = Situation {
        kind: pool.kind,
        offers: &offers,
        former: &[],
        reach: &reach,
    };
    let chosen = choose(&situation, &want, &levels);
    let mut explanation = Explanation {
        taken: Ok(Vec::new()),
        mems: CpuSet::new(),
        why: reasons(
            &pool,
            &offers,
            &online,
            &levels,
            request,
            &want,
            chosen.as_deref().ok(),
        ),
        remarks: survey.remarks,
    };
    match chosen {
        Err(refusal) => {
            let all = Levels::without_cores(&site.host, &online);
            let seen = Considered {
                pool: &pool,
                offers: &offers,
                reach: &reach,
                levels: &levels,
                request,
                bound: None,
                host: &site.host,
            };
            let refusal = no_such_node(request, &all).unwrap_or_else(|| seen.refusal(&refusal));
            explanation.taken = Err(refusal);
        }
        Ok(chosen) => {
            let lists = chosen.iter().map(|index| &pool.lists[*index]);
            let cpus: CpuSet = lists.map(|list| &list.cpus).collect();
            let obstacle = match wanted {
                Some(wanted) => to_keeping_off(&site.host, &cpus, wanted)?,
                None => None,
            };
            if let (Some(wanted), Some(obstacle)) = (wanted, obstacle) {
                let name = &pool.name;
                let what = format!(
                    "others can run on {cpus} of pool {name}, which it would have by its mask \
                     alone: {}",
                    obstacle.what
                );
                if wanted.is_needed {
                    let remedy = format!(
                        "{}; or {}",
                        obstacle.remedy,
                        how_to_say(site.options.get(name), name, NEEDED, "no")
                    );
                    explanation.why.clear();
                    explanation.taken = Err(Refusal::new(what, remedy));
                    return Ok(explanation);
                }
                explanation.why.push(what);
            }
            if request.mems == Mems::Local {
                explanation.mems = topology::local_memory_nodes(&site.host, &cpus)?;
            }
            explanation.taken = Ok(chosen
                .iter()
                .map(|index| taken(&pool, *index, &levels))
                .collect());
        }
    }
    Ok(explanation)
}

/// What keeps others on these CPUs, whoever is given them and wherever it runs. Where that is not
/// to refuse a start, CPUs of `isolcpus=` do without more.
fn to_keeping_off(host: &Host, cpus: &CpuSet, wanted: Wanted) -> Result<Option<Obstacle>> {
    let Some(obstacle) = outside::obstacle_to_all(host)? else {
        return Ok(None);
    };
    let is_apart = !wanted.is_needed && cpus.is_subset(&topology::isolated(host)?);
    let is_kept = is_apart || outside::is_kept_by_a_slice(host, cpus, wanted.kind)?;
    Ok((!is_kept).then_some(obstacle))
}

fn owners(list: &SurveyedList) -> usize {
    match list.state {
        ListState::Owned => list.owners.max(1),
        ListState::Free | ListState::Dead => 0,
    }
}

fn taken(pool: &Pool, index: usize, levels: &Levels) -> Taken {
    let list = &pool.lists[index];
    let gaps = &levels.gaps;
    let numbers = |groups: &[CpuGroup], gap: &Gap| {
        let told = told(&list.cpus, groups, gap);
        told.map(|group| group.id).collect()
    };
    let caches = told(&list.cpus, &levels.caches, &gaps.caches);
    Taken {
        list: list.name.clone(),
        nodes: numbers(&levels.nodes, &gaps.nodes),
        packages: numbers(&levels.packages, &gaps.packages),
        cache: caches.map(|group| &group.cpus).collect(),
    }
}

/// The groups of a level in which these CPUs lie, without those of which the kernel does not tell.
pub(super) fn told<'a>(
    cpus: &'a CpuSet,
    groups: &'a [CpuGroup],
    gap: &'a Gap,
) -> impl Iterator<Item = &'a CpuGroup> {
    let touched = groups
        .iter()
        .filter(move |group| !group.cpus.is_disjoint(cpus));
    touched.filter(|group| group.cpus.is_disjoint(&gap.cpus))
}

/// What was weighed, most important first; a sentence each.
fn reasons(
    pool: &Pool,
    offers: &[Offer<'_>],
    online: &CpuSet,
    levels: &Levels,
    request: &Request,
    want: &Want,
    chosen: Option<&[usize]>,
) -> Vec<String> {
    let mut why = Vec::new();
    let is_free = |index: &usize| {
        let offer = &offers[*index];
        offer.cpus.is_subset(online) && (offer.owners == 0 || pool.kind == Kind::Shared)
    };
    let free: Vec<usize> = (0..offers.len()).filter(is_free).collect();
    why.push(format!(
        "{} of {} CPU lists can be given{}",
        free.len(),
        offers.len(),
        where_they_lie(&free, offers, levels)
    ));
    if let Some(device) = &request.locality.near {
        why.push(match want.near.is_empty() {
            true => format!("the kernel tells no NUMA node of {device}: it does not count"),
            false => format!("{device} is near NUMA node {}", want.near),
        });
    }
    let Some(chosen) = chosen else {
        return why;
    };
    if pool.kind == Kind::Shared {
        why.push(format!(
            "it has the fewest owners, {}",
            offers[chosen[0]].owners
        ));
        return why;
    }
    let cpus: CpuSet = chosen.iter().map(|index| offers[*index].cpus).collect();
    let count = |groups: &[CpuGroup]| {
        groups
            .iter()
            .filter(|group| !group.cpus.is_disjoint(&cpus))
            .count()
    };
    let gaps = &levels.gaps;
    let counted = |groups: &[CpuGroup], gap: &Gap, what: &str| match count(groups) {
        _ if !gap.cpus.is_disjoint(&cpus) => format!("{what}s that the kernel does not tell"),
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    let places = [
        counted(&levels.nodes, &gaps.nodes, "NUMA node"),
        counted(&levels.packages, &gaps.packages, "package"),
        counted(&levels.caches, &gaps.caches, "last-level cache"),
    ];
    why.push(match want.numa {
        Numa::Spread => format!("spread over {}", places.join(", ")),
        _ => format!(
            "it takes {}, and no way takes fewer, counted in this order",
            places.join(", ")
        ),
    });
    if let Size::Cpus(asked) = request.size {
        if cpus.len() > asked {
            why.push(format!(
                "{} CPUs for {asked}, because CPU lists are given whole",
                cpus.len()
            ));
        }
    }
    let left: Vec<usize> = free
        .into_iter()
        .filter(|index| !chosen.contains(index))
        .collect();
    why.push(format!(
        "{} left{}",
        left.len(),
        where_they_lie(&left, offers, levels)
    ));
    why
}

/// `: 2 on node 0, 4 on node 1`; empty on a machine with one node.
fn where_they_lie(lists: &[usize], offers: &[Offer<'_>], levels: &Levels) -> String {
    if levels.nodes.len() < 2 || lists.is_empty() {
        return String::new();
    }
    let lists = lists.iter().map(|index| (offers[*index].cpus, 1));
    format!(": {}", by_node(lists, levels))
}
