//! Disks: a power loss in the middle of a change of the pools, a file system that is full, and
//! books of many lists and claims.

use crate::campaign;
use crate::cases::{Case, Need, plain};
use crate::errors::Call;
use crate::process;
use crate::soak::watched;
use crate::supervisor::{self, Deed, Injection, Rename, Watched};
use crate::verbs::layout;
use crate::world::{Kind, Standin, World, files_below, state, stopped};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("power::pool_add", needs, |world| {
            power_loss(world, &["pool", "add", "new:exclusive", "--list", "1"]);
        }),
        plain("power::pool_remove", needs, |world| {
            power_loss(world, &["pool", "remove", "--if-exists", "old"]);
        }),
        plain("power::pool_resize", needs, |world| {
            world.has_two_cpus();
            power_loss(world, &["pool", "resize", "cp", "2"]);
        }),
        plain("power::a_start", needs, start),
        plain("full::of_bytes", needs, |world| full(world, "size=64k")),
        plain("full::of_inodes", needs, |world| {
            full(world, "nr_inodes=40")
        }),
        plain("scale::on_a_disk", needs, scale),
        plain("scale::in_memory", needs, |world| {
            in_memory(world, "size=512m");
            scale(world);
        }),
    ]
}

/// The power goes at each call: what was written and not synced is gone then, and only the names
/// are left of it; of the names that were not synced none, or all but one, has come to the disk.
/// Pools that were there are whole, and the same change can be made again; one that was made lasts.
fn power_loss(world: &World, line: &[&str]) {
    let arrange = || {
        world.empty();
        world.pool("cp", Kind::Shared, &["0"]);
        if line.contains(&"old") {
            world.pool("old", Kind::Exclusive, &["1"]);
        }
        std::fs::write(world.conf.join("pools/cp/exclusive"), "0").expect("write exclusive");
        inodes(world)
    };
    let before = arrange();
    let done = supervisor::run(&mut world.pinfold(line), b"", &[]);
    assert_eq!(done.ran.code(), Some(0), "{}", done.ran);
    let wanted = layout(world);
    lose(world, &before, &done, None);
    assert_eq!(layout(world), wanted, "what was made does not last");
    let (mut losses, mut points, mut names_lost) = (0, 0, 0);
    for nth in changing(&done.calls) {
        // The first time tells which names are at risk.
        let mut lost = vec![None];
        while let Some(name) = lost.pop() {
            let before = arrange();
            let deed = Deed::Kill;
            let cut = supervisor::run(&mut world.pinfold(line), b"", &[Injection { nth, deed }]);
            let when = format!("at call {nth}, lost of the names {name:?}");
            lose(world, &before, &cut, name);
            let _ = std::fs::remove_dir_all(&world.run);
            let kind = std::fs::read_to_string(world.conf.join("pools/cp/exclusive"));
            assert_eq!(kind.ok().as_deref(), Some("0"), "cp is torn {when}");
            process::run(&mut world.pinfold(line)).ok();
            assert_eq!(layout(world), wanted, "done again after a loss {when}");
            losses += 1;
            if name.is_none() {
                let names = cut.renames.iter().filter(|one| is_of(world, one)).count();
                points += 1;
                names_lost += usize::from(names > 0);
                lost.extend((0..names).filter(|_| names > 1).map(Some));
            }
        }
    }
    println!(
        "power lost {losses} times at {points} points, at {names_lost} of them a name with it"
    );
    assert!(
        names_lost > 0,
        "no name is ever at risk: the test sees none"
    );
    campaign::count_executions(losses * 2);
}

/// Where the file systems are not as before: at each call that changes them, and at the end.
fn changing(calls: &[Call]) -> Vec<usize> {
    let changing = (0..calls.len()).filter(|nth| calls[*nth].changes_files());
    changing.chain([calls.len()]).collect()
}

/// A name that is lost with the boot is no matter.
fn is_of(world: &World, rename: &Rename) -> bool {
    rename.to.starts_with(&world.conf)
}

/// The power goes in a start: pools are whole after it, and the next start gets the list.
fn start(world: &World) {
    let request = || json!({ "pinfold.io/pool": "dp" });
    let arrange = || {
        world.empty();
        world.pool("dp", Kind::Exclusive, &["1"]);
        (inodes(world), Standin::new(world, "a"))
    };
    let run = |pid: i32, injections: &[Injection]| {
        let input = state("a", pid, request()).to_string();
        let mut hook = world.pinfold(&["hook", "createRuntime"]);
        supervisor::run(&mut hook, input.as_bytes(), injections)
    };
    let (_, standin) = arrange();
    let points = changing(&run(standin.pid, &[]).calls);
    end(standin);
    for nth in &points {
        let (before, standin) = arrange();
        let deed = Deed::Kill;
        let cut = run(standin.pid, &[Injection { nth: *nth, deed }]);
        end(standin);
        lose(world, &before, &cut, None);
        let _ = std::fs::remove_dir_all(&world.run);
        let next = Standin::new(world, "next");
        let ran = world.hook("createRuntime", &state("next", next.pid, request()));
        assert_eq!(process::affinity(next.pid), "1", "at call {nth}: {ran}");
        end(next);
        world.reconcile();
        world.assert_all_free(&format!("after a loss at call {nth}"));
    }
    println!("power lost at {} points", points.len());
    campaign::count_executions(points.len() * 3);
}

