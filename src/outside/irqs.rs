//! The machine's interrupts: where they may come, and the CPUs of those to come (kernel:
//! Documentation/core-api/irq/irq-affinity.rst).

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;

use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// The file of an interrupt that names its CPUs.
pub(super) const CPUS: &str = "smp_affinity_list";

/// An interrupt that some driver uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// Who uses it: text of others.
    pub users: Vec<String>,
    /// Where it may come.
    pub cpus: CpuSet,
    /// Does its file say that it can be moved? Newer kernels tell, and of older ones it always
    /// says so.
    pub may_move: bool,
}

/// The numbers of all.
///
/// # Errors
/// They cannot be listed.
pub(super) fn numbers(host: &Host) -> Result<Vec<u32>> {
    let names = files::directories_in(&host.irqs())?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Those that are used and may come to some of these CPUs, by number.
///
/// # Errors
/// They cannot be looked at.
pub fn on(host: &Host, cpus: &CpuSet) -> Result<Vec<Irq>> {
    let mut found = Vec::new();
    for number in numbers(host)? {
        let directory = host.irqs().join(number.to_string());
        let path = directory.join(CPUS);
        let Some(text) = files::read_record_if_there(&path)? else {
            continue;
        };
        let own: CpuSet = text.trim().parse().unwrap_or_default();
        if own.is_disjoint(cpus) {
            continue;
        }
        // Each user has a directory there.
        let users = files::directories_in(&directory)?;
        if let (Some(metadata), false) = (files::metadata_if_there(&path)?, users.is_empty()) {
            found.push(Irq {
                number,
                users,
                cpus: own,
                may_move: metadata.permissions().mode() & 0o200 != 0,
            });
        }
    }
    found.sort_by_key(|irq| irq.number);
    Ok(found)
}
