//! Pools that change while containers run, and `pool` killed at every system call.

use crate::case::{Case, each, plain};
use crate::cases::killpoints::each_point;
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, affinity};
use crate::world::{Kind, Standin, World, state, stopped};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = each(
        Engine::direct(),
        "pools::a_shared_pool_grows_under_its_owners",
        &[Need::Cpus(2)],
        grows_under_its_owners,
    );
    let needs = &[Need::Root, Need::Cpus(2)];
    cases.push(plain(
        "pools::a_list_with_an_owner_is_never_taken",
        needs,
        never_taken,
    ));
    cases.push(plain(
        "pools::what_is_declared_waits_for_owners",
        needs,
        declared_waits,
    ));
    cases.push(plain("pools::a_trial_changes_nothing", needs, trial));
    cases.push(plain("pools::made_twice_is_made_once", needs, made_twice));
    cases.push(plain(
        "pools::a_shared_pool_of_several_lists_changes_by_lists",
        needs,
        by_lists,
    ));
    cases.push(plain(
        "pools::an_owner_whose_claim_cannot_be_read_stops_a_resize",
        needs,
        unreadable_owner,
    ));
    cases.push(plain(
        "pools::a_pool_that_is_not_there_is_told",
        &[Need::Root],
        not_there,
    ));
    let needs = &[Need::Root, Need::Strace, Need::Cpus(2)];
    cases.extend([
        plain(
            "pools::killed_resizing_under_an_owner",
            needs,
            killed_growing,
        ),
        plain(
            "pools::killed_resizing_an_exclusive_pool",
            needs,
            killed_resizing,
        ),
        plain("pools::killed_adding_and_removing", needs, killed_adding),
    ]);
    cases
}

pub(crate) fn pool(world: &World, arguments: &[&str]) -> Ran {
    process::run(&mut world.pinfold(&[&["pool"], arguments].concat()))
}

/// Runs `apply` with this configuration.
fn apply(world: &World, config: &str, arguments: &[&str]) -> Ran {
    let path = world.dir.join("declared.toml");
    std::fs::write(&path, config).expect("write a configuration");
    let path = path.display().to_string();
    let line = [&["apply", "--config", &path], arguments].concat();
    process::run(&mut world.pinfold(&line))
}

/// No owner, and no list that has one, is touched by what the configuration says; once it is gone
/// all becomes so.
fn declared_waits(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0"]);
    world.pool("old", Kind::Exclusive, &["1"]);
    let request = |pool: &str| json!({ "pinfold.io/pool": pool });
    let owners = [("a", "dp", "0"), ("b", "old", "1")].map(|(id, pool, list)| {
        let standin = Standin::new(world, id);
        world
            .hook("createRuntime", &state(id, standin.pid, request(pool)))
            .ok();
        (standin, id, pool, list)
    });
    let config = "reserve = 'none'\n[pools.dp]\nkind = 'exclusive'\nlists = ['1']\n\
                  [pools.common]\nkind = 'shared'\nlists = ['0']\n";
    for arguments in [
        &["--dry-run"][..],
        &[],
        &["--prune"],
        &["--prune", "--json"],
    ] {
        let told = apply(world, config, arguments);
        assert_eq!(told.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.stderr.contains("dp"), "{arguments:?}: {told}");
        for (standin, _, pool, list) in &owners {
            assert_eq!(world.tasks(pool, list), [standin.pid], "{told}");
            assert_eq!(affinity(standin.pid), *list, "{told}");
        }
        world.assert_settled("after what could not be");
    }
    for (standin, id, pool, _) in owners {
        standin.die();
        world.hook("poststop", &stopped(id, request(pool))).ok();
    }
    apply(world, config, &["--prune"]).ok();
    assert_eq!(lists(world, "dp"), ["1"]);
    assert_eq!(lists(world, "common"), ["0"]);
    assert_eq!(lists(world, "old"), [""; 0]);
    let again = apply(world, config, &["--prune"]).ok();
    assert!(again.stdout.contains("nothing to change"), "{again}");
    assert_sound(world, "after all is as declared");
}

