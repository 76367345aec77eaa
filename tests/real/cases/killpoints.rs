//! I1, I2 and I3 when pinfold is killed: SIGKILL at every one of its system calls in turn, against
//! real cgroups and real processes.

use crate::case::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, affinity};
use crate::strace::{self, Reached, Whose};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The container that wants the list of the one whose hook is killed.
const RIVAL: &str = "rival";

/// The container whose hook is killed. Nobody else's cgroups have its name.
fn victim(world: &World) -> String {
    format!("{}-victim", world.tag)
}

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Strace, Need::Cpus(2)];
    vec![
        plain("killpoints::prestart", needs, prestart),
        plain(
            "killpoints::prestart_that_frees_a_dead_owners_list",
            needs,
            prestart_that_reaps,
        ),
        plain(
            "killpoints::prestart_that_makes_a_cgroup",
            needs,
            prestart_that_makes_a_cgroup,
        ),
        plain("killpoints::poststop", needs, poststop),
        plain(
            "killpoints::poststop_with_a_survivor",
            needs,
            poststop_with_a_survivor,
        ),
        plain("killpoints::reconcile", needs, reconcile),
    ]
}

/// Reconciles what is left of an owner that is dead, and of every second one the group, too; then
/// looks whether all is as before.
pub(crate) fn reconcile_rest(world: &World, group: &Path, number: usize, look: impl FnOnce()) {
    if number % 2 == 0 {
        let _ = std::fs::remove_dir(group);
    }
    world.reconcile();
    world.assert_all_free("after reconcile");
    look();
    let _ = std::fs::remove_dir(group);
}

/// Runs a verb untouched to learn its system calls, and then once for each of them with that
/// as its last. `before` arranges what the verb finds, and `after` is told of every death.
pub(crate) fn each_point<T>(
    world: &World,
    verb: &[&str],
    mut before: impl FnMut() -> (T, String),
    mut after: impl FnMut(T, usize),
) {
    let (command, trace) = (world.pinfold(verb), world.dir.join("trace"));
    let name = verb.join(" ");
    // The second run tells: what the first alone makes, outside of the scene, no later one does.
    let mut points = Vec::new();
    for _ in 0..2 {
        let (scene, input) = before();
        points = strace::points(&command, Whose::All, input.as_bytes(), &trace);
        after(scene, 0);
    }
    let mut killed = 0;
    let tried = strace::tried(&points);
    for &(number, point) in &tried {
        let (scene, input) = before();
        killed += usize::from(strace::kill_at(
            point,
            &command,
            Whose::All,
            input.as_bytes(),
            &trace,
        ));
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.assert_sound("after a kill");
            after(scene, number)
        }));
        if let Err(panic) = told {
            eprintln!(
                "that was: {name}, killed at {point} ({number} of {})",
                points.len()
            );
            std::panic::resume_unwind(panic);
        }
    }
    Reached {
        killed,
        tried: tried.len(),
        least: 30,
        percent: 90,
    }
    .assert_enough(&name);
}

fn request() -> Value {
    json!({ "pinfold.io/pool": "dp" })
}

/// A pool directory and run directory as on the first day.
fn fresh(world: &World, lists: &[&str]) {
    let _ = std::fs::remove_dir_all(&world.run);
    let _ = std::fs::remove_dir_all(world.conf.join("pools"));
    std::fs::create_dir(world.conf.join("pools")).expect("make the pools directory");
    world.pool("dp", Kind::Exclusive, lists);
}

fn prestart_of(world: &World, id: &str, pid: i32) -> process::Ran {
    world.hook("prestart", &state(id, pid, request()))
}

/// A second container that asks for the list while the one whose hook was killed still lives, and
/// again when that is gone, as it is as soon as its runtime learns of the hook's death.
struct Rival {
    standin: Standin,
    owns: bool,
}

