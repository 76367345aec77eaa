//! `pinfold release`: giving back by hand.

use std::io::{self, Write};

use anyhow::{Result, bail, ensure};

use super::Settings;
use crate::cli::Release;
use crate::oci::is_container_id;
use crate::placement::{force_release, release};
use crate::text::Shown;

pub(super) fn run(args: &Release, settings: &Settings) -> Result<u8> {
    ensure!(
        is_container_id(&args.id),
        "{} is no container id",
        Shown(&args.id)
    );
    let site = settings.site_with_processes()?;
    let outcome = match args.force {
        true => force_release(site, &args.id)?,
        false => release(site, &args.id)?,
    };
    let mut out = io::stdout().lock();
    for claim in &outcome.freed {
        writeln!(out, "freed {} of pool {}", claim.cpus, claim.pool)?;
    }
    if let Some(claim) = outcome.kept.first() {
        bail!(
            "{} still runs on {} of pool {} (process {}): stop it, or take them from it with --force",
            args.id,
            claim.cpus,
            claim.pool,
            claim.processes.first().map_or(0, |process| process.pid)
        );
    }
    if outcome.freed.is_empty() {
        writeln!(out, "{} holds nothing", args.id)?;
    }
    Ok(0)
}