fn end(standin: Standin) {
    let group = standin.die();
    let _ = std::fs::remove_dir(group);
}

fn inodes(world: &World) -> BTreeSet<u64> {
    let files = files_below(&world.conf).into_iter();
    let inode = |file: std::path::PathBuf| file.metadata().expect("look at a file").ino();
    files.map(inode).collect()
}

/// What a power loss leaves: files without content, where it was not synced; and of names that were
/// not synced the one of this number is lost alone, or all are.
fn lose(world: &World, before: &BTreeSet<u64>, cut: &Watched, name: Option<usize>) {
    for file in files_below(&world.conf) {
        let inode = file.metadata().expect("look at a file").ino();
        if !before.contains(&inode) && !cut.synced.contains(&inode) {
            std::fs::write(&file, "").expect("lose what is in a file");
        }
    }
    let names: Vec<&Rename> = cut.renames.iter().filter(|one| is_of(world, one)).collect();
    let is_lost = |number: &usize| name.is_none_or(|name| name == *number);
    for number in (0..names.len()).rev().filter(is_lost) {
        let Rename { from, to, replaced } = names[number];
        // It can have been renamed again.
        if std::fs::rename(to, from).is_ok() {
            if let Some(replaced) = replaced {
                std::fs::write(to, replaced).expect("bring an old file back");
            }
        }
    }
}

/// Puts the world's books into memory.
fn in_memory(world: &World, options: &str) {
    let _ = std::fs::remove_dir_all(&world.conf);
    for directory in [&world.conf, &world.run] {
        std::fs::create_dir_all(directory).expect("make a directory");
        let kind = Some("tmpfs");
        let options = format!("mode=0755,{options}");
        mount(kind, directory, kind, MsFlags::empty(), Some(&*options)).expect("mount a tmpfs");
    }
    std::fs::create_dir(world.conf.join("pools")).expect("make pools");
    std::fs::write(world.conf.join("lock"), "").expect("make the lock");
}

/// Nothing more can be written: nobody gets anything, nobody loses anything, and everything comes
/// back when there is room.
fn full(world: &World, options: &str) {
    in_memory(world, options);
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let request = || json!({ "pinfold.io/pool": "dp" });
    let (owner, late) = (Standin::new(world, "a"), Standin::new(world, "late"));
    world
        .hook("createRuntime", &state("a", owner.pid, request()))
        .ok();
    let held = process::affinity(owner.pid);
    for room in 0..24 {
        fill(world, room);
        let before = process::affinity(late.pid);
        let ran = world.hook("createRuntime", &state("late", late.pid, request()));
        if ran.code() == Some(0) {
            assert_ne!(process::affinity(late.pid), held);
            world.assert_settled("in a full file system");
            process::run(&mut world.pinfold(&["release", "late", "--force"]));
        } else {
            assert!(!ran.stderr.is_empty(), "refused without a word");
            assert!(
                world.claims_of("late").is_empty(),
                "with {room} left: {ran}"
            );
            assert_eq!(
                process::affinity(late.pid),
                before,
                "with {room} left: {ran}"
            );
        }
        process::run(&mut world.pinfold(&["reconcile"]));
        world.assert_sound("in a full file system");
        assert_eq!(process::affinity(owner.pid), held);
        empty(world);
        process::run(&mut world.pinfold(&["release", "late", "--force"]));
    }
    fill(world, 0);
    owner.die();
    let ran = world.hook("poststop", &stopped("a", request()));
    let is_free = world.claims_of("a").is_empty();
    assert_eq!(ran.code() == Some(0), is_free, "{ran}");
    empty(world);
    late.die();
    world.reconcile();
    world.assert_all_free("when there is room again");
}

/// Fills both file systems but for so many files of a page each.
fn fill(world: &World, room: usize) {
    for directory in [&world.conf, &world.run] {
        let mut number = 0;
        let filler = |number: usize| directory.join(format!("filler{number}"));
        while std::fs::write(filler(number), [0; 4096]).is_ok() {
            number += 1;
        }
        // The last can be there without its content.
        for number in (0..=number)
            .rev()
            .take(room + 1)
            .skip(usize::from(room == 0))
        {
            let _ = std::fs::remove_file(filler(number));
        }
    }
}

