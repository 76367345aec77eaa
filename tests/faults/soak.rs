//! A storm: 64 starts and ends at a time, beside `reconcile` and changes of the pools; any of them
//! may be killed, or have failing calls. A watchdog looks at the lock, and in the end nothing may
//! be left.

use crate::campaign::{self, Dice, number, seed};
use crate::cases::{Case, Need, plain};
use crate::cgroups;
use crate::process::{self, Ran};
use crate::supervisor::{self, Deed, Injection};
use crate::world::{Kind, Standin, World, state, stopped};
use nix::libc;
use serde_json::json;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![plain("soak::storm", needs, storm)]
}

/// How many containers start and end at a time.
const WIDTH: u64 = 64;
/// Nobody may hold the lock longer: others give up after 10 s.
const LONGEST_HOLD: Duration = Duration::from_secs(5);
/// A hook ends itself after 20 s; where many others run, as here, it begins late.
const LONGEST_START: Duration = Duration::from_secs(30);
/// `reconcile` stands in the queue for each of its turns, behind 64 others.
const HANG: Duration = Duration::from_secs(600);
/// One of so many starts says how long it waited for the lock.
const TELLS_ITS_WAIT: usize = 8;

/// What a storm came to. Times are in milliseconds.
#[derive(Default)]
struct Tally {
    starts: AtomicU64,
    given: AtomicU64,
    ends: AtomicU64,
    reconciliations: AtomicU64,
    changes: AtomicU64,
    changed: AtomicU64,
    kills: AtomicU64,
    errors: AtomicU64,
    longest_start: AtomicU64,
    longest_wait: AtomicU64,
    longest_reconciliation: AtomicU64,
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    /// Runs a command, with a fault in every second one.
    fn run(&self, command: &mut Command, input: &str, dice: &mut Dice) -> Ran {
        let injections = fault(dice);
        let watched = supervisor::run_within(HANG, command, input.as_bytes(), &injections);
        for injection in injections.iter().take(watched.done) {
            add(match injection.deed {
                Deed::Kill => &self.kills,
                _ => &self.errors,
            });
        }
        let ran = watched.ran;
        let was_killed = injections.iter().any(|one| one.deed == Deed::Kill);
        assert!(ran.code().is_some() || was_killed, "it died: {ran}");
        let waited = ran.stderr.lines().filter_map(waited);
        let waited = waited.fold(0.0, f64::max);
        self.longest_wait
            .fetch_max(waited as u64, Ordering::Relaxed);
        ran
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} starts ({} given), {} ends, {} times reconcile, {} changes of pools ({} done); {} kills, {} errors; longest start {:.1} s, longest wait that was told {:.1} s, longest reconcile {:.1} s",
            of(&self.starts),
            of(&self.given),
            of(&self.ends),
            of(&self.reconciliations),
            of(&self.changes),
            of(&self.changed),
            of(&self.kills),
            of(&self.errors),
            of(&self.longest_start) as f64 / 1e3,
            of(&self.longest_wait) as f64 / 1e3,
            of(&self.longest_reconciliation) as f64 / 1e3,
        )
    }
}

/// `info: waited 12.3 ms for the lock`.
fn waited(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("waited ")?;
    rest.strip_suffix(" ms for the lock")?.parse().ok()
}

/// What may happen to a command of the storm.
fn fault(dice: &mut Dice) -> Vec<Injection> {
    let errors = [
        libc::EIO,
        libc::ENOSPC,
        libc::EACCES,
        libc::EMFILE,
        libc::EPIPE,
        libc::ENOLCK,
    ];
    let errno = errors[dice.below(errors.len())];
    let nth = dice.below(240);
    let deed = match dice.below(8) {
        0 | 1 => Deed::Kill,
        2 => Deed::Fail(errno),
        3 => Deed::FailAll(errno),
        _ => return vec![],
    };
    vec![Injection { nth, deed }]
}

fn storm(world: &World) {
    world.has_two_cpus();
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("cp", Kind::Shared, &["0"]);
    let seconds = number("PINFOLD_TEST_SOAK_SECONDS").unwrap_or(30);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (tally, is_over) = (Tally::default(), AtomicBool::new(false));
    let longest_hold = std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(world, &is_over));
        let mut workers = vec![
            scope.spawn(|| reconciles(world, &tally, until)),
            scope.spawn(|| changes(world, &tally, until)),
        ];
        for number in 0..WIDTH {
            let tally = &tally;
            workers.push(scope.spawn(move || {
                let mut dice = Dice(seed() ^ number << 32);
                for round in 0.. {
                    if Instant::now() > until {
                        return;
                    }
                    let id = format!("{}-{number}-{round}", world.tag);
                    container(world, &id, &mut dice, tally);
                }
            }));
        }
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        watchdog.join().unwrap()
    });
    world.reconcile();
    let leaks = leaks(world);
    println!(
        "storm of {WIDTH}, {seconds} s: {tally}, longest hold of the lock {:.1} s; {} leaks; seed {}",
        longest_hold.as_secs_f64(),
        leaks.len(),
        seed()
    );
    let starts = tally.starts.load(Ordering::Relaxed);
    campaign::count_executions(starts as usize * 2);
    assert_eq!(leaks, Vec::<String>::new(), "leaks");
    world.assert_all_free("after the storm");
    let given = tally.given.load(Ordering::Relaxed);
    assert!(given > 0, "nobody got anything");
    assert!(
        longest_hold < LONGEST_HOLD,
        "the lock was held for {longest_hold:?}"
    );
    let longest_start = Duration::from_millis(tally.longest_start.load(Ordering::Relaxed));
    assert!(
        longest_start < LONGEST_START,
        "a start took {longest_start:?}"
    );
    // The pools are as they were, or a change that was cut short is made now.
    for pool in ["dp", "cp"] {
        let line = ["pool", "remove", "--if-exists", pool];
        process::run(&mut world.pinfold(&line)).ok();
    }
    for (pool, list) in [("dp:exclusive", "1"), ("cp:shared", "0")] {
        let line = ["pool", "add", pool, "--list", list];
        process::run(&mut world.pinfold(&line)).ok();
    }
}

