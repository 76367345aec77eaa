//! `pinfold`: parse, start the log, dispatch; the one place that turns an error into an exit code.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use pinfold::cli::{Cli, Verb};
use pinfold::commands::{self, Settings, shim};
use pinfold::engines::SHIM;
use pinfold::host::Host;
use pinfold::system_log::{self, Severity};
use pinfold::text::one_line;

/// Refused or failed.
const FAILED: u8 = 1;
/// The command line cannot be understood.
const USAGE: u8 = 2;
/// `isolate` itself failed: the lower codes are the command's own.
const ISOLATE_FAILED: u8 = 125;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new(SHIM)) {
        return runtime(&arguments.collect::<Vec<_>>());
    }
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
        Err(error) if commands::is_closed_pipe(&error) => ExitCode::SUCCESS,
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

/// Becomes the runtime that stands behind this name.
fn runtime(arguments: &[OsString]) -> ExitCode {
    let Err(error) = shim::run(arguments) else {
        return ExitCode::SUCCESS;
    };
    let message = one_line(&format!("{error:#}"));
    let _ = writeln!(io::stderr(), "{SHIM}: {message}");
    shim::report(arguments, &message);
    ExitCode::from(FAILED)
}

/// Help and version are asked for; anything else is a mistake, and `isolate` answers it as podman does.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is the only way that printing fails.
    let _ = error.print();
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match Cli::verb_in(&arguments) {
        Some("isolate") => ExitCode::from(ISOLATE_FAILED),
        Some("hook") => {
            let message = error.to_string();
            let first_line = message.lines().next().unwrap_or_default();
            system_log::send(&Host::new("/"), Severity::Error, &one_line(first_line));
            ExitCode::from(USAGE)
        }
        _ => ExitCode::from(USAGE),
    }
}
