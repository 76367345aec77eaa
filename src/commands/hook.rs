//! `pinfold hook`: a container's start or end.

use std::cell::LazyCell;
use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::admission::Caller;
use crate::cli::{HookArgs, Options, Stage};
use crate::config::Door;
use crate::host::Host;
use crate::last_words;
use crate::limits;
use crate::names::{self, Ancestry, Names};
use crate::oci::{Id, State};
use crate::placement::{Start, pin_container, release};
use crate::refusal::Refusal;
use crate::request::{self, Request, Silence};
use crate::runtime_log::DeafRuntime;
use crate::settings::Failure;
use crate::settings::Settings;
use crate::system_log::{self, Severity};
use crate::text::one_line;

pub(super) fn run(args: &HookArgs, options: &Options) -> Result<u8> {
    let host = host_of(options);
    let bound = limits::bound_time();
    let mut known = Whose::default();
    let done = bound.and_then(|deadline| serve(args, options, deadline, &mut known));
    if let Err(error) = &done {
        let refusal = Refusal::of(error);
        let message = one_line(&options.repeated_in(&refusal.to_string()));
        system_log::send(&host, Severity::Error, &message);
        if let Some(runtime) = known.runtime {
            runtime.tell(&host, &format!("pinfold: {message}"));
        }
        let (id, names) = match &known.state {
            Some(state) => (state.shown_id(), names_of(state)),
            None => (String::new(), Names::default()),
        };
        let is_start = args.stage != Stage::Poststop;
        let told = Failure {
            container: &id,
            names,
            message: &message,
            reason: is_start.then_some(refusal.reason),
        };
        Settings::keep_refusal(options, told);
    }
    done.map(|()| 0)
}

fn host_of(options: &Options) -> Host {
    Host::new(options.host_root.clone().unwrap_or_else(|| "/".into()))
}

/// What reporting a failure needs; filled in as the hook goes.
#[derive(Default)]
struct Whose {
    state: Option<State>,
    runtime: Option<DeafRuntime>,
}

fn serve(args: &HookArgs, options: &Options, deadline: Instant, known: &mut Whose) -> Result<()> {
    let text = State::text(limits::Prompt::new(io::stdin().lock()));
    // The runtime's stderr cannot be opened once capabilities are dropped. A container whose state
    // has none of our keys has nothing to report.
    let is_asked = has_device(args) || args.default_pool;
    let may_ask = |text: &String| is_asked || text.contains(request::DOMAIN);
    if text.as_ref().is_ok_and(may_ask) {
        known.runtime = DeafRuntime::above(&host_of(options));
    }
    limits::drop_capabilities()?;
    let state = known.state.insert(State::parse(&text?)?);
    // The settings are read only if needed: for most containers never.
    let settings = || Settings::of_hook(options, deadline);
    match args.stage {
        Stage::Prestart | Stage::CreateRuntime => start(state, args, settings),
        Stage::Poststop => end(state, args, &host_of(options), settings),
    }
}

/// Starts a container. Without a request nothing is read beyond the state, not even the
/// configuration, and the rest of the state is not judged.
fn start(
    state: &State,
    args: &HookArgs,
    settings: impl FnOnce() -> Result<Settings>,
) -> Result<()> {
    let names = LazyCell::new(|| names_of(state));
    let request = state
        .annotations(request::is_ours)
        .and_then(|annotations| Ok(request::from_annotations(&annotations)?))
        .and_then(|annotated| Ok(request::with_device(annotated, args.device.as_deref())?))
        .and_then(|asked| Ok(request::with_list(asked, args.list.as_deref())?))
        .with_context(|| {
            format!(
                "cannot start container {}",
                names.with_id(&state.shown_id())
            )
        })?;
    let Some(request) = request else {
        if args.default_pool && args.reservation.is_some() {
            return start_on_reserved(state, &names, args, settings);
        }
        if args.default_pool {
            return start_by_default(state, &names, args, settings);
        }
        // The request was removed, but the CPUs are still in the container's configuration.
        let what = || {
            let id = names.with_id(&state.shown_id());
            format!(
                "cannot start container {id}: pinfold-runtime reserved CPUs for it, and now it \
                 asks for none"
            )
        };
        ensure!(
            args.reservation.is_none(),
            Refusal::new(what(), "start it anew")
        );
        return Ok(());
    };
    let pinned = || {
        prepare(state, &names)?;
        let settings = settings()?;
        let caller = Caller {
            door: door(state, args),
            engine: args.engine,
        };
        caller.may_use(settings.pools().get(&request.pool), |mark| {
            Ok(state.annotations(|key| key == mark)?.remove(mark))
        })?;
        pin(state, &names, &request, args, &settings)
    };
    pinned().with_context(|| cannot_start(state, &names, &request))
}

