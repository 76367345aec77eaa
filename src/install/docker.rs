//! docker: a configuration file that others write too.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{FileNow, Place, Plan};
use crate::child;
use crate::engines::docker::Wiring;
use crate::engines::{Engine, Programs, docker};
use crate::files::{self, Durability};
use crate::text::one_line;

const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// How long dockerd may take to validate a file.
const VALIDATE_WITHIN: Duration = Duration::from_secs(30);
/// The mode of the file that dockerd validates: a configuration can hold secrets.
const PRIVATE: u32 = 0o600;

/// The path and the content of docker's configuration file.
///
/// # Errors
/// The file cannot be read.
pub fn daemon_json(place: &Place<'_>) -> Result<(String, String)> {
    let found = find(place)?;
    Ok((
        found.path.display().to_string(),
        found.text.unwrap_or_default(),
    ))
}

/// What docker's configuration says of Pinfold.
pub(super) fn wiring(place: &Place<'_>) -> Result<Wiring> {
    docker::read(&find(place)?.text.unwrap_or_default())
}

fn find(place: &Place<'_>) -> Result<FileNow> {
    FileNow::at(place.host, place.engine_config(DAEMON_JSON))
}

pub(super) fn plan(place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let found = find(place)?;
    let before = found.text.clone().unwrap_or_default();
    let is_named = || found.path.display().to_string();
    let after = docker::add(&before, programs.shim()?).with_context(is_named)?;
    let wiring = docker::read(&before).with_context(is_named)?;
    let mut plan = Plan::default();
    if wiring.shim.is_none() {
        plan.changes.extend(found.keep_backup()?);
    }
    if wiring.namesake.is_some() {
        plan.remarks.push(found.namesake_is_kept());
    }
    if after != before {
        validate(place, &after).with_context(is_named)?;
    }
    plan.changes.extend(found.become_text(Some(after.clone())));
    if docker::read(&after)?.cdi == Some(false) {
        plan.remarks.push(format!(
            "features.cdi is false in {}: `docker run --device pinfold.io/…` will not work, the \
             runtime will",
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
    let is_all = original.is_none() && docker::is_empty(&without)?;
    let after = if is_as_we_wrote_it || is_all {
        original
    } else {
        Some(without)
    };
    plan.changes.extend(found.become_text(after));
    plan.changes.extend(found.drop_backup()?);
    Ok(plan)
}

/// Asks dockerd whether it would start with this text, if dockerd is installed and knows
/// `--validate` (dockerd(8), from version 23).
fn validate(place: &Place<'_>, text: &str) -> Result<()> {
    let dockerd = place.host.program(Engine::Docker.program());
    let Some(dockerd) = dockerd.filter(|_| place.host.is_running_root()) else {
        return Ok(());
    };
    let dir = tempfile::tempdir().context("make a directory for what dockerd is to look at")?;
    let file = dir.path().join("daemon.json");
    files::replace(&file, text.as_bytes(), PRIVATE, Durability::Crash)?;
    // dockerd answers on standard error.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" --validate --config-file \"$1\" 2>&1"]);
    let answer = child::ask(command.arg(&dockerd).arg(&file), VALIDATE_WITHIN)
        .with_context(|| format!("ask {} about it", dockerd.display()))?;
    if answer.status.success() || answer.out.contains("unknown flag: --validate") {
        return Ok(());
    }
    let mut lines = answer.out.lines().filter(|line| !line.trim().is_empty());
    let said = one_line(lines.next_back().unwrap_or("without a word"));
    let shown = file.display().to_string();
    bail!(
        "dockerd would not start with it: {}",
        said.replace(&shown, DAEMON_JSON)
    )
}
