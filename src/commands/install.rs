//! `pinfold install` and `pinfold uninstall`: tell an engine of Pinfold, and take that back.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use similar::TextDiff;

use super::output::Output;
use crate::claims::{Claim, OwnerKind};
use crate::cli::{CdiArgs, InstallArgs, InstallPlaceArgs, Options, TargetArg, UninstallArgs};
use crate::engines::{Engine, Programs};
use crate::files;
use crate::host::Host;
use crate::install::{
    DeviceKind, FileChange, Place, Plan, User, apply, default_runtime, plan, plan_cdi,
    plan_cdi_removal, plan_engine_devices, plan_engine_devices_removal, plan_removal,
};
use crate::outside;
use crate::placement::{Site, SurveyedPool, live_claims, survey};
use crate::refusal::Refusal;
use crate::settings::{Settings, hook_options};
use crate::text::{Shown, lines, one_line, shell_word};

pub(super) fn run(args: &InstallArgs, options: &Options) -> Result<u8> {
    let options = &own_options(&args.place, options)?;
    let settings = &Settings::of_command_line(options)?;
    let plan = planned(args, options, settings)?;
    carry_out(&plan, args.place.target, args.place.dry_run)?;
    if !args.place.dry_run && plan.changes.is_empty() && plan.shortfalls.is_empty() {
        writeln!(
            Output::account(),
            "{} knows Pinfold already",
            word(args.place.target)
        )?;
    }
    if let (false, false, Some(line)) = (
        args.place.dry_run,
        plan.changes.is_empty(),
        where_others_are_kept_off(args, settings)?,
    ) {
        writeln!(Output::account(), "{line}")?;
    }
    for remark in &plan.remarks {
        log::warn!("{remark}");
    }
    plan.ensure_whole()?;
    Ok(0)
}

/// Where an engine's containers have to be so that the kernel keeps others off their CPUs: on Linux
/// 6.7 to 6.19 it does for crun's, and in a slice of their own. `None` where that is no matter.
fn where_others_are_kept_off(args: &InstallArgs, settings: &Settings) -> Result<Option<String>> {
    let site = settings.site();
    let Some(engine) = args.place.target.engine().filter(|_| !args.place.user) else {
        return Ok(None);
    };
    let Some(release) = outside::broken_by_siblings(&site.host) else {
        return Ok(None);
    };
    // Where there are no pools yet, `init` makes some that ask for it.
    let pools = survey(site).map(|survey| survey.pools).unwrap_or_default();
    let is_asked = pools.is_empty() || pools.iter().any(SurveyedPool::wants_isolation);
    let place = place(&args.place, "install", settings)?;
    if !is_asked || runs_crun(engine, &place, settings) {
        return Ok(None);
    }
    let how = match engine {
        Engine::Podman | Engine::Docker => {
            "without crun only in pinfold.slice: add --cgroup-parent pinfold.slice to each that \
             asks for CPUs"
        }
        Engine::Containerd | Engine::Crio => {
            "only where crun runs it: the cgroup parent of a pod is the kubelet's"
        }
    };
    Ok(Some(format!(
        "on Linux {release} others are kept off a container's CPUs {how} (docs/recipes.md)"
    )))
}

/// Is crun the runtime that makes an engine's containers?
fn runs_crun(engine: Engine, place: &Place<'_>, settings: &Settings) -> bool {
    let (own, preferred) = match engine {
        // podman runs no shim of ours, and takes crun where it is.
        Engine::Podman => (None, "crun"),
        Engine::Crio => (settings.runtime().path.clone(), "crun"),
        Engine::Containerd | Engine::Docker => (settings.runtime().path.clone(), "runc"),
    };
    let others = ["runc", "crun"];
    let there = [preferred].into_iter().chain(others);
    let mut there = there.filter_map(|name| place.host.program(name));
    let runtime = own
        .or_else(|| default_runtime(place, engine).ok()?)
        .or_else(|| there.next());
    runtime.is_some_and(|path| path.file_name().is_some_and(|name| name == "crun"))
}

/// Would an install change any file?
pub(super) fn changes_something(args: &InstallArgs, options: &Options) -> Result<bool> {
    let options = &own_options(&args.place, options)?;
    let settings = &Settings::of_command_line(options)?;
    Ok(!planned(args, options, settings)?.changes.is_empty())
}

