//! The pools that are cut from captured machines.

use pinfold::cli::pool::spec;
use pinfold::cpulist::CpuSet;
use pinfold::host::Host;
use pinfold::placement::stock;
use pinfold::pools::carve::Cut;
use pinfold::pools::plan::{Cores, PlannedPool, plan};
use pinfold::pools::resize::{PoolStanding, Resized, cpus_of, resize};
use pinfold::pools::{CpuList, Kind, Pool};

use crate::machines::{captured, set};

/// What `pinfold init --pool … --reserve …` plans: the lists of each pool, as `dp=1,5/2,6`. Without
/// a word for it, CPU 0 is the host's own; `none` gives every core.
fn planned(host: &Host, pools: &str, reserve: &str) -> String {
    let reserve = match reserve {
        "" => None,
        "none" => Some(CpuSet::new()),
        cpus => Some(set(cpus)),
    };
    let stock = stock(host, reserve.as_ref()).unwrap();
    let specs: Vec<_> = pools
        .split_whitespace()
        .map(|pool| spec(pool).unwrap())
        .collect();
    let show = |pool: PlannedPool| {
        let lists: Vec<String> = pool.lists.iter().map(CpuSet::to_string).collect();
        format!("{}={}", pool.name, lists.join("/"))
    };
    match plan(&stock, &specs) {
        Ok(pools) => pools.into_iter().map(show).collect::<Vec<_>>().join(" "),
        Err(error) => format!("{error:#}"),
    }
}

fn check(name: &str, rows: &[(&str, &str, &str)]) {
    let tree = captured(name);
    for (pools, reserve, expected) in rows {
        let got = planned(&tree.host, pools, reserve);
        assert_eq!(&got, expected, "{name}: {pools}, {reserve}");
    }
}

#[test]
fn pools_of_eight_nodes_of_four_caches() {
    check(
        "emulated-8-nodes-128-threads",
        &[
            (
                "dp=8:exclusive,numa=spread rest=rest:shared",
                "",
                "dp=2-3/16-17/32-33/48-49/64-65/80-81/96-97/112-113 rest=0-1,4-15,18-31,34-47,50-63,66-79,82-95,98-111,114-127",
            ),
            (
                "dp=8:exclusive,numa=pack",
                "",
                "dp=16-17/18-19/20-21/22-23/24-25/26-27/28-29/30-31",
            ),
            (
                "dp=8:exclusive,numa=pack",
                "none",
                "dp=0-1/2-3/4-5/6-7/8-9/10-11/12-13/14-15",
            ),
            (
                "dp=8:exclusive",
                "",
                "dp=16-17/18-19/20-21/22-23/24-25/26-27/28-29/30-31",
            ),
            (
                "dp=8:exclusive,numa=3",
                "",
                "dp=48-49/50-51/52-53/54-55/56-57/58-59/60-61/62-63",
            ),
            (
                "dp=4:exclusive,numa=3,cache=spread",
                "",
                "dp=48-49/52-53/56-57/60-61",
            ),
            (
                "dp=9:exclusive,numa=3",
                "",
                "pool dp: 9 cores asked for: 8 cores are free on NUMA node 3: ask for fewer, or cut them elsewhere",
            ),
            ("dp=2:exclusive,cache=single", "", "dp=4-5/6-7"),
            (
                "dp=3:exclusive,cache=single",
                "",
                "pool dp: 3 cores asked for: 2 cores are free below one last-level cache: ask for fewer, or cut them elsewhere",
            ),
            ("dp=3:exclusive,cache=pack", "", "dp=2-3/4-5/6-7"),
            (
                "dp=8:exclusive,cache=spread",
                "",
                "dp=2-3/4-5/8-9/12-13/16-17/20-21/24-25/28-29",
            ),
            (
                "dp=12:exclusive,numa=pack,cache=pack",
                "",
                "dp=4-5/6-7/8-9/10-11/16-17/18-19/20-21/22-23/24-25/26-27/28-29/30-31",
            ),
            (
                "dp=2:exclusive,numa=spread,cores=threads",
                "",
                "dp=2/3/16/17",
            ),
            (
                "a=8:exclusive,numa=0 b=rest:shared,numa=0",
                "none",
                "pool b: 1 cores asked for: 0 cores are free on NUMA node 0: ask for fewer, or cut them elsewhere",
            ),
            (
                "a=8:exclusive,numa=0",
                "",
                "pool a: 8 cores asked for: 7 cores are free on NUMA node 0: ask for fewer, or cut them elsewhere",
            ),
            (
                "a=1:exclusive,numa=spread c=rest:shared,numa=7",
                "0-7",
                "a=8-9 c=112-127",
            ),
        ],
    );
}

