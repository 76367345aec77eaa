//! The host's own units: are they kept off the CPUs of exclusive pools, where the configuration
//! says so?

use nix::unistd::geteuid;
use serde_json::Value;

use super::{Report, Scope};
use crate::cgroup::cpuset;
use crate::config::Confine;
use crate::cpulist::CpuSet;
use crate::engines::{Engine, docker};
use crate::install;
use crate::outside::{self, UnitCpus};
use crate::placement::{Confinable, confinable};
use crate::text::Shown;

/// The name of this check in the report.
const WHAT: &str = "confine";

/// The unit in which docker has its containers, unless it is told otherwise.
const DOCKERS: &str = "system.slice";

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    let kept = outside::kept_off(&scope.site.host);
    if scope.host_table.confine == Confine::None {
        if !kept.is_empty() {
            let text = "the host's units are still kept off CPUs of exclusive pools";
            report.warn(WHAT, text, "`pinfold reconcile` gives them back");
        }
        return;
    }
    match confinable(scope.site).map(Confinable::obstacle) {
        Ok(None) => match scope.site.wanted_of_units() {
            Ok(wanted) => {
                for problem in &wanted.problems {
                    report.warn(WHAT, problem.what.clone(), problem.remedy.clone());
                }
                units(scope, &wanted.units, report);
            }
            // The check of the pools says that only root can read the claims.
            Err(_) if !geteuid().is_root() => {}
            Err(error) => report.error(WHAT, &error),
        },
        Ok(Some(obstacle)) => report.warn(WHAT, obstacle.what, obstacle.remedy),
        Err(error) => report.error(WHAT, &error),
    }
}

fn units(scope: &Scope<'_>, wanted: &[UnitCpus], report: &mut Report) {
    if wanted.is_empty() {
        report.ok(
            WHAT,
            "there is no exclusive CPU that the host is to be kept off",
        );
        return;
    }
    let mut are_off = Vec::new();
    for UnitCpus { unit, cpus } in wanted {
        match has_of(scope, unit, cpus) {
            Ok(has) if has.is_empty() => are_off.push(unit.as_str()),
            Ok(has) => report.warn(
                WHAT,
                format!("{} has the CPUs {has} of exclusive pools", Shown(unit)),
                format!(
                    "`pinfold reconcile`; where somebody else has set its AllowedCPUs=, \
                     `systemctl set-property --runtime {unit} AllowedCPUs=` first"
                ),
            ),
            Err(error) => report.error(WHAT, &error),
        }
    }
    let cpus: CpuSet = wanted.iter().map(|unit| &unit.cpus).collect();
    if !are_off.is_empty() {
        report.ok(WHAT, format!("{} are kept off {cpus}", are_off.join(", ")));
    }
    if are_off.contains(&DOCKERS) && docker_is_in_it(scope) {
        report.warn(
            WHAT,
            format!(
                "docker has its containers in {DOCKERS}, where none can have the CPUs {cpus} of \
                 exclusive pools: those that ask for them are refused"
            ),
            "`docker run --cgroup-parent pinfold.slice` for each of those; or a slice for all of \
             docker's, \"cgroup-parent\": \"containers.slice\" in daemon.json, but not \
             pinfold.slice",
        );
    }
}

/// Those of these CPUs that a unit has.
fn has_of(scope: &Scope<'_>, unit: &str, cpus: &CpuSet) -> anyhow::Result<CpuSet> {
    let hierarchy = cpuset::hierarchy(&scope.site.host)?;
    let group = hierarchy.group(&format!("/{unit}"))?;
    let has = cpuset::effective_cpus(&group)?.unwrap_or_default();
    Ok(has.intersection(cpus))
}

/// Does docker know us, and put its containers there?
fn docker_is_in_it(scope: &Scope<'_>) -> bool {
    let Ok((_, text)) = install::daemon_json(&scope.place(Engine::Docker)) else {
        return false;
    };
    let knows_us = docker::read(&text).is_ok_and(|wiring| wiring.shim.is_some());
    let daemon: Value = serde_json::from_str(&text).unwrap_or_default();
    let parent = daemon.get("cgroup-parent").and_then(Value::as_str);
    let is_systemd = !text.contains("native.cgroupdriver=cgroupfs");
    knows_us && is_systemd && parent.is_none_or(|parent| parent == DOCKERS)
}
