//! What a verb finds can be odd: others wait for the lock, owners have ended and are not accounted
//! for, a claim has lost its lists, a group of our own has to go.

use crate::campaign::{Ending, Scene, short_campaign};
use crate::cases::{Case, Need, plain};
use crate::cgroups::{self, ReadOnly, hierarchy};
use crate::process::{self, affinity};
use crate::verbs::{POOL, all_comes_back, annotations, fresh, judge_end, judge_start, pin, victim};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("errors::create_runtime_in_the_queue", needs, in_the_queue),
        plain("errors::create_runtime_that_is_refused", needs, refused),
        plain("errors::reconcile_accounts_for_the_ended", needs, ended),
        plain("errors::poststop_of_a_group_of_ours", needs, group_of_ours),
        plain(
            "errors::release_of_what_cannot_be_restored",
            needs,
            given_up,
        ),
        plain("errors::reconcile_of_what_was_given_up", needs, undone),
    ]
}

/// So long somebody else has the lock: the verb comes, and another hook before it.
const HELD: Duration = Duration::from_millis(60);

/// Two wait for the lock; what fails in the queue costs its order alone.
fn in_the_queue(world: &World) {
    short_campaign(world, "createRuntime in the queue", || {
        fresh(world, &["1"]);
        world.pool("cp", Kind::Shared, &["0"]);
        let (standin, before) = (Standin::new(world, "a"), Standin::new(world, "before"));
        let (id, pid) = (victim(world), standin.pid);
        // The queue is in the run directory.
        world.reconcile();
        let held = world.hold_lock();
        let asked = state("before", before.pid, json!({ "pinfold.io/pool": "cp" }));
        let waiting = world.hooking("createRuntime", &asked);
        process::eventually("it waits", || {
            (!world.hooks_at_the_lock().is_empty()).then_some(())
        });
        std::thread::spawn(move || {
            std::thread::sleep(HELD);
            drop(held);
        });
        Scene {
            command: world.pinfold(&["hook", "createRuntime"]),
            input: state(&id, pid, annotations()).to_string(),
            judge: Box::new(move |ending| {
                waiting.wait().ok();
                let has_queued = world.run.join("queue").exists();
                assert!(has_queued, "nobody stood in the queue");
                judge_start(world, &id, pid, ending);
            }),
            finish: Box::new(move || {
                let groups = [standin, before].map(Standin::die);
                all_comes_back(world, &groups);
            }),
        }
    });
}

/// A refusal is counted and kept, and is one whatever becomes of that.
fn refused(world: &World) {
    short_campaign(world, "createRuntime that is refused", || {
        fresh(world, &["1"]);
        let (owner, late) = (Standin::new(world, "owner"), Standin::new(world, "late"));
        pin(world, "owner", owner.pid);
        let (pid, before) = (late.pid, affinity(late.pid));
        Scene {
            command: world.pinfold(&["hook", "createRuntime"]),
            input: state("late", late.pid, annotations()).to_string(),
            judge: Box::new(move |ending| {
                assert!(!ending.is_success(), "there is nothing to give: {ending:?}");
                assert_eq!(affinity(pid), before, "{ending:?}");
                assert!(world.claims_of("late").is_empty(), "{ending:?}");
                world.assert_settled("after a refusal");
            }),
            finish: Box::new(move || {
                let groups = [owner, late].map(Standin::die);
                all_comes_back(world, &groups);
            }),
        }
    });
}

/// How many records there are of an owner.
fn records_of(world: &World, id: &str) -> usize {
    let text = std::fs::read_to_string(world.run.join("usage.jsonl")).unwrap_or_default();
    let records = text.lines().map(serde_json::from_str::<Value>);
    records
        .filter(|record| record.as_ref().is_ok_and(|record| record["id"] == id))
        .count()
}

fn ended_of(world: &World) -> usize {
    let ended = std::fs::read_dir(world.run.join("ended"));
    ended.into_iter().flatten().count()
}

