//! Files that rot: bits that flip, ends that are cut off, contents swapped or old, links gone, an
//! empty mark; of claims, of those that ended, of `tasks`, `exclusive` and `lock`, and of what is
//! counted or queued beside them. Whatever is found, no list of a live owner is given away.

use crate::campaign::{self, Dice, number, seed};
use crate::cases::{Case, Need, plain};
use crate::process::affinity;
use crate::world::{Kind, Standin, World, state};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("corruption::of_the_books", needs, of_the_books),
        plain("corruption::of_what_was_before", needs, stale),
        plain("corruption::of_what_it_was_itself", needs, own_past),
        plain("corruption::of_who_has_to_follow", needs, unfollowed),
        plain("corruption::of_an_earlier_boot_is_none", needs, other_boot),
    ]
}

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Rot {
    Flip(usize),
    Truncate(usize),
    Vanish,
    Empty,
    /// It has what another file of its kind has, and that one has what it had.
    Swap,
}

/// Every file and link of the books, as it was.
type Saved = BTreeMap<PathBuf, Content>;

#[derive(Clone, PartialEq)]
enum Content {
    File(Vec<u8>),
    Link(PathBuf),
}

/// Two owners of two lists, who live through everything, and whoever wants a list.
struct Scene<'w> {
    world: &'w World,
    owners: [Standin; 2],
    held: [String; 2],
    rival: Standin,
    saved: Saved,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World) -> Scene<'w> {
        world.empty();
        world.pool("dp", Kind::Exclusive, &["0", "1"]);
        let owners = ["a", "b"].map(|name| {
            let owner = Standin::new(world, name);
            let asked = state(name, owner.pid, request());
            world.hook("createRuntime", &asked).ok();
            owner
        });
        // Beside them: a record of one that ended, a refusal that was counted, and a queue.
        let rival = Standin::new(world, "rival");
        let asked = state("rival", rival.pid, request());
        world.hook("createRuntime", &asked).exits(1);
        set_aside(world, &world.claim_of("a"), |claim| {
            claim["owner"]["start"] = json!(1);
        });
        std::fs::write(world.run.join("queue"), [0; 3]).expect("make a queue");
        Scene {
            held: owners.each_ref().map(|owner| affinity(owner.pid)),
            owners,
            rival,
            saved: save(world),
            world,
        }
    }

    /// Somebody asks for a list, `reconcile` runs, and both again.
    fn try_it(&self) {
        for _ in 0..2 {
            let asked = state("rival", self.rival.pid, request());
            let given = self.world.hooking("createRuntime", &asked).wait();
            assert_ne!(given.code(), Some(0), "given to two");
            crate::process::run(&mut self.world.pinfold(&["reconcile"]));
            let now = self.owners.each_ref().map(|owner| affinity(owner.pid));
            assert_eq!(now, self.held, "an owner runs elsewhere");
            let rival = affinity(self.rival.pid);
            assert!(!self.held.contains(&rival), "confined to another's");
        }
    }
}

fn request() -> serde_json::Value {
    json!({ "pinfold.io/pool": "dp" })
}

fn of_the_books(world: &World) {
    let mut scene = Scene::new(world);
    let mut jobs: Vec<(usize, Rot)> = Vec::new();
    for (number, (path, content)) in scene.saved.iter().enumerate() {
        if is_told_alone(path) {
            continue;
        }
        jobs.push((number, Rot::Vanish));
        if other_of_its_kind(&scene.saved, path).is_some() {
            jobs.push((number, Rot::Swap));
        }
        if let Content::File(bytes) = content {
            jobs.push((number, Rot::Empty));
            // KCM's format has no check: a pool that says that it is shared is shared.
            let is_kind = path.ends_with("exclusive");
            let bits = (0..bytes.len() * 8).filter(|bit| !is_kind || *bit > 0);
            jobs.extend(bits.map(|bit| (number, Rot::Flip(bit))));
            jobs.extend((1..bytes.len()).map(|length| (number, Rot::Truncate(length))));
        }
    }
    let mut dice = Dice(seed());
    for last in (1..jobs.len()).rev() {
        jobs.swap(last, dice.below(last + 1));
    }
    // Those are few, and always tried.
    jobs.sort_by_key(|(_, rot)| !matches!(rot, Rot::Swap | Rot::Vanish | Rot::Empty));
    let seconds = number("PINFOLD_TEST_FAULTS_SECONDS").unwrap_or(20) * 2;
    let began = std::time::Instant::now();
    let (mut tried, mut failures) = (0, Vec::new());
    for (number, rot) in &jobs {
        if began.elapsed().as_secs() > seconds || failures.len() >= MOST_TOLD {
            break;
        }
        tried += 1;
        let (path, content) = scene.saved.iter().nth(*number).expect("as many as before");
        match rot {
            Rot::Swap => swapped(&scene.saved, path, content),
            _ => rotten(path, *rot, content),
        }
        let told = catch_unwind(AssertUnwindSafe(|| scene.try_it()));
        if let Err(panic) = told {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            failures.push(format!(
                "{} {rot:?}: {}",
                path.display(),
                said.unwrap_or_default()
            ));
            drop(scene);
            crate::cgroups::clear(&crate::cgroups::named(&world.tag));
            scene = Scene::new(world);
        }
        restore(world, &scene.saved);
    }
    println!("{tried} rotten files of {}, seed {}", jobs.len(), seed());
    campaign::count_executions(tried * 4);
    assert!(
        failures.is_empty(),
        "PINFOLD_TEST_FAULTS_SEED={}: lists were given away, or owners moved:\n{}",
        seed(),
        failures.join("\n")
    );
}

