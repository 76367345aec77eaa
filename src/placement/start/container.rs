//! Pinning a container: all that the hook does at its start.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, Hierarchy, systemd};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::names::Names;
use crate::outside::Outside;
use crate::placement::again::Recalled;
use crate::placement::end::{Settled, warn_held};
use crate::placement::life::Life;
use crate::placement::start::exact::asks_for_more;
use crate::placement::start::give::{Confinement, Grant, NewOwner, gone};
use crate::placement::start::pick::Demand;
use crate::placement::{Books, Site, at_most};
use crate::process::Process;
use crate::refusal::Refusal;
use crate::request::{Request, Size};

/// How long systemd may take while the lock is free: it can be busy with many starts.
pub(crate) const TOLD: Duration = Duration::from_secs(15);

/// A container that starts.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// Its id.
    pub id: &'a str,
    /// The names that people use for it. A reservation's names take their place.
    pub names: Names,
    /// Its first process, which waits for us.
    pub pid: i32,
    /// The nonce of the reservation that [`crate::placement::reserve`] made for it, if any.
    pub reservation: Option<&'a str>,
}

/// What the ledger already has of a container that starts.
#[derive(Default)]
struct Prior {
    /// Its claim: the hook already ran for this process.
    pinned: Option<Claim>,
    /// Its reservation, if not yet wholly replaced by its claim.
    reserved: Option<Claim>,
}

/// Gives a container the CPUs that it asks for, or that were reserved for it, and confines it to
/// them before its first instruction. Can be repeated. Returns `None` where it asks for nothing and
/// somebody else has chosen CPUs for it: it is left as it is.
///
/// # Errors
/// The request cannot be met; the reservation is gone; something about the host, the pool directory
/// or the claims cannot be used or trusted. Nothing stays changed then.
pub fn pin_container(site: &Site, start: Start<'_>, request: &Request) -> Result<Option<Claim>> {
    // `reserve` already remembered the lists of a reservation. Who asks for nothing has no lists to
    // come back to, and whoever asks for exact lists gets no others.
    let recalled = match (start.reservation, &request.exact) {
        (None, None) if !request.by_default => site.recall(&start.names, start.id),
        _ => Recalled::default(),
    };
    let claim = pin(site, start, request, recalled.lists_of(&request.pool))?;
    if let Some(claim) = &claim {
        recalled.keep(claim);
    }
    Ok(claim)
}

