//! Pinning a command that `isolate` runs: a group of its own, claimed before the command exists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::container::TOLD;
use super::give::{Applicant, Place};
use super::life::Life;
use super::pick::Wish;
use super::{Books, Site, at_most};
use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, Hierarchy, Version, systemd};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::cpulist::CpuSet;
use crate::names;
use crate::process::Process;
use crate::request::Request;

/// How long recording a command's process waits for the lock.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// The group of `isolate` itself beside its command's, in a unit that leaves its own to be divided.
const SUPERVISOR: &str = "pinfold-supervisor";

/// Where a command is to run.
#[derive(Debug)]
pub struct CommandPlace {
    /// The CPUs that are its own.
    pub cpus: CpuSet,
    /// The directory names of its CPU lists, by first CPU.
    pub lists: Vec<String>,
    /// The file into which the command's process writes `0` to enter its group; none where it is in it already.
    pub procs_file: Option<PathBuf>,
    claim: Claim,
}

/// Claims CPUs for a command that this very process is going to run, and makes the group for it; confined, or
/// only there to tell which processes are the command's.
///
/// # Errors
/// As for a container.
pub fn pin_command(
    site: &Site,
    program: &Path,
    request: &Request,
    confined: bool,
) -> Result<CommandPlace> {
    let host = &site.host;
    let pid = std::process::id() as i32;
    let process = Process::with_pid(host, pid)?.context("/proc does not show this process")?;
    let id = format!("isolate-{pid}");
    let hierarchy = Hierarchy::discover(host)?;
    let wish = Wish::of(host, request)?;
    let names = names::of_command(host, program);
    let books = site.open_books(hierarchy.clone())?;
    let place = books.place_of_command(&id, process, confined)?;
    let applicant = Applicant {
        id: &id,
        kind: OwnerKind::Process,
        names: &names,
        process,
        place,
    };
    let claim = books.give(&applicant, &wish)?;
    // systemd takes its time, and nobody else has to wait for it.
    drop(books);
    let (claim, procs_file) = match &applicant.place {
        Place::Supervised {
            group,
            confined: true,
            ..
        } => {
            let mems = Some(&claim.mems).filter(|mems| !mems.is_empty());
            let told = systemd::tell(host, group, &claim.cpus, mems, at_most(TOLD, site.deadline));
            let claim = match told {
                Ok(false) => claim,
                told => site
                    .open_books(hierarchy)?
                    .agree(&claim, group, group, told)?,
            };
            (claim, None)
        }
        Place::Supervised { .. } => (claim, None),
        place => (claim, Some(place.group().procs_file())),
    };
    Ok(CommandPlace {
        cpus: claim.cpus.clone(),
        lists: claim.lists.clone(),
        procs_file,
        claim,
    })
}

impl CommandPlace {
    /// The id that its claim has in the ledger.
    pub fn id(&self) -> &str {
        &self.claim.id
    }

    /// Records the command's process beside our own: it is an owner of its own right when we are killed.
    ///
    /// Waits for the lock a moment only: its group tells whose it is in any case.
    pub fn record(&self, site: &Site, pid: i32) -> Result<()> {
        let site = Site {
            patience: site.patience.min(RECORD_PATIENCE),
            ..site.clone()
        };
        let Some(process) = Process::with_pid(&site.host, pid)? else {
            return Ok(());
        };
        let books = site.open_books(Hierarchy::discover(&site.host)?)?;
        let Some(mut claim) = books.current(&self.claim)? else {
            return Ok(());
        };
        claim.processes.push(process);
        books.ledger.write(&claim)?;
        books.record_instead_of(&[], &claim)
    }

    /// Lets go of the command's CPUs when it has ended; where processes of it live on, they keep them.
    pub fn finish(self, site: &Site) -> Result<()> {
        let books = site.open_books(Hierarchy::discover(&site.host)?)?;
        let Some(claim) = books.current(&self.claim)? else {
            return match self.claim.is_supervised() {
                true => books.restore_group(&self.claim),
                false => Ok(()),
            };
        };
        if claim.is_supervised() {
            return books.finish_supervised(&claim);
        }
        let mut rest = claim.clone();
        rest.processes.retain(|process| *process != claim.owner);
        if books.life_of(&rest)? == Life::Gone && books.give_back(&claim)? {
            return Ok(());
        }
        books.change_tasks(&claim, &[claim.owner.pid], &[])?;
        books.ledger.write(&rest)?;
        books.settle(&rest).map(drop)
    }
}