/// What a storm may not leave: processes, groups, links, and claims that are accounted for.
fn leaks(world: &World) -> Vec<String> {
    let text = world.dir.display().to_string();
    let processes = process::processes_mentioning(&text).into_iter();
    let processes = processes.map(|pid| format!("process {pid}"));
    let groups = cgroups::named(&world.tag).into_iter();
    let groups = groups.map(|group| format!("group {}", group.display()));
    let entries = ["claims", "lists", "cgroups", "ended"].into_iter();
    let entries = entries.flat_map(|name| std::fs::read_dir(world.run.join(name)));
    let entries = entries
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string());
    processes.chain(groups).chain(entries).collect()
}

fn reconciles(world: &World, tally: &Tally, until: Instant) {
    let mut dice = Dice(seed() ^ 1);
    while Instant::now() < until {
        let mut command = world.pinfold(&["reconcile", "-v"]);
        let took = tally.run(&mut command, "", &mut dice).took.as_millis() as u64;
        tally
            .longest_reconciliation
            .fetch_max(took, Ordering::Relaxed);
        add(&tally.reconciliations);
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The exclusive pool comes and goes, and the shared one grows into its CPU meanwhile.
fn changes(world: &World, tally: &Tally, until: Instant) {
    let mut dice = Dice(seed() ^ 2);
    let lines: [&[&str]; 4] = [
        &["pool", "remove", "dp", "-v"],
        &["pool", "resize", "cp", "2", "-v"],
        &["pool", "resize", "cp", "1", "-v"],
        &["pool", "add", "dp:exclusive", "--list", "1", "-v"],
    ];
    for line in lines.iter().cycle() {
        if Instant::now() > until {
            return;
        }
        let ran = tally.run(&mut world.pinfold(line), "", &mut dice);
        add(&tally.changes);
        if ran.code() == Some(0) {
            add(&tally.changed);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One container's life.
fn container(world: &World, id: &str, dice: &mut Dice, tally: &Tally) {
    let pool = ["dp", "cp"][dice.below(2)];
    let request = json!({ "pinfold.io/pool": pool });
    let standin = Standin::new(world, id.rsplit_once('x').map_or(id, |(_, name)| name));
    let input = state(id, standin.pid, request.clone()).to_string();
    let mut line = vec!["hook", "createRuntime"];
    line.extend((dice.below(TELLS_ITS_WAIT) == 0).then_some("-v"));
    let ran = tally.run(&mut world.pinfold(&line), &input, dice);
    add(&tally.starts);
    let took = ran.took.as_millis() as u64;
    tally.longest_start.fetch_max(took, Ordering::Relaxed);
    if ran.code() == Some(0) {
        add(&tally.given);
        assert!(has_claim(world, id), "a success without a claim: {ran}");
    }
    // The storm is what it is; what somebody owns, nobody else has.
    world.assert_sound("in the storm");
    let group = standin.die();
    if dice.below(2) == 0 {
        let input = stopped(id, request).to_string();
        let mut end = world.pinfold(&["hook", "poststop"]);
        let ran = tally.run(&mut end, &input, dice);
        add(&tally.ends);
        let is_kept = ran.stderr.contains("counts as alive");
        assert!(
            ran.code() != Some(0) || is_kept || !has_claim(world, id),
            "an end that keeps a claim: {ran}"
        );
    }
    process::eventually("the group is gone", || {
        let done = std::fs::remove_dir(&group);
        (done.is_ok() || !group.exists()).then_some(())
    });
}

/// Nobody else takes away, or makes, a claim of a container that is still here.
fn has_claim(world: &World, id: &str) -> bool {
    let claims = std::fs::read_dir(world.run.join("claims").join(id));
    let names = claims.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().any(|name| !name.starts_with('.'))
}

/// Does something, and gives the longest time for which anybody held the lock meanwhile.
pub(crate) fn watched<T>(world: &World, act: impl FnOnce() -> T) -> (T, Duration) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(world, &is_over));
        let done = act();
        is_over.store(true, Ordering::Relaxed);
        (done, watchdog.join().unwrap())
    })
}

/// The longest time for which one process held the lock, as `/proc/locks` shows it.
fn watch(world: &World, is_over: &AtomicBool) -> Duration {
    use std::os::unix::fs::MetadataExt;
    let inode = world
        .conf
        .join("lock")
        .metadata()
        .expect("look at the lock")
        .ino();
    let place = format!(":{inode}");
    let (mut longest, mut holder, mut since) = (Duration::ZERO, None, Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let now = locks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let holds = words.get(1) == Some(&"FLOCK") && words.get(5)?.ends_with(&place);
            holds.then(|| words[4].to_owned())
        });
        if now != holder {
            (holder, since) = (now, Instant::now());
        } else if holder.is_some() {
            longest = longest.max(since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    longest
}
