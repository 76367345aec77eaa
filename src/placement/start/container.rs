//! Pinning a container: the whole of what the hook does at its start.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, systemd};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::names::Names;
use crate::placement::again::Recalled;
use crate::placement::end::{Settled, warn_held};
use crate::placement::life::Life;
use crate::placement::start::give::{Confinement, Grant, NewOwner, gone};
use crate::placement::start::pick::Demand;
use crate::placement::{Books, Site, at_most};
use crate::process::Process;
use crate::refusal::Refusal;
use crate::request::{Request, Size};

/// How long systemd may take where nobody else waits: it can be busy with many starts.
pub(crate) const TOLD: Duration = Duration::from_secs(15);

/// A container that is about to start.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Its id.
    pub id: &'a str,
    /// What people call it; where something was reserved for it, what they called it then counts.
    pub names: Names,
    /// Its first process, which waits for us.
    pub pid: i32,
    /// What tells the reservation that [`crate::placement::reserve`] made for it, if one was made.
    pub reservation: Option<&'a str>,
}

/// What there is already of a container that starts.
#[derive(Default)]
struct Prior {
    /// Its claim: the hook ran for this process before.
    pinned: Option<Claim>,
    /// What was reserved for it, and is not taken over, or not wholly.
    reserved: Option<Claim>,
}

/// Gives a container the CPUs that it asks for, or that were reserved for it, and confines it to
/// them before its first instruction. Doing it twice is doing it once.
///
/// # Errors
/// A request that cannot be met, a reservation that is gone, and anything about the host, the pool
/// directory or the claims that cannot be trusted or used; nothing stays changed then.
pub fn pin_container(site: &Site, start: Start<'_>, request: &Request) -> Result<Claim> {
    // What was reserved is remembered by whoever reserved it.
    let recalled = match start.reservation {
        Some(_) => Recalled::default(),
        None => site.recall(&start.names, start.id),
    };
    let claim = pin(site, start, request, recalled.lists_of(&request.pool))?;
    recalled.keep(&claim);
    Ok(claim)
}

fn pin(site: &Site, mut start: Start<'_>, request: &Request, former: &[String]) -> Result<Claim> {
    let host = &site.host;
    let pid = start.pid;
    let process = Process::with_pid(host, pid)?.with_context(|| gone(pid))?;
    let hierarchy = cpuset::hierarchy(host)?;
    let group = hierarchy.group_of(host, pid)?.with_context(|| gone(pid))?;
    let demand = Demand::of(host, request)?.with_former(former);
    start.names.add_unit_of(group.path());

    let books = site.open_books(hierarchy.clone())?;
    ensure!(process.is_alive(host)?, gone(pid));
    // A container's own group, with those below it, holds its first process and nothing else, nor
    // us.
    let place = if group.is_of(pid)? {
        Confinement::Own(group)
    } else {
        Confinement::Moved {
            to: books.new_group(start.id, process)?,
            from: group,
        }
    };
    let new_owner = NewOwner {
        id: start.id,
        kind: OwnerKind::Container,
        names: &start.names,
        process,
        place,
    };
    let group = new_owner.place.group();
    let Prior { pinned, reserved } = books.prepare(&start, &new_owner)?;
    let scope = match pinned.as_ref().or(reserved.as_ref()) {
        Some(standing) => cpuset::scope_in_the_way(group, &standing.cpus)?,
        None => None,
    };
    // What systemd may know of.
    let unit = scope.as_ref().unwrap_or(group);
    let found = match start.reservation {
        Some(_) => cpuset::masks(unit)?.unwrap_or_default(),
        None => Masks::default(),
    };
    let claim = match (pinned, reserved) {
        (Some(claim), reserved) => {
            books.confirm(claim, reserved.as_ref(), request, &new_owner.place)?
        }
        (None, Some(reservation)) => books.hand_over(&reservation, request, &new_owner)?,
        (None, None) => {
            ensure!(
                start.reservation.is_none(),
                Refusal::new(
                    "what pinfold-runtime reserved for it is gone",
                    "start it again"
                )
            );
            books.give(&new_owner, &demand)?
        }
    };
    // systemd takes its time, and nobody else has to wait for it.
    drop(books);
    // The runtime has confined it and told systemd so, as its configuration says.
    if start.reservation.is_some() && found.has_cpus(&claim.cpus) {
        return Ok(claim);
    }
    let mems = Some(&claim.mems).filter(|mems| !mems.is_empty());
    match systemd::tell(host, unit, &claim.cpus, mems, at_most(TOLD, site.deadline)) {
        Ok(false) => Ok(claim),
        told => site.open_books(hierarchy)?.agree(&claim, group, unit, told),
    }
}