/// The names of a pool's lists.
pub(crate) fn lists(world: &World, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(world.conf.join("pools").join(name));
    let entries = entries.into_iter().flatten().flatten();
    let lists = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = lists
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
pub(crate) fn the_list(world: &World, name: &str) -> String {
    let mut lists = lists(world, name);
    assert_eq!(lists.len(), 1, "lists of {name}: {lists:?}");
    lists.remove(0)
}

/// The CPUs of a list's name.
pub(crate) fn cpus(list: &str) -> BTreeSet<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse().unwrap()..=last.parse::<u32>().unwrap()
    };
    list.split(',').flat_map(range).collect()
}

/// The directory by KCM's rules, under the lock: every pool and list is whole, and no CPU is in two
/// lists.
#[track_caller]
fn assert_sound(world: &World, when: &str) {
    let lock = File::open(world.conf.join("lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(world.conf.join("pools")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let exclusive = std::fs::read(entry.path().join("exclusive"));
        let exclusive = exclusive.unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
        assert!(
            [b"0", b"1"].contains(&exclusive.as_slice().try_into().unwrap()),
            "{when}"
        );
        for list in lists(world, &name) {
            world.tasks(&name, &list);
            for cpu in cpus(&list) {
                assert!(seen.insert(cpu), "{when}: CPU {cpu} is in two lists");
            }
        }
    }
}

/// An owner has all CPUs of the list that it is in, in every book and in the kernel.
#[track_caller]
pub(crate) fn assert_follows(world: &World, id: &str, pid: i32, list: &str) {
    let claim = world.claim_of(id);
    assert_eq!(claim["lists"], json!([list]));
    let has = |text: &str| cpus(text) == cpus(list);
    assert!(has(claim["cpus"].as_str().unwrap()), "{claim} {list}");
    assert!(has(&affinity(pid)), "{} {list}", affinity(pid));
    assert!(world.tasks("common", list).contains(&pid));
}

fn grows_under_its_owners(world: &World, engine: Engine) {
    world.pool("common", Kind::Shared, &["0"]);
    let a = Container::up(world, engine, Plan::pinned("a", "common"));
    let trial = pool(world, &["resize", "common", "2", "--dry-run"]).ok();
    assert!(
        trial
            .stdout
            .contains(&format!("would give the CPUs to {:?}", a.id())),
        "{trial}"
    );
    assert_eq!(the_list(world, "common"), "0");
    a.assert_confined_to("0");

    let grown = pool(world, &["resize", "common", "2"]).ok();
    assert!(grown.stdout.contains(&a.id()), "{grown}");
    let list = the_list(world, "common");
    assert!(cpus(&list).len() > 1 && cpus(&list).contains(&0), "{list}");
    assert_follows(world, &a.id(), a.pid(), &list);
    let again = pool(world, &["resize", "common", "2"]).ok();
    assert_eq!(again.stdout, "nothing to change\n");

    let b = Container::up(world, engine, Plan::pinned("b", "common"));
    assert_follows(world, &b.id(), b.pid(), &list);
    for arguments in [&["resize", "common", "1"][..], &["remove", "common"]] {
        let refused = pool(world, arguments).exits(1);
        let named = [&a, &b]
            .iter()
            .any(|one| refused.stderr.contains(&one.id()));
        assert!(named, "{refused}");
        assert_eq!(the_list(world, "common"), list);
    }
    for container in [a, b] {
        container.delete_by_force().ok();
    }
    world.assert_all_free("after both are deleted");
    pool(world, &["resize", "common", "1"]).ok();
    assert_eq!(the_list(world, "common"), "0");
    for _ in 0..2 {
        pool(world, &["remove", "common", "--if-exists"]).ok();
        assert_eq!(lists(world, "common"), Vec::<String>::new());
    }
}

/// Whoever would keep its old CPUs without a word keeps the pool as it is.
fn unreadable_owner(world: &World) {
    world.pool("common", Kind::Shared, &["0"]);
    let owner = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "common" });
    world
        .hook("createRuntime", &state("a", owner.pid, request))
        .ok();
    let home = std::fs::read_dir(world.run.join("claims/a")).unwrap();
    let claim = home.into_iter().next().unwrap().unwrap().path();
    let text = std::fs::read(&claim).unwrap();
    std::fs::write(&claim, "{").unwrap();
    for arguments in [&["resize", "common", "2"][..], &["remove", "common"]] {
        let refused = pool(world, arguments).exits(1);
        assert!(refused.stderr.contains("the claim /"), "{refused}");
        assert_eq!(lists(world, "common"), ["0"]);
        assert_eq!(world.tasks("common", "0"), [owner.pid]);
        assert_eq!(affinity(owner.pid), "0");
    }
    std::fs::write(&claim, text).unwrap();
    pool(world, &["resize", "common", "2"]).ok();
    let list = the_list(world, "common");
    assert_follows(world, "a", owner.pid, &list);
    assert_ne!(list, "0");
}