fn planned(args: &InstallArgs, options: &Options, settings: &Settings) -> Result<Plan> {
    let mut place = place(&args.place, "install", settings)?;
    let programs = Programs::find(place.host, args.bin_dir.as_deref())?;
    let mut plan = match args.place.target.engine() {
        Some(engine) => {
            place.hook_options = hook_options(options)?;
            place.whom = settings.whom();
            let mut plan = plan(engine, &place, &programs)?;
            if !args.place.user {
                let options = settings.device_options(options)?;
                let site = settings.site();
                plan.and(plan_engine_devices(
                    site,
                    engine,
                    &options,
                    &programs.pinfold,
                )?);
            }
            plan
        }
        None => {
            place.hook_options = settings.device_options(options)?;
            let kind = device_kind(args.place.target);
            plan_cdi(settings.site(), &place, kind, &programs.pinfold)?
        }
    };
    plan.remarks.extend(missing_pools(&place, settings.site()));
    Ok(plan)
}

/// `pinfold cdi` is `pinfold install cdi`.
pub(super) fn run_cdi(args: &CdiArgs, options: &Options) -> Result<u8> {
    let place = InstallPlaceArgs {
        target: match args.lists {
            true => TargetArg::CdiLists,
            false => TargetArg::Cdi,
        },
        engine_config: args.output.clone(),
        hooks_dir: None,
        user: false,
        dry_run: args.dry_run,
    };
    let bin_dir = args.bin_dir.clone();
    run(&InstallArgs { place, bin_dir }, options)
}

pub(super) fn run_removal(args: &UninstallArgs, options: &Options) -> Result<u8> {
    if !args.force {
        let options = own_options(&args.place, options)?;
        ensure_no_owners(args.place.target, &Settings::of_command_line(&options)?)?;
    }
    remove(&args.place, options)
}

/// Makes an engine forget Pinfold, even if its containers own CPUs.
pub(super) fn remove(at: &InstallPlaceArgs, options: &Options) -> Result<u8> {
    let settings = &Settings::of_command_line(&own_options(at, options)?)?;
    let place = place(at, "uninstall", settings)?;
    let plan = match at.target.engine() {
        Some(engine) => {
            let mut plan = plan_removal(engine, &place)?;
            if !at.user {
                plan.and(plan_engine_devices_removal(place.host, engine)?);
            }
            plan
        }
        None => plan_cdi_removal(&place, device_kind(at.target))?,
    };
    carry_out(&plan, at.target, at.dry_run)?;
    if !at.dry_run && plan.changes.is_empty() {
        writeln!(
            Output::account(),
            "{} has nothing of Pinfold's",
            word(at.target)
        )?;
    }
    for remark in &plan.remarks {
        log::warn!("{remark}");
    }
    Ok(0)
}

/// The most owners that a refusal names.
const MOST_NAMED: usize = 4;

/// Refuses while containers of this engine own CPUs: their ends would not be reported any more, and
/// a restart would not pin them again. A container whose engine is unknown counts too.
fn ensure_no_owners(target: TargetArg, settings: &Settings) -> Result<()> {
    let owners = live_claims(settings.site())
        .context("look whether containers of it own CPUs (--force does without)")?;
    let may_be_its = |claim: &&Claim| {
        let (Some(engine), Some(its)) = (&claim.names.engine, target.engine()) else {
            return claim.kind != OwnerKind::Process;
        };
        engine == its.word()
    };
    let owners: Vec<&Claim> = owners.iter().filter(may_be_its).collect();
    ensure_none(&owners, "stop them first, or add --force")
}

/// Refuses if there are owners, and names them.
pub(super) fn ensure_none(owners: &[&Claim], remedy: &str) -> Result<()> {
    let one = |claim: &&Claim| {
        format!(
            "{} on {} of {}",
            Shown(&claim.shown()),
            claim.cpus,
            claim.pool
        )
    };
    let named: Vec<String> = owners.iter().take(MOST_NAMED).map(one).collect();
    let more = owners.len().saturating_sub(MOST_NAMED);
    let and_more = match more {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    ensure!(
        owners.is_empty(),
        Refusal::new(
            format!("containers own CPUs: {}{and_more}", named.join(", ")),
            remedy
        )
    );
    Ok(())
}

fn word(target: TargetArg) -> &'static str {
    match target {
        TargetArg::Engine(engine) => engine.word(),
        TargetArg::Cdi => "the CDI file",
        TargetArg::CdiLists => "the CDI file of lists",
    }
}

fn device_kind(target: TargetArg) -> DeviceKind {
    match target {
        TargetArg::CdiLists => DeviceKind::Lists,
        _ => DeviceKind::Pools,
    }
}

