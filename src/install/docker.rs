//! docker: one file that others write too.

use anyhow::{Context, Result};

use super::{Found, Place, Plan};
use crate::engines::{Programs, docker};

const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// The path of docker's configuration file, and what is in it.
///
/// # Errors
/// It cannot be read.
pub fn daemon_json(place: &Place<'_>) -> Result<(String, String)> {
    let found = find(place)?;
    Ok((
        found.path.display().to_string(),
        found.text.unwrap_or_default(),
    ))
}

fn find(place: &Place<'_>) -> Result<Found> {
    Found::at(place.host, place.engine_config(DAEMON_JSON))
}

pub(super) fn plan(place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let found = find(place)?;
    let before = found.text.clone().unwrap_or_default();
    let is_named = || found.path.display().to_string();
    let after = docker::add(&before, programs.shim()?).with_context(is_named)?;
    let is_new = docker::read(&before).with_context(is_named)?.shim.is_none();
    let mut plan = Plan::default();
    if is_new {
        plan.changes.extend(found.keep_backup()?);
    }
    plan.changes.extend(found.become_text(Some(after.clone())));
    if docker::read(&after)?.cdi == Some(false) {
        plan.remarks.push(format!(
            "features.cdi is false in {}: `docker run --device pinfold.io/…` will not work, the runtime will",
            found.path.display()
        ));
    }
    Ok(plan)
}

pub(super) fn plan_removal(place: &Place<'_>) -> Result<Plan> {
    let found = find(place)?;
    let mut plan = Plan::default();
    let Some(text) = &found.text else {
        return Ok(plan);
    };
    let is_named = || found.path.display().to_string();
    let original = found.backup_text()?;
    let Some(without) = docker::remove(text, original.as_deref()).with_context(is_named)? else {
        plan.changes.extend(found.drop_needless_backup()?);
        return Ok(plan);
    };
    let shim = docker::read(text)?.shim.unwrap_or_default();
    let before = original.clone().unwrap_or_default();
    let is_as_we_wrote_it = docker::add(&before, &shim).is_ok_and(|written| written == *text);
    let after = if is_as_we_wrote_it {
        original
    } else {
        Some(without)
    };
    plan.changes.extend(found.become_text(after));
    plan.changes.extend(found.drop_backup()?);
    Ok(plan)
}
