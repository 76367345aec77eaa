//! Turns a refused choice into a sentence and a remedy.

use super::keeper::{let_through, shown_group};
use crate::cgroup::cpuset::Bound;
use crate::choose::{self, Offer, Reach, Scattered, Within};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::{Kind, Pool};
use crate::refusal::{Reason, Refusal};
use crate::request::{Numa, Request, Size};
use crate::topology::{CpuGroup, Levels};

/// The input of a choice.
pub(crate) struct Considered<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) offers: &'a [Offer<'a>],
    pub(crate) reach: &'a Reach,
    pub(crate) levels: &'a Levels,
    pub(crate) request: &'a Request,
    /// What the groups above allow; `None` if only what is online counts.
    pub(crate) bound: Option<&'a Bound>,
    pub(crate) host: &'a Host,
}

/// What is free but cannot be given to this owner, in the unit that the request counts in (lists or
/// CPUs), and the CPUs that are to blame.
#[derive(Default)]
struct KeptAway {
    offline: usize,
    offline_cpus: CpuSet,
    forbidden: usize,
    forbidden_cpus: CpuSet,
}

impl Considered<'_> {
    /// The reason, what would have fitted, and the remedy. The caller adds for whom, and which
    /// pool.
    pub(crate) fn refusal(&self, refusal: &choose::NoChoice) -> Refusal {
        let size = self.request.size;
        let name = &self.pool.name;
        let kept = self.kept_away();
        let reason = match refusal {
            choose::NoChoice::Exhausted { .. } => Reason::Exhausted,
            _ => Reason::Unfit,
        };
        let refusal = match refusal {
            choose::NoChoice::Exhausted { free } => Refusal::new(
                format!(
                    "the pool is exhausted: {size} asked for, {free} free{}",
                    self.also_free(&kept)
                ),
                self.remedy(
                    &kept,
                    *free,
                    "stop an owner (`pinfold describe` shows them), or make the pool larger \
                     (`pinfold pool resize --help`)",
                ),
            ),
            choose::NoChoice::TooSmall { all } => Refusal::new(
                format!(
                    "the pool is too small: {size} asked for, and it can give {all} at most{}",
                    self.also_free(&kept)
                ),
                self.remedy(
                    &kept,
                    *all,
                    "ask for less, or make it larger (`pinfold pool resize --help`)",
                ),
            ),
            choose::NoChoice::Scattered(scattered) => self.scattered(scattered),
            choose::NoChoice::Untold { within, gap } => Refusal::new(
                format!(
                    "{size} asked for within {within}, and the kernel does not tell the {} of the \
                     CPUs {} ({gap})",
                    level(*within),
                    gap.cpus
                ),
                format!("drop pinfold.io/{}", key(*within)),
            ),
            choose::NoChoice::Spans(within) => Refusal::new(
                format!("no CPU list of the pool that is large enough lies within {within}"),
                format!("drop pinfold.io/{}, or use another pool", key(*within)),
            ),
            choose::NoChoice::OneListOnly => Refusal::new(
                format!("the pool is shared, which gives one CPU list, and {size} asked for"),
                "ask for 1, or use pinfold.io/cpus",
            ),
            choose::NoChoice::Offline => Refusal::new(
                "every CPU list of the pool has a CPU that is offline",
                format!(
                    "{}, or make a pool of others (`pinfold pool add --help`)",
                    put_online(&kept.offline_cpus)
                ),
            ),
            choose::NoChoice::NotAllowed => Refusal::new(
                match self.bound {
                    Some(bound) => format!(
                        "{} allows only the CPUs {}, which hold no CPU list of pool {name}",
                        shown_group(&bound.group()),
                        bound.cpus
                    ),
                    None => format!("no CPU list of pool {name} is allowed here"),
                },
                self.remedy(&kept, 0, "use another pool"),
            ),
        };
        refusal.because(reason)
    }

    /// How much a list counts for, in the request's unit.
    fn weight(&self, cpus: &CpuSet) -> usize {
        match self.request.size {
            Size::Lists(_) => 1,
            Size::Cpus(_) => cpus.len(),
        }
    }

    fn kept_away(&self) -> KeptAway {
        let mut kept = KeptAway::default();
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

    /// What the reader may see as free besides, and why it is not given.
    fn also_free(&self, kept: &KeptAway) -> String {
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
                ", and {} besides that nobody owns, with {} offline",
                kept.offline,
                counted_cpus(&kept.offline_cpus)
            );
        }
        told
    }

    /// What to do. `had` is how much could be given without what is kept away.
    fn remedy(&self, kept: &KeptAway, had: usize, otherwise: &str) -> String {
        let (Size::Lists(asked) | Size::Cpus(asked)) = self.request.size;
        let would_do = |kept: usize| kept > 0 && had + kept >= asked;
        match self.bound {
            Some(bound) if would_do(kept.forbidden) => {
                let_through(self.host, bound, &kept.forbidden_cpus)
            }
            _ if would_do(kept.offline) => {
                format!("{}, or {otherwise}", put_online(&kept.offline_cpus))
            }
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
        let free = match self.request.size {
            Size::Lists(_) => Size::Lists(*free),
            Size::Cpus(_) => Size::Cpus(*free),
        };
        let lie = match within {
            Within::OneNode => {
                let lists = self
                    .free()
                    .map(|offer| (offer.cpus, self.weight(offer.cpus)));
                by_node(lists, self.levels)
            }
            Within::Node(number) => format!("{fits} of them on node {number}"),
            Within::OneCache if *fits == 0 => "none of them lies under one".into(),
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
        let told = self.also_free(&self.kept_away());
        Refusal::new(
            format!(
                "{} asked for within {within}, and {free} free in {}, but {lie}{told}",
                self.request.size, self.pool.name
            ),
            format!("ask for less, or drop pinfold.io/{}{stop}", key(*within)),
        )
    }

    /// The lists that nobody owns and that can be given.
    fn free(&self) -> impl Iterator<Item = &Offer<'_>> {
        self.offers.iter().filter(|offer| {
            offer.owners == 0
                && offer.cpus.is_subset(&self.reach.online)
                && offer.cpus.is_subset(&self.reach.allowed)
        })
    }

    /// Under how many last-level caches the free lists lie.
    fn caches(&self) -> usize {
        let caches = self.levels.caches.iter();
        let has_any = |cache: &&CpuGroup| {
            self.free()
                .any(|offer| !offer.cpus.is_disjoint(&cache.cpus))
        };
        caches.filter(has_any).count()
    }
}

