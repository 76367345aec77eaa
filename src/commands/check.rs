//! `pinfold check`: everything that a start depends on, a line each.

use std::io::{self, Write};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;
use textwrap::WordSplitter;

use super::install::with_own_directories;
use super::output::Output;
use super::screen::{self, BAD, GOOD, ODD};
use crate::check::{Finding, Level, Outcome, Scope, check, check_deep};
use crate::cli::{CheckArgs, EngineFile, Options};
use crate::engines::Engine;
use crate::install::{Place, User};
use crate::settings::Settings;
use crate::text::one_line;

/// The settings to check. An ordinary user who has pools, and names no others on the command line,
/// gets the user's own directories, as that user's hooks do.
fn settings(options: &Options) -> Result<Settings> {
    let settings = Settings::of_command_line(options)?;
    let host = &settings.site().host;
    if !User::is_meant(host) || settings.site().conf_dir != host.default_conf_dir() {
        return Ok(settings);
    }
    let Ok(own) = with_own_directories(options) else {
        return Ok(settings);
    };
    let looked = own.conf_dir.as_ref().map(|dir| dir.symlink_metadata());
    match looked {
        Some(Ok(_)) => Settings::of_command_line(&own),
        _ => Ok(settings),
    }
}

/// Prints the findings. Settings that cannot be read are a finding, too.
pub(super) fn run(args: &CheckArgs, options: &Options) -> Result<u8> {
    let mut findings = match settings(options) {
        Ok(settings) => look(args, &settings),
        Err(error) => vec![Finding::of_error("config", &error)],
    };
    for finding in &mut findings {
        let outcome = std::mem::replace(&mut finding.outcome, Outcome::Ok);
        finding.outcome = outcome.map_remedy(|remedy| options.repeated_in(remedy));
    }
    let faults = count(&findings, Level::Fault);
    let mut out = Output::product();
    if args.json {
        out.json(&document(&findings))?;
    } else {
        let widest = findings.iter().map(|finding| finding.what.len()).max();
        let shown = FindingsLayout {
            what_width: widest.unwrap_or_default(),
            width: screen::terminal_width(),
        };
        out.coloured(|out| {
            let mut findings = findings.iter();
            findings.try_for_each(|finding| shown.write(out, finding))
        })?;
    }
    Ok(u8::from(faults > 0))
}

fn look(args: &CheckArgs, settings: &Settings) -> Vec<Finding> {
    let site = settings.site();
    let mut places: Vec<(Engine, Place<'_>)> = Vec::new();
    for engine in Engine::ALL {
        let of = |files: &[EngineFile]| {
            let mut files = files.iter().filter(|file| file.engine == engine);
            files.next_back().map(|file| file.path.clone())
        };
        let (engine_config, hooks_dir) = (of(&args.engine_config), of(&args.hooks_dir));
        let own = match engine {
            Engine::Podman => Place::own_on(&site.host),
            _ => Place::default_on(&site.host),
        };
        let is_there = own.user.is_some() && site.host.program(engine.program()).is_some();
        if engine_config.is_some() || hooks_dir.is_some() || is_there {
            let place = Place {
                engine_config,
                hooks_dir,
                ..own
            };
            places.push((engine, place));
        }
    }
    let mut findings = check(&Scope {
        site,
        places,
        rules: settings.pools(),
        runtime: settings.runtime(),
        reserve: settings.reserve(),
        host_table: settings.host_table(),
    });
    if args.deep {
        findings.extend(check_deep(site));
    }
    findings
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings
        .iter()
        .filter(|finding| finding.level() == level)
        .count()
}

/// The width of a finding's level, with the blanks after it, in columns.
const LEVEL_WIDTH: usize = 9;
/// The fewest columns in which sentences are wrapped.
const NARROWEST: usize = 20;

/// How findings are printed below each other: the level in colour, the subject, and a sentence,
/// which on a terminal is wrapped and indented.
struct FindingsLayout {
    what_width: usize,
    /// The terminal's, in columns.
    width: Option<usize>,
}

impl FindingsLayout {
    fn write(&self, out: &mut impl Write, finding: &Finding) -> io::Result<()> {
        let (level, what, what_width) = (finding.level(), finding.what, self.what_width);
        let indent = LEVEL_WIDTH + what_width + screen::GAP;
        let sentence = sentence(finding);
        let room = self.width.map(|width| width.saturating_sub(indent));
        let lines = match room.filter(|room| *room >= NARROWEST) {
            Some(room) => textwrap::wrap(&sentence, wrapping(room)),
            None => vec![sentence.as_str().into()],
        };
        for (index, line) in lines.iter().enumerate() {
            if index == 0 {
                let (style, word) = (colour(level), level.word());
                let blanks = LEVEL_WIDTH.saturating_sub(word.len());
                write!(out, "{style}{word}{style:#}{:blanks$}", "")?;
                writeln!(out, "{what:what_width$}  {line}")?;
            } else {
                writeln!(out, "{:indent$}{line}", "")?;
            }
        }
        Ok(())
    }
}

/// How sentences are wrapped: never within a path, an option or a command's name, which somebody
/// may want to copy.
fn wrapping(width: usize) -> textwrap::Options<'static> {
    let options = textwrap::Options::new(width).break_words(false);
    options.word_splitter(WordSplitter::NoHyphenation)
}

fn colour(level: Level) -> Style {
    match level {
        Level::Ok => GOOD,
        Level::Warning => ODD,
        Level::Fault => BAD,
    }
}

fn sentence(finding: &Finding) -> String {
    let text = one_line(&finding.text);
    let remedy = finding.outcome.remedy();
    let remedy = remedy.map_or(String::new(), |remedy| format!(": {}", one_line(remedy)));
    format!("{text}{remedy}")
}

/// Everything that was looked at.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Document<'a> {
    /// How many findings are faults. The exit code is 1 if there is any.
    faults: usize,
    /// What was found, the machine first.
    findings: Vec<FindingEntry<'a>>,
    /// How many findings are warnings.
    warnings: usize,
}

/// One thing that was looked at.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct FindingEntry<'a> {
    /// How it stands.
    level: Level,
    /// What to do about it; null where it is as it should be.
    remedy: Option<&'a str>,
    /// How it was found.
    text: &'a str,
    /// What was looked at, in one word.
    what: &'a str,
}

fn document<'a>(findings: &'a [Finding]) -> Document<'a> {
    let entry = |finding: &'a Finding| FindingEntry {
        level: finding.level(),
        remedy: finding.outcome.remedy(),
        text: &finding.text,
        what: finding.what,
    };
    Document {
        faults: count(findings, Level::Fault),
        findings: findings.iter().map(entry).collect(),
        warnings: count(findings, Level::Warning),
    }
}