impl Books<'_> {
    /// While systemd was told of a claim's CPUs, others had the lock: what it knows now is to be
    /// what the claim says now.
    pub(crate) fn agree(
        &self,
        claim: &Claim,
        group: &Group,
        unit: &Group,
        told: Result<bool>,
    ) -> Result<Claim> {
        let Some(now) = self.current(claim)? else {
            if let Err(error) = self.untell(claim, unit, None) {
                log::warn!("{error:#}");
            }
            bail!(Refusal::new(
                "it was released while it started",
                "start it again"
            ));
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

    /// Settles older claims that this start proves dead, or that are of the same id; returns what
    /// there is of this very start already.
    fn prepare(&self, start: &Start<'_>, new_owner: &NewOwner<'_>) -> Result<Prior> {
        let process = new_owner.process;
        if let Confinement::Own(group) = &new_owner.place {
            self.evict_stale(group, process)?;
        }
        let mut standing = Prior::default();
        for entry in self.ledger.of_id(start.id)? {
            match entry {
                Entry::Claim(claim) if claim.boot_id == self.boot_id && claim.owner == process => {
                    standing.pinned = Some(*claim);
                }
                // Whoever made it may have gone meanwhile (crun run --detach): nobody else has had
                // the lists since.
                Entry::Claim(claim)
                    if claim.boot_id == self.boot_id
                        && claim.nonce.is_some()
                        && claim.nonce.as_deref() == start.reservation =>
                {
                    standing.reserved = Some(*claim);
                }
                Entry::Claim(claim) if claim.awaited.is_some() => {
                    self.end_reservation(&claim, new_owner)?;
                }
                Entry::Claim(claim) => self.free_earlier_if_dead(&claim),
                Entry::Unreadable(one) => log::warn!("{one}"),
            }
        }
        Ok(standing)
    }

    /// Frees what was claimed for a group by an owner that is not in it any more. A runtime that
    /// was killed leaves a group with our mask in it, and the next container of that path inherits
    /// both. This process is alone in it: whoever had it before is gone.
    fn evict_stale(&self, group: &Group, process: Process) -> Result<()> {
        let Some(inode) = group.inode()? else {
            return Ok(());
        };
        match self.ledger.on_cgroup(inode) {
            Some(Entry::Claim(claim))
                if claim.owner != process && self.life_of(&claim)? != Life::Recorded =>
            {
                log::info!("{} left its cgroup {} behind", claim.shown(), group.path());
                self.evict(&claim)
            }
            Some(Entry::Unreadable(one)) => bail!(one.of_a_group().refusal()),
            _ => Ok(()),
        }
    }

    /// An earlier start's. Its runtime may have left the confined group that this process, alone,
    /// is in now; anything else about it is not the trouble of the one that starts.
    fn end_reservation(&self, claim: &Claim, new_owner: &NewOwner<'_>) -> Result<()> {
        let is_own = matches!(new_owner.place, Confinement::Own(_));
        match self.free_or_refresh(claim) {
            Ok(Settled::Held(kept)) if is_own && kept.processes == [new_owner.process] => {
                self.evict(&kept)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                warn_held(claim, &error);
                Ok(())
            }
        }
    }

    /// The hook ran for this process before: an engine runs `prestart` as `createRuntime` too, or
    /// killed the first.
    fn confirm(
        &self,
        mut claim: Claim,
        reserved: Option<&Claim>,
        request: &Request,
        place: &Confinement,
    ) -> Result<Claim> {
        ensure_same_request(&claim, request)?;
        let group = self.group_of(&claim)?;
        ensure!(
            group.is_some_and(|(group, _)| group.path() == place.group().path()),
            Refusal::new(
                "it was pinned in another cgroup a moment ago",
                "let one tool move it"
            )
        );
        let done = self
            .record_again(&claim, reserved)
            .and_then(|()| self.confine(&claim, place))
            .and_then(|()| self.isolation_now(&claim.pool))
            .and_then(|isolation| self.keep_off(&mut claim, isolation));
        self.undo_on_error(done, &claim)?;
        Ok(claim)
    }

    /// Makes sure of a record, and that nobody holds its lists for it any more.
    fn record_again(&self, claim: &Claim, instead_of: Option<&Claim>) -> Result<()> {
        let before = instead_of.map(Claim::pids).unwrap_or_default();
        self.record_instead_of(&before, claim)?;
        instead_of.map_or(Ok(()), |former| self.ledger.remove(former))
    }

    /// Gives a container what was reserved for it: the group that the runtime has confined already
    /// goes back to what its parents allow, should it outlive the container.
    fn hand_over(
        &self,
        reservation: &Claim,
        request: &Request,
        new_owner: &NewOwner<'_>,
    ) -> Result<Claim> {
        ensure_same_request(reservation, request)?;
        let before = match &new_owner.place {
            Confinement::Own(group) => cpuset::inherited(group)?,
            other => cpuset::masks(other.group())?.unwrap_or_default(),
        };
        let share = Grant {
            pool: reservation.pool.clone(),
            lists: reservation.lists.clone(),
            cpus: reservation.cpus.clone(),
            mems: reservation.mems.clone(),
            isolation: reservation.isolation,
        };
        self.grant(new_owner, share, before, Some(reservation))
    }
}

/// A container is asked about more than once where more than one hook is run for it: each has to
/// ask for the same.
fn ensure_same_request(claim: &Claim, request: &Request) -> Result<()> {
    let agrees = match request.size {
        Size::Lists(lists) => claim.lists.len() == lists,
        Size::Cpus(cpus) => claim.cpus.len() >= cpus,
    };
    ensure!(
        claim.pool == request.pool && agrees,
        Refusal::new(
            format!(
                "it has {} of pool {} since a moment ago, and now {} of pool {} asked for",
                claim.cpus, claim.pool, request.size, request.pool
            ),
            "ask once"
        )
    );
    Ok(())
}