/// The place that an install or uninstall is about; `verb` is for messages.
fn place<'a>(args: &InstallPlaceArgs, verb: &str, settings: &'a Settings) -> Result<Place<'a>> {
    let host = &settings.site().host;
    let user = args.user.then(User::of_environment).transpose()?;
    if args.user {
        ensure!(
            args.target == TargetArg::Engine(Engine::Podman),
            Refusal::usage(
                "--user is for podman alone",
                format!("`pinfold {verb} podman --user`")
            )
        );
        ensure!(
            !geteuid().is_root() || !host.is_running_root(),
            Refusal::new("--user is for podman without root", "run this as that user")
        );
    } else if !geteuid().is_root()
        && host.is_running_root()
        && args.engine_config.is_none()
        && !args.dry_run
    {
        match args.target {
            TargetArg::Engine(Engine::Podman) => bail!(Refusal::new(
                "this is for the whole machine",
                "run it as root; or, for your own podman, add --user"
            )),
            _ => bail!(Refusal::new(
                "this is for the whole machine",
                "run it as root"
            )),
        }
    }
    if let Some(path) = &args.engine_config {
        refuse_nowhere(host, path)?;
    }
    Ok(Place {
        engine_config: args.engine_config.clone(),
        hooks_dir: args.hooks_dir.clone(),
        user,
        ..Place::default_on(host)
    })
}

/// The options, with the user's own directories under `--user`.
fn own_options(args: &InstallPlaceArgs, options: &Options) -> Result<Options> {
    match args.user {
        true => with_own_directories(options),
        false => Ok(options.clone()),
    }
}

/// Refuses a file in a missing directory: no engine would read a directory that is made for a typo.
fn refuse_nowhere(host: &Host, path: &str) -> Result<()> {
    let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
    let directory = host
        .resolve(above)
        .and_then(|directory| directory.metadata());
    let directory = directory
        .with_context(|| format!("look at {}, where {} is to be", Shown(above), Shown(path)))?;
    ensure!(directory.is_dir(), "{} is not a directory", Shown(above));
    Ok(())
}

/// The options, with the user's own directories where neither an option nor the environment names
/// any.
pub(super) fn with_own_directories(options: &Options) -> Result<Options> {
    let user = User::of_environment()?;
    let or = |option: &Option<PathBuf>, name: &str, own: String| {
        let named = std::env::var_os(name).filter(|value| !value.is_empty());
        let named = option.clone().or_else(|| named.map(PathBuf::from));
        Some(named.unwrap_or_else(|| own.into()))
    };
    Ok(Options {
        conf_dir: or(&options.conf_dir, "PINFOLD_CONF_DIR", user.conf_dir()),
        run_dir: or(&options.run_dir, "PINFOLD_RUN_DIR", user.run_dir()),
        ..options.clone()
    })
}

/// How to make pools, if the user has none yet.
fn missing_pools(place: &Place<'_>, site: &Site) -> Option<String> {
    place.user.as_ref()?;
    let looked = site.conf_dir.symlink_metadata();
    let (conf, run) = (shell_word(&site.conf_dir), shell_word(&site.run_dir));
    looked.is_err_and(|error| files::is_gone(&error)).then(|| {
        format!("there are no pools yet: `pinfold init --conf-dir {conf} --run-dir {run}`")
    })
}

/// Prints the changes, or makes them and says what is left to do.
fn carry_out(plan: &Plan, target: TargetArg, is_dry_run: bool) -> Result<()> {
    if is_dry_run {
        let mut out = Output::product();
        for change in &plan.changes {
            out.write_all(lines(&diff(change)).as_bytes())?;
        }
        return Ok(());
    }
    apply(plan)?;
    let mut out = Output::account();
    for change in &plan.changes {
        let verb = match (&change.before, &change.after) {
            (None, _) => "made",
            (_, None) => "removed",
            _ => "changed",
        };
        let path = change.path.display().to_string();
        writeln!(out, "{verb} {}", one_line(&path))?;
    }
    if plan.changes.is_empty() {
        return Ok(());
    }
    let Some(engine) = target.engine() else {
        return Ok(());
    };
    match engine.service() {
        Some(service) => writeln!(out, "takes effect after: systemctl restart {service}")?,
        None => writeln!(
            out,
            "takes effect from podman's next start; for podman.service after: systemctl restart \
             podman"
        )?,
    }
    writeln!(
        out,
        "why a container is refused: pinfold why, or journalctl -t pinfold"
    )?;
    Ok(())
}

/// A change in the form of `diff -u`, for `patch`.
fn diff(change: &FileChange) -> String {
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