/// How much lies where: `2 on node 0, 0 on node 1, 1 over several nodes`. Each list comes with what
/// it counts for.
pub(crate) fn by_node<'a>(
    lists: impl Iterator<Item = (&'a CpuSet, usize)>,
    levels: &Levels,
) -> String {
    let mut amounts = vec![0; levels.nodes.len()];
    let mut over_several = 0;
    for (cpus, weight) in lists {
        let mut nodes = levels.nodes.iter();
        match nodes.position(|node| cpus.is_subset(&node.cpus)) {
            Some(index) => amounts[index] += weight,
            None => over_several += weight,
        }
    }
    let on = |(node, amount): (&CpuGroup, &usize)| match node.id {
        CpuGroup::UNTOLD => format!("{amount} on a node that the kernel does not tell"),
        number => format!("{amount} on node {number}"),
    };
    let mut parts: Vec<String> = levels.nodes.iter().zip(&amounts).map(on).collect();
    if over_several > 0 {
        parts.push(format!("{over_several} over several nodes"));
    }
    parts.join(", ")
}

/// The refusal of a NUMA node that the machine does not have. `all` are the levels of the whole
/// machine.
pub(crate) fn no_such_node(request: &Request, all: &Levels) -> Option<Refusal> {
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
pub(crate) fn counted_cpus(cpus: &CpuSet) -> String {
    match cpus.len() {
        1 => format!("CPU {cpus}"),
        _ => format!("the CPUs {cpus}"),
    }
}

fn put_online(cpus: &CpuSet) -> String {
    format!(
        "put {} online in /sys/devices/system/cpu",
        counted_cpus(cpus)
    )
}

/// The kind of place that the request has to lie within.
fn level(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "NUMA node",
        Within::OneCache | Within::OneCacheOf(_) => "last-level cache",
    }
}

/// The refusal of a container whose configuration already sets the CPUs or memory nodes `value`. No
/// engine takes them back by `update`.
pub fn chosen_already(what: &str, value: &str) -> Refusal {
    Refusal::new(
        format!("its configuration already sets the {what} {value}"),
        "make it anew without them (--cpuset-cpus, --cpuset-mems, resources.cpu; `update` does not \
         take them back), or drop the pool",
    )
    .because(Reason::Chosen)
}

/// The name of the annotation that asks for it.
fn key(within: Within) -> &'static str {
    match within {
        Within::OneNode | Within::Node(_) => "numa",
        Within::OneCache | Within::OneCacheOf(_) => "cache",
    }
}
