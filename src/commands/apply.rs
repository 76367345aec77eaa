//! `pinfold apply`: the pools as the configuration declares them.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;

use super::output::Output;
use crate::cli::ApplyArgs;
use crate::files;
use crate::host::Host;
use crate::install::refresh_cdi;
use crate::last_words;
use crate::placement::{Applied, apply, try_apply};
use crate::pools::Kind;
use crate::pools::converge::{Declared, Undeclared};
use crate::pools::plan::{PlannedPool, list_name};
use crate::settings::Settings;
use crate::text::{Shown, one_line};

pub(super) fn run(args: &ApplyArgs, settings: &Settings) -> Result<u8> {
    let declared = declared(settings)?;
    let site = settings.site();
    // New pools have no owners. Those of existing pools have to be visible.
    if !args.dry_run && files::entry_if_there(&site.conf_dir.join("pools"))?.is_some() {
        settings.site_with_processes()?;
    }
    if declared.is_empty() {
        let applied = Applied::default();
        return report(
            args,
            settings,
            &applied,
            "no pools are declared: nothing to do",
        );
    }
    let stock = settings.stock(args.housekeeping.reserve.as_ref())?;
    let undeclared = match args.prune {
        true => Undeclared::Go,
        false => Undeclared::Stay,
    };
    let applied = match args.dry_run {
        true => try_apply(site, &stock, &declared, undeclared)?,
        false => {
            last_words::arrange_for_change(&Host::new("/"), "apply")?;
            apply(site, &stock, &declared, undeclared)?
        }
    };
    let code = report(args, settings, &applied, "nothing to change")?;
    // The pools are changed, and that is reported, even if the devices cannot be written.
    if !args.dry_run {
        refresh_cdi(site)?;
    }
    Ok(code)
}

/// The pools that the configuration declares, by name.
pub(super) fn declared(settings: &Settings) -> Result<Vec<Declared>> {
    let mut all = Vec::new();
    for (name, table) in settings.pools() {
        all.extend(table.declared(name)?);
    }
    Ok(all)
}

/// A line of the difference: the pool, its kind, and one of its lists.
type Line = (String, Kind, String);

fn lines(pools: &[PlannedPool]) -> Vec<Line> {
    let of = |pool: &PlannedPool| {
        let (name, kind) = (pool.name.clone(), pool.kind);
        let line = move |list| (name.clone(), kind, list_name(list));
        pool.lists.iter().map(line).collect::<Vec<_>>()
    };
    pools.iter().flat_map(of).collect()
}

/// Prints the difference, and warns of what could not be changed. The exit code is 1 then.
fn report(args: &ApplyArgs, settings: &Settings, applied: &Applied, none: &str) -> Result<u8> {
    let (before, after) = (lines(&applied.before), lines(&applied.after));
    let without = |some: &[Line], others: &[Line]| -> Vec<Line> {
        let is_apart = |line: &&Line| !others.contains(line);
        some.iter().filter(is_apart).cloned().collect()
    };
    let (removed, added) = (without(&before, &after), without(&after, &before));
    let mut out = match args.dry_run || args.json {
        true => Output::product(),
        false => Output::account(),
    };
    if args.json {
        out.json(&document(applied, &removed, &added))?;
    } else {
        print(&mut out, args, settings, (&removed, &added), none)?;
        for owner in &applied.owners {
            writeln!(out, "gave the CPUs to {}", Shown(owner))?;
        }
    }
    for pid in &applied.strangers {
        log::warn!(
            "process {pid} keeps its CPUs: another tool put it into a list that is another now"
        );
    }
    for kept in &applied.kept {
        log::warn!("{}: {}", kept.why.what, kept.why.remedy);
    }
    Ok(u8::from(!applied.kept.is_empty()))
}

fn print(
    out: &mut Output,
    args: &ApplyArgs,
    settings: &Settings,
    (removed, added): (&[Line], &[Line]),
    none: &str,
) -> Result<()> {
    let path = one_line(&settings.site().conf_dir.display().to_string());
    if removed.is_empty() && added.is_empty() {
        writeln!(out, "{path}: {none}")?;
        return Ok(());
    }
    let verb = match args.dry_run {
        true => "would change",
        false => "changed",
    };
    writeln!(out, "{verb} {path}:")?;
    let signed = |sign, lines: &[Line]| lines.iter().map(|line| (line.clone(), sign)).collect();
    let mut all: Vec<(Line, char)> = signed('-', removed);
    all.extend::<Vec<_>>(signed('+', added));
    all.sort_by(|((one, ..), _), ((other, ..), _)| one.cmp(other));
    let width = all.iter().map(|((name, ..), _)| name.len()).max();
    out.coloured(|page| {
        for ((name, kind, list), sign) in &all {
            let colour = match sign {
                '-' => AnsiColor::Red,
                _ => AnsiColor::Green,
            };
            let style = Style::new().fg_color(Some(colour.into()));
            let (name, kind, width) = (one_line(name), kind.word(), width.unwrap_or(0));
            writeln!(
                page,
                "{style}{sign} {name:width$}  {kind:9}  {list}{style:#}"
            )?;
        }
        Ok(())
    })
}

/// The difference that `apply` made; with `--dry-run` the one that it would make.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Document<'a> {
    /// The CPU lists that were taken away, by pool.
    removed: Vec<ListEntry<'a>>,
    /// The CPU lists that were made, by pool.
    added: Vec<ListEntry<'a>>,
    /// What is not as it is declared. The exit code is 1 if there is any.
    kept: Vec<KeptEntry<'a>>,
    /// The owners that were given other CPUs, as sentences call them.
    owners: &'a [String],
}

/// A CPU list of a pool.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ListEntry<'a> {
    /// The pool's name.
    pool: &'a str,
    /// Has each list of the pool one owner at most?
    exclusive: bool,
    /// The CPUs, as a list such as `4,12` or `0-2`.
    list: &'a str,
}

/// What stays otherwise than it is declared.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct KeptEntry<'a> {
    /// The pool's name.
    pool: &'a str,
    /// Why it stays, as a sentence.
    why: &'a str,
    /// What to do about it.
    remedy: &'a str,
}

fn document<'a>(applied: &'a Applied, removed: &'a [Line], added: &'a [Line]) -> Document<'a> {
    let list = |(pool, kind, list): &'a Line| ListEntry {
        pool,
        exclusive: *kind == Kind::Exclusive,
        list,
    };
    let kept = applied.kept.iter().map(|kept| KeptEntry {
        pool: &kept.pool,
        why: &kept.why.what,
        remedy: &kept.why.remedy,
    });
    Document {
        removed: removed.iter().map(list).collect(),
        added: added.iter().map(list).collect(),
        kept: kept.collect(),
        owners: &applied.owners,
    }
}
