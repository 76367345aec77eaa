//! The engines that are installed, and whether they call us.

use std::path::PathBuf;

use anyhow::Result;
use nix::unistd::{AccessFlags, access};

use super::{Report, Scope, hooks};
use crate::engines::containerd::{ContainerdFile, deciding};
use crate::engines::hooks::HookFile;
use crate::engines::{Engine, RUNTIME, crio, docker, podman};
use crate::host::Host;
use crate::install::{self, EngineFiles, Place, check_program};
use crate::text::Shown;

/// Checks each engine; returns those that have the shim.
pub(super) fn check(scope: &Scope<'_>, report: &mut Report) -> Vec<Engine> {
    let host = scope.host();
    let (mut is_any, mut have_shim) = (false, Vec::new());
    for engine in Engine::ALL {
        let named = scope.places.iter().find(|(named, _)| *named == engine);
        if named.is_none() && host.program(engine.program()).is_none() {
            continue;
        }
        is_any = true;
        let default = Place::default_on(host);
        let place = named.map_or(&default, |(_, place)| place);
        let checked = match engine {
            Engine::Podman => check_podman(scope, place, report),
            Engine::Crio => check_crio(scope, place, report),
            Engine::Containerd => check_containerd(place, report),
            Engine::Docker => check_docker(place, report),
        };
        match checked {
            Ok(true) => have_shim.push(engine),
            Ok(false) => {}
            Err(error) => report.error(engine.word(), &error),
        }
    }
    if !is_any {
        report.ok(
            "engines",
            "none is installed at a usual place: --engine-config ENGINE=FILE names one",
        );
    }
    have_shim
}

/// podman's own variables, which name files that replace all others, or override them
/// (containers.conf(5)).
const PODMAN_VARIABLES: [&str; 2] = ["CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE"];

/// Warns of each variable in our environment. A podman with the same environment reads it; the
/// environment of a service is not known here.
fn named_by_variables(report: &mut Report) {
    for variable in PODMAN_VARIABLES {
        let Some(file) = std::env::var_os(variable).filter(|file| !file.is_empty()) else {
            continue;
        };
        let text = format!(
            "{variable} is set: podman reads {} then, which is not looked at",
            Shown(&file.to_string_lossy())
        );
        report.warn(
            Engine::Podman.word(),
            text,
            format!(
                "`unset {variable}`, or see that hooks_dir in that file names the directory of \
                 the hook files"
            ),
        );
    }
}

fn check_podman(scope: &Scope<'_>, place: &Place<'_>, report: &mut Report) -> Result<bool> {
    let engine = Engine::Podman;
    named_by_variables(report);
    let files = install::podman_files(place)?;
    let hook = hooks::check(scope, &files.all.hooks_dirs(), engine, report);
    let has_hooks = hook.is_some();
    if let (Some(_), Some(hook)) = (&place.user, &hook) {
        pools_of_user(scope, hook, report);
    }
    // A user's podman gets no shim: the shim takes its settings from the machine's configuration.
    let shim = files.all.shim.first().map(String::as_str);
    let shim = shim.filter(|_| place.user.is_none());
    if !has_hooks && shim.is_none() {
        let again = match place.user {
            Some(_) => "`pinfold install podman --user`",
            None => "`pinfold install podman`",
        };
        let dirs = files.all.hooks_dirs().join(", ");
        match files.drop_in() {
            Some(_) => report.fault(
                engine.word(),
                format!(
                    "no hook file of Pinfold's is in {dirs}: what asks for CPUs starts anywhere"
                ),
                format!("{again} again"),
            ),
            None => report.warn(
                engine.word(),
                format!("does not know Pinfold: no hook file is in {dirs}"),
                again,
            ),
        }
        return Ok(false);
    }
    if !has_hooks {
        let dirs = files.all.hooks_dirs().join(", ");
        let text = format!(
            "no hook file is in {dirs}: only containers with --runtime {RUNTIME} are pinned"
        );
        report.warn(engine.word(), text, "`pinfold install podman` again");
    }
    if let Some(shim) = shim {
        check_shim(place.host, engine, shim, report);
        if !files.all.trusts_ours() {
            let text = "a later file of containers.conf.d replaces runtime_supports_json or \
                        runtime_supports_nocgroup, without Pinfold in it";
            report.warn(
                engine.word(),
                text,
                format!("add {RUNTIME:?} and \"pinfold-runtime\" there"),
            );
        }
        let hooks_dir = place
            .hooks_dir
            .clone()
            .unwrap_or_else(|| files.before.hooks_dir());
        let wanted = podman::drop_in(&files.before, Some(shim), &hooks_dir);
        check_drop_in(engine, &files, wanted.as_deref(), report);
    }
    Ok(shim.is_some())
}

