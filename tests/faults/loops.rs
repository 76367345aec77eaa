//! What goes on for ever: `reconcile --interval` outlives whatever fails in one of its rounds, and
//! a later round does what that one could not.

use crate::campaign::{self, Dice, number, seed};
use crate::cases::{Case, Need, plain};
use crate::errors::Call;
use crate::supervisor::{self, Deed, Injection, Watched};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![plain("errors::reconcile_for_ever", needs, for_ever)]
}

const LINE: [&str; 3] = ["reconcile", "--interval", "1"];

/// A dead owner, and one that lives; gives whoever has to be ended at the end.
fn arrange(world: &World) -> (Standin, std::path::PathBuf) {
    world.empty();
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let request = || json!({ "pinfold.io/pool": "dp" });
    let (dead, living) = (Standin::new(world, "dead"), Standin::new(world, "living"));
    for (id, pid) in [("dead", dead.pid), ("living", living.pid)] {
        world.hook("createRuntime", &state(id, pid, request())).ok();
    }
    (living, dead.die())
}

fn end(world: &World, (living, dead): (Standin, std::path::PathBuf)) {
    let group = living.die();
    world.reconcile();
    world.assert_all_free("at the end");
    for group in [group, dead] {
        let _ = std::fs::remove_dir(group);
    }
}

/// Runs it without its pauses, with a fault, until the call of number `last`.
fn run(world: &World, fault: Option<Injection>, last: usize) -> Watched {
    let hurry = Injection {
        nth: 0,
        deed: Deed::Hurry,
    };
    let kill = Injection {
        nth: last,
        deed: Deed::Kill,
    };
    let injections: Vec<Injection> = [hurry, kill].into_iter().chain(fault).collect();
    supervisor::run(&mut world.pinfold(&LINE), b"", &injections)
}

fn for_ever(world: &World) {
    const ENOUGH: usize = 5000;
    let scene = arrange(world);
    let calls = run(world, None, ENOUGH).calls;
    end(world, scene);
    // Before them the program is begun.
    let begun = calls.iter().position(|call| call.to_string() == "flock");
    let begun = begun.expect("it takes the lock");
    let pauses = calls.iter().enumerate().skip(begun);
    let pauses = pauses.filter(|(_, call)| call.is_pause());
    let pauses: Vec<usize> = pauses.map(|(nth, _)| nth).collect();
    let [first, second, ..] = pauses[..] else {
        panic!("no two rounds in {ENOUGH} calls: {pauses:?}");
    };
    let round = second - first;
    let faults = |(nth, call): (usize, &Call)| {
        let errors = call.errors().iter();
        errors.map(move |errno| Injection {
            nth,
            deed: Deed::Fail(*errno),
        })
    };
    let in_first = calls.iter().enumerate().take(first + 1).skip(begun);
    let mut trials: Vec<Injection> = in_first.flat_map(faults).collect();
    let mut dice = Dice(seed());
    for last in (1..trials.len()).rev() {
        trials.swap(last, dice.below(last + 1));
    }
    let seconds = number("PINFOLD_TEST_FAULTS_SECONDS").unwrap_or(20);
    let (began, limit) = (Instant::now(), Duration::from_secs(seconds) / 2);
    let mut tried = 0;
    for trial in &trials {
        if began.elapsed() > limit {
            break;
        }
        tried += 1;
        let scene = arrange(world);
        // Whichever round frees it makes as many calls as the first.
        let watched = run(world, Some(*trial), 2 * first + 3 * round);
        let told = format!(
            "{trial:?} of {}, seed {}: {}",
            calls[trial.nth],
            seed(),
            watched.ran
        );
        // A reader that is gone ends it.
        let is_unread = trial.deed == Deed::Fail(libc::EPIPE);
        let was_killed = watched.ran.code().is_none();
        assert!(was_killed || is_unread, "it ended by itself: {told}");
        assert!(
            !was_killed || world.claims_of("dead").is_empty(),
            "no later round has freed it: {told}"
        );
        assert_eq!(world.claims_of("living").len(), 1, "given away: {told}");
        world.assert_sound(&told);
        end(world, scene);
    }
    println!(
        "reconcile --interval: {tried} single faults tried of {}",
        trials.len()
    );
    campaign::count_executions(tried * 4);
}
