//! Reserving CPUs for a container that a runtime is about to make, under our own process, which
//! becomes that runtime.

use anyhow::{Context, Result};

use crate::cgroup::of_config::Expected;
use crate::cgroup::{Group, cpuset};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::names::Names;
use crate::placement::again::Recalled;
use crate::placement::start::pick::Demand;
use crate::placement::{Books, Site};
use crate::process::{self, Process};
use crate::request::Request;

/// Reserves what a container asks for until its createRuntime hook takes it over or this process
/// ends. The hook identifies the reservation by the claim's nonce. `expected` is the cgroup that
/// the runtime will make, if known: the groups above it limit the CPUs.
///
/// # Errors
/// As [`crate::placement::pin_container`].
pub fn reserve(
    site: &Site,
    id: &str,
    mut names: Names,
    expected: Option<Expected>,
    request: &Request,
) -> Result<Claim> {
    let host = &site.host;
    let pid = std::process::id() as i32;
    let process = Process::with_pid(host, pid)?.context("/proc does not show this process")?;
    let hierarchy = cpuset::hierarchy(host)?;
    let group = match &expected {
        Some(expected) => hierarchy.group(&expected.path)?,
        None => hierarchy.parent_of_ours()?,
    };
    // A path that cannot be looked at now could not be looked at later, to tell who is alive.
    cpuset::effective_cpus(&group)?;
    let recalled = match request.by_default {
        true => Recalled::default(),
        false => site.recall(&names, id),
    };
    let demand = Demand::of(host, request)?.with_former(recalled.lists_of(&request.pool));
    let nonce = process::nonce(host)?;

    let books = site.open_books(hierarchy)?;
    books.free_earlier_of(id)?;
    let grant = books.pick_grant(&demand, &cpuset::bound(&group)?)?;
    let (isolation, tuning) = (grant.isolation, grant.tuning.clone());
    let mut claim = books.claim(OwnerKind::Reservation, id, process, grant);
    claim.isolation = isolation;
    claim.tuning = tuning;
    claim.nonce = Some(nonce);
    names.add_unit_of(group.path());
    claim.names = names;
    if expected.is_some_and(|expected| expected.is_exact) && is_fresh(&group)? {
        claim.awaited = Some(group.path().to_owned());
    }
    if let Err(error) = books.record(&claim, None) {
        if let Err(undo) = books.drop_record(&claim) {
            log::error!("undo the reservation of {id}: {undo:#}");
        }
        return Err(error);
    }
    drop(books);
    recalled.keep(&claim);
    Ok(claim)
}

/// Is a group unused? A group that another container runs in, or that somebody confined, does not
/// identify ours.
fn is_fresh(group: &Group) -> Result<bool> {
    let masks = cpuset::masks(group)?.unwrap_or_default();
    Ok(!group.is_populated()? && cpuset::chosen_cpus(group, &masks)?.is_none())
}

/// Frees a reservation when no runtime will be run.
///
/// # Errors
/// The books cannot be opened or written. The reservation is then freed after this process has
/// ended.
pub fn cancel_reservation(site: &Site, reservation: &Claim) -> Result<()> {
    let books = site.open_books(cpuset::hierarchy(&site.host)?)?;
    books.drop_record(reservation)
}

impl Books<'_> {
    /// Frees what dead containers of this id held, and dead reservations of it.
    fn free_earlier_of(&self, id: &str) -> Result<()> {
        for entry in self.ledger.of_id(id)? {
            if let Entry::Claim(claim) = entry {
                self.free_earlier_if_dead(&claim);
            }
        }
        Ok(())
    }
}