impl Rival {
    /// I1: either the killed hook's container owns the list or the rival, and each is confined as
    /// it owns.
    fn beside(world: &World, standin: Standin, other: &Standin) -> Rival {
        let mask = standin.mask();
        let ran = prestart_of(world, RIVAL, standin.pid);
        let owns = ran.code() == Some(0);
        if owns {
            assert_eq!(world.tasks("dp", "1"), [standin.pid]);
            assert_eq!(
                world.claims_of(&victim(world)),
                Vec::<Value>::new(),
                "two owners of one list"
            );
            assert_ne!(other.mask(), "1", "confined to a list that it does not own");
            assert_ne!(
                affinity(other.pid),
                "1",
                "confined to a list that it does not own"
            );
        } else {
            assert!(ran.stderr.contains("exhausted"), "{ran}");
            assert_eq!(
                world.claims_of(&victim(world)).len(),
                1,
                "refused for an owner that there is not: {ran}"
            );
            let named = world.tasks("dp", "1");
            assert!(
                named.iter().all(|&pid| pid == other.pid),
                "tasks names {named:?}, the owner is {}",
                other.pid
            );
            assert_eq!(standin.mask(), mask);
        }
        Rival { standin, owns }
    }

    /// The other is gone: now the rival gets the list; when it is gone as well, everything is as in
    /// the beginning.
    fn outlives(self, world: &World, other: &Path) {
        if !self.owns {
            prestart_of(world, RIVAL, self.standin.pid).ok();
        }
        assert_eq!(world.tasks("dp", "1"), [self.standin.pid]);
        assert_eq!(
            (self.standin.mask(), affinity(self.standin.pid)),
            ("1".into(), "1".into())
        );
        let cgroup = self.standin.die();
        world.reconcile();
        world.assert_all_free("after both are gone");
        for cgroup in [other, &cgroup] {
            let restored = !cgroup.exists() || cgroups::mask(cgroup) == hierarchy().unnarrowed();
            assert!(
                restored,
                "{} keeps {}",
                cgroup.display(),
                cgroups::mask(cgroup)
            );
        }
    }
}

fn prestart(world: &World) {
    let before = || {
        fresh(world, &["1"]);
        let standin = Standin::new(world, "a");
        let input = state(&victim(world), standin.pid, request()).to_string();
        (standin, input)
    };
    each_point(world, &["hook", "prestart"], before, |a, number| {
        after_prestart(world, a, number)
    });
}

fn after_prestart(world: &World, a: Standin, number: usize) {
    let rival = Rival::beside(world, Standin::new(world, "rival"), &a);
    rival.outlives(world, &die(world, a, number));
}

/// The container ends. Half of the time nobody cleans up before the list is needed; some runtimes
/// call poststop, and some do not.
fn die(world: &World, a: Standin, number: usize) -> PathBuf {
    let cgroup = a.die();
    match number % 4 {
        0 => drop(world.reconcile()),
        2 => drop(
            world
                .hook("poststop", &stopped(&victim(world), request()))
                .ok(),
        ),
        _ => {}
    }
    cgroup
}

/// The only list is held by somebody who is dead, and has to be freed on the way.
fn prestart_that_reaps(world: &World) {
    let before = || {
        fresh(world, &["1"]);
        let dead = Standin::new(world, "dead");
        prestart_of(world, "dead", dead.pid).ok();
        let (dead, a) = (dead.die(), Standin::new(world, "a"));
        let input = state(&victim(world), a.pid, request()).to_string();
        ((dead, a), input)
    };
    each_point(
        world,
        &["hook", "prestart"],
        before,
        |(dead, a): (PathBuf, Standin), number| {
            after_prestart(world, a, number);
            assert_eq!(
                cgroups::mask(&dead),
                hierarchy().unnarrowed(),
                "the dead owner's cgroup"
            );
        },
    );
}

/// The containers have no cgroup of their own, so one is made for each; it must not stay behind,
/// and what was begun must not be in the way of the next.
fn prestart_that_makes_a_cgroup(world: &World) {
    let before = || {
        fresh(world, &["1"]);
        let a = Standin::bare();
        let input = state(&victim(world), a.pid, request()).to_string();
        (a, input)
    };
    each_point(world, &["hook", "prestart"], before, |a, number| {
        let rival = Rival::beside(world, Standin::bare(), &a);
        die(world, a, number);
        rival.outlives(world, &hierarchy().root.join("nowhere"));
        let ours = cgroups::below(&hierarchy().root.join("pinfold"));
        let left = ours
            .iter()
            .find(|path| path.to_string_lossy().contains(&victim(world)));
        assert!(left.is_none(), "a cgroup of ours is left: {left:?}");
    });
}

