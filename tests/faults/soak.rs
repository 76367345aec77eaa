//! A storm: 64 starts and ends at a time, some of them killed, some with a failing call, and a watchdog on the lock.

use crate::campaign::{self, Dice, number, seed};
use crate::cases::{Case, Need, plain};
use crate::process;
use crate::supervisor::{self, Deed, Injection};
use crate::world::{Kind, Standin, World, state, stopped};
use nix::libc;
use serde_json::json;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![plain("soak::storm", needs, storm)]
}

/// How many containers start and end at a time.
const WIDTH: usize = 64;
/// Nobody may hold the lock longer: others give up after 10 s.
const LONGEST_HOLD: Duration = Duration::from_secs(5);
/// A hook gives up after 10 s of waiting for the lock.
const LONGEST_START: Duration = Duration::from_secs(20);

fn storm(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("cp", Kind::Shared, &["0"]);
    let seconds = number("PINFOLD_TEST_SOAK_SECONDS").unwrap_or(30);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (starts, given, killed) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let is_over = AtomicBool::new(false);
    let longest_start = Mutex::new(Duration::ZERO);
    let longest_hold = std::thread::scope(|scope| {
        let watchdog = scope.spawn(|| watch(world, &is_over));
        let reconciler = scope.spawn(|| {
            while Instant::now() < until {
                let ran = process::run(&mut world.pinfold(&["reconcile"]));
                assert!(ran.code().is_some(), "{ran}");
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let workers: Vec<_> = (0..WIDTH)
            .map(|number| {
                let (starts, given, killed, longest) = (&starts, &given, &killed, &longest_start);
                scope.spawn(move || {
                    let mut dice = Dice(seed() ^ (number as u64) << 32);
                    for round in 0.. {
                        if Instant::now() > until {
                            return;
                        }
                        let id = format!("{}-{number}-{round}", world.tag);
                        let took = container(world, &id, &mut dice, given, killed);
                        starts.fetch_add(1, Ordering::Relaxed);
                        let mut longest = longest.lock().unwrap();
                        *longest = took.max(*longest);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        reconciler.join().unwrap();
        is_over.store(true, Ordering::Relaxed);
        watchdog.join().unwrap()
    });
    let longest_start = *longest_start.lock().unwrap();
    println!(
        "storm of {WIDTH}: {} starts, {} given, {} killed or failed; longest start {:.1} s, longest hold of the lock {:.1} s, seed {}",
        starts.load(Ordering::Relaxed),
        given.load(Ordering::Relaxed),
        killed.load(Ordering::Relaxed),
        longest_start.as_secs_f64(),
        longest_hold.as_secs_f64(),
        seed()
    );
    campaign::count_executions(starts.load(Ordering::Relaxed) * 2);
    assert!(given.load(Ordering::Relaxed) > 0, "nobody got anything");
    assert!(
        longest_hold < LONGEST_HOLD,
        "the lock was held for {longest_hold:?}"
    );
    assert!(
        longest_start < LONGEST_START,
        "a start took {longest_start:?}"
    );
    world.reconcile();
    world.assert_all_free("after the storm");
    let left = process::processes_mentioning(&world.dir.display().to_string());
    assert!(left.is_empty(), "processes are left: {left:?}");
}

/// One container's life; gives how long its start took.
fn container(
    world: &World,
    id: &str,
    dice: &mut Dice,
    given: &AtomicUsize,
    killed: &AtomicUsize,
) -> Duration {
    let pool = ["dp", "cp"][dice.below(2)];
    let request = json!({ "pinfold.io/pool": pool });
    let standin = Standin::new(world, id.rsplit_once('x').map_or(id, |(_, name)| name));
    let input = state(id, standin.pid, request.clone()).to_string();
    let errors = [libc::EIO, libc::ENOSPC, libc::EACCES, libc::EMFILE];
    let nth = dice.below(240);
    let injections = match dice.below(4) {
        0 => vec![Injection {
            nth,
            deed: Deed::Kill,
        }],
        1 => vec![Injection {
            nth,
            deed: Deed::FailAll(errors[dice.below(4)]),
        }],
        _ => vec![],
    };
    let mut hook = world.pinfold(&["hook", "createRuntime"]);
    let watched = supervisor::run(&mut hook, input.as_bytes(), &injections);
    killed.fetch_add(watched.done, Ordering::Relaxed);
    let is_given = watched.ran.code() == Some(0);
    given.fetch_add(usize::from(is_given), Ordering::Relaxed);
    // The storm is what it is; what somebody owns, nobody else has.
    world.assert_sound("in the storm");
    let group = standin.die();
    if dice.below(2) == 0 {
        world.hooking("poststop", &stopped(id, request)).wait();
    }
    process::eventually("the group is gone", || {
        let done = std::fs::remove_dir(&group);
        (done.is_ok() || !group.exists()).then_some(())
    });
    watched.ran.took
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
