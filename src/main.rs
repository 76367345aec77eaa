//! `pinfold`: parse, start the log, dispatch; the one place that turns an error into an exit code.

#![cfg_attr(target_env = "gnu", no_main)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;

use clap::error::ErrorKind;
use pinfold::cli::{Cli, Options, Verb};
use pinfold::commands::{self, Failure};
use pinfold::engines::SHIM;
use pinfold::host::Host;
use pinfold::refusal::Refusal;
use pinfold::shim;
use pinfold::system_log::{self, Severity};
use pinfold::text::{json_line, lines, one_line};

/// Done.
const DONE: u8 = 0;
/// Refused or failed.
const FAILED: u8 = 1;
/// The command line cannot be understood.
const USAGE: u8 = 2;
/// `isolate` itself failed: the lower codes are the command's own; `noise` could not measure: 1 is
/// what it found.
const NOT_DONE: u8 = 125;

/// Where the C library begins. Rust's own `main` prepares to tell of a stack that overflows first,
/// with 18 system calls and a tenth of a hook's instructions; what else it does is done here.
#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
pub extern "C" fn main(_: std::ffi::c_int, _: *const *const std::ffi::c_char) -> std::ffi::c_int {
    pinfold::limits::begin();
    // It writes out what standard output keeps.
    std::process::exit(run().into())
}

/// Rust's own: only GNU's C library tells the arguments to a program without it.
#[cfg(not(target_env = "gnu"))]
fn main() {
    std::process::exit(run().into())
}

fn run() -> u8 {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new(SHIM)) {
        return runtime(&arguments.collect::<Vec<_>>());
    }
    let arguments: Vec<OsString> = arguments.collect();
    let cli = match Cli::parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let (failed, misused) = match cli.verb {
        Verb::Isolate(_) => (NOT_DONE, NOT_DONE),
        Verb::Noise(_) => (NOT_DONE, USAGE),
        _ => (FAILED, USAGE),
    };
    match commands::run(&cli) {
        Ok(code) => code,
        Err(error) => {
            let refusal = Refusal::of(&error);
            let code = if refusal.is_usage { misused } else { failed };
            say(&refusal, code, cli.wants_json(), &cli.options);
            code
        }
    }
}

/// Says on stderr what went wrong: a line, or a JSON object.
fn say(refusal: &Refusal, code: u8, as_json: bool, options: &Options) {
    let line = match as_json {
        true => json_line(&Failure {
            message: options.repeated_in(&refusal.what),
            remedy: options.repeated_in(&refusal.remedy),
            exit_code: code,
        }),
        false => {
            let sentence = options.repeated_in(&refusal.to_string());
            format!("pinfold: {}", one_line(&sentence))
        }
    };
    // Whoever closed our stderr does not want to hear it.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Becomes the runtime that stands behind this name.
fn runtime(arguments: &[OsString]) -> u8 {
    let Err(error) = shim::run(arguments) else {
        return DONE;
    };
    let refusal = Refusal::of(&error);
    let message = one_line(&refusal.to_string());
    let _ = writeln!(io::stderr(), "{SHIM}: {message}");
    shim::report(arguments, &message, refusal.reason);
    FAILED
}

/// Help and version are asked for; anything else is a mistake, and `isolate` answers it as podman
/// does.
fn usage(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let is_asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    let verb = Cli::verb_in(arguments);
    // Behind `isolate` there can be another command's.
    if !is_asked_for && verb != Some("isolate") && arguments.iter().any(|word| word == "--json") {
        say(&of_clap(error), USAGE, true, &Options::default());
    } else if is_asked_for {
        // Whoever asked is not there any more, or has no room for the answer.
        let _ = error.print();
    } else {
        // What was asked for may be text of others, and it is in there.
        let _ = write!(io::stderr(), "{}", lines(&error.render().to_string()));
    }
    if is_asked_for {
        return DONE;
    }
    match verb {
        Some("isolate") => NOT_DONE,
        Some("hook") => {
            let message = error.to_string();
            let first_line = message.lines().next().unwrap_or_default();
            system_log::send(&Host::new("/"), Severity::Error, &one_line(first_line));
            USAGE
        }
        _ => USAGE,
    }
}

/// The same as a refusal: what is wrong stands in the first paragraph.
fn of_clap(error: &clap::Error) -> Refusal {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let what = first.trim_start_matches("error: ").replace("\n", " ");
    let mut lines = text.lines().map(str::trim);
    let tip = lines.find_map(|line| line.strip_prefix("tip: "));
    let tip = tip.filter(|_| error.kind() == ErrorKind::InvalidSubcommand);
    Refusal::usage(what.trim(), tip.unwrap_or("see --help"))
}
