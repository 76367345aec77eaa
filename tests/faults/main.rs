//! Whatever fails: each system call of each verb with each of its errors, two of them, files that
//! rot, storms and sizes; and what is not seen to fail: command lines of runtimes that are read in
//! another way than they read them. The auditor judges, and exit codes have to agree with the
//! books.
//!
//! - `PINFOLD_TEST_FAULTS_SEED`, `_ONLY`, `_SECONDS`: see `campaign`
//! - `PINFOLD_TEST_SOAK_SECONDS`: how long the storm lasts
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests arrange files that the product then has to cope with"
)]
#![allow(
    dead_code,
    reason = "tests/real uses the rest of what is shared with it"
)]

mod bounds;
mod campaign;
mod command_lines;
mod corruption;
mod disks;
mod errors;
mod installs;
mod lists;
mod looks;
mod loops;
mod scenes;
mod shim;
mod soak;
mod supervisor;
mod verbs;

#[path = "../real/harness/cgroups.rs"]
mod cgroups;
#[path = "../real/harness/probe.rs"]
mod probe;
#[path = "../real/harness/process.rs"]
mod process;
#[path = "../real/harness/world.rs"]
mod world;

mod cases;
use cases as needs;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // The tests share the machine's CPUs: one at a time.
    arguments.test_threads = Some(1);
    let cases: Vec<cases::Case> = [
        verbs::cases(),
        scenes::cases(),
        lists::cases(),
        looks::cases(),
        installs::cases(),
        loops::cases(),
        shim::cases(),
        corruption::cases(),
        command_lines::cases(),
        disks::cases(),
        bounds::cases(),
        soak::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let skipped: Vec<String> = cases.iter().filter_map(cases::Case::skipped).collect();
    let trials = cases.into_iter().map(cases::Case::into_trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    campaign::print_counts();
    println!("skipped for want of what they need: {}", skipped.len());
    skipped.iter().for_each(|name| println!("    {name}"));
    let left = cgroups::named(&world::run_tag());
    if !left.is_empty() {
        eprintln!("cgroups are left behind: {left:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
