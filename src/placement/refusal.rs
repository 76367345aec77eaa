//! A refused choice as what its reader sees, and what to do.

use std::collections::BTreeMap;
use std::path::Path;

use super::keeper::{let_through, shown_group};
use crate::cgroup::cpuset::Bound;
use crate::choose::{self, Offer, Reach, Scattered, Within};
use crate::cpulist::CpuSet;
use crate::pools::{Kind, Pool};
use crate::refusal::{Reason, Refusal};
use crate::request::{Numa, Request, Size};
use crate::topology::Levels;

/// What a choice looked at.
pub(super) struct Seen<'a> {
    pub(super) pool: &'a Pool,
    pub(super) offers: &'a [Offer<'a>],
    pub(super) reach: &'a Reach,
    pub(super) levels: &'a Levels,
    pub(super) request: &'a Request,
    /// The groups above; without them nothing but what is online limits the owner.
    pub(super) bound: Option<&'a Bound>,
}

/// Lists that nobody owns and that this owner cannot be given, counted as what is asked for, and their CPUs.
#[derive(Default)]
struct Kept {
    offline: usize,
    offline_cpus: CpuSet,
    forbidden: usize,
    forbidden_cpus: CpuSet,
}

impl Seen<'_> {
    /// The reason, what would have fitted, and what to do. Whoever asked adds for whom, and which pool.
    pub(super) fn refusal(&self, refusal: &choose::Refusal) -> Refusal {
        let size = self.request.size;
        let name = &self.pool.name;
        let kept = self.kept();
        let reason = match refusal {
            choose::Refusal::Exhausted { .. } => Reason::Exhausted,
            _ => Reason::Unfit,
        };
        let refusal = match refusal {
            choose::Refusal::Exhausted { free } => Refusal::new(
                format!(
                    "the pool is exhausted: {size} asked for, {free} free{}",
                    self.told(&kept)
                ),
                self.remedy(&kept, "stop an owner (`pinfold describe` shows them), or make the pool larger (`pinfold pool resize --help`)"),
            ),
            choose::Refusal::TooSmall { all } => Refusal::new(
                format!(
                    "the pool is too small: {size} asked for, and it can give {all} at most{}",
                    self.told(&kept)
                ),
                self.remedy(&kept, "ask for less, or make it larger (`pinfold pool resize --help`)"),
            ),
            choose::Refusal::Scattered(scattered) => self.scattered(scattered),
            choose::Refusal::Untold { within, gap } => Refusal::new(
                format!(
                    "{size} asked for within {within}, and the kernel does not tell the {} of the CPUs {} ({gap})",
                    level(*within),
                    gap.cpus
                ),
                format!("drop pinfold.io/{}", key(*within)),
            ),
            choose::Refusal::Spans(within) => Refusal::new(
                format!("no CPU list of the pool that is large enough lies within {within}"),
                format!("drop pinfold.io/{}, or use another pool", key(*within)),
            ),
            choose::Refusal::OneListOnly => Refusal::new(
                format!("the pool is shared, which gives one CPU list, and {size} asked for"),
                "ask for 1, or use pinfold.io/cpus",
            ),
            choose::Refusal::Offline => Refusal::new(
                "every CPU list of the pool has a CPU that is offline",
                format!(
                    "put the CPUs {} online in /sys/devices/system/cpu, or make a pool of others (`pinfold pool add --help`)",
                    kept.offline_cpus
                ),
            ),
            choose::Refusal::NotAllowed => Refusal::new(
                match self.bound {
                    Some(bound) => format!(
                        "{} allows only the CPUs {}, which hold no CPU list of pool {name}",
                        shown_group(&bound.group()),
                        bound.cpus
                    ),
                    None => format!("no CPU list of pool {name} is allowed here"),
                },
                self.remedy(&kept, "use another pool"),
            ),
        };
        refusal.because(reason)
    }

    /// How much a list counts for.
    fn weight(&self, cpus: &CpuSet) -> usize {
        match self.request.size {
            Size::Lists(_) => 1,
            Size::Cpus(_) => cpus.len(),
        }
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        let is_free = |offer: &&Offer<'_>| offer.owners == 0 || self.pool.kind == Kind::Shared;
        for offer in self.offers.iter().filter(is_free) {
            let offline = offer.cpus.difference(&self.reach.online);
            let forbidden = offer.cpus.difference(&self.reach.allowed);
            if !offline.is_empty() {
                kept.offline += self.weight(offer.cpus);
                kept.offline_cpus.extend(&offline);
            } else if !forbidden.is_empty() {
                kept.forbidden += self.weight(offer.cpus);
                kept.forbidden_cpus.extend(&forbidden);
            }
        }
        kept
    }

    /// What others may see as free besides.
    fn told(&self, kept: &Kept) -> String {
        let mut told = String::new();
        if let (Some(bound), true) = (self.bound, kept.forbidden > 0) {
            told += &format!(
                ", and {} besides that nobody owns and {} keeps away: it allows only the CPUs {}",
                kept.forbidden,
                shown_group(&bound.group()),
                bound.cpus
            );
        }
        if kept.offline > 0 {
            told += &format!(
                ", and {} that nobody owns and that need the offline CPUs {}",
                kept.offline, kept.offline_cpus
            );
        }
        told
    }

    fn remedy(&self, kept: &Kept, otherwise: &str) -> String {
        match self.bound {
            Some(bound) if kept.forbidden > 0 => let_through(bound, &kept.forbidden_cpus),
            _ if kept.offline > 0 => format!(
                "put the CPUs {} online in /sys/devices/system/cpu, or {otherwise}",
                kept.offline_cpus
            ),
            _ => otherwise.to_owned(),
        }
    }

    fn scattered(&self, scattered: &Scattered) -> Refusal {
        let Scattered {
            within,
            free,
            fits,
            node,
            ever,
            ..
        } = scattered;
        let unit = match self.request.size {
            Size::Lists(_) => "lists",
            Size::Cpus(_) => "CPUs",
        };
        let lie = match within {
            Within::OneNode => self.by_node(),
            Within::Node(number) => format!("{fits} of them on node {number}"),
            Within::OneCache => format!(
                "under {} last-level caches, {fits} at most under one, on node {node}",
                self.caches()
            ),
            Within::OneCacheOf(number) => {
                format!("{fits} of them under one last-level cache of node {number}")
            }
        };
        let stop = match ever {
            true => ", or stop an owner (`pinfold describe` shows them)",
            false => ", for the pool has no more in one place",
        };
        let told = self.told(&self.kept());
        Refusal::new(
            format!(
                "{} asked for within {within}, and {free} {unit} free in {}, but {lie}{told}",
                self.request.size, self.pool.name
            ),
            format!("ask for less, or drop pinfold.io/{}{stop}", key(*within)),
        )
    }

    /// The lists that could be given.
    fn free(&self) -> impl Iterator<Item = &Offer<'_>> {
        self.offers.iter().filter(|offer| {
            offer.owners == 0
                && offer.cpus.is_subset(&self.reach.online)
                && offer.cpus.is_subset(&self.reach.allowed)
        })
    }

    /// Where they lie: `2 on node 0, 1 on node 1, 1 over several nodes`.
    fn by_node(&self) -> String {
        let mut amounts: BTreeMap<u32, usize> = BTreeMap::new();
        let mut over_several = 0;
        for offer in self.free() {
            let weight = self.weight(offer.cpus);
            let within = |cpus: &CpuSet| offer.cpus.is_subset(cpus);
            match self.levels.nodes.iter().find(|node| within(&node.cpus)) {
                Some(node) => *amounts.entry(node.id).or_default() += weight,
                None => over_several += weight,
            }
        }
        let amounts = amounts.iter();
        let mut parts: Vec<String> = amounts
            .map(|(node, amount)| format!("{amount} on node {node}"))
            .collect();
        if over_several > 0 {
            parts.push(format!("{over_several} over several nodes"));
        }
        parts.join(", ")
    }

    /// Under how many last-level caches they lie.
    fn caches(&self) -> usize {
        let caches = self.levels.caches.iter();
        let has_any = |cache: &&crate::topology::Group| {
            self.free()
                .any(|offer| !offer.cpus.is_disjoint(&cache.cpus))
        };
        caches.filter(has_any).count()
    }
}