/// Two lists of an exclusive pool, one with an owner: that one stays, whatever is asked for.
fn never_taken(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let a = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "dp" });
    world.hook("prestart", &state("a", a.pid, request)).ok();
    let owned = a.mask();
    pool(world, &["resize", "dp", "1"]).ok();
    assert_eq!(lists(world, "dp"), std::slice::from_ref(&owned));
    assert_eq!(
        (a.mask(), world.tasks("dp", &owned)),
        (owned.clone(), vec![a.pid])
    );
    let refused = pool(world, &["remove", "dp"]).exits(1);
    assert!(refused.stderr.contains("a owns"), "{refused}");
    // What it owns is free for nobody, even where another tool took its pool away.
    std::fs::remove_dir_all(world.conf.join("pools/dp")).unwrap();
    let refused = pool(world, &["add", "new:exclusive", "--list", &owned]).exits(1);
    assert!(refused.stderr.contains("a owns it"), "{refused}");
    a.die();
    world.reconcile();
    pool(world, &["add", "new:exclusive", "--list", &owned]).ok();
    pool(world, &["add", "new:exclusive", "--list", &owned]).ok();
    assert_eq!(lists(world, "new"), [owned]);
}

/// Not even what a dead owner left, nor the devices of the pools.
fn trial(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let dead = world.tasks_file("dp", "1");
    std::fs::write(&dead, "4194303").unwrap();
    for arguments in [
        &["remove", "dp", "--dry-run"][..],
        &["resize", "dp", "1", "--dry-run"],
    ] {
        let said = pool(world, arguments).ok().stdout;
        assert!(said.starts_with("would remove"), "{said}");
        assert_eq!(std::fs::read_to_string(&dead).unwrap(), "4194303");
        assert_eq!(lists(world, "dp"), ["0", "1"]);
    }
    pool(world, &["remove", "dp"]).ok();
    world.assert_all_free("after removal");
}

fn made_twice(world: &World) {
    for spec in [
        "new=rest:shared",
        "new=1:exclusive,cores=threads",
        "new=1:exclusive",
    ] {
        let add = ["add", spec, "--reserve", "none"];
        pool(world, &add).ok();
        let made = lists(world, "new");
        let again = pool(world, &add).ok();
        assert_eq!(
            (again.stdout.as_str(), lists(world, "new")),
            ("nothing to change\n", made)
        );
        pool(world, &["remove", "new"]).ok();
    }
}

/// The list with an owner stays, and the pool has its size again with another beside it.
fn by_lists(world: &World) {
    world.has_two_cpus();
    world.pool("common", Kind::Shared, &["0", "1"]);
    let a = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "common" });
    world.hook("prestart", &state("a", a.pid, request)).ok();
    let owned = a.mask();
    let more = if owned == "0" { "1" } else { "0" };
    let said = pool(world, &["resize", "common", "1"]).ok().stdout;
    assert_eq!(said, format!("removed {more}\n"));
    assert_eq!(the_list(world, "common"), owned);
    pool(world, &["add", "x:exclusive", "--list", more]).ok();
    let refused = pool(world, &["resize", "common", "2"]).exits(1).stderr;
    let said = "pool common cannot have 2 cores: it has 1, and no free cores are left";
    assert!(refused.contains(said), "{refused}");
    pool(world, &["remove", "x"]).ok();
    world.pool("common", Kind::Shared, &[more]);
    let again = pool(world, &["resize", "common", "2"]).ok();
    assert_eq!(again.stdout, "nothing to change\n");
    assert_eq!(lists(world, "common"), ["0", "1"]);
    assert_follows(world, "a", a.pid, &owned);
}

/// Removal is done twice all the same.
fn not_there(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0"]);
    for arguments in [&["remove", "dq", "--dry-run"][..], &["remove", "dq"]] {
        let refused = pool(world, arguments).exits(1);
        assert!(refused.stderr.contains("there is no pool \"dq\" in"));
        let scripted = [arguments, &["--if-exists"]].concat();
        assert_eq!(pool(world, &scripted).ok().stdout, "nothing to change\n");
    }
    pool(world, &["remove", "dp"]).ok();
    let again = pool(world, &["remove", "dp"]).exits(1);
    assert!(again.stderr.contains("there is no pool \"dp\" in"));
}

