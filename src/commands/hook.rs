//! `pinfold hook`: one container's start, or its end.

use std::io;

use anyhow::{Context, Result};

use super::Settings;
use crate::cli::{Hook, Options, Stage};
use crate::limits;
use crate::oci::State;
use crate::placement::{pin_container, release};
use crate::request;

pub(super) fn run(args: &Hook, options: &Options) -> Result<u8> {
    limits::bound_time()?;
    limits::drop_capabilities()?;
    let state = State::read(io::stdin().lock())?;
    match args.stage {
        Stage::Prestart | Stage::CreateRuntime => {
            pin(&state, options).with_context(|| format!("cannot start container {}", state.id))?
        }
        Stage::Poststop => give_back(&state, options)
            .with_context(|| format!("cannot give back the CPUs of container {}", state.id))?,
    }
    Ok(0)
}

/// Without a request nothing is read beyond the state: not even the configuration.
fn pin(state: &State, options: &Options) -> Result<()> {
    let Some(request) = request::from_annotations(&state.annotations)? else {
        return Ok(());
    };
    let pid = state
        .pid
        .context("its state has no pid: this hook must run as prestart or createRuntime")?;
    let settings = Settings::of_hook(options)?;
    let claim = pin_container(settings.site_with_processes()?, &state.id, pid, &request)?;
    log::info!(
        "pinned container {} to {} of pool {}",
        claim.id,
        claim.cpus,
        claim.pool
    );
    Ok(())
}

/// Keyed by the id alone: some engines give no annotations at this stage. Where there are some and none is
/// ours, it is certain that there was no request.
fn give_back(state: &State, options: &Options) -> Result<()> {
    if !state.annotations.is_empty() && !request::mentions_us(&state.annotations) {
        return Ok(());
    }
    let settings = Settings::of_hook(options)?;
    let outcome = release(settings.site_with_processes()?, &state.id)?;
    for claim in outcome.freed {
        log::info!(
            "container {} gave back {} of pool {}",
            claim.id,
            claim.cpus,
            claim.pool
        );
    }
    for claim in outcome.kept {
        log::info!(
            "container {} keeps {} of pool {}: it still runs",
            claim.id,
            claim.cpus,
            claim.pool
        );
    }
    Ok(())
}
