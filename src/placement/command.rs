//! Pinning a command that `isolate` runs: a group of its own, claimed before the command exists.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Site;
use super::give::{Applicant, Place};
use super::life::Life;
use crate::cgroup::Hierarchy;
use crate::claims::{Claim, OwnerKind};
use crate::cpulist::CpuSet;
use crate::process::Process;
use crate::request::Request;
use crate::topology;

/// Where a command is to run.
#[derive(Debug)]
pub struct CommandPlace {
    /// The CPUs that are its own.
    pub cpus: CpuSet,
    /// The directory names of its CPU lists, by first CPU.
    pub lists: Vec<String>,
    /// The file into which the command's process writes `0` to enter its group.
    pub procs_file: PathBuf,
    claim: Claim,
}

/// Claims CPUs for a command that this very process is going to run, and makes the group for it; confined, or
/// only there to tell which processes are the command's.
///
/// # Errors
/// As for a container.
pub fn pin_command(site: &Site, request: &Request, confined: bool) -> Result<CommandPlace> {
    let host = &site.host;
    let pid = std::process::id() as i32;
    let process = Process::with_pid(host, pid)?.context("/proc does not show this process")?;
    let id = format!("isolate-{pid}");
    let hierarchy = Hierarchy::discover(host)?;
    let group = hierarchy.group_of_ours(&id)?;
    let online = topology::online(host)?;
    let procs_file = group.procs_file();
    let kind = OwnerKind::Process;
    let place = Place::Entered { group, confined };
    let books = site.open_books(hierarchy)?;
    let claim = books.give(&Applicant {
        id: &id,
        kind,
        process,
        request,
        place,
        online,
    })?;
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
    pub fn record(&mut self, site: &Site, pid: i32) -> Result<()> {
        let Some(process) = Process::with_pid(&site.host, pid)? else {
            return Ok(());
        };
        self.claim.processes.push(process);
        let books = site.open_books(Hierarchy::discover(&site.host)?)?;
        books.ledger.write(&self.claim)?;
        books.ensure_recorded(&self.claim)
    }

    /// Lets go of the command's CPUs when it has ended; where processes of it live on, they keep them.
    pub fn finish(self, site: &Site) -> Result<()> {
        let books = site.open_books(Hierarchy::discover(&site.host)?)?;
        let mut without_us = self.claim.clone();
        without_us
            .processes
            .retain(|process| *process != self.claim.owner);
        if books.life_of(&without_us)? == Life::Gone {
            return books.give_back(&self.claim);
        }
        books.ledger.write(&without_us)?;
        books.settle(&without_us)?;
        books.change_tasks(&self.claim, &[self.claim.owner.pid], &[])
    }
}