fn start_over(world: &World, name: &str, kind: Kind, lists: &[&str]) {
    for left in [world.run.clone(), world.conf.join("pools")] {
        let _ = std::fs::remove_dir_all(left);
    }
    std::fs::create_dir(world.conf.join("pools")).unwrap();
    world.pool(name, kind, lists);
}

fn killed_growing(world: &World) {
    let id = format!("{}-victim", world.tag);
    let request = || json!({ "pinfold.io/pool": "common" });
    let before = || {
        start_over(world, "common", Kind::Shared, &["0"]);
        let owner = Standin::new(world, "a");
        world
            .hook("prestart", &state(&id, owner.pid, request()))
            .ok();
        (owner, String::new())
    };
    each_point(
        world,
        &["pool", "resize", "common", "2"],
        before,
        |owner, number| {
            assert_sound(world, "after the kill");
            let list = the_list(world, "common");
            let claim = world.claim_of(&id);
            // Whatever it has is in the list that it is in.
            let claimed = cpus(claim["cpus"].as_str().unwrap());
            assert!(cpus(&affinity(owner.pid)).is_subset(&claimed), "{claim}");
            assert!(claimed.is_subset(&cpus(&list)), "{claim} {list}");
            assert_eq!(world.tasks("common", &list), [owner.pid]);
            if number % 2 == 0 {
                pool(world, &["resize", "common", "2"]).ok();
                assert_follows(world, &id, owner.pid, &the_list(world, "common"));
            }
            owner.die();
            if number % 4 < 2 {
                world.reconcile();
            } else {
                world.hook("poststop", &stopped(&id, request())).ok();
            }
            let next = Standin::new(world, "next");
            world
                .hook("prestart", &state("next", next.pid, request()))
                .ok();
            assert_eq!(
                world.tasks("common", &the_list(world, "common")),
                [next.pid]
            );
            next.die();
            world.reconcile();
            world.assert_all_free("after everybody is gone");
        },
    );
}

/// Down to one list and up again: each time the list of the owner stays, and doing it again
/// finishes it.
fn killed_resizing(world: &World) {
    world.has_two_cpus();
    for (there, wanted) in [(&["0", "1"][..], "1"), (&["1"], "2")] {
        let before = || {
            start_over(world, "dp", Kind::Exclusive, there);
            (owner_of_a_list(world), String::new())
        };
        let verb = ["pool", "resize", "dp", wanted, "--reserve", "none"];
        each_point(world, &verb, before, |owner, _| {
            assert_sound(world, "after the kill");
            assert_owns_a_list(world, &owner);
            pool(world, &verb[1..]).ok();
            assert_eq!(lists(world, "dp").len().to_string(), wanted);
            assert_owns_a_list(world, &owner);
            owner.die();
            world.reconcile();
            world.assert_all_free("after the owner is gone");
        });
    }
}

fn killed_adding(world: &World) {
    for (verb, wanted) in [
        (
            &["pool", "add", "new:shared", "--list", "0"][..],
            &["0"][..],
        ),
        (&["pool", "remove", "--if-exists", "new"], &[]),
    ] {
        let before = || {
            start_over(world, "dp", Kind::Exclusive, &["1"]);
            if wanted.is_empty() {
                world.pool("new", Kind::Shared, &["0"]);
            }
            (owner_of_a_list(world), String::new())
        };
        each_point(world, verb, before, |owner, _| {
            assert_sound(world, "after the kill");
            assert_owns_a_list(world, &owner);
            pool(world, &verb[1..]).ok();
            assert_eq!(lists(world, "new"), wanted);
            owner.die();
            world.reconcile();
            world.assert_all_free("after the owner is gone");
            let left = std::fs::read_dir(&world.conf).unwrap().count();
            assert_eq!(left, 2, "only lock and pools are left");
        });
    }
}

fn owner_of_a_list(world: &World) -> Standin {
    let owner = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("owner", owner.pid, request))
        .ok();
    owner
}

#[track_caller]
fn assert_owns_a_list(world: &World, owner: &Standin) {
    let mask = owner.mask();
    assert_eq!(world.tasks("dp", &mask), [owner.pid]);
    assert_eq!(world.claim_of("owner")["cpus"], mask.as_str());
}
