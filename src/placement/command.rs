//! Pinning a command that `isolate` runs: a group of its own, claimed before the command exists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::give::{Applicant, Place};
use super::life::Life;
use super::pick::Wish;
use super::{Books, Site};
use crate::cgroup::Hierarchy;
use crate::claims::{Claim, Entry, OwnerKind};
use crate::cpulist::CpuSet;
use crate::names;
use crate::process::Process;
use crate::request::Request;

/// How long recording a command's process waits for the lock.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

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
    let books = site.open_books(hierarchy)?;
    let group = books.new_group(&id, process)?;
    let procs_file = group.procs_file();
    let place = Place::Entered { group, confined };
    let applicant = Applicant {
        id: &id,
        kind: OwnerKind::Process,
        names: &names::of_command(host, program),
        process,
        place,
    };
    let claim = books.give(&applicant, &wish)?;
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
            return Ok(());
        };
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
    /// A claim as it is now: somebody may have released it by force since.
    pub(super) fn current(&self, claim: &Claim) -> Result<Option<Claim>> {
        match self.ledger.current(claim) {
            None => Ok(None),
            Some(Entry::Claim(claim)) => Ok(Some(*claim)),
            Some(Entry::Opaque { path, reason }) => bail!("read {}: {reason}", path.display()),
        }
    }
}
