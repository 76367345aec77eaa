//! Tests on real parts: the `pinfold` binary under real runtimes, in real cgroups, as root.
//!
//! Every test is written once and declares what it needs of the machine; one whose needs are not
//! met is skipped, counted and named. Environment variables set them up:
//!
//! - `PINFOLD_BIN`: another binary to test
//! - `PINFOLD_TEST_PROBE`: a probe that is already built
//! - `PINFOLD_TEST_CRI_CLIENT`: the client that `tests/cri-client` builds; without it no test of the CRI can run
//! - `PINFOLD_TEST_NODE`: `pinfold-node`; without it no test of NRI can run; `tests/nri/run` sets
//!   it
//! - `PINFOLD_TEST_HOOKS`: the directory of the shipped hook files
//! - `PINFOLD_TEST_PATIENCE`: the seconds that a wait may take
//! - `PINFOLD_TEST_KILL_EVERY`: `change` for the kill points before which something may have
//!   changed, a number for one of so many; all, if it is not set
//! - `PINFOLD_TEST_DISPOSABLE`: set, if tests may switch CPUs off and restart a user's manager
//! - `PINFOLD_TEST_MAY_SKIP`: the needs, with spaces between them, that may be unmet, and some test has to be chosen; if it is
//!   not set, any may
//! - `PINFOLD_TEST_REPORT`: a file to which a line of JSON is appended for each test
//! - `PINFOLD_TEST_COMMIT`: the commit that is tested, for the report
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests arrange files that the product then has to cope with"
)]

mod cases;
mod harness;

// The harness is used as if it were here: tests/faults takes part of it by path.
use harness::*;

use case::Case;
use nix::sys::signal::{SigHandler, Signal};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == with_hooks::VERB) {
        with_hooks::main(&words[1..]);
    }
    // A shell ignores these for what it starts in the background, and so would everything that is
    // tested.
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the default action runs no code of ours.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.unwrap();
    }
    let mut arguments = libtest_mimic::Arguments::from_args();
    // The tests share the machine's CPUs: one at a time, unless asked otherwise.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let cases = cases::all();
    let chosen = || cases.iter().filter(|case| case.is_chosen(&arguments));
    let chosen_count = chosen().count();
    let skipped: Vec<String> = chosen().filter_map(Case::skipped).collect();
    let unexpected: BTreeSet<String> = chosen()
        .flat_map(Case::missing)
        .filter(must_be_met)
        .collect();
    if !arguments.list {
        report::left_out(&cases, &arguments);
    }
    let trials = cases.into_iter().map(Case::into_trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    service::end();
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    println!("skipped for want of what they need: {}", skipped.len());
    skipped.iter().for_each(|name| println!("    {name}"));
    let left = cgroups::named(&world::run_tag());
    if !left.is_empty() {
        eprintln!("cgroups are left behind: {left:?}");
        return ExitCode::FAILURE;
    }
    if may_skip().is_some() && chosen_count == 0 {
        eprintln!("no test has a name that these arguments choose: --list shows the names");
        return ExitCode::FAILURE;
    }
    if !unexpected.is_empty() {
        eprintln!("this machine is to have what tests were skipped for: {unexpected:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// The needs that may be unmet, where whoever set the tests up counts on all others.
fn may_skip() -> Option<String> {
    std::env::var("PINFOLD_TEST_MAY_SKIP").ok()
}

fn must_be_met(need: &String) -> bool {
    may_skip().is_some_and(|needs| !needs.split(' ').any(|one| one == need))
}