impl Books<'_> {
    /// Where a command is to run: in the group that we are in where its supervisor, a unit, has nobody else in it, so that
    /// the unit's limits and its end reach the command; below it where the unit leaves it to us to divide; elsewhere in a
    /// group of ours. On version 1 a supervisor knows nothing of cpusets.
    fn place_of_command(&self, id: &str, process: Process, confined: bool) -> Result<Place> {
        let pid = process.pid;
        let own = self.hierarchy.group_of(self.host, pid)?;
        let is_supervisors = |group: &Group| {
            group.version() == Version::V2
                && group.parent().is_some()
                && group.all_pids().is_ok_and(|pids| pids == [pid])
        };
        let Some(group) = own.filter(is_supervisors) else {
            let group = self.new_group(id, process)?;
            return Ok(Place::Entered { group, confined });
        };
        if systemd::is_delegated(self.host, &group, self.told_at_most())? {
            // A group that has processes gives no controller to those below it (kernel: cgroup-v2.rst, "No Internal
            // Process Constraint").
            let supervisor = group.child(SUPERVISOR);
            supervisor.make()?;
            supervisor.adopt(pid)?;
            let group = group.child(&format!("{id}-{}-{}", pid, process.start));
            return Ok(Place::Entered { group, confined });
        }
        let before = match self.supersede_supervised(&group, process)? {
            Some(before) => before,
            None => cpuset::masks(&group)?.unwrap_or_default(),
        };
        Ok(Place::Supervised {
            group,
            before,
            confined,
        })
    }

    /// A unit whose `isolate` was killed starts anew, and nobody else is in its group: what was claimed there is free.
    /// Returns what the unit had before.
    fn supersede_supervised(&self, group: &Group, process: Process) -> Result<Option<Masks>> {
        let mut before = None;
        for entry in self.ledger.all()? {
            let claim = entry.claim().filter(|claim| {
                let of_group = claim.cgroup.as_ref().map(|claimed| claimed.path.as_str());
                claim.is_supervised()
                    && claim.owner != process
                    && claim.boot_id == self.boot_id
                    && of_group == Some(group.path())
            });
            let Some(claim) = claim else {
                continue;
            };
            // A process of its that left the unit's group runs on those CPUs still.
            if self.life_of(claim)? == Life::Recorded {
                continue;
            }
            let found = claim.cgroup.as_ref().map(|claimed| &claimed.before);
            before = found.map(|found| Masks {
                cpus: found.cpus.clone(),
                mems: found.mems.clone(),
            });
            self.take_back(claim)?;
        }
        Ok(before)
    }

    /// The end of a command in its supervisor's group, which we are in ourselves.
    fn finish_supervised(&self, claim: &Claim) -> Result<()> {
        let Some((group, _)) = self.group_of(claim)? else {
            return self.take_back(claim);
        };
        let others = group.all_pids()?.into_iter();
        let mut others = others.filter(|pid| *pid != claim.owner.pid);
        let survivor = others.find_map(|pid| Process::with_pid(self.host, pid).transpose());
        let Some(survivor) = survivor.transpose()? else {
            return self.take_back(claim);
        };
        let mut rest = claim.clone();
        rest.processes = vec![survivor];
        self.ledger.write(&rest)?;
        self.record_instead_of(&claim.pids(), &rest)
    }

    /// A claim as it is now: somebody may have released it by force since.
    pub(super) fn current(&self, claim: &Claim) -> Result<Option<Claim>> {
        match self.ledger.current(claim) {
            None => Ok(None),
            Some(Entry::Claim(claim)) => Ok(Some(*claim)),
            Some(Entry::Opaque { path, reason }) => bail!("read {}: {reason}", path.display()),
        }
    }
}
