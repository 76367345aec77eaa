//! The hook files that an engine reads.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Report, Scope};
use crate::engines::Engine;
use crate::engines::hooks::HookFile;
use crate::files;
use crate::host::Host;
use crate::install::check_program;
use crate::limits::HOOK_SECONDS;

/// A hook file, with its path as the engine sees it.
struct PlacedHook {
    path: String,
    file: HookFile,
}

/// Checks the hook files in an engine's directories; returns one of ours, if there is any.
pub(super) fn check(
    scope: &Scope<'_>,
    dirs: &[String],
    engine: Engine,
    report: &mut Report,
) -> Option<HookFile> {
    let what = engine.word();
    // A file replaces those of the same name in earlier directories.
    let mut by_name = BTreeMap::new();
    for dir in dirs {
        match read_dir(scope.host(), dir) {
            Ok(files) => by_name.extend(files),
            Err(error) => report.error(what, &error),
        }
    }
    let mut ours = Vec::new();
    for (path, parsed) in by_name.into_values() {
        match parsed {
            Ok(Some(file)) if file.is_ours() => ours.push(PlacedHook { path, file }),
            Ok(_) => {}
            Err(error) => report.fault(
                what,
                format!("{path}: {error:#}, which stops every start of a container"),
                "mend it, or move it away",
            ),
        }
    }
    for hook in &ours {
        one_file(scope, hook, engine, report);
        report
            .other_pools
            .extend(pool_directory(scope.host(), hook));
    }
    stages(&ours, engine, report);
    ours.into_iter().next().map(|hook| hook.file)
}

/// The pool directory that the hook is told to use, if it is told one.
fn pool_directory(host: &Host, hook: &PlacedHook) -> Option<PathBuf> {
    let args = &hook.file.hook.args;
    let place = args.iter().position(|arg| arg == "--conf-dir")?;
    Some(host.path(args.get(place + 1)?))
}

type Parsed = (String, Result<Option<HookFile>>);

fn read_dir(host: &Host, dir: &str) -> Result<Vec<(String, Parsed)>> {
    let real = host
        .resolve(dir)
        .with_context(|| format!("look at {dir}"))?;
    let mut files = Vec::new();
    for name in files::names_in(&real)?
        .into_iter()
        .filter(|name| name.ends_with(".json"))
    {
        let path = format!("{dir}/{name}");
        let text = files::read(&host.resolve(&path)?)?;
        files.push((name, (path, HookFile::parse(&text))));
    }
    Ok(files)
}

fn one_file(scope: &Scope<'_>, hook: &PlacedHook, engine: Engine, report: &mut Report) {
    let what = engine.word();
    let path = &hook.path;
    let again = format!("`pinfold install {what}` again");
    if let Err(error) = check_program(scope.host(), &hook.file.hook.path) {
        // podman skips a hook whose program is missing, and the container starts unpinned.
        report.fault(
            what,
            format!("{path} runs what cannot be run: {error:#}"),
            again,
        );
    } else if hook
        .file
        .hook
        .timeout
        .is_none_or(|seconds| seconds < HOOK_SECONDS)
    {
        let text = format!(
            "{path} has no timeout of {HOOK_SECONDS} seconds or more, which a hook can take"
        );
        report.warn(what, text, again);
    } else if scope.has_namespaces() && hook.file.engine().is_none() {
        let text = format!(
            "{path} does not name its engine, so that nobody gets CPUs of a pool that is for some \
             namespaces"
        );
        report.fault(what, text, again);
    } else if scope.host_table.default_pool.is_some() && !hook.file.has_default_pool() {
        let text = format!(
            "{path} is not run for containers that ask for nothing, which are to be in the default \
             pool"
        );
        report.warn(what, text, again);
    } else {
        report.ok(what, format!("{path} runs {}", hook.file.hook.path));
    }
}

fn stages(ours: &[PlacedHook], engine: Engine, report: &mut Report) {
    let what = engine.word();
    let at = |stage: &str| -> Vec<&str> {
        let has = |hook: &&PlacedHook| hook.file.stages.iter().any(|other| other == stage);
        ours.iter()
            .filter(has)
            .map(|hook| hook.path.as_str())
            .collect()
    };
    let starts = [at("prestart"), at("createRuntime")].concat();
    if let [one, other] = starts[..]
        && one == other
    {
        let text = format!("{one} pins every container once too often, at two stages");
        report.fault(what, text, "take prestart out of its stages");
    } else if starts.len() > 1 {
        let text = format!(
            "{} each pin every container, once too often",
            starts.join(" and ")
        );
        report.fault(what, text, "keep one of them, for createRuntime");
    }
    if !starts.is_empty() && at("poststop").is_empty() {
        let text = "no hook file gives CPUs back at poststop";
        report.warn(what, text, format!("`pinfold install {what}` again"));
    }
    if starts.is_empty() && !ours.is_empty() {
        let text = "no hook file pins a container at createRuntime";
        report.fault(what, text, format!("`pinfold install {what}` again"));
    }
}
