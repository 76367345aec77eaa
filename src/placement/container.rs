//! Pinning a container: the whole of what the hook does at its start.

use anyhow::{Context, Result, bail, ensure};

use super::give::{Applicant, Place};
use super::life::Life;
use super::{Books, Site};
use crate::cgroup::{Group, Hierarchy};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::process::Process;
use crate::request::{Request, Size};
use crate::topology;

/// Gives a container the CPUs that it asks for and confines it to them before its first instruction.
///
/// `pid` is its first process, which waits for us. Doing it twice is doing it once.
///
/// # Errors
/// A request that cannot be met, and anything about the host, the pool directory or the claims that
/// cannot be trusted or used; nothing stays changed then.
pub fn pin_container(site: &Site, id: &str, pid: i32, request: &Request) -> Result<Claim> {
    let host = &site.host;
    let gone = || format!("its process {pid} is gone");
    let process = Process::with_pid(host, pid)?.with_context(gone)?;
    let hierarchy = Hierarchy::discover(host)?;
    let group = hierarchy.group_of(host, pid)?.with_context(gone)?;
    let place = place_of(&hierarchy, site, group, id, process)?;
    let online = topology::online(host)?;

    let books = site.open_books(hierarchy)?;
    ensure!(process.is_alive(host)?, gone());
    if let Some(claim) = books.prepare(id, process, &place)? {
        return books.confirm(claim, request);
    }
    let kind = OwnerKind::Container;
    books.give(&Applicant {
        id,
        kind,
        process,
        request,
        place,
        online,
    })
}

/// A container's own group holds its first process and nothing else, and we are not in it.
fn place_of(
    hierarchy: &Hierarchy,
    site: &Site,
    group: Group,
    id: &str,
    process: Process,
) -> Result<Place> {
    let ours = hierarchy.group_of(&site.host, std::process::id() as i32)?;
    let shares_ours = ours.is_some_and(|ours| ours.path() == group.path());
    if !shares_ours && group.pids()? == [process.pid] {
        return Ok(Place::Own(group));
    }
    let to = hierarchy.group_of_ours(&format!("{id}-{}", process.pid))?;
    Ok(Place::Moved { to, from: group })
}

impl Books<'_> {
    /// Settles older claims that this start proves dead, or that are of the same id; returns the claim of
    /// this very process, if it has one already.
    fn prepare(&self, id: &str, process: Process, place: &Place) -> Result<Option<Claim>> {
        if let Place::Own(group) = place {
            self.supersede(group, process)?;
        }
        for entry in self.ledger.of_id(id)? {
            match entry {
                Entry::Claim(claim) if claim.owner == process && claim.boot_id == self.boot_id => {
                    return Ok(Some(*claim));
                }
                Entry::Claim(claim) if self.life_of(&claim)? == Life::Gone => {
                    self.give_back(&claim)?
                }
                Entry::Claim(_) => {}
                Entry::Opaque { path, reason } => {
                    log::warn!("the claim {} counts as held: {reason}", path.display());
                }
            }
        }
        Ok(None)
    }

    /// A runtime that was killed leaves a group with our mask in it, and the next container of that path
    /// inherits both. This process is alone in it: whoever had it before is gone.
    fn supersede(&self, group: &Group, process: Process) -> Result<()> {
        let Some(inode) = group.inode()? else {
            return Ok(());
        };
        match self.ledger.on_cgroup(inode)? {
            Some(Entry::Claim(claim))
                if claim.owner != process && self.life_of(&claim)? != Life::Recorded =>
            {
                log::info!("{} left its cgroup {} behind", claim.id, group.path());
                self.give_back(&claim)
            }
            Some(Entry::Opaque { path, reason }) => {
                bail!(
                    "the claim {} is on its cgroup and cannot be read: {reason}",
                    path.display()
                )
            }
            _ => Ok(()),
        }
    }

    /// The hook ran for this process before (an engine that runs `prestart` as `createRuntime` too).
    fn confirm(&self, claim: Claim, request: &Request) -> Result<Claim> {
        let agrees = match request.size {
            Size::Lists(lists) => claim.lists.len() == lists,
            Size::Cpus(cpus) => claim.cpus.len() >= cpus,
        };
        ensure!(
            claim.pool == request.pool && agrees,
            "it was pinned to {} of pool {} a moment ago, and now {} of pool {} is asked for: ask once",
            claim.cpus,
            claim.pool,
            request.size,
            request.pool
        );
        self.ensure_recorded(&claim)?;
        self.keep_confined(&claim)?;
        Ok(claim)
    }
}
