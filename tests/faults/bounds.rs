//! What is done under the lock is bounded: a start frees what it needs, and leaves the rest to
//! `reconcile`, which lets others in.

use crate::campaign;
use crate::cases::{Case, Need, plain};
use crate::disks::{Owner, record};
use crate::process::{self, affinity};
use crate::soak::watched;
use crate::supervisor;
use crate::world::{Kind, Standin, World, state};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("bounds::thousands_on_one_list", needs, thousands),
        plain("bounds::thousands_under_a_new_lock", needs, new_lock),
        plain("bounds::groups_below_that_are_empty", needs, empty_groups),
        plain("bounds::claims_are_linked_once", needs, linked_once),
        plain("bounds::a_claim_that_cannot_be_linked", needs, not_linked),
    ]
}

/// Others give up after 10 s, whatever else runs; where many run beside it on each CPU, all takes
/// longer.
fn longest_hold() -> Duration {
    const ALONE: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(9);
    let load = std::fs::read_to_string("/proc/loadavg").expect("read the load");
    let load = load.split(' ').next().and_then(|word| word.parse().ok());
    let load: f64 = load.expect("a load is a number (proc_loadavg(5))");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    ALONE.mul_f64((load / cpus as f64).max(1.0)).min(MOST)
}

fn request(pool: &str) -> Value {
    json!({ "pinfold.io/pool": pool })
}

/// A claim of a live owner, of which others are made.
fn model(world: &World) -> (Standin, Value) {
    let standin = Standin::new(world, "model");
    world
        .hook("createRuntime", &state("model", standin.pid, request("cp")))
        .ok();
    (standin, world.claim_of("model"))
}

/// So many dead owners of list 0 of the shared pool, in their claims and in `tasks`.
fn bury(world: &World, claim: &Value, number: usize) {
    let mut pids = world.tasks("cp", "0");
    for start in 1..=number {
        let pid = 4_000_000 + start as i32;
        let owner = Owner {
            id: &format!("dead{start}"),
            pid,
            start: 1,
        };
        record(world, claim, &owner, ("cp", "0"));
        pids.push(pid);
    }
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    std::fs::write(world.tasks_file("cp", "0"), pids.join(",")).expect("write tasks");
}

/// One shared list whose owners are nearly all dead: a start frees some of them.
fn thousands(world: &World) {
    const DEAD: usize = 3000;
    /// More than one start frees.
    const MOST_FREED: usize = 100;
    world.pool("cp", Kind::Shared, &["0"]);
    let (standin, claim) = model(world);
    bury(world, &claim, DEAD);
    let late = Standin::new(world, "late");
    let asked = state("late", late.pid, request("cp"));
    let (ran, hold) = watched(world, || world.hooking("createRuntime", &asked).wait());
    assert_eq!(affinity(late.pid), "0", "{}", ran.ok());
    let left = world.claims().len();
    assert!(left > DEAD - MOST_FREED, "a start freed all but {left}");
    assert!(left < DEAD, "a start freed nobody");
    assert!(hold < longest_hold(), "a start holds the lock for {hold:?}");
    let (_, hold) = watched(world, || {
        process::run(&mut world.pinfold(&["reconcile"])).ok()
    });
    println!(
        "{DEAD} dead owners of a list: reconcile holds the lock for {:.2} s",
        hold.as_secs_f64()
    );
    assert_eq!(world.claims().len(), 2, "reconcile frees all others");
    assert!(
        hold < longest_hold(),
        "reconcile holds the lock for {hold:?}"
    );
    campaign::count_executions(3);
    for one in [standin, late] {
        one.die();
    }
    world.reconcile();
    world.assert_all_free("at the end");
}

/// A start that finds the lock replaced takes all over, and need not free all.
fn new_lock(world: &World) {
    const DEAD: usize = 3000;
    world.pool("cp", Kind::Shared, &["0"]);
    let (standin, claim) = model(world);
    bury(world, &claim, DEAD);
    let new = world.conf.join("new");
    std::fs::write(&new, "").expect("make another lock");
    std::fs::rename(&new, world.conf.join("lock")).expect("replace the lock");
    let late = Standin::new(world, "late");
    let asked = state("late", late.pid, request("cp"));
    let (ran, hold) = watched(world, || world.hooking("createRuntime", &asked).wait());
    println!(
        "{DEAD} dead owners under a new lock: a start holds it for {:.2} s",
        hold.as_secs_f64()
    );
    assert_eq!(affinity(late.pid), "0", "{}", ran.ok());
    assert!(hold < longest_hold(), "a start holds the lock for {hold:?}");
    for one in [standin, late] {
        one.die();
    }
    world.reconcile();
    world.assert_all_free("at the end");
}

