//! Giving back by hand.

use crate::case::{Case, plain};
use crate::cgroups::{self, ReadOnly, hierarchy};
use crate::needs::Need;
use crate::process::{self, Ran, affinity, is_alive};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("release::refuses_a_live_owner", root, refuses_a_live_owner),
        plain(
            "release::by_force_lets_the_owner_out",
            root,
            by_force_lets_the_owner_out,
        ),
        plain(
            "release::by_force_lets_every_process_out",
            root,
            by_force_lets_every_process_out,
        ),
        plain(
            "release::of_a_dead_owner_and_again",
            root,
            of_a_dead_owner_and_again,
        ),
        plain(
            "release::what_is_not_restored_stays_claimed",
            root,
            what_is_not_restored_stays_claimed,
        ),
        plain(
            "release::by_force_of_a_dead_owner_that_cannot_be_restored",
            root,
            by_force_of_a_dead_owner_that_cannot_be_restored,
        ),
        plain(
            "release::by_the_beginning_of_an_id",
            root,
            by_the_beginning_of_an_id,
        ),
        plain(
            "release::of_nobody_or_several_says_who_there_is",
            root,
            of_nobody_or_several,
        ),
    ]
}

fn owner(world: &World) -> Standin {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    world
        .hook(
            "prestart",
            &state("a", standin.pid, json!({ "pinfold.io/pool": "dp" })),
        )
        .ok();
    assert_eq!(
        (standin.mask(), affinity(standin.pid)),
        ("1".into(), "1".into())
    );
    standin
}

fn release(world: &World, arguments: &[&str]) -> Ran {
    process::run(&mut world.pinfold(&[&["release"], arguments].concat()))
}

fn refuses_a_live_owner(world: &World) {
    let owner = owner(world);
    let claim = world.claim_of("a");
    let refused = release(world, &["a"]).exits(1);
    assert!(
        refused.stderr.contains("--force"),
        "says what to do: {refused}"
    );
    assert_eq!(world.claim_of("a"), claim);
    assert_eq!(
        (world.tasks("dp", "1"), owner.mask()),
        (vec![owner.pid], "1".into())
    );
}

/// I1: before the list is free for others, its owner can no longer run there.
fn by_force_lets_the_owner_out(world: &World) {
    let owner = owner(world);
    release(world, &["a", "--force"]).ok();
    world.assert_all_free("after a forced release");
    assert!(is_alive(owner.pid), "the owner is let out, not killed");
    assert_out(owner.pid);
    let next = Standin::new(world, "next");
    world
        .hook(
            "prestart",
            &state("next", next.pid, json!({ "pinfold.io/pool": "dp" })),
        )
        .ok();
    assert_eq!(
        (affinity(next.pid), world.tasks("dp", "1")),
        ("1".into(), vec![next.pid])
    );
    assert_out(owner.pid);
}

fn by_force_lets_every_process_out(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    release(world, &["a"]).exits(1);
    release(world, &["a", "--force"]).ok();
    world.assert_all_free("after a forced release");
    let survivors = cgroups::processes(&cgroup);
    assert_eq!(survivors.len(), 1);
    assert_out(survivors[0]);
}

/// Cannot run on CPU 1 any more. The machine has others, or the test would not have been chosen.
#[track_caller]
fn assert_out(pid: i32) {
    let cpus = affinity(pid);
    let within = |cpu: usize| {
        let mut ranges = cpus
            .split(',')
            .map(|range| range.split_once('-').unwrap_or((range, range)));
        ranges.any(|(first, last)| (first.parse().unwrap()..=last.parse().unwrap()).contains(&cpu))
    };
    assert!(within(0) && !within(1), "{pid} may run on {cpus}");
}

fn of_a_dead_owner_and_again(world: &World) {
    let cgroup = owner(world).die();
    release(world, &["a"]).ok();
    world.assert_all_free("after release");
    assert_eq!(cgroups::mask(&cgroup), hierarchy().unnarrowed());
    let again = release(world, &["a"]).exits(1);
    assert!(again.stderr.contains("given CPUs to nobody"), "{again}");
    world.assert_all_free("after releasing again");
    // A hook that is told of an id that nobody knows has nothing to do.
    let unknown = json!({"id": "never-heard-of", "status": "stopped"});
    world.hook("poststop", &unknown).ok();
}