fn cannot_start(state: &State, names: &Names, request: &Request) -> String {
    let (container, pool) = (names.with_id(&state.shown_id()), &request.pool);
    match request.by_default {
        true => format!("cannot put container {container} into the default pool {pool}"),
        false => format!("cannot start container {container} on CPUs of pool {pool}"),
    }
}

/// Starts a container that asks for nothing on what pinfold-runtime reserved for it, which has
/// judged whether it is to be in the default pool.
///
/// # Errors
/// It has no claim, whatever the configuration says of such starts: it would run on the CPUs that
/// are in its own configuration, and others could be given them.
fn start_on_reserved(
    state: &State,
    names: &LazyCell<Names, impl FnOnce() -> Names>,
    args: &HookArgs,
    settings: impl FnOnce() -> Result<Settings>,
) -> Result<()> {
    let start = || -> Result<()> {
        prepare(state, names)?;
        let settings = settings()?;
        let pool = settings.host_table().default_pool.as_ref();
        let pool = pool.context("the configuration has no default-pool any more")?;
        pin(state, names, &Request::by_default(pool), args, &settings)
    };
    start().map_err(|error| {
        let refusal = Refusal::of(&error);
        let what = format!(
            "cannot put container {} into the default pool, and what pinfold-runtime reserved for \
             it is in its configuration: {}",
            names.with_id(&state.shown_id()),
            refusal.what
        );
        let remedy = "start it again".to_owned();
        let refusal = Refusal {
            what,
            remedy,
            ..refusal
        };
        refusal.into()
    })
}

/// Starts a container that asks for nothing on CPUs of the default pool, if the configuration has
/// one. What keeps it from that is told, and fails the start only where the configuration says so.
fn start_by_default(
    state: &State,
    names: &LazyCell<Names, impl FnOnce() -> Names>,
    args: &HookArgs,
    settings: impl FnOnce() -> Result<Settings>,
) -> Result<()> {
    let settings = match prepare(state, names).and_then(|()| settings()) {
        Ok(settings) => settings,
        // Whether the start may fail cannot be known.
        Err(error) => {
            tell(&format!(
                "container {} starts outside of any pool: {error:#}",
                names.with_id(&state.shown_id())
            ));
            return Ok(());
        }
    };
    let host = settings.host_table();
    let Some(pool) = &host.default_pool else {
        return Ok(());
    };
    match request::silence(&state.annotations(request::is_ours)?, args.engine) {
        Silence::Sandbox => return Ok(()),
        Silence::OptOut if host.default_pool_opt_out => return Ok(()),
        Silence::Plain | Silence::OptOut if names.is_infra() => return Ok(()),
        Silence::Plain | Silence::OptOut => {}
    }
    if settings.site().host.unknown_root().is_some() {
        log::debug!("pool {pool} is the machine's, and this is a user's container");
        return Ok(());
    }
    let request = Request::by_default(pool);
    let pinned = pin(state, names, &request, args, &settings);
    let pinned = pinned.with_context(|| cannot_start(state, names, &request));
    match pinned {
        Err(error) if !host.default_pool_needed => {
            log::warn!("{}", outside_of_it(&error));
            Ok(())
        }
        pinned => pinned,
    }
}

/// What is told of a container that starts outside of the default pool.
fn outside_of_it(error: &anyhow::Error) -> Refusal {
    let Refusal { what, remedy, .. } = Refusal::of(error);
    Refusal::new(format!("{what}: it starts outside of it"), remedy)
}

/// The names that people use for the container. Annotations that are not text are ignored.
fn names_of(state: &State) -> Names {
    let annotations = state.annotations(names::is_name_key).unwrap_or_default();
    let id = state.id().map_or("", Id::as_str);
    Ancestry::of_this_process(&Host::new("/")).names(id, &annotations)
}

fn prepare(state: &State, names: &Names) -> Result<()> {
    let id = state.id()?.as_str();
    state.first_process()?;
    let who = format!(
        "the start of container {} on CPUs of its own",
        names.with_id(id)
    );
    last_words::arrange(&Host::new("/"), &who)?;
    limits::leave_nothing_inherited();
    Ok(())
}

