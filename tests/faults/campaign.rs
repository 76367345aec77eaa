//! A verb run again and again, each time with another of its system calls failing, or being its
//! last; in an order that a seed says, for as long as there is time.
//!
//! - `PINFOLD_TEST_FAULTS_SEED`: the order; a failure prints it
//! - `PINFOLD_TEST_FAULTS_ONLY`: of one verb's trials in that order, the one of this number
//! - `PINFOLD_TEST_FAULTS_SECONDS`: the time for each verb; a trial under way is ended

use crate::errors::Call;
use crate::supervisor::{self, Deed, Injection};
use crate::world::World;
use nix::libc;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a verb finds, and what has to hold of it afterwards.
pub(crate) struct Scene<'a> {
    pub(crate) command: Command,
    pub(crate) input: String,
    /// Does the exit code agree with the books?
    pub(crate) judge: Box<dyn FnOnce(&Ending) + 'a>,
    /// Everybody ends.
    pub(crate) finish: Box<dyn FnOnce() + 'a>,
}

/// How a verb ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// `None` where it was killed.
    pub(crate) code: Option<i32>,
    /// At most one call failed: what was to be undone could be.
    pub(crate) is_strict: bool,
    /// Was a reader of what it writes gone?
    pub(crate) is_unread: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ending {
    pub(crate) fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// It failed, with every means to leave nothing behind.
    pub(crate) fn is_clean_failure(&self) -> bool {
        self.code.is_some_and(|code| code != 0) && self.is_strict
    }
}

/// What happens to the verb, and to the `reconcile` after it.
#[derive(Clone, Debug)]
struct Trial {
    verb: Vec<Injection>,
    recovery: Vec<Injection>,
}

/// The counts of a whole run.
#[derive(Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) points: usize,
    singles: usize,
    pairs: usize,
    reached: usize,
    executions: usize,
    of: usize,
}

static TOTAL: Mutex<Counts> = Mutex::new(Counts {
    points: 0,
    singles: 0,
    pairs: 0,
    reached: 0,
    executions: 0,
    of: 0,
});

/// Says what was done in all.
pub(crate) fn print_counts() {
    println!("in all: {}, seed {}", TOTAL.lock().unwrap(), seed());
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts {
            points,
            singles,
            pairs,
            reached,
            executions,
            of,
        } = self;
        write!(
            f,
            "{points} points, {singles} single faults and {pairs} pairs tried of {of}, {reached} reached, {executions} executions"
        )
    }
}

/// The order of trials.
pub(crate) fn seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let now = std::time::UNIX_EPOCH.elapsed().map(|time| time.as_secs());
        number("PINFOLD_TEST_FAULTS_SEED").unwrap_or(now.unwrap_or(1))
    })
}

pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

/// Numbers that a seed says (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % most.max(1) as u64) as usize
    }
}

/// The failures that are told of one verb.
const MOST_TOLD: usize = 12;

/// Tries a verb: `scene` arranges anew what it finds.
pub(crate) fn campaign<'a>(world: &'a World, name: &str, scene: impl Fn() -> Scene<'a>) {
    for_a_while(world, name, 1.0, scene);
}

/// The same in a third of the time, for a verb that changes little, or has much in common with
/// another.
pub(crate) fn short_campaign<'a>(world: &'a World, name: &str, scene: impl Fn() -> Scene<'a>) {
    for_a_while(world, name, 1.0 / 3.0, scene);
}