/// A group that keeps our mask keeps its claim, and the list with it: what comes into that group
/// runs there.
fn what_is_not_restored_stays_claimed(world: &World) {
    let owner = owner(world);
    let pid = owner.pid;
    let cgroup = owner.die();
    let stays = |said: &str| {
        assert!(said.contains("still holds 1 of pool dp"), "{said}");
        assert_eq!(world.claims_of("a").len(), 1, "{said}");
        assert_eq!(world.tasks("dp", "1"), [pid], "{said}");
        assert_eq!(cgroups::mask(&cgroup), "1");
    };
    let read_only = ReadOnly::new(&cgroup.join("cpuset.cpus"));
    let request = json!({ "pinfold.io/pool": "dp" });
    let end = stopped("a", request.clone());
    stays(&world.hook("poststop", &end).exits(1).stderr);
    stays(&release(world, &["a"]).exits(1).stderr);
    let reconcile = process::run(&mut world.pinfold(&["reconcile"])).exits(1);
    stays(&reconcile.stderr);
    let next = Standin::new(world, "next");
    let start = state("next", next.pid, request);
    world.hook("createRuntime", &start).exits(1);
    stays(&release(world, &["a"]).exits(1).stderr);
    drop(read_only);
    world.hook("createRuntime", &start).ok();
    assert_eq!(cgroups::mask(&cgroup), hierarchy().unnarrowed());
    assert!(world.claims_of("a").is_empty());
    // A group that is gone is restored by that.
    let read_only = ReadOnly::new(&next.cgroup().join("cpuset.cpus"));
    let cgroup = next.die();
    release(world, &["next"]).exits(1);
    drop(read_only);
    std::fs::remove_dir(&cgroup).unwrap();
    world.reconcile();
    world.assert_all_free("after the group was removed");
}

/// Of a dead owner the list is free, and what cannot be undone now is undone later.
fn by_force_of_a_dead_owner_that_cannot_be_restored(world: &World) {
    let cgroup = owner(world).die();
    let read_only = ReadOnly::new(&cgroup.join("cpuset.cpus"));
    release(world, &["a"]).exits(1);
    assert_eq!(world.tasks("dp", "1").len(), 1);
    let freed = release(world, &["a", "--force"]).ok();
    assert!(freed.stdout.contains("freed 1 of pool dp"), "{freed}");
    let named = cgroup.file_name().unwrap().to_str().unwrap();
    assert!(
        freed.stderr.contains("is not undone") && freed.stderr.contains(named),
        "says what is left, and where: {freed}"
    );
    let next = Standin::new(world, "next");
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("createRuntime", &state("next", next.pid, request))
        .ok();
    let is_nexts = || {
        let (affinity, tasks) = (affinity(next.pid), world.tasks("dp", "1"));
        assert_eq!((affinity.as_str(), tasks), ("1", vec![next.pid]));
    };
    is_nexts();
    // What is left is still known, and tried, and said.
    assert_eq!(world.claims_of("a").len(), 1);
    process::run(&mut world.pinfold(&["reconcile"])).exits(1);
    let check = process::run(&mut world.pinfold(&["check"]));
    assert!(check.stdout.contains("which was released"), "{check}");
    is_nexts();
    // Whoever came into the group meanwhile is let out, and not kept on what is another's.
    let mut late = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(cgroup.join("cgroup.procs"), late.id().to_string()).unwrap();
    drop(read_only);
    world.reconcile();
    assert_eq!(cgroups::mask(&cgroup), hierarchy().unnarrowed());
    assert_ne!(affinity(late.id() as i32), "1");
    assert!(world.claims_of("a").is_empty());
    is_nexts();
    late.kill().unwrap();
    late.wait().unwrap();
}

/// Two owners on CPUs 0 and 1 of an exclusive pool, with ids as engines make them up.
fn two_owners(world: &World) -> [(String, Standin); 2] {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    ["3f9ac41b0c22", "3f9b00000000"].map(|beginning| {
        let id = format!("{beginning:0<64}");
        let standin = Standin::new(world, &id);
        let request = json!({ "pinfold.io/pool": "dp" });
        world
            .hook("prestart", &state(&id, standin.pid, request))
            .ok();
        (id, standin)
    })
}

fn by_the_beginning_of_an_id(world: &World) {
    let [(first, gone), (second, _lives)] = two_owners(world);
    gone.die();
    let freed = release(world, &["3f9a"]).ok();
    assert!(
        freed
            .stdout
            .contains(&format!("freed 0 of pool dp, which {first} held")),
        "{freed}"
    );
    assert!(world.tasks("dp", "0").is_empty());
    let refused = release(world, &[&second[..12]]).exits(1);
    assert!(
        refused.stderr.contains("still runs on 1 of pool dp"),
        "{refused}"
    );
    release(world, &[&first]).exits(1);
    release(world, &["3", "--force"]).ok();
    world.assert_all_free("after both");
}

fn of_nobody_or_several(world: &World) {
    let owners = two_owners(world);
    let claims = world.claims();
    for (called, said) in [
        ("3f9", "\"3f9\" can be 2 owners"),
        ("3f9c", "no owner is called \"3f9c\""),
        ("f9a", "no owner is called \"f9a\""),
    ] {
        let refused = release(world, &[called, "--force"]).exits(1);
        assert!(refused.stderr.contains(said), "{refused}");
        for (id, _) in &owners {
            assert!(
                refused.stderr.contains(id.as_str()),
                "names both: {refused}"
            );
        }
        assert_eq!(world.claims(), claims, "{called}");
    }
}
