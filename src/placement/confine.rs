//! Keeping the host's own units off the CPUs of exclusive pools, where the configuration says so.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{Site, View};
use crate::cgroup::{Group, Version, cpuset, partition, systemd};
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::files;
use crate::outside::{self, UnitCpus};
use crate::pools::{Kind, Pool, PoolDirectory};
use crate::refusal::Refusal;
use crate::topology;

/// The units that hold the host's work (systemd.special(7)): services, sessions, systemd itself.
/// Not `machine.slice`: a container below a slice has no CPU that the slice has not, and before its
/// partition stands it could not be given any.
const UNITS: [&str; 3] = ["system.slice", "user.slice", "init.scope"];

/// How often the units are set anew for owners that came meanwhile.
const ROUNDS: usize = 3;

/// Can the host's units be kept off some CPUs here?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinable {
    /// They can.
    Yes,
    /// Not on version 1: systemd does not set its cpusets.
    NoVersion1,
    /// Systemd is not the init.
    NoSystemd,
}

/// Can the host's units be kept off some CPUs on this machine?
///
/// # Errors
/// That cannot be looked at.
pub fn confinable(site: &Site) -> Result<Confinable> {
    let hierarchy = cpuset::hierarchy(&site.host)?;
    Ok(match hierarchy.version {
        Version::V1 => Confinable::NoVersion1,
        Version::V2 if !systemd::runs(&site.host)? => Confinable::NoSystemd,
        Version::V2 => Confinable::Yes,
    })
}

impl Site {
    /// Keeps the host's units off the exclusive CPUs, or puts them back, as the configuration says.
    /// Returns what could not be done. On a machine where it cannot be nobody is moved.
    ///
    /// # Errors
    /// What keeps it from beginning.
    pub(super) fn confine_host(&self) -> Result<Vec<Refusal>> {
        match self.host.is_running_root() {
            true => self.confine_units(),
            false => Ok(Vec::new()),
        }
    }

    /// The same, and logs what could not be done.
    pub(super) fn confine_host_or_warn(&self) {
        match self.confine_host() {
            Ok(problems) => problems.iter().for_each(|one| log::warn!("{one}")),
            Err(error) => log::warn!("{:#}", error.context("keep the host off exclusive CPUs")),
        }
    }

    /// Puts the host's units back as they were found, as far as this pool directory is concerned.
    ///
    /// # Errors
    /// The records of what was changed cannot be read or written.
    pub fn let_host_in(&self) -> Result<Vec<Refusal>> {
        match self.host.is_running_root() {
            true => outside::confine(&self.host, &self.own_path(), Vec::new()),
            false => Ok(Vec::new()),
        }
    }

    pub(super) fn confine_units(&self) -> Result<Vec<Refusal>> {
        if !self.confines_host && !outside::are_confined(&self.host)? {
            return Ok(Vec::new());
        }
        if confinable(self)? != Confinable::Yes {
            return Ok(Vec::new());
        }
        let mut wanted = self.wanted_of_units()?;
        for _ in 1..ROUNDS {
            let problems = outside::confine(&self.host, &self.own_path(), wanted.clone())?;
            // No start waits for this: one may have come that needs CPUs of a unit.
            let again = self.wanted_of_units()?;
            if again == wanted {
                return Ok(problems);
            }
            wanted = again;
        }
        outside::confine(&self.host, &self.own_path(), wanted)
    }

    /// The pool directory's path, whatever links lead to it.
    fn own_path(&self) -> std::path::PathBuf {
        let path = self.conf_dir.canonicalize();
        path.unwrap_or_else(|_| self.conf_dir.clone())
    }