fn pin(
    state: &State,
    names: &Names,
    request: &Request,
    args: &HookArgs,
    settings: &Settings,
) -> Result<()> {
    let (id, pid) = (state.id()?.as_str(), state.first_process()?);
    let start = Start {
        id,
        pid,
        names: match args.reservation {
            Some(_) => Names::default(),
            None => names.clone(),
        },
        reservation: args.reservation.as_deref(),
    };
    match pin_container(settings.site_with_processes()?, start, request)? {
        Some(claim) => log::info!(
            "pinned container {} to {} of pool {}",
            claim.shown(),
            claim.cpus,
            claim.pool
        ),
        None => log::debug!(
            "container {} has the CPUs that somebody gave it, and asks for none",
            names.with_id(id)
        ),
    }
    Ok(())
}

/// The door by which the request came. The shim reads both annotations and devices.
fn door(state: &State, args: &HookArgs) -> Door {
    let annotations = state.annotations(request::is_ours);
    let is_annotated = annotations.is_ok_and(|all| !all.is_empty());
    let is_by_shim = args.shim || args.reservation.is_some();
    match (&args.device, is_annotated, is_by_shim) {
        _ if args.list.is_some() => Door::Cdi,
        (Some(_), false, _) | (Some(_), true, false) => Door::Cdi,
        (_, _, true) => Door::Shim,
        (None, _, false) => Door::Annotation,
    }
}

/// Frees a container's CPUs by its id alone: some engines give no annotations at this stage. If
/// there are annotations and none is ours, there was no request, unless there is a device.
fn end(
    state: &State,
    args: &HookArgs,
    host: &Host,
    settings: impl FnOnce() -> Result<Settings>,
) -> Result<()> {
    // A user's podman reads the machine's hook files, too, and has nothing of its default pool.
    let is_a_users = args.default_pool && host.unknown_root().is_some();
    let may_have = has_device(args) || (args.default_pool && !is_a_users);
    if !may_have && state.surely_lacks(request::PREFIX) {
        return Ok(());
    }
    // A container without a request must not depend on our files, nor a user's on the machine's.
    // The claim of one that did ask outlives this failure, and is freed later.
    let (error, is_fatal) = match settings() {
        Ok(settings) => match give_back(state, &settings) {
            Ok(()) => return Ok(()),
            Err(error) => (error, !is_a_users || asked(state, args)),
        },
        Err(error) => (error, asked(state, args)),
    };
    if is_fatal {
        return Err(error).with_context(|| cannot_give_back(state));
    }
    let id = state.shown_id();
    tell(&format!(
        "look whether container {id} holds CPUs: {error:#}"
    ));
    Ok(())
}

/// Says something without the settings, which say where the log goes.
fn tell(message: &str) {
    let message = one_line(message);
    let _ = writeln!(io::stderr(), "pinfold: {message}");
    system_log::send(&Host::new("/"), Severity::Warning, &message);
}

/// Does a device ask for the container?
fn has_device(args: &HookArgs) -> bool {
    args.device.is_some() || args.list.is_some()
}

/// Is it certain that the container asked for CPUs?
fn asked(state: &State, args: &HookArgs) -> bool {
    let annotations = state.annotations(request::is_ours);
    has_device(args) || args.shim || annotations.is_ok_and(|all| !all.is_empty())
}

fn cannot_give_back(state: &State) -> String {
    format!(
        "cannot give back the CPUs of container {}",
        state.shown_id()
    )
}

fn give_back(state: &State, settings: &Settings) -> Result<()> {
    let id = state.id()?.as_str();
    let who = format!("giving back the CPUs of container {id}");
    last_words::arrange(&Host::new("/"), &who)?;
    limits::leave_nothing_inherited();
    let outcome = release(settings.site_with_processes()?, id)?;
    for claim in outcome.freed {
        log::info!(
            "container {} gave back {} of pool {}",
            claim.shown(),
            claim.cpus,
            claim.pool
        );
    }
    for claim in outcome.kept {
        log::info!(
            "container {} keeps {} of pool {}: it still runs",
            claim.shown(),
            claim.cpus,
            claim.pool
        );
    }
    ensure!(outcome.problems.is_empty(), Refusal::all(&outcome.problems));
    Ok(())
}