fn poststop(world: &World) {
    let before = || {
        fresh(world, &["1"]);
        let a = Standin::new(world, "a");
        prestart_of(world, &victim(world), a.pid).ok();
        (a.die(), stopped(&victim(world), request()).to_string())
    };
    each_point(world, &["hook", "poststop"], before, |cgroup, number| {
        if number % 2 == 0 {
            world.reconcile();
            world.assert_all_free("after reconcile");
        }
        let rival = Rival {
            standin: Standin::new(world, "rival"),
            owns: false,
        };
        rival.outlives(world, &cgroup);
        assert_accounted_once(world, &[&victim(world)]);
    });
}

/// Wherever the end of owners was killed, each is written down, and once.
fn assert_accounted_once(world: &World, ids: &[&str]) {
    process::run(&mut world.pinfold(&["usage"])).ok();
    let text = std::fs::read_to_string(world.run.join("usage.jsonl")).expect("there are records");
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    for id in ids {
        let of_id = records.iter().filter(|record| record["id"] == *id);
        let owners: Vec<&Value> = of_id.map(|record| &record["owner"]).collect();
        // Whoever is killed right behind the writing has it written again, and readers know it by
        // this.
        let is_one_owner = owners.windows(2).all(|two| two[0] == two[1]);
        assert!(
            (1..=2).contains(&owners.len()) && is_one_owner,
            "{id}: {text}"
        );
    }
}

/// I2: the first process is gone and another lives on, so no death of a poststop may free the list.
fn poststop_with_a_survivor(world: &World) {
    let before = || {
        fresh(world, &["1"]);
        (
            Standin::survived(world, &victim(world), "dp"),
            stopped(&victim(world), request()).to_string(),
        )
    };
    each_point(world, &["hook", "poststop"], before, |cgroup, _| {
        let survivor = cgroups::processes(&cgroup)[0];
        let rival = Standin::new(world, "rival");
        let refused = prestart_of(world, RIVAL, rival.pid).exits(1);
        assert!(refused.stderr.contains("exhausted"), "{refused}");
        assert_eq!(
            world.tasks("dp", "1"),
            [survivor],
            "other tools see an owner"
        );
        assert_eq!(world.claims_of(&victim(world)).len(), 1);
        assert_eq!(
            (cgroups::mask(&cgroup), affinity(survivor)),
            ("1".into(), "1".into())
        );
        kill_all_in(&cgroup);
        Rival {
            standin: rival,
            owns: false,
        }
        .outlives(world, &cgroup);
    });
}

/// One list whose owner is dead, and one whose owner has a survivor: the first is freed, the second
/// never.
fn reconcile(world: &World) {
    let before = || {
        fresh(world, &["0", "1"]);
        let survived = Standin::survived(world, "survived", "dp");
        let dead = Standin::new(world, "dead");
        prestart_of(world, "dead", dead.pid).ok();
        ((survived, dead.die()), String::new())
    };
    each_point(
        world,
        &["reconcile"],
        before,
        |(survived, dead): (PathBuf, PathBuf), _| {
            let rival = Standin::new(world, "rival");
            prestart_of(world, RIVAL, rival.pid).ok();
            assert_eq!(
                (world.tasks("dp", "1"), rival.mask()),
                (vec![rival.pid], "1".into())
            );
            let another = Standin::new(world, "another");
            let refused = prestart_of(world, "another", another.pid).exits(1);
            assert!(refused.stderr.contains("exhausted"), "{refused}");
            let survivor = cgroups::processes(&survived)[0];
            assert_eq!(
                world.tasks("dp", "0"),
                [survivor],
                "other tools see an owner"
            );
            assert_eq!(
                (cgroups::mask(&survived), affinity(survivor)),
                ("0".into(), "0".into())
            );
            kill_all_in(&survived);
            rival.die();
            world.reconcile();
            world.assert_all_free("after everybody is gone");
            assert_accounted_once(world, &["dead", "survived"]);
            for cgroup in [survived, dead] {
                assert_eq!(
                    cgroups::mask(&cgroup),
                    hierarchy().unnarrowed(),
                    "{}",
                    cgroup.display()
                );
            }
        },
    );
}

fn kill_all_in(cgroup: &Path) {
    process::eventually("the cgroup is empty", || {
        let left = cgroups::processes(cgroup);
        left.iter()
            .for_each(|&pid| process::send(pid, nix::libc::SIGKILL));
        left.is_empty().then_some(())
    });
}
