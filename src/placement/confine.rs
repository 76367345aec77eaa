//! Keeping the host's own units off the CPUs of exclusive pools, where the configuration says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Site, View};
use crate::cgroup::{Group, Version, cpuset, partition, systemd};
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::files;
use crate::outside::{self, Obstacle, UnitCpus};
use crate::pools::{Kind, Pool, PoolDirectory};
use crate::refusal::Refusal;
use crate::topology;

/// The units that hold the host's work (systemd.special(7)): services, sessions, systemd itself.
/// Not `machine.slice`: a container below a slice has no CPU that the slice has not, and before its
/// partition stands it could not be given any.
const UNITS: [&str; 3] = ["system.slice", "user.slice", "init.scope"];

/// How often the units are set anew for owners that came meanwhile.
const ROUNDS: usize = 3;

/// How long all of that may take: systemd, and others who change the units, are waited for.
const PATIENCE: Duration = Duration::from_secs(15);

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

impl Confinable {
    /// What prevents it, if anything does.
    pub fn obstacle(self) -> Option<Obstacle> {
        let (name, why, remedy) = match self {
            Confinable::Yes => return None,
            Confinable::NoVersion1 => (
                "no-units-on-version-1",
                "systemd does not do that on cgroup version 1",
                "boot with cgroup version 2, or with isolcpus=",
            ),
            Confinable::NoSystemd => (
                "no-units-without-systemd",
                "systemd is not the init",
                "boot with isolcpus=, or say isolation=root of the pools",
            ),
        };
        Some(Obstacle {
            what: format!("the host cannot be kept off exclusive CPUs: {why}, and nobody is moved"),
            remedy: remedy.to_owned(),
            of_machine: Some(name),
        })
    }
}

/// The CPUs that the host's units are not to have.
#[derive(Debug, Default)]
pub struct WantedOfUnits {
    /// Those of each unit.
    pub units: Vec<UnitCpus>,
    /// What cannot be looked at, so that nothing more than before is wanted on its account.
    pub problems: Vec<Refusal>,
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
            true => {
                let deadline = Instant::now() + PATIENCE;
                outside::confine(&self.host, &self.own_path(), Vec::new(), deadline)
            }
            false => Ok(Vec::new()),
        }
    }

    pub(super) fn confine_units(&self) -> Result<Vec<Refusal>> {
        if !self.confines_host && !outside::have_we_confined(&self.host)? {
            return Ok(Vec::new());
        }
        if let Some(obstacle) = confinable(self)?.obstacle() {
            if self.confines_host && outside::is_news(&self.host, &obstacle) {
                log::warn!("{obstacle}");
            }
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut wanted = self.wanted_of_units()?;
        let mut rounds = 0;
        loop {
            let units = wanted.units.clone();
            let problems = outside::confine(&self.host, &self.own_path(), units, deadline)?;
            rounds += 1;
            // No start waits for this: one may have come that needs CPUs of a unit.
            let again = self.wanted_of_units()?;
            if again.units == wanted.units || rounds == ROUNDS || Instant::now() >= deadline {
                return Ok([again.problems, problems].concat());
            }
            wanted = again;
        }
    }

    /// The pool directory's path, whatever links lead to it.
    fn own_path(&self) -> std::path::PathBuf {
        let path = self.conf_dir.canonicalize();
        path.unwrap_or_else(|_| self.conf_dir.clone())
    }

    /// The CPUs that each unit is not to have: those of all exclusive pools, without those of the
    /// live owners in the unit for whom no partition keeps them, whoever gave them their CPUs.
    ///
    /// Of a pool that cannot be read it has neither more nor fewer than before. Where it is not
    /// known who runs where, it loses none, and has those back that no exclusive pool has any more.
    ///
    /// # Errors
    /// The pool directory or the ledger cannot be read.
    pub fn wanted_of_units(&self) -> Result<WantedOfUnits> {
        if !self.confines_host {
            return Ok(WantedOfUnits::default());
        }
        let Some(directory) = PoolDirectory::begun(&self.conf_dir)? else {
            return Ok(WantedOfUnits::default());
        };
        if files::entry_if_there(&self.conf_dir.join("pools"))?.is_none() {
            return Ok(WantedOfUnits::default());
        }
        let view = self.view(&directory)?;
        let mut problems = Vec::new();
        let mut pools = Vec::new();
        let mut unreadable = CpuSet::new();
        for name in directory.pool_names()? {
            match directory.pool(&name) {
                Ok(pool) if pool.kind == Kind::Exclusive => pools.push(pool),
                Ok(_) => {}
                Err(error) => {
                    problems.push(Refusal::of(&error));
                    let names = directory.list_names(&name)?;
                    let lists = names.iter().filter_map(|list| list.parse::<CpuSet>().ok());
                    lists.for_each(|cpus| unreadable.extend(&cpus));
                }
            }
        }
        let lists = pools.iter().flat_map(|pool| &pool.lists);
        let exclusive: CpuSet = lists.map(|list| &list.cpus).collect();
        // After `tasks`: whoever was in it by a claim is found there still.
        let mut owners = Owners::default();
        let claimed = view.claimed_and_masked(&mut owners)?;
        for pool in &pools {
            view.unclaimed_of(pool, &claimed, &mut owners);
        }
        let mut doubtful = unreadable;
        if !owners.unknown.is_empty() {
            doubtful.extend(&exclusive);
        }
        problems.extend(owners.unknown);
        let former = match doubtful.is_empty() {
            true => Vec::new(),
            false => outside::away_of(&self.host, &self.own_path())?,
        };
        let mut units = Vec::new();
        for name in UNITS {
            let (unit, below) = (format!("/{name}"), format!("/{name}/"));
            let is_in = |group: &str| group == unit || group.starts_with(&below);
            let needed = owners.masked.iter().filter(|masked| is_in(&masked.group));
            let needed: CpuSet = needed.map(|masked| &masked.cpus).collect();
            let former = former.iter().filter(|former| former.unit == name);
            let former: CpuSet = former.map(|former| &former.cpus).collect();
            let mut cpus = exclusive.difference(&doubtful);
            cpus.extend(&former.intersection(&doubtful));
            let cpus = cpus.difference(&needed);
            if !cpus.is_empty() {
                units.push(UnitCpus {
                    unit: name.to_owned(),
                    cpus,
                });
            }
        }
        Ok(WantedOfUnits { units, problems })
    }
}