/// Hooks of podman without root run as the user: checks that the user can write the pools they use,
/// and that these are the pools that are checked.
fn pools_of_user(scope: &Scope<'_>, hook: &HookFile, report: &mut Report) {
    let site = scope.site;
    let default = site.host.default_conf_dir();
    let used = hook.option("--conf-dir").map_or(default, PathBuf::from);
    let shown = used.display();
    if let Err(error) = access(&used, AccessFlags::W_OK) {
        report.fault(
            Engine::Podman.word(),
            format!(
                "the hooks use the pools in {shown}, which you cannot write ({error}): what \
                 asks for CPUs is refused"
            ),
            "`pinfold install podman --user`, and `pinfold init` there",
        );
    } else if used != site.conf_dir {
        report.warn(
            Engine::Podman.word(),
            format!(
                "the hooks use the pools in {shown}, and this looks at {}",
                site.conf_dir.display()
            ),
            format!("check --conf-dir {shown}"),
        );
    }
}

fn check_crio(scope: &Scope<'_>, place: &Place<'_>, report: &mut Report) -> Result<bool> {
    let engine = Engine::Crio;
    let files = install::crio_files(place)?;
    for path in files.leftovers() {
        let text = format!("{} was half-written, and CRI-O reads it", path.display());
        report.fault(engine.word(), text, "`pinfold install crio` again");
    }
    let has_hooks = hooks::check(scope, &files.all.hooks_dirs, engine, report).is_some();
    if !has_hooks && files.all.shim().is_none() {
        unknown(engine, report);
        return Ok(false);
    }
    if !has_hooks {
        let text = format!("no hook file is read: only pods of the handler {RUNTIME} are pinned");
        report.warn(engine.word(), text, "`pinfold install crio` again");
    }
    if let Some(shim) = files.all.shim() {
        check_shim(place.host, engine, shim, report);
        if let Some(hooks_dir) = files.all.hooks_dirs.last() {
            let wanted = crio::drop_in(&files.before, Some(shim), hooks_dir)?;
            check_drop_in(engine, &files, Some(&wanted), report);
        }
    }
    Ok(files.all.shim().is_some())
}

fn check_containerd(place: &Place<'_>, report: &mut Report) -> Result<bool> {
    let engine = Engine::Containerd;
    let again = "`pinfold install containerd` again";
    let configuration = install::containerd_configuration(place)?;
    let index = deciding(&configuration.files);
    let path = configuration.path(index).display();
    let Some(handler) = configuration.files[index].handler(RUNTIME) else {
        if configuration
            .files
            .iter()
            .any(|file| file.handler(RUNTIME).is_some())
        {
            let text = format!(
                "{path} has the CRI plugin's table without the handler {RUNTIME}, and containerd \
                 1.x takes that table alone"
            );
            report.warn(engine.word(), text, again);
        } else {
            unknown(engine, report);
        }
        return Ok(false);
    };
    check_shim(place.host, engine, &handler.binary, report);
    if !handler.passes_annotations {
        let text = format!(
            "{path}: the handler {RUNTIME} does not pass on the annotations of pods and containers"
        );
        report.fault(engine.word(), text, again);
    }
    if configuration.files[index].version() == 1 {
        let text = format!("{path} is of version 1, from which containerd 2 takes no handlers");
        report.warn(
            engine.word(),
            text,
            "`containerd config migrate` prints a newer one",
        );
    }
    if configuration.files.iter().any(ContainerdFile::disables_cri) {
        let text = "disabled_plugins turns the CRI plugin off: Kubernetes cannot use it";
        report.warn(engine.word(), text, "take cri out of that list if it is to");
    }
    Ok(true)
}

fn check_docker(place: &Place<'_>, report: &mut Report) -> Result<bool> {
    let engine = Engine::Docker;
    let (path, text) = install::daemon_json(place)?;
    let wiring = docker::read(&text).map_err(|error| error.context(path))?;
    let Some(shim) = &wiring.shim else {
        unknown(engine, report);
        return Ok(false);
    };
    check_shim(place.host, engine, shim, report);
    if wiring.cdi != Some(true) {
        let text = "features.cdi is not on: docker 25 to 28.1 then knows no devices of Pinfold";
        report.warn(engine.word(), text, "set it to true if you want them");
    }
    Ok(true)
}

/// Warns that the engine is not configured to call us, which can be intended.
fn unknown(engine: Engine, report: &mut Report) {
    let engine = engine.word();
    report.warn(
        engine,
        "does not know Pinfold",
        format!("`pinfold install {engine}`"),
    );
}

fn check_shim(host: &Host, engine: Engine, shim: &str, report: &mut Report) {
    match check_program(host, shim) {
        Ok(()) => report.ok(engine.word(), format!("the runtime {RUNTIME} is {shim}")),
        Err(error) => report.fault(
            engine.word(),
            format!("the runtime {RUNTIME} cannot be run: {error:#}"),
            format!("`pinfold install {}` again", engine.word()),
        ),
    }
}

/// Checks that our drop-in is up to date: it repeats lists from other files, which can have
/// changed.
fn check_drop_in<S>(
    engine: Engine,
    files: &EngineFiles<S>,
    wanted: Option<&str>,
    report: &mut Report,
) {
    if files.drop_in().is_some() && files.drop_in() != wanted {
        let engine = engine.word();
        let text = "what our drop-in file repeats of other files is no longer what they say";
        report.warn(engine, text, format!("`pinfold install {engine}` again"));
    }
}
