//! Other pool directories with CPUs of this one. Neither knows the other's owners.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Report, Scope};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::pools::{Kind, PoolDirectory};

/// Looks at the usual directories, and at those of `named`, which hooks are told to use.
pub(super) fn check(scope: &Scope<'_>, named: BTreeSet<PathBuf>, report: &mut Report) {
    let site = scope.site;
    let Ok(own) = site.conf_dir.canonicalize() else {
        return;
    };
    let mut others = named;
    others.extend([site.host.default_conf_dir(), site.host.older_conf_dir()]);
    let mut seen = BTreeSet::from([own]);
    let ours = exclusive_cpus(scope.host(), &site.conf_dir);
    for other in others {
        // A directory that is missing, or cannot be looked at, has no pools.
        let Ok(real) = other.canonicalize() else {
            continue;
        };
        let common = exclusive_cpus(scope.host(), &other).intersection(&ours);
        if seen.insert(real) && !common.is_empty() {
            report.warn(
                "pools",
                format!(
                    "{} has the CPUs {common} in exclusive pools, too, and neither directory knows \
                     the other's owners",
                    other.display()
                ),
                "keep one of them: remove its pools, or name the same --conf-dir everywhere",
            );
        }
    }
}

/// The CPUs of a directory's exclusive pools, as far as they can be read.
fn exclusive_cpus(host: &Host, directory: &Path) -> CpuSet {
    let mut cpus = CpuSet::new();
    let Ok(directory) = PoolDirectory::open(host, directory) else {
        return cpus;
    };
    for name in directory.pool_names().unwrap_or_default() {
        let pool = directory.pool(&name);
        for list in pool
            .iter()
            .filter(|pool| pool.kind == Kind::Exclusive)
            .flat_map(|pool| &pool.lists)
        {
            cpus.extend(&list.cpus);
        }
    }
    cpus
}
