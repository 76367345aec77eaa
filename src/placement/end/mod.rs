//! Ending an owner: its group is restored, and its CPU lists are freed.
//!
//! The verbs tell whom they act on. `free_…` frees the dead alone, and reads who is alive first;
//! `reap_…` does so list by list. `evict…` frees a claim whose owner has ended, whoever is in its
//! group by now. `force_free` frees it whether its owner lives or not, which `release --force` asks
//! for. `undo_start` takes a start back that failed. All of them go through `take_back`, which says
//! in which order things are undone, and why.

/// What dead owners hold, claim by claim and list by list.
pub(super) mod reap;
/// Everything, everywhere.
pub(super) mod reconcile;
/// By id: of those who ended, or by force.
pub(super) mod release;
/// What is undone, and in which order.
pub(super) mod take_back;
/// A claim that cannot be read.
pub(super) mod unreadable;

use anyhow::Error;

use crate::claims::Claim;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fate {
    /// Its owner was dead; its lists are free.
    Freed,
    /// Somebody of its owner's lives, and holds them.
    Held,
}

/// What became of a claim that was brought up to date.
#[must_use]
pub(crate) enum Settled {
    /// Its owner was dead; its lists are free.
    Freed,
    /// Somebody of its owner's lives; the claim as it is now.
    Held(Box<Claim>),
}

/// Says that a claim stays because something fails that its end needs, or that cannot be told.
pub(crate) fn warn_held(claim: &Claim, error: &Error) {
    log::warn!("{} counts as held: {error:#}", claim.shown());
}