/// A start has freed a dead owner, and left it to others to write down what that used.
fn ended(world: &World) {
    short_campaign(world, "reconcile that accounts", || {
        fresh(world, &["1"]);
        let (dead, next) = (Standin::new(world, "dead"), Standin::new(world, "next"));
        pin(world, "dead", dead.pid);
        let dead = dead.die();
        pin(world, "next", next.pid);
        assert_eq!(ended_of(world), 1, "it is set aside");
        Scene {
            command: world.pinfold(&["reconcile"]),
            input: String::new(),
            judge: Box::new(move |ending| {
                assert_eq!(world.claims_of("next").len(), 1, "given away: {ending:?}");
                let is_written = records_of(world, "dead") == 1;
                let is_kept = ended_of(world) == 1;
                assert!(is_written || is_kept, "it is forgotten: {ending:?}");
            }),
            finish: Box::new(move || {
                let group = next.die();
                all_comes_back(world, &[dead, group]);
                assert_eq!(ended_of(world), 0, "not accounted for");
                // Who is killed in between writes it down again: nothing is lost.
                let records = records_of(world, "dead");
                assert!((1..=2).contains(&records), "{records} records of one owner");
            }),
        }
    });
}

/// The container had no group of its own: the one that was made for it goes.
fn group_of_ours(world: &World) {
    short_campaign(world, "poststop of a group of ours", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let standin = Standin::bare();
        pin(world, &id, standin.pid);
        let group = standin.die();
        // Whoever is in it can make others below.
        std::fs::create_dir_all(group.join("below/it")).expect("make groups");
        let made = group.clone();
        Scene {
            command: world.pinfold(&["hook", "poststop"]),
            input: stopped(&id, annotations()).to_string(),
            judge: Box::new(move |ending| {
                judge_end(world, ending);
                let is_kept = !world.claims().is_empty();
                assert!(
                    !ending.is_success() || is_kept || !made.exists(),
                    "its group is left: {ending:?}"
                );
            }),
            finish: Box::new(move || {
                all_comes_back(world, &[]);
                assert!(!group.exists(), "{} is left", group.display());
            }),
        }
    });
}

/// A dead owner whose mask cannot be taken back for now, and whoever is to have its list.
struct Kept {
    group: std::path::PathBuf,
    read_only: ReadOnly,
}

impl Kept {
    fn new(world: &World) -> Kept {
        let dead = Standin::new(world, "dead");
        pin(world, "dead", dead.pid);
        let group = dead.die();
        let read_only = ReadOnly::new(&group.join("cpuset.cpus"));
        Kept { group, read_only }
    }
}

/// Its list is freed, and what is not undone stays known.
fn given_up(world: &World) {
    short_campaign(world, "release --force of what cannot be restored", || {
        fresh(world, &["1"]);
        let kept = Kept::new(world);
        let line = ["release", "dead", "--force"];
        Scene {
            command: world.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                let is_free = || world.tasks(POOL, "1").is_empty();
                let is_known = || world.claims_of("dead").len() == 1;
                assert!(is_known(), "what is not undone is forgotten: {ending:?}");
                assert!(!ending.is_success() || is_free(), "{ending:?}");
                // What is not undone is said again.
                process::run(&mut world.pinfold(&line));
                assert!(is_known() && is_free(), "done again after {ending:?}");
            }),
            finish: Box::new(move || {
                drop(kept.read_only);
                all_comes_back(world, &[kept.group]);
            }),
        }
    });
}

/// `reconcile` undoes the rest, and leaves alone whoever has the list by now.
fn undone(world: &World) {
    short_campaign(world, "reconcile of what was given up", || {
        fresh(world, &["1"]);
        let kept = Kept::new(world);
        process::run(&mut world.pinfold(&["release", "dead", "--force"])).ok();
        let next = Standin::new(world, "next");
        pin(world, "next", next.pid);
        drop(kept.read_only);
        let (pid, group, claim) = (next.pid, kept.group.clone(), world.claim_of("next"));
        Scene {
            command: world.pinfold(&["reconcile"]),
            input: String::new(),
            judge: Box::new(move |ending: &Ending| {
                assert_eq!(affinity(pid), "1", "{ending:?}");
                assert_eq!(world.claim_of("next"), claim, "{ending:?}");
                assert_eq!(world.tasks(POOL, "1"), [pid], "{ending:?}");
                if ending.is_success() {
                    assert!(world.claims_of("dead").is_empty(), "{ending:?}");
                    assert_eq!(cgroups::mask(&group), hierarchy().unnarrowed());
                }
            }),
            finish: Box::new(move || {
                let group = next.die();
                all_comes_back(world, &[kept.group, group]);
            }),
        }
    });
}