/// The failures that are told.
const MOST_TOLD: usize = 12;

/// What was used, and what was refused: no list depends on them.
fn is_told_alone(path: &Path) -> bool {
    ["usage.jsonl", "refusals"]
        .iter()
        .any(|name| path.ends_with(name))
}

/// Makes a record of an owner that ended out of a claim.
fn set_aside(world: &World, claim: &Value, change: impl FnOnce(&mut Value)) {
    let mut ended = claim.clone();
    change(&mut ended);
    ended.as_object_mut().expect("an object").remove("sum");
    let owner = &ended["owner"];
    let name = format!(
        "{}@{}-{}",
        claim["id"].as_str().expect("an id"),
        owner["pid"],
        owner["start"]
    );
    let directory = world.run.join("ended");
    std::fs::create_dir_all(&directory).expect("make a directory");
    std::fs::write(directory.join(name), ended.to_string()).expect("write a record");
}

/// A shared list grows, and the claim of one of its owners cannot be read: nobody says that all
/// have grown.
fn unfollowed(world: &World) {
    world.has_two_cpus();
    world.pool("dp", Kind::Shared, &["0"]);
    let owner = Standin::new(world, "a");
    let asked = state("a", owner.pid, request());
    world.hook("createRuntime", &asked).ok();
    let is_claim = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "json");
    let saved = save(world);
    let claim = saved.keys().find(is_claim).expect("there is a claim");
    let Some(Content::File(bytes)) = saved.get(claim) else {
        panic!("a claim is a file");
    };
    let resize = || crate::process::run(&mut world.pinfold(&["pool", "resize", "dp", "2"]));
    rotten(
        claim,
        Rot::Flip(bytes.len() * 4),
        &Content::File(bytes.clone()),
    );
    let refused = resize().exits(1);
    assert!(refused.stderr.contains("claim"), "says why: {refused}");
    assert_eq!(affinity(owner.pid), "0");
    std::fs::write(claim, bytes).expect("restore the claim");
    resize().ok();
    assert_eq!(affinity(owner.pid), "0-1", "done again");
    campaign::count_executions(3);
    owner.die();
    world.reconcile();
    world.assert_all_free("at the end");
}

/// An owner has the numbers of one that ended before a reboot, and nothing is wrong with that.
fn other_boot(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::new(world, "a");
    let asked = state("a", owner.pid, request());
    world.hook("createRuntime", &asked).ok();
    let claim = world.claim_of("a");
    set_aside(world, &claim, |ended| {
        ended["boot_id"] = json!("00000000-0000-4000-8000-000000000000");
    });
    world.assert_settled("beside one of another boot");
    set_aside(world, &claim, |_| {});
    let seen = std::panic::catch_unwind(AssertUnwindSafe(|| world.assert_sound("")));
    assert!(seen.is_err(), "an owner that has ended is not seen");
    owner.die();
}

fn rotten(path: &Path, rot: Rot, content: &Content) {
    let Content::File(bytes) = content else {
        std::fs::remove_file(path).expect("remove a link");
        return;
    };
    let mut bytes = bytes.clone();
    // A claim that was made anew can be a byte shorter.
    match rot {
        Rot::Vanish => return std::fs::remove_file(path).expect("remove a file"),
        Rot::Flip(bit) => {
            let place = (bit / 8).min(bytes.len().saturating_sub(1));
            // What was empty when it was looked at has no bit.
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Rot::Truncate(length) => bytes.truncate(length),
        Rot::Empty => bytes.clear(),
        Rot::Swap => unreachable!("it takes two files"),
    }
    std::fs::write(path, bytes).expect("write a rotten file");
}

/// Another claim, where this is one.
fn other_of_its_kind<'s>(saved: &'s Saved, path: &Path) -> Option<(&'s PathBuf, &'s Content)> {
    let is_claim = |path: &Path| path.extension().is_some_and(|kind| kind == "json");
    let mut others = saved.iter();
    let found = others.find(|(other, _)| is_claim(other) && *other != path);
    found.filter(|_| is_claim(path))
}

fn swapped(saved: &Saved, path: &Path, content: &Content) {
    let (other, others) = other_of_its_kind(saved, path).expect("another claim");
    for (path, content) in [(path, others), (other, content)] {
        let Content::File(bytes) = content else {
            panic!("a claim is a file");
        };
        std::fs::write(path, bytes).expect("swap two files");
    }
}