fn for_a_while<'a>(world: &'a World, name: &str, share: f64, scene: impl Fn() -> Scene<'a>) {
    let calls = untouched(scene());
    assert_listed(&calls);
    let mut recovery = world.pinfold(&["reconcile"]);
    let after = supervisor::run(&mut recovery, b"", &[]).calls.len();
    let mut dice = Dice(seed());
    let trials = trials(&calls, after, &mut dice);
    let seconds = number("PINFOLD_TEST_FAULTS_SECONDS").unwrap_or(20);
    let only = number("PINFOLD_TEST_FAULTS_ONLY");
    let (began, limit) = (Instant::now(), Duration::from_secs(seconds).mul_f64(share));
    let mut counts = Counts {
        points: calls.len(),
        of: trials.len(),
        ..Counts::default()
    };
    let mut failures = Vec::new();
    for (number, trial) in trials.iter().enumerate() {
        if only.is_some_and(|only| only != number as u64) {
            continue;
        }
        if only.is_none() && began.elapsed() > limit {
            break;
        }
        let single = trial.verb.len() + trial.recovery.len() == 1;
        counts.singles += usize::from(single);
        counts.pairs += usize::from(!single);
        let told = catch_unwind(AssertUnwindSafe(|| {
            counts.reached += one(world, scene(), trial);
        }));
        counts.executions += 3;
        if let Err(panic) = told {
            // What it left is not to be found by the next.
            crate::cgroups::clear(&crate::cgroups::named(&world.tag));
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            failures.push(format!(
                "trial {number}, {}: {}",
                trial.shown(&calls),
                said.unwrap_or_default()
            ));
            if failures.len() >= MOST_TOLD {
                break;
            }
        }
    }
    println!("{name}: {counts}");
    add(counts);
    assert!(
        failures.is_empty(),
        "PINFOLD_TEST_FAULTS_SEED={} PINFOLD_TEST_FAULTS_ONLY=<trial> make test-faults: {name} is not sound:\n{}",
        seed(),
        failures.join("\n")
    );
}

/// Every call that can tell of a reader that is gone does so, once and from then on: none is left
/// to chance.
pub(crate) fn readers_go<'a>(world: &'a World, name: &str, scene: impl Fn() -> Scene<'a>) {
    let calls = untouched(scene());
    let pipes = calls.iter().enumerate();
    let pipes = pipes.filter(|(_, call)| call.can_give(libc::EPIPE));
    let mut tried = 0;
    for (nth, call) in pipes {
        for deed in [Deed::Fail(libc::EPIPE), Deed::FailAll(libc::EPIPE)] {
            let trial = Trial {
                verb: vec![Injection { nth, deed }],
                recovery: vec![],
            };
            let told = catch_unwind(AssertUnwindSafe(|| one(world, scene(), &trial)));
            assert!(told.is_ok(), "{name}: call {nth} ({call}): {deed:?}");
            tried += 1;
        }
    }
    println!("{name}: a reader gone at {} calls", tried / 2);
    assert!(tried > 0, "it writes nothing");
    add(Counts {
        points: calls.len(),
        singles: tried,
        reached: tried,
        executions: tried * 3,
        of: tried,
        ..Counts::default()
    });
}

/// Whoever makes a new call says in `errors` what it can give; else that would never be tried.
fn assert_listed(calls: &[Call]) {
    let unlisted = calls.iter().filter(|call| !call.is_listed());
    let unlisted: BTreeSet<String> = unlisted.map(Call::to_string).collect();
    assert!(
        unlisted.is_empty(),
        "`errors` does not know what these calls give: {unlisted:?}"
    );
}

/// Executions of what has no points.
pub(crate) fn count_executions(executions: usize) {
    add(Counts {
        executions,
        ..Counts::default()
    });
}

fn add(counts: Counts) {
    let mut total = TOTAL.lock().unwrap();
    total.points += counts.points;
    total.singles += counts.singles;
    total.pairs += counts.pairs;
    total.reached += counts.reached;
    total.executions += counts.executions;
    total.of += counts.of;
}

/// The verb's calls where nothing happens to it.
fn untouched(mut scene: Scene<'_>) -> Vec<Call> {
    let watched = supervisor::run(&mut scene.command, scene.input.as_bytes(), &[]);
    let calls = watched.calls;
    (scene.judge)(&Ending {
        code: watched.ran.code(),
        is_strict: true,
        is_unread: false,
        stdout: watched.ran.stdout,
        stderr: watched.ran.stderr,
    });
    (scene.finish)();
    calls
}