fn pin(
    site: &Site,
    mut start: Start<'_>,
    request: &Request,
    former: &[String],
) -> Result<Option<Claim>> {
    let host = &site.host;
    let pid = start.pid;
    let process = Process::with_pid(host, pid)?.with_context(|| gone(pid))?;
    let hierarchy = cpuset::hierarchy(host)?;
    let group = hierarchy.group_of(host, pid)?.with_context(|| gone(pid))?;
    let demand = Demand::of(host, request)?.with_former(former);
    start.names.add_unit_of(group.path());

    let books = site.open_books(hierarchy.clone())?;
    ensure!(process.is_alive(host)?, gone(pid));
    // A group is the container's own if it and the groups below it hold the first process and
    // nobody else, us included.
    let place = if group.is_of(pid)? {
        Confinement::Own(group)
    } else {
        ensure!(
            !request.by_default,
            Refusal::new(
                "it has no cgroup of its own, and is not moved out of where it was put",
                "have its engine make it one, or ask for a pool"
            )
        );
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
    let Prior {
        mut pinned,
        reserved,
    } = books.prepare(&start, &new_owner)?;
    // Another hook, of a device or an engine, asks for it or does not.
    match &pinned {
        Some(claim) if request.by_default && !claim.by_default => return Ok(pinned),
        Some(claim) if claim.by_default && !request.by_default => {
            books.evict(claim)?;
            pinned = None;
        }
        // What was reserved for it is gone, and the CPUs that it has are those.
        None if request.by_default && reserved.is_none() && start.reservation.is_none() => {
            let masks = cpuset::masks(group)?.unwrap_or_default();
            if cpuset::chosen_cpus(group, &masks)?.is_some() {
                return Ok(None);
            }
        }
        _ => {}
    }
    let before = pinned.clone().filter(|claim| asks_for_more(claim, request));
    let scope = match pinned.as_ref().or(reserved.as_ref()) {
        Some(claim) => cpuset::scope_in_the_way(group, &claim.cpus)?,
        None => None,
    };
    // The group that systemd may have a unit for.
    let unit = scope.as_ref().unwrap_or(group);
    let found = match start.reservation {
        Some(_) => cpuset::masks(unit)?.unwrap_or_default(),
        None => Masks::default(),
    };
    let claim = match (pinned, reserved) {
        (Some(claim), _) if before.is_some() => {
            books.give_more(&claim, &demand, &new_owner.place)?
        }
        (Some(claim), reserved) => {
            books.confirm(claim, reserved.as_ref(), request, &new_owner.place)?
        }
        (None, Some(reservation)) => books.adopt_reservation(&reservation, request, &new_owner)?,
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
    // systemd can be slow: others get the lock meanwhile.
    drop(books);
    if claim.tuning.quota_lifted {
        lift_quota_in_systemd(site, &hierarchy, &claim);
    }
    // The runtime has confined the container and told systemd, as the configuration asks.
    if start.reservation.is_some() && found.has_cpus(&claim.cpus) {
        return Ok(Some(claim));
    }
    let mems = claim.mems.as_ref();
    match systemd::tell(host, unit, &claim.cpus, mems, at_most(TOLD, site.deadline)) {
        Ok(false) => Ok(Some(claim)),
        told => {
            let books = site.open_books(hierarchy)?;
            let before = before.as_ref();
            let now = books.recheck_after_systemd(&claim, before, group, unit, told);
            now.map(Some)
        }
    }
}

/// Has systemd know that the limits of CPU time of an owner's own groups are lifted: it would write
/// them again when it is told of CPUs.
fn lift_quota_in_systemd(site: &Site, hierarchy: &Hierarchy, claim: &Claim) {
    let Some(group) = &claim.cgroup else {
        return;
    };
    let patience = at_most(TOLD, site.deadline);
    let outside = Outside {
        host: &site.host,
        hierarchy,
        patience,
        claims: None,
    };
    // The start does without, as it does where nothing can be lifted.
    if let Err(error) = outside.lift_in_systemd(group.inode, patience) {
        log::warn!("{error:#}");
    }
}

impl Books<'_> {
    /// Makes systemd and the kernel agree with the claim as it is now: while systemd was told of
    /// `claim`, others had the lock and may have changed it. Takes the start back if `told` is an
    /// error, or what was added to the claim that was there `before`.
    pub(crate) fn recheck_after_systemd(
        &self,
        claim: &Claim,
        before: Option<&Claim>,
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
            self.set_cpus(group, &now.cpus, now.mems.as_ref())
        });
        match before.filter(|before| before.lists.iter().all(|list| now.lists.contains(list))) {
            Some(before) => self.narrow_on_error(agreed, before, &now)?,
            None => self.undo_on_error(agreed, &now)?,
        }
        Ok(now)
    }

    /// Frees older claims that this start proves dead, and dead ones of its id. Returns what the
    /// ledger already has of this start.
    fn prepare(&self, start: &Start<'_>, new_owner: &NewOwner<'_>) -> Result<Prior> {
        let process = new_owner.process;
        if let Confinement::Own(group) = &new_owner.place {
            self.evict_stale(group, process)?;
        }
        let mut prior = Prior::default();
        for entry in self.ledger.of_id(start.id)? {
            match entry {
                Entry::Claim(claim) if claim.boot_id == self.boot_id && claim.owner == process => {
                    prior.pinned = Some(*claim);
                }
                // Valid even if the process that reserved is gone (crun run --detach): nobody else
                // has had the lists since.
                Entry::Claim(claim)
                    if claim.boot_id == self.boot_id
                        && claim.nonce.is_some()
                        && claim.nonce.as_deref() == start.reservation =>
                {
                    prior.reserved = Some(*claim);
                }
                Entry::Claim(claim) if claim.awaited.is_some() => {
                    self.end_reservation(&claim, new_owner)?;
                }
                Entry::Claim(claim) => self.free_earlier_if_dead(&claim),
                Entry::Unreadable(one) => log::warn!("{one}"),
            }
        }
        Ok(prior)
    }

    /// Frees a claim on the group of a container that starts, unless a recorded process of it
    /// lives. A killed runtime leaves its group with our mask, and the next container of that path
    /// gets both. `process` is alone in the group, so its former owner has ended.
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

    /// Frees an earlier start's reservation if it is dead, or if its only survivor is the new
    /// owner, in the group that the earlier runtime confined and left. An error is a warning, as it
    /// must not fail the start.
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

    /// Makes sure of a start that the hook already ran for: an engine runs `prestart` also as
    /// `createRuntime`, or killed the first hook.
    fn confirm(
        &self,
        mut claim: Claim,
        reserved: Option<&Claim>,
        request: &Request,
        place: &Confinement,
    ) -> Result<Claim> {
        ensure_same_request(&claim, request)?;
        self.ensure_same_group(&claim, place)?;
        let done = self
            .record_again(&claim, reserved)
            .and_then(|()| self.confine(&claim, place))
            .and_then(|()| self.isolation_now(&claim.pool))
            .and_then(|isolation| self.keep_off(&mut claim, isolation));
        self.undo_on_error(done, &claim)?;
        let tuning = claim.tuning.clone();
        self.tune(&mut claim, &tuning);
        Ok(claim)
    }

    /// Refuses a container that is in another group than its claim says.
    pub(crate) fn ensure_same_group(&self, claim: &Claim, place: &Confinement) -> Result<()> {
        let group = self.group_of(claim)?;
        ensure!(
            group.is_some_and(|(group, _)| group.path() == place.group().path()),
            Refusal::new(
                "it was pinned in another cgroup a moment ago",
                "let one tool move it"
            )
        );
        Ok(())
    }

    /// Makes sure that `tasks` names the claim, and removes the claim that it replaces.
    fn record_again(&self, claim: &Claim, instead_of: Option<&Claim>) -> Result<()> {
        let before = instead_of.map(Claim::pids).unwrap_or_default();
        self.record_instead_of(&before, claim)?;
        instead_of.map_or(Ok(()), |former| self.ledger.remove(former))
    }

    /// Replaces a reservation by the container's claim. The runtime has already confined the group:
    /// if that outlives the container it is restored to what its parents allow.
    fn adopt_reservation(
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
        let grant = Grant {
            pool: reservation.pool.clone(),
            lists: reservation.lists.clone(),
            is_exact: reservation.is_exact,
            cpus: reservation.cpus.clone(),
            mems: reservation.mems.clone(),
            isolation: reservation.isolation,
            tuning: reservation.tuning.clone(),
            by_default: reservation.by_default,
        };
        self.grant(new_owner, grant, before, Some(reservation))
    }
}

/// Refuses a request that differs from what the container has: with more than one hook it is asked
/// for more than once.
fn ensure_same_request(claim: &Claim, request: &Request) -> Result<()> {
    let agrees = match (&request.exact, request.size) {
        (Some(cpus), _) if claim.is_exact => cpus.is_subset(&claim.cpus),
        (Some(cpus), _) => *cpus == claim.cpus,
        // An annotation that says no more than the devices do.
        (None, _) if claim.is_exact => request.is_plain(),
        (None, Size::Lists(lists)) => claim.lists.len() == lists,
        (None, Size::Cpus(cpus)) => claim.cpus.len() >= cpus,
    };
    let asked = match &request.exact {
        Some(cpus) => format!("the CPU list {cpus}"),
        None => request.size.to_string(),
    };
    let remedy = match claim.is_exact && request.exact.is_some() {
        true => "give it devices of one pool",
        false => "ask once",
    };
    ensure!(
        claim.pool == request.pool && agrees,
        Refusal::new(
            format!(
                "it has {} of pool {} since a moment ago, and now {asked} of pool {} asked for",
                claim.cpus, claim.pool, request.pool
            ),
            remedy
        )
    );
    Ok(())
}