/// The group of a live owner whose CPUs no partition keeps for it, with these CPUs.
struct Masked {
    group: String,
    cpus: CpuSet,
}

/// Who owns CPUs.
#[derive(Default)]
struct Owners {
    masked: Vec<Masked>,
    /// Those of whom it is not known where they run.
    unknown: Vec<Refusal>,
}

/// A pid in `tasks`, by pool and list.
type TasksEntry = (String, String, i32);

impl View<'_> {
    /// Adds the owners with a claim. One that places itself, unconfined, has its CPUs only while
    /// its group has them. Returns what `tasks` says of all claims.
    fn claimed_and_masked(&self, owners: &mut Owners) -> Result<BTreeSet<TasksEntry>> {
        let mut in_tasks = BTreeSet::new();
        for entry in self.ledger.all()? {
            let claim: Box<Claim> = match entry {
                Entry::Claim(claim) => claim,
                Entry::Unreadable(one) => {
                    owners.unknown.push(one.refusal());
                    continue;
                }
            };
            if claim.boot_id != self.boot_id {
                continue;
            }
            for list in &claim.lists {
                let pids = claim.pids().into_iter();
                in_tasks.extend(pids.map(|pid| (claim.pool.clone(), list.clone(), pid)));
            }
            match self.masked_of(&claim) {
                Ok(masked) => owners.masked.extend(masked),
                Err(error) => owners.unknown.push(Refusal::of(&error)),
            }
        }
        Ok(in_tasks)
    }

    /// `None` where a partition keeps its CPUs for it, and where its group is gone.
    fn masked_of(&self, claim: &Claim) -> Result<Option<Masked>> {
        let Some(claimed) = &claim.cgroup else {
            return Ok(None);
        };
        let group = self.hierarchy.group(&claimed.path)?;
        if group.inode()? != Some(claimed.inode) || self.is_partition_of(&group, claim)? {
            return Ok(None);
        }
        Ok(Some(Masked {
            group: claimed.path.clone(),
            cpus: claim.cpus.clone(),
        }))
    }

    /// Adds the live owners of a pool that another tool, as KCM, gave their CPUs: they are in
    /// `tasks` alone.
    fn unclaimed_of(&self, pool: &Pool, claimed: &BTreeSet<TasksEntry>, owners: &mut Owners) {
        for list in &pool.lists {
            for pid in &list.tasks {
                let is_claimed = claimed.contains(&(pool.name.clone(), list.name.clone(), *pid));
                if is_claimed || !self.is_pid_alive(*pid) {
                    continue;
                }
                match self.hierarchy.group_of(self.host, *pid) {
                    Ok(Some(group)) => owners.masked.push(Masked {
                        group: group.path().to_owned(),
                        cpus: list.cpus.clone(),
                    }),
                    // It has ended meanwhile, unless `/proc` hides it.
                    Ok(None) if !self.is_pid_alive(*pid) => {}
                    Ok(None) => owners.unknown.push(Refusal::new(
                        format!(
                            "process {pid} owns {} of pool {}, and /proc does not show where it \
                             runs",
                            list.name, pool.name
                        ),
                        "mount /proc without hidepid=, or end that process",
                    )),
                    Err(error) => owners.unknown.push(Refusal::of(&error)),
                }
            }
        }
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
