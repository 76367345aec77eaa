//! Makes what follows from the command line's types.
//!
//! `generate DIRECTORY` writes completions of bash, zsh and fish into it; `generate --synopsis`
//! writes the synopsis into docs/pinfold.8.

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use pinfold::cli::Cli;
use pinfold::files::{self, Durability};
use roff::{Inline, Roff, bold, italic, roman};

const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pinfold.8");
const BEFORE: &str = ".SH SYNOPSIS\n";
const BEHIND: &str = ".SH DESCRIPTION\n";

fn main() -> Result<()> {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some("--synopsis") => {
            let manual = std::fs::read_to_string(MANUAL)?;
            let manual = with_synopsis(&manual)?;
            files::replace(
                Path::new(MANUAL),
                manual.as_bytes(),
                0o644,
                Durability::Crash,
            )
        }
        Some(directory) => completions(Path::new(directory)),
        None => anyhow::bail!("usage: generate DIRECTORY | --synopsis"),
    }
}

/// Writes `pinfold.bash`, `_pinfold` and `pinfold.fish`.
fn completions(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "pinfold", directory)
            .with_context(|| format!("{}", directory.display()))?;
    }
    Ok(())
}

/// The manual page with the synopsis that the command line has now.
fn with_synopsis(manual: &str) -> Result<String> {
    let (head, rest) = manual.split_once(BEFORE).context("no synopsis")?;
    let (_, tail) = rest.split_once(BEHIND).context("no description")?;
    let synopsis = synopsis();
    Ok(format!("{head}{BEFORE}{synopsis}{BEHIND}{tail}"))
}

/// A line for each verb, and for each action of a verb; the options that every verb has are not
/// repeated.
fn synopsis() -> String {
    let mut page = Roff::new();
    page.control("ad", ["l"]).control("nh", []);
    for verb in Cli::command().get_subcommands() {
        add_usage(&mut page, verb, "pinfold");
    }
    page.control("ad", ["b"]).control("hy", []);
    page.to_roff()
}

fn add_usage(page: &mut Roff, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            add_usage(page, below, &name);
        }
        return;
    }
    let mut line = vec![bold(name)];
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (positional, options): (Vec<&Arg>, _) = shown.partition(|arg| arg.is_positional());
    for argument in options.into_iter().chain(positional) {
        line.push(roman(if argument.is_required_set() {
            " "
        } else {
            " ["
        }));
        if argument.is_last_set() || argument.is_trailing_var_arg_set() {
            line.extend([bold("--"), roman(" ")]);
        }
        line.extend(usage_of(argument));
        line.push(roman(if argument.is_required_set() { "" } else { "]" }));
        let is_repeated = matches!(argument.get_action(), ArgAction::Append);
        line.push(roman(if is_repeated { "..." } else { "" }));
    }
    page.text(line).control("br", []);
}

/// An option with what it takes, or what stands in a place of its own.
fn usage_of(argument: &Arg) -> Vec<Inline> {
    let option = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    let mut usage: Vec<Inline> = match (option, short) {
        (Some(long), Some(short)) => vec![bold(short), roman("|"), bold(long)],
        (Some(name), None) | (None, Some(name)) => vec![bold(name)],
        (None, None) => Vec::new(),
    };
    if !argument.get_action().takes_values() {
        return usage;
    }
    if !usage.is_empty() {
        usage.push(roman(" "));
    }
    let words = argument.get_possible_values();
    let words: Vec<_> = words.iter().map(|word| word.get_name()).collect();
    match words.is_empty() {
        true => {
            let names = argument.get_value_names().unwrap_or_default();
            usage.extend(names.iter().map(|name| italic(name.as_str())));
        }
        false => usage.push(bold(words.join("|"))),
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_the_synopsis_of_the_command_line() {
        let manual = std::fs::read_to_string(MANUAL).expect("docs/pinfold.8");
        let remade = with_synopsis(&manual).expect("a synopsis");
        assert!(
            manual == remade,
            "cargo run --example generate -- --synopsis"
        );
    }

    #[test]
    fn every_verb_is_completed_in_every_shell() {
        let directory = tempfile::tempdir().expect("a directory");
        completions(directory.path()).expect("completions");
        for file in ["pinfold.bash", "_pinfold", "pinfold.fish"] {
            let text = std::fs::read_to_string(directory.path().join(file)).expect(file);
            for verb in Cli::command().get_subcommands() {
                assert!(
                    text.contains(verb.get_name()),
                    "{file}: {}",
                    verb.get_name()
                );
            }
        }
    }
}