/// A dead owner has left hundreds of empty groups: a start that frees it looks at each of them a
/// few times.
fn empty_groups(world: &World) {
    const GROUPS: usize = 300;
    /// Of system calls; opening and listing each one as well would be half as many again.
    const MOST_OF_EACH: usize = 24;
    const MOST_BESIDE: usize = 600;
    world.pool("dp", Kind::Exclusive, &["1"]);
    let dead = Standin::new(world, "dead");
    world
        .hook("createRuntime", &state("dead", dead.pid, request("dp")))
        .ok();
    let group = dead.cgroup();
    for number in 0..GROUPS {
        std::fs::create_dir(group.join(number.to_string())).expect("make a group");
    }
    dead.die();
    let next = Standin::new(world, "next");
    let asked = state("next", next.pid, request("dp")).to_string();
    let mut hook = world.pinfold(&["hook", "createRuntime"]);
    let run = supervisor::run(&mut hook, asked.as_bytes(), &[]);
    assert_eq!(affinity(next.pid), "1", "{}", run.ran.ok());
    let calls = run.calls.len();
    println!("{GROUPS} empty groups of a dead owner: {calls} system calls of a start");
    assert!(calls < GROUPS * MOST_OF_EACH + MOST_BESIDE, "{calls} calls");
    campaign::count_executions(1);
    next.die();
    world.reconcile();
    world.assert_all_free("at the end");
}

/// `reconcile` meets a dead number that no claim explains in many lists, in many turns, and makes
/// the links once.
fn linked_once(world: &World) {
    const CLAIMS: usize = 30;
    let lists: Vec<String> = (2..60).map(|cpu: u32| cpu.to_string()).collect();
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    world.pool("cp", Kind::Shared, &["0"]);
    world.pool("many", Kind::Shared, &lists);
    let (standin, claim) = model(world);
    let start = claim["owner"]["start"].as_u64().expect("a start time");
    for number in 0..CLAIMS {
        let owner = Owner {
            id: &format!("alive{number}"),
            pid: standin.pid,
            start,
        };
        record(world, &claim, &owner, ("cp", "0"));
    }
    for list in &lists {
        std::fs::write(world.tasks_file("many", list), "4000000").expect("write tasks");
    }
    let run = supervisor::run(&mut world.pinfold(&["reconcile"]), b"", &[]);
    run.ran.ok();
    let links = run.calls.iter();
    let links = links.filter(|call| call.to_string().starts_with("symlink"));
    // Of each claim one for its list, and one for its group.
    assert!(links.count() <= (CLAIMS + 1) * 2, "links are made again");
    let left: Vec<i32> = lists
        .iter()
        .flat_map(|list| world.tasks("many", list))
        .collect();
    assert!(left.is_empty(), "the dead are dropped: {left:?}");
    standin.die();
    world.reconcile();
    world.assert_all_free("at the end");
}

/// Where one claim cannot be linked, a number that it may explain counts as held, and nobody's
/// start fails.
fn not_linked(world: &World) {
    world.pool("cp", Kind::Shared, &["0"]);
    world.pool("dp", Kind::Exclusive, &["1"]);
    let (standin, claim) = model(world);
    let start = claim["owner"]["start"].as_u64().expect("a start time");
    let owner = Owner {
        id: "odd",
        pid: standin.pid,
        start,
    };
    record(world, &claim, &owner, ("cp", "7"));
    let list = world.run.join("lists/7");
    std::fs::remove_dir_all(&list).expect("remove the links");
    std::fs::write(&list, "").expect("put a file in the way");
    for pool in [("cp", "0"), ("dp", "1")] {
        let tasks = world.tasks_file(pool.0, pool.1);
        let mut pids = world.tasks(pool.0, pool.1);
        pids.push(4_000_000);
        let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
        std::fs::write(tasks, pids.join(",")).expect("write tasks");
    }
    let late = Standin::new(world, "late");
    // The auditor sees that a link is missing: it is not asked.
    let asked = state("late", late.pid, request("cp"));
    world.hooking("createRuntime", &asked).wait().ok();
    assert!(world.tasks("cp", "0").contains(&4_000_000), "given away");
    let refused = Standin::new(world, "refused");
    let asked = state("refused", refused.pid, request("dp"));
    let refused = world.hooking("createRuntime", &asked).wait().exits(1);
    assert!(refused.stderr.contains("exhausted"), "{refused}");
    std::fs::remove_file(&list).expect("take the file away");
    late.die();
    standin.die();
    world.reconcile();
    world.assert_all_free("at the end");
}