fn empty(world: &World) {
    for directory in [&world.conf, &world.run] {
        let fillers = files_below(directory).into_iter();
        let is_filler = |file: &std::path::PathBuf| file.to_string_lossy().contains("filler");
        for filler in fillers.filter(is_filler) {
            std::fs::remove_file(filler).expect("remove a filler");
        }
    }
}

const LISTS: usize = 4096;
const CLAIMS: usize = 10_000;
/// Others give up after 10 s; an emulated or a busy machine is slow.
const LONGEST_HOLD: Duration = Duration::from_secs(5);

/// Nobody waits for it, as long as it lets others in between.
const LONGEST_RECONCILE: Duration = Duration::from_secs(150);

/// A start, an end, and `reconcile` beside many lists and claims, most of dead owners: nobody holds
/// the lock for long.
fn scale(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("cp", Kind::Shared, &["0"]);
    let request = |pool: &str| json!({ "pinfold.io/pool": pool });
    let standin = Standin::new(world, "a");
    world
        .hook("createRuntime", &state("a", standin.pid, request("cp")))
        .ok();
    let claim = world.claim_of("a");
    let names: Vec<String> = (2..2 + LISTS).map(|cpu| cpu.to_string()).collect();
    let lists: Vec<&str> = names.iter().map(String::as_str).collect();
    world.pool("dp", Kind::Exclusive, &lists);
    for number in 0..CLAIMS {
        let owner = Owner {
            id: &format!("dead{number}"),
            pid: 4_000_000,
            start: number as u64 + 1,
        };
        record(world, &claim, &owner, ("dp", lists[number % LISTS]));
    }
    let other = Standin::new(world, "b");
    let asked = state("b", other.pid, request("dp"));
    let (ran, hold) = watched(world, || world.hooking("createRuntime", &asked).wait());
    println!(
        "a start: {:.2} s, lock held for {:.2} s",
        ran.took.as_secs_f64(),
        hold.as_secs_f64()
    );
    assert_eq!(process::affinity(other.pid), "1", "{}", ran.ok());
    assert!(hold < LONGEST_HOLD, "a start holds the lock for {hold:?}");
    other.die();
    let ended = stopped("b", request("dp"));
    let (ran, hold) = watched(world, || world.hooking("poststop", &ended).wait());
    println!(
        "an end: {:.2} s, lock held for {:.2} s",
        ran.took.as_secs_f64(),
        hold.as_secs_f64()
    );
    ran.ok();
    assert!(hold < LONGEST_HOLD, "an end holds the lock for {hold:?}");
    let reconcile = || {
        let running = process::Running::start(&mut world.pinfold(&["reconcile"]), b"");
        assert!(
            running.ends_within(LONGEST_RECONCILE),
            "reconcile takes too long"
        );
        running.wait()
    };
    let (ran, hold) = watched(world, reconcile);
    println!(
        "reconcile: {:.2} s, lock held for {:.2} s",
        ran.took.as_secs_f64(),
        hold.as_secs_f64()
    );
    ran.ok();
    assert!(hold < LONGEST_HOLD, "reconcile holds the lock for {hold:?}");
    standin.die();
    world.reconcile();
    world.assert_all_free("at the end");
    campaign::count_executions(5);
}

/// Who is to have a claim.
pub(crate) struct Owner<'a> {
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) start: u64,
}

/// A claim of an owner without a group on one list of a pool, made of a true one.
pub(crate) fn record(world: &World, claim: &Value, owner: &Owner<'_>, place: (&str, &str)) {
    let Owner { id, pid, start } = owner;
    let (pool, list) = place;
    let mut claim = claim.clone();
    let process = json!({ "pid": pid, "start": start });
    claim["id"] = json!(id);
    claim["owner"] = process.clone();
    claim["processes"] = json!([process]);
    claim["pool"] = json!(pool);
    claim["lists"] = json!([list]);
    claim["cpus"] = json!(list);
    let claim = claim.as_object_mut().expect("a claim is an object");
    claim.remove("cgroup");
    claim.remove("sum");
    let file = format!("{id}/{pid}-{start}.json");
    let path = world.run.join("claims").join(&file);
    let link = format!("lists/{list}/{id}@{pid}-{start}");
    let link = world.run.join(link);
    for path in [&path, &link] {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
    }
    std::fs::write(&path, Value::from(claim.clone()).to_string()).expect("write a claim");
    symlink(Path::new("../../claims").join(file), link).expect("make a link");
}
