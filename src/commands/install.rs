//! `pinfold install` and `pinfold uninstall`: telling an engine of Pinfold, and taking that back.

use std::io::{self, Write};

use anyhow::{Context, Result};
use similar::TextDiff;

use super::Settings;
use crate::cli::{Install, InstallPlace, Options, Uninstall};
use crate::engines::{Engine, Programs};
use crate::install::{Change, Place, Plan, apply, plan, plan_removal};

pub(super) fn run(args: &Install, options: &Options, settings: &Settings) -> Result<u8> {
    let mut place = place(&args.place, settings);
    place.hook_options = hook_options(options)?;
    let programs = Programs::find(place.host, args.bin_dir.as_deref())?;
    let engine = args.place.engine.into();
    let plan = plan(engine, &place, &programs)?;
    carry_out(&plan, &args.place)?;
    let mut out = io::stdout().lock();
    if !args.place.dry_run && plan.changes.is_empty() {
        writeln!(out, "{} knows Pinfold already", engine.word())?;
    }
    for remark in &plan.remarks {
        log::warn!("{remark}");
    }
    Ok(0)
}

pub(super) fn run_removal(args: &Uninstall, settings: &Settings) -> Result<u8> {
    let place = place(&args.place, settings);
    let plan = plan_removal(args.place.engine.into(), &place)?;
    carry_out(&plan, &args.place)?;
    if !args.place.dry_run && plan.changes.is_empty() {
        let engine: Engine = args.place.engine.into();
        writeln!(io::stdout(), "{} has nothing of Pinfold's", engine.word())?;
    }
    Ok(0)
}

fn place<'a>(args: &InstallPlace, settings: &'a Settings) -> Place<'a> {
    Place {
        engine_config: args.engine_config.clone(),
        hooks_dir: args.hooks_dir.clone(),
        ..Place::default_on(&settings.site().host)
    }
}

/// The options of this command that hooks need as well: an engine gives them no environment.
fn hook_options(options: &Options) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for (option, path) in [
        ("--conf-dir", &options.conf_dir),
        ("--run-dir", &options.run_dir),
        ("--config", &options.config),
    ] {
        if let Some(path) = path {
            let path = std::path::absolute(path)?;
            let path = path
                .to_str()
                .with_context(|| format!("{} is no UTF-8", path.display()))?;
            words.extend([option.to_owned(), path.to_owned()]);
        }
    }
    Ok(words)
}

/// Prints the changes, or makes them and says what is left to do.
fn carry_out(plan: &Plan, args: &InstallPlace) -> Result<()> {
    let mut out = io::stdout().lock();
    if args.dry_run {
        for change in &plan.changes {
            out.write_all(diff(change).as_bytes())?;
        }
        return Ok(());
    }
    apply(plan)?;
    for change in &plan.changes {
        let verb = match (&change.before, &change.after) {
            (None, _) => "made",
            (_, None) => "removed",
            _ => "changed",
        };
        writeln!(out, "{verb} {}", change.path.display())?;
    }
    if plan.changes.is_empty() {
        return Ok(());
    }
    match Engine::from(args.engine).service() {
        Some(service) => writeln!(
            out,
            "it counts once {service} is restarted: systemctl restart {service}"
        )?,
        None => writeln!(
            out,
            "it counts from podman's next start; for podman.service, if you use it, from its restart"
        )?,
    }
    Ok(())
}

/// A change as `diff -u` and `patch` have it.
fn diff(change: &Change) -> String {
    let path = change.path.display().to_string();
    let name = |text: &Option<String>| match text {
        Some(_) => path.clone(),
        None => "/dev/null".to_owned(),
    };
    let before = change.before.as_deref().unwrap_or_default();
    let after = change.after.as_deref().unwrap_or_default();
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&name(&change.before), &name(&change.after))
        .to_string()
}