/// Every call with everything that can happen to it, and as many pairs as a quarter of those; in
/// the dice's order.
fn trials(calls: &[Call], after: usize, dice: &mut Dice) -> Vec<Trial> {
    let mut singles = Vec::new();
    for (nth, call) in calls.iter().enumerate() {
        let mut deeds = vec![Deed::Kill];
        deeds.extend(call.errors().iter().map(|errno| Deed::Fail(*errno)));
        // What is always interrupted is always tried again: that is no fault.
        let lasting = call.errors().iter().filter(|errno| **errno != libc::EINTR);
        deeds.extend(lasting.map(|errno| Deed::FailAll(*errno)));
        deeds.extend(call.can_be_halved().then_some(Deed::Halve));
        singles.extend(deeds.into_iter().map(|deed| Injection { nth, deed }));
    }
    let mut trials: Vec<Trial> = Vec::new();
    let kill = |nth| Injection {
        nth,
        deed: Deed::Kill,
    };
    for _ in 0..singles.len() / 4 {
        let first = singles[dice.below(singles.len())];
        let (verb, recovery) = match dice.below(4) {
            0 => (vec![first, kill(first.nth + 1 + dice.below(40))], vec![]),
            1 => (vec![kill(first.nth)], vec![kill(dice.below(after))]),
            2 => (vec![first], vec![kill(dice.below(after))]),
            _ => {
                let errors = [libc::EIO, libc::ENOSPC, libc::EACCES, libc::EMFILE];
                let deed = Deed::FailAll(errors[dice.below(errors.len())]);
                let nth = dice.below(after);
                (vec![kill(first.nth)], vec![Injection { nth, deed }])
            }
        };
        trials.push(Trial { verb, recovery });
    }
    trials.extend(singles.into_iter().map(|single| Trial {
        verb: vec![single],
        recovery: vec![],
    }));
    for last in (1..trials.len()).rev() {
        trials.swap(last, dice.below(last + 1));
    }
    // They are few, and the one error that can be meant: a reader that is gone. None of them is
    // left to chance.
    trials.sort_by_key(|trial| !trial.breaks_a_pipe());
    trials
}

/// One trial; gives how many of its injections it came to.
fn one(world: &World, mut scene: Scene<'_>, trial: &Trial) -> usize {
    let watched = supervisor::run(&mut scene.command, scene.input.as_bytes(), &trial.verb);
    assert_listed(&watched.calls);
    world.assert_sound("after the verb");
    let lasting = |injection: &Injection| matches!(injection.deed, Deed::FailAll(_));
    let ending = Ending {
        code: watched.ran.code(),
        is_strict: trial.verb.len() == 1 && !trial.verb.iter().any(lasting),
        is_unread: trial.verb.iter().any(|one| {
            let unread = [Deed::Fail(libc::EPIPE), Deed::FailAll(libc::EPIPE)];
            unread.contains(&one.deed)
        }),
        stdout: watched.ran.stdout,
        stderr: watched.ran.stderr,
    };
    // The standard library panics where its own pipe between fork and exec fails for good.
    let has_panicked = ending.code == Some(101);
    assert!(
        !has_panicked || !ending.is_strict,
        "it panicked: {}",
        ending.stderr
    );
    let signal = watched.ran.status;
    let was_killed = trial
        .verb
        .iter()
        .any(|injection| injection.deed == Deed::Kill);
    assert!(ending.code.is_some() || was_killed, "it died: {signal}");
    (scene.judge)(&ending);
    let mut done = watched.done;
    if !trial.recovery.is_empty() {
        let mut recovery = world.pinfold(&["reconcile"]);
        let watched = supervisor::run(&mut recovery, b"", &trial.recovery);
        world.assert_sound("after a recovery that failed");
        done += watched.done;
    }
    (scene.finish)();
    done
}

impl Trial {
    /// Is it a write that fails once as if its reader were gone?
    fn breaks_a_pipe(&self) -> bool {
        let deeds = self.verb.iter().chain(&self.recovery);
        deeds
            .map(|injection| injection.deed)
            .eq([Deed::Fail(libc::EPIPE)])
    }

    fn shown(&self, calls: &[Call]) -> String {
        let deed = |injection: &Injection| match injection.deed {
            Deed::Fail(errno) => format!("fails with {:?}", nix::errno::Errno::from_raw(errno)),
            Deed::FailAll(errno) => {
                format!(
                    "and all after it fail with {:?}",
                    nix::errno::Errno::from_raw(errno)
                )
            }
            Deed::Halve => "writes half".to_owned(),
            Deed::Kill => "is its last".to_owned(),
            Deed::Hurry => "and all after it do not pause".to_owned(),
        };
        let verb = self.verb.iter().map(|injection| {
            let call = calls
                .get(injection.nth)
                .map_or("none".to_owned(), Call::to_string);
            format!("call {} ({call}) {}", injection.nth, deed(injection))
        });
        let recovery = self.recovery.iter();
        let recovery = recovery.map(|i| format!("in reconcile, call {} {}", i.nth, deed(i)));
        verb.chain(recovery).collect::<Vec<_>>().join(", then ")
    }
}
