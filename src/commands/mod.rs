//! A file for each verb. Only this code prints.

mod apply;
mod check;
mod describe;
mod explain;
mod hook;
mod init;
mod install;
mod isolate;
pub mod metrics;
mod noise;
mod output;
mod pool;
mod reconcile;
mod release;
mod screen;
mod setup;
mod stats;
mod status;
mod topology;
mod usage;
mod why;

use anyhow::Result;
use serde::Serialize;

use crate::check::{Finding, KeptCpus, Level, check_neighbours};
use crate::cli::{Cli, Verb, Wanted};
use crate::placement::Site;
use crate::refusal::Refusal;
use crate::request::{Asked, Request};
use crate::settings::Settings;

/// Runs the verb of a command line, and returns the exit code: 0, 1 if the verb has found something
/// wrong, or for `isolate` the code of its command.
///
/// # Errors
/// What was refused or failed, in one sentence.
pub fn run(cli: &Cli) -> Result<u8> {
    match &cli.verb {
        Verb::Hook(args) => hook::run(args, &cli.options),
        Verb::Isolate(args) => isolate::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Setup(args) => setup::run(args, &cli.options),
        Verb::Init(args) => init::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Apply(args) => apply::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Stats(args) => stats::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Status(args) => status::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Describe(args) => describe::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Reconcile(args) => reconcile::run(args, &cli.options),
        Verb::Pool(args) => pool::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Explain(args) => explain::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Topology(args) => topology::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Metrics(args) => metrics::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Noise(args) => noise::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Usage(args) => usage::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Why(args) => why::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Release(args) => release::run(args, &Settings::of_command_line(&cli.options)?),
        Verb::Install(args) => install::run(args, &cli.options),
        Verb::Cdi(args) => install::run_cdi(args, &cli.options),
        Verb::Check(args) => check::run(args, &cli.options),
        Verb::Uninstall(args) => install::run_removal(args, &cli.options),
    }
}

/// What a verb with `--json` that fails writes to standard error, on one line.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What was refused or failed, in one sentence.
    pub message: String,
    /// What to do about it. Commands stand in backquotes.
    pub remedy: String,
    /// The exit code of the verb: 1 refused or failed, 2 the command line is wrong, 125 `noise`
    /// could not measure.
    pub exit_code: u8,
}

/// Warns of programs that somebody else was told to run on CPUs that exclusive pools keep for their
/// owners.
fn warn_of_neighbours(site: &Site, kept: &[KeptCpus]) {
    let found = check_neighbours(site, kept);
    // `pinfold check` tells what could not be looked at.
    for finding in found.iter().filter(|one| one.level() == Level::Warning) {
        warn_of(finding);
    }
}

fn warn_of(finding: &Finding) {
    let remedy = finding.outcome.remedy();
    let remedy = remedy.map_or(String::new(), |remedy| format!(": {remedy}"));
    log::warn!("{}{remedy}", finding.text);
}

/// The request of a command line.
fn request(wanted: &Wanted) -> Result<Request, Refusal> {
    let request = Request::asked(&Asked {
        pool: &wanted.pool,
        lists: wanted.lists,
        cpus: wanted.cpus,
        numa: wanted.numa.as_deref(),
        cache: wanted.cache.as_deref(),
        near: wanted.near.as_deref(),
        mems: wanted.mems.as_deref(),
    });
    request.map_err(|refusal| Refusal::usage(refusal.what, refusal.remedy))
}

#[cfg(test)]
mod schemas;
