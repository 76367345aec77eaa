//! The configuration's rules for pools, and the runtime behind `pinfold-runtime`.

use anyhow::Result;

use super::{Report, Scope};
use crate::engines::Engine;
use crate::install::default_runtime;
use crate::oci::Runtime;
use crate::pools::PoolDirectory;
use crate::text::Shown;

pub(super) fn check(scope: &Scope<'_>, have_shim: &[Engine], report: &mut Report) {
    pools(scope, report);
    let has_shim = !have_shim.is_empty();
    if let Some(word) = &scope.runtime.engine {
        if Engine::by_word(word).is_none() {
            report.fault(
                "runtime",
                format!("the configuration has runtime.engine {}", Shown(word)),
                "make it podman, crio, containerd or docker",
            );
        }
    } else if has_shim && scope.has_namespaces() {
        report.warn(
            "runtime",
            "pinfold-runtime does not know which engine calls it: it refuses pools that are of \
             some namespaces alone",
            "set runtime.engine in the configuration",
        );
    }
    // A runtime on another machine cannot be asked.
    if !scope.host().is_running_root() {
        return;
    }
    let is_named = scope.runtime.path.is_some() || scope.runtime.allow.is_some();
    for engine in have_shim {
        let place = scope.place(*engine);
        let found = Runtime::find(scope.host(), scope.runtime, || {
            default_runtime(&place, *engine).ok()?
        });
        runtime(found, *engine, is_named, report);
        if is_named {
            break;
        }
    }
}

fn pools(scope: &Scope<'_>, report: &mut Report) {
    let directory = PoolDirectory::open(&scope.site.host, &scope.site.conf_dir);
    // The check of the pools has said why they cannot be read.
    let names = directory.and_then(|directory| directory.pool_names());
    for (name, rules) in scope.rules {
        let pool = Shown(name);
        if names.as_ref().is_ok_and(|names| !names.contains(name)) {
            let text = format!("the configuration has rules for pool {pool}, which is not there");
            report.warn("rules", text, "make it (pinfold pool add), or drop them");
        }
        let closed = [
            ("doors", rules.doors.as_ref().is_some_and(Vec::is_empty)),
            (
                "namespaces",
                rules.namespaces.as_ref().is_some_and(Vec::is_empty),
            ),
        ];
        for (key, _) in closed.into_iter().filter(|(_, is_closed)| *is_closed) {
            let text =
                format!("nobody can ask for pool {pool}: its {key} in the configuration are none");
            report.warn("rules", text, format!("add to {key}, or drop the key"));
        }
    }
}

fn runtime(found: Result<Runtime>, engine: Engine, is_named: bool, report: &mut Report) {
    let fit = found.and_then(|found| found.ensure_runs_our_hooks().map(|()| found));
    match fit {
        Ok(found) if is_named => report.ok(
            "runtime",
            format!("pinfold-runtime becomes {}", found.path().display()),
        ),
        Ok(found) => report.ok(
            "runtime",
            format!(
                "pinfold-runtime becomes {} for {}, whose own default it is",
                found.path().display(),
                engine.word()
            ),
        ),
        Err(error) => report.error("runtime", &error),
    }
}
