//! `pinfold-node`: parse, dispatch; the one place that turns an error into an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use pinfold::refusal::Refusal;
use pinfold::text::{lines, one_line};
use pinfold_node::cli::{Cli, Verb};
use pinfold_node::{install, run};

/// Refused or failed.
const FAILED: u8 = 1;
/// The command line cannot be understood.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match &cli.verb {
        Verb::Run(args) => run::run(args, &cli.options),
        Verb::Install(args) => install::run(args, &cli.options),
    };
    let error = match done {
        Ok(code) => return code.into(),
        Err(error) => error,
    };
    let refusal = Refusal::of(&error);
    let sentence = cli.options.repeated_in(&refusal.to_string());
    // Whoever closed our stderr does not want to hear it.
    let _ = writeln!(io::stderr(), "pinfold-node: {}", one_line(&sentence));
    match refusal.is_usage {
        true => USAGE.into(),
        false => FAILED.into(),
    }
}

/// Help and version are asked for; anything else is a mistake.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    if asked_for.contains(&error.kind()) {
        // Whoever asked is not there any more, or has no room for the answer.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let _ = write!(io::stderr(), "{}", lines(&error.render().to_string()));
    USAGE.into()
}