/// What was there before is put back, as a backup would: the list was nobody's then, and the claims
/// were those of earlier owners. No live owner loses its list.
fn stale(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let earlier = ["a", "b"].map(|name| Standin::new(world, &format!("earlier-{name}")));
    for owner in &earlier {
        let id = format!("earlier-{}", owner.pid);
        world
            .hook("createRuntime", &state(&id, owner.pid, request()))
            .ok();
    }
    let old = save(world);
    for owner in earlier {
        owner.die();
    }
    let scene = Scene::new(world);
    for (path, content) in &old {
        // A pid that is not there any more says nothing of who is there now: only the claims can.
        let is_recorded = scene.saved.get(path) == Some(content);
        let Content::File(bytes) = content else {
            continue;
        };
        if is_recorded || path.ends_with("lock") {
            continue;
        }
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        std::fs::write(path, bytes).expect("put an old file back");
        scene.try_it();
        restore(world, &scene.saved);
    }
    campaign::count_executions(old.len() * 4);
}

/// An owner's claim as it was before its pool grew, or before another process stood for it, is put
/// back: where its first process lives, and where only another does.
fn own_past(world: &World) {
    for (is_grown, has_first) in [(true, true), (true, false), (false, false)] {
        let when = format!("grown: {is_grown}, first process: {has_first}");
        world.empty();
        let (kind, wishes): (_, &[&[&str]]) = match is_grown {
            true => (
                Kind::Shared,
                &[&["pool", "remove", "dp"], &["pool", "resize", "dp", "1"]],
            ),
            false => (Kind::Exclusive, &[&["pool", "remove", "dp"]]),
        };
        world.pool("dp", kind, &["0"]);
        let owner = Standin::running(world, "own", &["--when-told", "--orphan", "--wait"]);
        owner.says("waiting to be told");
        let asked = state("own", owner.pid, request());
        world.hook("createRuntime", &asked).ok();
        crate::process::send(owner.pid, nix::libc::SIGUSR1);
        owner.says("orphan: ready");
        let group = owner.cgroup();
        let old = save(world);
        if is_grown {
            crate::process::run(&mut world.pinfold(&["pool", "resize", "dp", "2"])).ok();
        }
        let first = match has_first {
            true => Some(owner),
            false => {
                owner.die();
                None
            }
        };
        if !is_grown {
            world.reconcile();
        }
        let now = save(world);
        let is_tasks = |path: &&PathBuf| path.ends_with("tasks");
        let tasks = now.keys().find(is_tasks).expect("a list");
        let is_claim = |path: &Path| path.extension().is_some_and(|kind| kind == "json");
        let mut put_back = 0;
        for (path, content) in old.iter().filter(|(path, _)| is_claim(path)) {
            if let (Content::File(bytes), true) = (content, now.get(path) != Some(content)) {
                std::fs::write(path, bytes).expect("put an earlier claim back");
                put_back += 1;
            }
        }
        assert_eq!(put_back, 1, "{when}");
        for _ in 0..2 {
            crate::process::run(&mut world.pinfold(&["reconcile"]));
            for wish in wishes {
                let ran = crate::process::run(&mut world.pinfold(wish));
                assert_ne!(
                    ran.code(),
                    Some(0),
                    "{when}: taken from a live owner: {ran}"
                );
            }
            let recorded = std::fs::read_to_string(tasks).expect("read tasks");
            assert_ne!(recorded, "", "{when}: its list is nobody's");
            assert!(!crate::cgroups::processes(&group).is_empty(), "it lives");
            campaign::count_executions(1 + wishes.len());
        }
        drop(first);
        crate::cgroups::clear(&crate::cgroups::named(&world.tag));
        world.reconcile();
        world.assert_all_free(&format!("{when}: once it is dead"));
    }
}

fn save(world: &World) -> Saved {
    let mut saved = Saved::new();
    for directory in [&world.run, &world.conf] {
        below(directory, &mut saved);
    }
    saved
}

fn below(directory: &Path, saved: &mut Saved) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            below(&path, saved);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).expect("read a link");
            saved.insert(path, Content::Link(target));
        } else {
            let bytes = std::fs::read(&path).expect("read a file");
            saved.insert(path, Content::File(bytes));
        }
    }
}

/// As it was, and nothing besides.
fn restore(world: &World, saved: &Saved) {
    let now = save(world);
    for path in now.keys().filter(|path| !saved.contains_key(*path)) {
        std::fs::remove_file(path).expect("remove what is new");
    }
    for (path, content) in saved
        .iter()
        .filter(|(path, was)| now.get(*path) != Some(*was))
    {
        let _ = std::fs::remove_file(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        match content {
            Content::File(bytes) => std::fs::write(path, bytes).expect("restore a file"),
            Content::Link(target) => symlink(target, path).expect("restore a link"),
        }
    }
}
