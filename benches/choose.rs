//! How long a choice takes among 512 lists, on a machine of 512 cores in 64 caches, 8 NUMA nodes
//! and 2 packages: `make bench`. Marks those that take more than a millisecond.
#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up has to fail.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pinfold::choose::{Offer, Reach, Situation, Want, choose, cpus_that_matter};
use pinfold::cpulist::CpuSet;
use pinfold::pools::Kind;
use pinfold::request::{Numa, Size};
use pinfold::topology::{CpuGroup, Gaps, Levels};

const CORES: u32 = 512;
const RUNS: usize = 200;
const LIMIT: Duration = Duration::from_millis(1);

fn main() {
    let levels = Levels {
        nodes: groups(64),
        packages: groups(256),
        caches: groups(8),
        cores: groups(1),
        gaps: Gaps::default(),
    };
    let lists: Vec<CpuSet> = levels.cores.iter().map(|core| core.cpus.clone()).collect();
    let threads: Vec<CpuSet> = (0..CORES)
        .map(|cpu| CpuSet::from_iter([cpu * 2 % CORES + cpu * 2 / CORES * CORES]))
        .collect();
    println!(
        "{:<9} {:<8} {:<22} {:>10} {:>10}",
        "lists", "owned", "request", "median", "slowest"
    );
    for (what, lists) in [("cores", &lists), ("threads", &threads)] {
        for owned in [0, 3, 7] {
            for (name, want) in requests() {
                let (median, slowest) = measure(lists, owned, &want, &levels);
                // The slowest of many tells of whatever else ran: the median is judged. A time
                // fails nothing: the rest of the benchmark is worth its table.
                let mark = match median >= LIMIT {
                    true => format!("  over {LIMIT:?}"),
                    false => String::new(),
                };
                println!(
                    "{what:<9} {:<8} {name:<22} {median:>10.0?} {slowest:>10.0?}{mark}",
                    format!("{owned} of 10")
                );
            }
        }
    }
}

/// So many cores each, of two CPUs that are as far apart as Linux numbers them.
fn groups(cores: u32) -> Vec<CpuGroup> {
    let group = |index: u32| {
        let first = index * cores..(index + 1) * cores;
        CpuGroup {
            id: index,
            cpus: first.flat_map(|core| [core, core + CORES]).collect(),
        }
    };
    (0..CORES / cores).map(group).collect()
}

fn requests() -> Vec<(&'static str, Want)> {
    let with = |size: Size, numa: Numa, one_cache: bool| Want {
        numa,
        one_cache,
        ..Want::from(size)
    };
    vec![
        ("lists 1", Size::Lists(1).into()),
        ("lists 12", Size::Lists(12).into()),
        ("lists 100", Size::Lists(100).into()),
        ("cpus 150", Size::Cpus(150).into()),
        ("cpus 37, spread", with(Size::Cpus(37), Numa::Spread, false)),
        ("cpus 9, one cache", with(Size::Cpus(9), Numa::Single, true)),
    ]
}

/// The median and the most of the whole choice, finding out which CPUs matter included.
fn measure(lists: &[CpuSet], owned: u32, want: &Want, levels: &Levels) -> (Duration, Duration) {
    // Scattered as chance would have it, the same each time.
    let is_owned =
        |index: usize| (index as u32).wrapping_mul(2_654_435_761) >> 16 & 0xff < owned * 256 / 10;
    let offers: Vec<Offer<'_>> = lists
        .iter()
        .enumerate()
        .map(|(index, cpus)| Offer {
            cpus,
            owners: usize::from(is_owned(index)),
        })
        .collect();
    let all: CpuSet = (0..CORES * 2).collect();
    let reach = Reach {
        online: all.clone(),
        allowed: all,
    };
    let situation = Situation {
        kind: Kind::Exclusive,
        offers: &offers,
        former: &[],
        reach: &reach,
    };
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            black_box(cpus_that_matter(black_box(&situation), want));
            let _ = black_box(choose(black_box(&situation), want, levels));
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[RUNS / 2], times[RUNS - 1])
}
