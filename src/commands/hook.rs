//! `pinfold hook`: one container's start, or its end.

use std::io;

use anyhow::{Context, Result, bail, ensure};

use super::Settings;
use crate::cli::{EngineArg, Hook, Options, Stage};
use crate::config::Door;
use crate::limits;
use crate::oci::State;
use crate::placement::{pin_container, release};
use crate::request::{self, Request};
use crate::text::Shown;

pub(super) fn run(args: &Hook, options: &Options) -> Result<u8> {
    limits::bound_time()?;
    limits::drop_capabilities()?;
    let state = State::read(limits::Prompt::new(io::stdin().lock()))?;
    match args.stage {
        Stage::Prestart | Stage::CreateRuntime => start(&state, args, options)?,
        Stage::Poststop => end(&state, args, options)?,
    }
    Ok(0)
}

/// Without a request nothing is read beyond the state, not even the configuration; nor is the rest of the state judged.
fn start(state: &State, args: &Hook, options: &Options) -> Result<()> {
    let request = state
        .annotations(request::is_ours)
        .and_then(|annotations| Ok(request::from_annotations(&annotations)?))
        .and_then(|annotated| with_device(annotated, args.device.as_deref()))
        .with_context(|| format!("cannot start container {}", state.shown_id()))?;
    let Some(mut request) = request else {
        return Ok(());
    };
    request.locality.rather_near = args.rather_near.clone().unwrap_or_default();
    pin(state, &request, args, options).with_context(|| {
        let (id, pool) = (state.shown_id(), &request.pool);
        format!("cannot start container {id} on CPUs of pool {pool}")
    })
}

/// What a container's annotations and its device ask for together: the same, where there are both. What annotations say
/// beyond that counts.
fn with_device(annotated: Option<Request>, device: Option<&str>) -> Result<Option<Request>> {
    let Some(device) = device else {
        return Ok(annotated);
    };
    let of_device = Request::for_device(device)?;
    let Some(annotated) = annotated else {
        return Ok(Some(of_device));
    };
    ensure!(
        (&annotated.pool, annotated.size) == (&of_device.pool, of_device.size),
        "its annotations ask for {} of pool {}, and its device for {} of pool {}: ask once",
        annotated.size,
        annotated.pool,
        of_device.size,
        of_device.pool
    );
    Ok(Some(annotated))
}

fn pin(state: &State, request: &Request, args: &Hook, options: &Options) -> Result<()> {
    let (id, pid) = (state.id()?, state.first_process()?);
    let settings = Settings::of_hook(options)?;
    if let Some(rules) = settings.pools().get(&request.pool) {
        if let Some(doors) = &rules.doors {
            may_come_by(doors, args)?;
        }
        if let Some(allowed) = &rules.namespaces {
            may_use(allowed, state, args.engine)?;
        }
    }
    let claim = pin_container(settings.site_with_processes()?, id, pid, request)?;
    log::info!(
        "pinned container {id} to {} of pool {}",
        claim.cpus,
        claim.pool
    );
    Ok(())
}

/// May the pool be asked for in the way that this container does? A hook of a device, or of the shim, says so.
fn may_come_by(doors: &[Door], args: &Hook) -> Result<()> {
    let door = match (&args.device, args.shim) {
        (Some(_), _) => Door::Cdi,
        (None, true) => Door::Shim,
        (None, false) => Door::Annotation,
    };
    let words: Vec<&str> = doors.iter().map(|door| door.word()).collect();
    ensure!(
        doors.contains(&door),
        "it may not be asked for by {}: doors in the configuration has {}",
        door.word(),
        match words.as_slice() {
            [] => "none".to_owned(),
            words => words.join(", "),
        }
    );
    Ok(())
}

/// Is the container of a namespace that may use the pool? Its engine's own mark says which it is of.
fn may_use(allowed: &[String], state: &State, engine: Option<EngineArg>) -> Result<()> {
    let mark = match engine {
        Some(EngineArg::Containerd) => request::CONTAINERD_NAMESPACE,
        Some(EngineArg::Crio) => request::CRIO_NAMESPACE,
        Some(EngineArg::Podman | EngineArg::Docker) => {
            bail!("only pods of Kubernetes may use it: ask for another pool")
        }
        None => bail!(
            "only pods of some namespaces may use it, and the hook does not say which engine runs it: add --engine to its arguments (pinfold install)"
        ),
    };
    let annotations = state.annotations(|key| key == mark)?;
    match annotations.get(mark) {
        Some(namespace) if allowed.contains(namespace) => Ok(()),
        Some(namespace) => bail!(
            "its namespace {} may not use it: ask for another pool, or have it added to namespaces in the configuration",
            Shown(namespace)
        ),
        None => bail!(
            "it has no mark {mark} of its namespace, and only pods of some namespaces may use it"
        ),
    }
}

/// Keyed by the id alone: some engines give no annotations at this stage. Where there are some and none is
/// ours, it is certain that there was no request, unless there is a device.
fn end(state: &State, args: &Hook, options: &Options) -> Result<()> {
    if args.device.is_none() && state.surely_lacks(request::PREFIX) {
        return Ok(());
    }
    give_back(state, options).with_context(|| {
        format!(
            "cannot give back the CPUs of container {}",
            state.shown_id()
        )
    })
}

fn give_back(state: &State, options: &Options) -> Result<()> {
    let id = state.id()?;
    let settings = Settings::of_hook(options)?;
    let outcome = release(settings.site_with_processes()?, id)?;
    for claim in outcome.freed {
        log::info!(
            "container {id} gave back {} of pool {}",
            claim.cpus,
            claim.pool
        );
    }
    for claim in outcome.kept {
        log::info!(
            "container {id} keeps {} of pool {}: it still runs",
            claim.cpus,
            claim.pool
        );
    }
    Ok(())
}
