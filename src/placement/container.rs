//! Pinning a container: the whole of what the hook does at its start.

use anyhow::{Context, Result, bail, ensure};

use super::give::{Applicant, Place, gone};
use super::life::Life;
use super::pick::want;
use super::{Books, Site};
use crate::cgroup::{Group, Hierarchy, systemd};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::cpulist::CpuSet;
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
    let process = Process::with_pid(host, pid)?.with_context(|| gone(pid))?;
    let hierarchy = Hierarchy::discover(host)?;
    let group = hierarchy.group_of(host, pid)?.with_context(|| gone(pid))?;
    let ours = hierarchy.group_of(host, std::process::id() as i32)?;
    let shares_ours = ours.is_some_and(|ours| ours.path() == group.path());
    let online = topology::online(host)?;
    let want = want(host, request)?;

    let books = site.open_books(hierarchy.clone())?;
    ensure!(process.is_alive(host)?, gone(pid));
    // A container's own group, with those below it, holds its first process and nothing else, and we are not in it.
    let place = if !shares_ours && group.all_pids()? == [pid] {
        Place::Own(group)
    } else {
        Place::Moved {
            to: books.new_group(id, process)?,
            from: group,
        }
    };
    let group = place.group().clone();
    let claim = match books.prepare(id, process, &place)? {
        Some(claim) => books.confirm(claim, request, &place)?,
        None => books.give(&Applicant {
            id,
            kind: OwnerKind::Container,
            process,
            request,
            want,
            place,
            online,
        })?,
    };
    // systemd takes its time, and nobody else has to wait for it.
    drop(books);
    let mems = Some(&claim.mems).filter(|mems| !mems.is_empty());
    match systemd::tell(host, &group, &claim.cpus, mems) {
        Ok(false) => Ok(claim),
        told => site.open_books(hierarchy)?.agree(&claim, &group, told),
    }
}

impl Books<'_> {
    /// While systemd was told of a claim's CPUs, others had the lock: what it knows now is to be what the claim says now.
    fn agree(&self, claim: &Claim, group: &Group, told: Result<bool>) -> Result<Claim> {
        let Some(now) = self.current(claim)? else {
            if let Err(error) = systemd::tell(self.host, group, &CpuSet::new(), None) {
                log::warn!("{error:#}");
            }
            bail!("it was released while it started: start it again");
        };
        let agreed = told.and_then(|_| {
            if (&now.cpus, &now.mems) == (&claim.cpus, &claim.mems) {
                return Ok(());
            }
            self.set_cpus(group, &now.cpus, &now.mems)
        });
        self.undo_on_error(agreed, &now)?;
        Ok(now)
    }

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
                Entry::Claim(claim) => {
                    // What is left of an earlier container of this id is not this one's trouble.
                    if let Err(error) = self.free_if_gone(&claim) {
                        log::warn!("{} counts as held: {error:#}", claim.id);
                    }
                }
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
        match self.ledger.on_cgroup(inode) {
            Some(Entry::Claim(claim))
                if claim.owner != process && self.life_of(&claim)? != Life::Recorded =>
            {
                log::info!("{} left its cgroup {} behind", claim.id, group.path());
                self.take_back(&claim)
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

    /// The hook ran for this process before: an engine runs `prestart` as `createRuntime` too, or killed the first.
    fn confirm(&self, claim: Claim, request: &Request, place: &Place) -> Result<Claim> {
        let agrees = match request.size {
            Size::Lists(lists) => claim.lists.len() == lists,
            Size::Cpus(cpus) => claim.cpus.len() >= cpus,
        };
        ensure!(
            claim.pool == request.pool && agrees,
            "it has {} of pool {} since a moment ago, and now {} of pool {} asked for: ask once",
            claim.cpus,
            claim.pool,
            request.size,
            request.pool
        );
        ensure!(
            place.group().path() == claim.cgroup.path && self.group_of(&claim)?.is_some(),
            "it was pinned in the cgroup {} a moment ago, and is in another now: let one tool move it",
            claim.cgroup.path
        );
        let done = self
            .record_instead_of(&[], &claim)
            .and_then(|()| self.confine(&claim, place));
        self.undo_on_error(done, &claim)?;
        Ok(claim)
    }
}