#[test]
fn pools_of_four_nodes() {
    check(
        "emulated-2-packages-4-nodes",
        &[
            (
                "dp=4:exclusive,numa=spread common=rest:shared",
                "",
                "dp=2-3/8-9/16-17/24-25 common=0-1,4-7,10-15,18-23,26-31",
            ),
            (
                "dp=4:exclusive,numa=pack common=rest:shared",
                "",
                "dp=8-9/10-11/12-13/14-15 common=0-7,16-31",
            ),
            (
                "dp=6:exclusive,numa=pack common=rest:shared",
                "",
                "dp=2-3/4-5/8-9/10-11/12-13/14-15 common=0-1,6-7,16-31",
            ),
            (
                "dp=6:exclusive,numa=spread common=rest:shared",
                "0,16,4,8,12",
                "dp=2-3/6-7/10-11/14-15/18-19/24-25 common=0-1,4-5,8-9,12-13,16-17,20-23,26-31",
            ),
            (
                "dp=15:exclusive,numa=spread common=rest:shared",
                "",
                "dp=2-3/4-5/6-7/8-9/10-11/12-13/14-15/16-17/18-19/20-21/22-23/24-25/26-27/28-29/30-31 common=0-1",
            ),
            (
                "dp=16:exclusive common=rest:shared",
                "",
                "too few cores: 16 asked for (16 for dp), and there are 15, without those of the host's own work, CPUs 0 (--reserve): ask for 15 at most",
            ),
            (
                "dp=rest:exclusive,numa=1 common=rest:shared",
                "",
                "dp=8-9/10-11/12-13/14-15 common=0-7,16-31",
            ),
            (
                "a=3:exclusive,cache=single b=3:exclusive,cache=single c=3:exclusive,cache=single common=rest:shared",
                "",
                "a=2-3/4-5/6-7 b=8-9/10-11/12-13 c=16-17/18-19/20-21 common=0-1,14-15,22-31",
            ),
            (
                "a=2:exclusive,numa=2,cores=threads common=2:shared,numa=3",
                "",
                "a=16/17/18/19 common=24-27",
            ),
        ],
    );
}

#[test]
fn pools_without_smt() {
    check(
        "emulated-2-packages-no-smt",
        &[
            (
                "dp=2:exclusive,numa=spread common=rest:shared",
                "",
                "dp=1/4 common=0,2-3,5-7",
            ),
            (
                "dp=4:exclusive,numa=pack common=rest:shared",
                "",
                "dp=4/5/6/7 common=0-3",
            ),
            (
                "dp=5:exclusive,numa=pack common=rest:shared",
                "",
                "dp=1/4/5/6/7 common=0,2-3",
            ),
            (
                "dp=2:exclusive,cores=threads common=rest:shared",
                "",
                "dp=1/2 common=0,3-7",
            ),
            (
                "dp=3:exclusive,numa=0 common=rest:shared",
                "",
                "dp=1/2/3 common=0,4-7",
            ),
            (
                "dp=4:exclusive,numa=0 common=rest:shared",
                "",
                "pool dp: 4 cores asked for: 3 cores are free on NUMA node 0: ask for fewer, or cut them elsewhere",
            ),
            ("dp=rest:exclusive", "0-1", "dp=2/3/4/5/6/7"),
        ],
    );
}