/// The refusal of a NUMA node that the machine does not have. `all` are its levels, whatever the pool.
pub(super) fn no_such_node(request: &Request, all: &Levels) -> Option<Refusal> {
    let Numa::Node(number) = request.locality.numa else {
        return None;
    };
    if all.nodes.is_empty() || all.nodes.iter().any(|node| node.id == number) {
        return None;
    }
    let numbers: CpuSet = all.nodes.iter().map(|node| node.id).collect();
    Some(Refusal::new(
        format!("there is no NUMA node {number} with CPUs: this machine has {numbers}"),
        "ask for one that there is, or drop pinfold.io/numa",
    ))
}

/// `CPU 3`, or `the CPUs 2-3`.
pub(super) fn counted_cpus(cpus: &CpuSet) -> String {
    match cpus.len() {
        1 => format!("CPU {cpus}"),
        _ => format!("the CPUs {cpus}"),
    }
}

/// What it is one of.
fn level(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "NUMA node",
        Within::OneCache | Within::OneCacheOf(_) => "last-level cache",
    }
}

/// A claim that cannot be read is in the way.
pub(super) fn unreadable(path: &Path, reason: &str) -> Refusal {
    Refusal::new(
        format!("the claim {} counts as held: {reason}", path.display()),
        "`pinfold reconcile` frees it once its owner is gone, and says who that is",
    )
}

/// A container has CPUs, or memory nodes, by its configuration. No engine takes back by `update`
/// what was set once.
pub fn chosen_already(what: &str, value: &str) -> Refusal {
    Refusal::new(
        format!("its configuration already sets the {what} {value}"),
        "make it anew without them (--cpuset-cpus, --cpuset-mems, resources.cpu; `update` does not take them back), or drop the pool",
    )
    .because(Reason::Chosen)
}

/// The annotation that asks for it.
fn key(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "numa",
        Within::OneCache | Within::OneCacheOf(_) => "cache",
    }
}
