//! `pinfold`: parse, start the log, dispatch; the one place that turns an error into an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use pinfold::cli::{Cli, Verb};
use pinfold::commands::{self, Settings};
use pinfold::text::one_line;

/// Refused or failed.
const FAILED: u8 = 1;
/// The command line cannot be understood.
const USAGE: u8 = 2;
/// `isolate` itself failed: the lower codes are the command's own.
const ISOLATE_FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let failed = match cli.verb {
        Verb::Isolate(_) => ISOLATE_FAILED,
        _ => FAILED,
    };
    match commands::run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = one_line(&format!("{error:#}"));
            // Whoever closed our stderr does not want to hear it.
            let _ = writeln!(io::stderr(), "pinfold: {message}");
            if matches!(cli.verb, Verb::Hook(_)) {
                Settings::report_failed_hook(&cli.options, &message);
            }
            ExitCode::from(failed)
        }
    }
}

/// Help and version are asked for; anything else is a mistake, and `isolate` answers it as podman does.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let isolates = std::env::args_os().any(|argument| argument == "isolate");
    // A closed pipe is the only way that printing fails.
    let _ = error.print();
    match (asked_for, isolates) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(ISOLATE_FAILED),
        (false, false) => ExitCode::from(USAGE),
    }
}

/// `describe | head` ends when its reader does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