    /// The CPUs that each unit is not to have: those of all exclusive pools, without those of the
    /// live owners in the unit for whom no partition keeps them, whoever gave them their CPUs.
    ///
    /// # Errors
    /// The pools or the claims cannot be read, or an owner cannot be looked at.
    pub fn wanted_of_units(&self) -> Result<Vec<UnitCpus>> {
        if !self.confines_host {
            return Ok(Vec::new());
        }
        let Some(directory) = PoolDirectory::begun(&self.conf_dir)? else {
            return Ok(Vec::new());
        };
        if files::entry_if_there(&self.conf_dir.join("pools"))?.is_none() {
            return Ok(Vec::new());
        }
        let view = self.view(&directory)?;
        let mut pools = Vec::new();
        for name in directory.pool_names()? {
            let pool = directory.pool(&name)?;
            if pool.kind == Kind::Exclusive {
                pools.push(pool);
            }
        }
        let lists = pools.iter().flat_map(|pool| &pool.lists);
        let exclusive: CpuSet = lists.map(|list| &list.cpus).collect();
        // After `tasks`: whoever was in it by a claim is found there still.
        let mut masked = Vec::new();
        let claimed = view.claimed_and_masked(&mut masked)?;
        for pool in &pools {
            view.unclaimed_of(pool, &claimed, &mut masked)?;
        }
        let mut units = Vec::new();
        for name in UNITS {
            let (unit, below) = (format!("/{name}"), format!("/{name}/"));
            let is_in = |group: &str| group == unit || group.starts_with(&below);
            let needed = masked.iter().filter(|masked| is_in(&masked.group));
            let needed: CpuSet = needed.map(|masked| &masked.cpus).collect();
            let cpus = exclusive.difference(&needed);
            if !cpus.is_empty() {
                units.push(UnitCpus {
                    unit: name.to_owned(),
                    cpus,
                });
            }
        }
        Ok(units)
    }
}

/// The group of a live owner whose CPUs no partition keeps for it, with these CPUs.
struct Masked {
    group: String,
    cpus: CpuSet,
}

/// A pid in `tasks`, by pool and list.
type TasksEntry = (String, String, i32);

impl View<'_> {
    /// Adds the owners with a claim to `masked`. One that places itself, unconfined, has its CPUs
    /// only while its group has them. Returns what `tasks` says of all claims.
    fn claimed_and_masked(&self, masked: &mut Vec<Masked>) -> Result<BTreeSet<TasksEntry>> {
        let mut in_tasks = BTreeSet::new();
        for entry in self.ledger.all()? {
            let claim: Box<Claim> = match entry {
                Entry::Claim(claim) => claim,
                // Where it runs is not known: nothing is changed before it is.
                Entry::Unreadable(one) => return Err(one.refusal().into()),
            };
            if claim.boot_id != self.boot_id {
                continue;
            }
            for list in &claim.lists {
                let pids = claim.pids().into_iter();
                in_tasks.extend(pids.map(|pid| (claim.pool.clone(), list.clone(), pid)));
            }
            let Some(claimed) = &claim.cgroup else {
                continue;
            };
            let group = self.hierarchy.group(&claimed.path)?;
            if group.inode()? == Some(claimed.inode) && !self.is_partition_of(&group, &claim)? {
                masked.push(Masked {
                    group: claimed.path.clone(),
                    cpus: claim.cpus.clone(),
                });
            }
        }
        Ok(in_tasks)
    }

    /// Adds the live owners of a pool that another tool, as KCM, gave their CPUs: they are in
    /// `tasks` alone.
    fn unclaimed_of(
        &self,
        pool: &Pool,
        claimed: &BTreeSet<TasksEntry>,
        masked: &mut Vec<Masked>,
    ) -> Result<()> {
        for list in &pool.lists {
            for pid in &list.tasks {
                let is_claimed = claimed.contains(&(pool.name.clone(), list.name.clone(), *pid));
                if is_claimed || !self.is_pid_alive(*pid) {
                    continue;
                }
                match self.hierarchy.group_of(self.host, *pid)? {
                    Some(group) => masked.push(Masked {
                        group: group.path().to_owned(),
                        cpus: list.cpus.clone(),
                    }),
                    // It has ended meanwhile, unless `/proc` hides it.
                    None => ensure!(
                        !self.is_pid_alive(*pid),
                        Refusal::new(
                            format!(
                                "process {pid} owns {} of pool {}, and /proc does not show where \
                                 it runs",
                                list.name, pool.name
                            ),
                            "mount /proc without hidepid=, or end that process"
                        )
                    ),
                }
            }
        }
        Ok(())
    }

    /// Does a partition keep a claim's CPUs for it? It has those that are online.
    fn is_partition_of(&self, group: &Group, claim: &Claim) -> Result<bool> {
        let Some(wanted) = claim.isolation else {
            return Ok(false);
        };
        let cpus = claim.cpus.intersection(&topology::online(self.host)?);
        partition::stands(group, wanted.kind.word(), &cpus)
    }
}
