//! The pool of containers that ask for none: can it be given, and are they in it?

use nix::unistd::geteuid;

use super::containers::{remedy, running};
use super::{Report, Scope};
use crate::containers::FoundContainers;
use crate::placement::outside_of_default;
use crate::pools::{Kind, PoolDirectory};
use crate::text::Shown;
use crate::topology;

/// The name of this check in the report.
const WHAT: &str = "default-pool";

/// The most containers that are named.
const MOST_NAMED: usize = 4;

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    let Some(pool) = &scope.host_table.default_pool else {
        return;
    };
    if is_fit(scope, pool, report) {
        containers(scope, pool, running(scope.host()), report);
    }
}

/// Can the pool be given to whoever asks for nothing?
fn is_fit(scope: &Scope<'_>, name: &str, report: &mut Report) -> bool {
    let site = scope.site;
    // The check of the pools says why they cannot be read.
    let Ok(directory) = PoolDirectory::open(&site.host, &site.conf_dir) else {
        return false;
    };
    let fate = match scope.host_table.default_pool_needed {
        true => "no container that asks for nothing starts",
        false => "containers that ask for nothing start outside of any pool",
    };
    let is_there = directory.pool_names();
    if is_there.is_ok_and(|names| !names.iter().any(|other| other == name)) {
        report.fault(
            WHAT,
            format!(
                "the configuration's default-pool is {}, which is not there: {fate}",
                Shown(name)
            ),
            format!("`pinfold pool add {name}=1:shared`, or name another under [host]"),
        );
        return false;
    }
    let Ok(pool) = directory.pool(name) else {
        return false;
    };
    if pool.kind == Kind::Exclusive {
        report.fault(
            WHAT,
            format!(
                "the configuration's default-pool is {}, which is exclusive: {fate}",
                Shown(name)
            ),
            "name a shared pool under [host]",
        );
        return false;
    }
    let online = topology::online(&site.host).unwrap_or_default();
    if !pool.lists.iter().any(|list| list.cpus.is_subset(&online)) {
        report.fault(
            WHAT,
            format!(
                "no CPU list of the default pool {} is online: {fate}",
                Shown(name)
            ),
            "switch its CPUs on (/sys/devices/system/cpu/cpuN/online)",
        );
        return false;
    }
    true
}

/// Names the running containers that ask for nothing and are outside of the pool.
fn containers(scope: &Scope<'_>, pool: &str, found: FoundContainers, report: &mut Report) {
    let opt_out = scope.host_table.default_pool_opt_out;
    let all = found.containers;
    match outside_of_default(scope.site, &all, opt_out) {
        Ok(outside) if outside.is_empty() => report.ok(
            WHAT,
            format!(
                "containers that ask for nothing are in pool {}",
                Shown(pool)
            ),
        ),
        Ok(outside) => {
            let named = outside
                .iter()
                .take(MOST_NAMED)
                .map(|place| all[*place].shown());
            let named: Vec<String> = named.collect();
            let more = match outside.len().saturating_sub(MOST_NAMED) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let text = format!(
                "{}{more} asked for nothing, and run outside of the default pool {}",
                named.join(", "),
                Shown(pool)
            );
            let again = remedy(scope, &all[outside[0]]);
            report.warn(
                WHAT,
                text,
                format!("{again}; the system log says why one was not put there"),
            );
        }
        // The check of the pools says that only root can read the claims.
        Err(_) if !geteuid().is_root() => {}
        Err(error) => report.error(WHAT, &error),
    }
}
