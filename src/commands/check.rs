//! `pinfold check`: everything that a start depends on, a line each.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;
use tabwriter::TabWriter;

use super::Settings;
use super::install::with_own_directories;
use crate::check::{Finding, Level, Scope, check, check_deep};
use crate::cli::{Check, EngineFile, Options};
use crate::engines::Engine;
use crate::install::{Place, User};
use crate::text::one_line;

/// An ordinary user who has pools looks at these, as the user's hooks do, where nothing says others.
pub(super) fn settings(options: &Options) -> Result<Settings> {
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

pub(super) fn run(args: &Check, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let mut places: Vec<(Engine, Place<'_>)> = Vec::new();
    for engine in Engine::ALL {
        let of = |files: &[EngineFile]| {
            let mut files = files
                .iter()
                .filter(|file| Engine::from(file.engine) == engine);
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
    });
    if args.deep {
        findings.extend(check_deep(site));
    }
    let faults = count(&findings, Level::Fault);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", document(&findings))?;
    } else {
        let mut table = TabWriter::new(vec![]);
        for finding in &findings {
            writeln!(table, "{}", line(finding))?;
        }
        out.write_all(&table.into_inner()?)?;
    }
    Ok(u8::from(faults > 0))
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings
        .iter()
        .filter(|finding| finding.level == level)
        .count()
}

fn line(finding: &Finding) -> String {
    let text = one_line(&finding.text);
    let remedy = finding.remedy.as_ref();
    let remedy = remedy.map_or(String::new(), |remedy| format!(": {}", one_line(remedy)));
    format!("{}\t{}\t{text}{remedy}", finding.level.word(), finding.what)
}

fn document(findings: &[Finding]) -> serde_json::Value {
    let one = |finding: &Finding| {
        json!({
            "level": finding.level.word(),
            "remedy": finding.remedy,
            "text": finding.text,
            "what": finding.what,
        })
    };
    json!({
        "faults": count(findings, Level::Fault),
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
        "warnings": count(findings, Level::Warning),
    })
}