#[test]
fn pools_of_what_is_online() {
    check(
        "emulated-offline-holes",
        &[
            ("dp=3:exclusive", "", "dp=2/4/7"),
            ("dp=4:exclusive", "none", "dp=0-1/2/4/7"),
            (
                "dp=2:exclusive,numa=spread common=rest:shared",
                "",
                "dp=2/4 common=0-1,7",
            ),
            (
                "dp=2:exclusive,numa=1 common=rest:shared",
                "",
                "dp=4/7 common=0-2",
            ),
            ("dp=3:exclusive,cores=threads", "none", "dp=0/1/2/4"),
            (
                "dp=rest:exclusive,cores=threads common=1:shared",
                "",
                "dp=2/4/7 common=0-1",
            ),
            (
                "dp=3:exclusive,numa=1",
                "",
                "pool dp: 3 cores asked for: 2 cores are free on NUMA node 1: ask for fewer, or cut them elsewhere",
            ),
            ("dp=2:exclusive", "5", "dp=0-1/2"),
        ],
    );
}

#[test]
fn pools_of_small_machines() {
    check(
        "emulated-1-package-smt",
        &[
            (
                "dp=2:exclusive,cores=threads common=rest:shared",
                "",
                "dp=2/3/4/5 common=0-1,6-7",
            ),
            (
                "dp=3:exclusive common=rest:shared",
                "",
                "dp=2-3/4-5/6-7 common=0-1",
            ),
        ],
    );
    check(
        "emulated-memory-node",
        &[
            (
                "dp=1:exclusive,numa=spread common=rest:shared",
                "",
                "dp=2-3 common=0-1",
            ),
            (
                "dp=1:exclusive,numa=1",
                "",
                "pool dp: 1 cores asked for: 0 cores are free on NUMA node 1: ask for fewer, or cut them elsewhere",
            ),
        ],
    );
    check(
        "real-2-cpus",
        &[(
            "dp=1:exclusive,numa=spread,cache=single common=rest:shared",
            "",
            "dp=1 common=0",
        )],
    );
}

/// What `pinfold pool resize` gives an exclusive pool of these lists without owners, and takes from
/// it, where all other cores are free; behind the number of lists, from where more come.
fn resized(host: &Host, lists: &str, size: &str) -> String {
    let list = |name: &str| CpuList {
        name: name.to_owned(),
        cpus: set(name),
        tasks: Vec::new(),
    };
    let pool = Pool {
        name: "dp".to_owned(),
        kind: Kind::Exclusive,
        lists: lists.split('/').map(list).collect(),
    };
    let standing = PoolStanding {
        owners: &vec![None; pool.lists.len()],
        stock: &stock(host, None).unwrap(),
        taken: &cpus_of(&pool.lists),
        pool: &pool,
    };
    let mut words = size.split_whitespace();
    let count = words.next().unwrap().parse().unwrap();
    let mut cut = Cut::default();
    for (key, value) in words.map(|word| word.split_once('=').unwrap()) {
        cut.set(key, value).unwrap();
    }
    let Resized { added, removed, .. } = resize(&standing, Cores::Count(count), cut).unwrap();
    let shown = |sign: &str, lists: &[CpuSet]| -> Vec<String> {
        lists.iter().map(|cpus| format!("{sign}{cpus}")).collect()
    };
    [shown("+", &added), shown("-", &removed)]
        .concat()
        .join(" ")
}

#[test]
fn pools_are_resized_where_their_cores_are() {
    let (large, smt, holes) = (
        captured("emulated-8-nodes-128-threads"),
        captured("emulated-1-package-smt"),
        captured("emulated-offline-holes"),
    );
    for (tree, lists, size, expected) in [
        (
            &large,
            "2-3/16-17",
            "6 numa=spread",
            "+4-5 +18-19 +32-33 +48-49",
        ),
        (
            &large,
            "2-3",
            "5 numa=6 cache=spread",
            "+96-97 +100-101 +104-105 +108-109",
        ),
        (&large, "2-3", "3 cache=single", "+4-5 +6-7"),
        (&large, "2-3/16-17/32-33", "1", "-32-33 -16-17"),
        // By threads: first the siblings of its own.
        (&smt, "2/3/4", "4", "+5"),
        (&smt, "2/3/4", "5", "+5 +6"),
        (&smt, "2/3/4", "2", "-4"),
        (&smt, "2/3/4/5", "2", "-5 -4"),
        // A core with one CPU online is a core.
        (&holes, "2", "3", "+4 +7"),
    ] {
        assert_eq!(
            resized(&tree.host, lists, size),
            expected,
            "{lists} to {size}"
        );
    }
}
