//! `pinfold release`: giving back by hand.

use std::io::Write;

use anyhow::{Result, bail, ensure};

use super::output::Output;
use crate::claims::Claim;
use crate::cli::ReleaseArgs;
use crate::host::Host;
use crate::last_words;
use crate::placement::{find, force_release, forget, release};
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::text::one_line;

pub(super) fn run(args: &ReleaseArgs, settings: &Settings) -> Result<u8> {
    if args.forget {
        return run_forgetting(&args.owner, settings);
    }
    let site = settings.site_with_processes()?;
    let id = find(site, &args.owner)?;
    last_words::arrange_for_command(&Host::new("/"), &format!("the release of {id}"))?;
    let outcome = match args.force {
        true => force_release(site, &id)?,
        false => release(site, &id)?,
    };
    let mut out = Output::account();
    let owned = |claim: &Claim| format!("{} of pool {}", claim.cpus, one_line(&claim.pool));
    for claim in &outcome.freed {
        writeln!(out, "freed {}, which {} held", owned(claim), claim.shown())?;
    }
    ensure!(outcome.problems.is_empty(), Refusal::all(&outcome.problems));
    if let Some(claim) = outcome.kept.first() {
        bail!(Refusal::new(
            format!(
                "{} still runs on {} (process {})",
                claim.shown(),
                owned(claim),
                claim.processes.first().map_or(0, |process| process.pid)
            ),
            format!("stop it, or take them from it: `pinfold release {id} --force`")
        ));
    }
    if outcome.freed.is_empty() {
        writeln!(out, "{id} has given back what it held meanwhile")?;
    }
    Ok(0)
}

fn run_forgetting(called: &str, settings: &Settings) -> Result<u8> {
    let forgotten = forget(settings.site(), called)?;
    let mut out = Output::account();
    for last in &forgotten {
        let title = last.names.title().unwrap_or_default();
        let lists = last.lists.join(" and ");
        let [title, lists, pool] = [&title, &lists, &last.pool].map(|text| one_line(text));
        writeln!(out, "forgot that {title} had {lists} of pool {pool}")?;
    }
    if forgotten.is_empty() {
        writeln!(out, "nothing is remembered of {}", one_line(called))?;
    }
    Ok(0)
}
