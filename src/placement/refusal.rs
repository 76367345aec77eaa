//! A refused choice as a sentence.

use std::path::Path;

use crate::cgroup::cpuset::Bound;
use crate::choose::{Refusal, Scattered, Within};
use crate::cpulist::CpuSet;
use crate::pools::{Kind, Pool};
use crate::request::{Request, Size};

/// The reason, what would have fitted, and what to do. Whoever asked adds for whom, and which pool. Without a bound
/// nothing but what is online limits the owner.
pub(super) fn sentence(
    refusal: &Refusal,
    pool: &Pool,
    request: &Request,
    bound: Option<&Bound>,
) -> String {
    let size = request.size;
    let group = bound.map_or_else(|| "/".to_owned(), |bound| bound.group().to_string());
    match refusal {
        Refusal::Exhausted { free } => format!(
            "the pool is exhausted: {size} asked for, {free} free: stop an owner (pinfold describe shows them), or make the pool larger"
        ),
        Refusal::TooSmall { all } => {
            let cpus = pool.lists.iter().map(|list| list.cpus.len()).sum::<usize>();
            let whole = match (pool.kind, size) {
                (Kind::Shared, _) => *all,
                (Kind::Exclusive, Size::Lists(_)) => pool.lists.len(),
                (Kind::Exclusive, Size::Cpus(_)) => cpus,
            };
            let reason = if whole > *all {
                format!(", for others are offline or not allowed by the cgroup {group}")
            } else {
                String::new()
            };
            format!(
                "the pool is too small: {size} asked for, and it can give {all} at most{reason}: ask for less, or make it larger"
            )
        }
        Refusal::Scattered(scattered) => of_scattered(scattered, pool, size),
        Refusal::Untold { within, gap } => format!(
            "{size} asked for within {within}, and the kernel does not tell the {} of the CPUs {} ({gap}): drop pinfold.io/{}",
            level(*within),
            gap.cpus,
            key(*within)
        ),
        Refusal::Spans(within) => format!(
            "no CPU list of the pool that is large enough lies within {within}: drop pinfold.io/{}, or use another pool",
            key(*within)
        ),
        Refusal::OneListOnly => format!(
            "the pool is shared, which gives one CPU list, and {size} asked for: ask for 1, or use pinfold.io/cpus"
        ),
        Refusal::Offline => {
            "every CPU list of the pool has a CPU that is offline: put CPUs online in /sys/devices/system/cpu, or change the pool".to_owned()
        }
        Refusal::NotAllowed => format!(
            "the cgroup {group} allows only the CPUs {}, which hold no CPU list of the pool: {}, or use another pool",
            bound.map_or_else(String::new, |bound| bound.cpus.to_string()),
            way_in(pool, bound)
        ),
    }
}

/// Where the pool's CPUs are a partition's, nobody outside it can have them, whatever is widened.
fn way_in(pool: &Pool, bound: Option<&Bound>) -> String {
    let partitions = bound.map(Bound::partitions).unwrap_or_default();
    let has_some = |cpus: &CpuSet| pool.lists.iter().any(|list| list.cpus.is_subset(cpus));
    match partitions.iter().find(|(_, cpus)| has_some(cpus)) {
        Some((slice, _)) => format!(
            "those are a partition of {}, so start it there (--cgroup-parent {})",
            slice.path(),
            slice.path().rsplit('/').next().unwrap_or_default()
        ),
        None => "widen that".to_owned(),
    }
}

fn of_scattered(scattered: &Scattered, pool: &Pool, size: Size) -> String {
    let Scattered {
        within,
        free,
        places,
        fits,
        node,
        ever,
    } = scattered;
    let unit = match size {
        Size::Lists(_) => "lists",
        Size::Cpus(_) => "CPUs",
    };
    let where_they_are = match within {
        Within::OneNode => format!("on {places} NUMA nodes; {fits} fit on node {node}"),
        Within::Node(number) => format!("{fits} of them on node {number}"),
        Within::OneCache => {
            format!("under {places} last-level caches; {fits} fit under one, on node {node}")
        }
        Within::OneCacheOf(number) => {
            format!("{fits} of them under one last-level cache of node {number}")
        }
    };
    let stop = match ever {
        true => ", or stop an owner (pinfold describe shows them)",
        false => ", for the pool has no more in one place",
    };
    format!(
        "{size} asked for within {within}, and {free} {unit} free in {}, but {where_they_are}: ask for less, or drop pinfold.io/{}{stop}",
        pool.name,
        key(*within)
    )
}

/// What it is one of.
fn level(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "NUMA node",
        Within::OneCache | Within::OneCacheOf(_) => "last-level cache",
    }
}

/// A claim that cannot be read is in the way.
pub(super) fn unreadable(path: &Path, reason: &str) -> crate::refusal::Refusal {
    crate::refusal::Refusal::new(
        format!("the claim {} counts as held: {reason}", path.display()),
        "`pinfold reconcile` frees it once its owner is gone, and says who that is",
    )
}

/// The annotation that asks for it.
fn key(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "numa",
        Within::OneCache | Within::OneCacheOf(_) => "cache",
    }
}
