//! `pinfold check`: everything that a start depends on, a line each.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;
use tabwriter::TabWriter;

use super::Settings;
use crate::check::{Finding, Level, Scope, check, check_deep};
use crate::cli::{Check, EngineFile};
use crate::engines::Engine;
use crate::install::Place;
use crate::text::one_line;

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
        if engine_config.is_some() || hooks_dir.is_some() {
            let place = Place {
                engine_config,
                hooks_dir,
                ..Place::default_on(&site.host)
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
