//! Ending an owner: its group is restored, and its CPU lists are freed.
//!
//! The verbs tell whom they act on. `free_…` checks who is alive, and frees only what dead owners
//! hold; `reap_…` does so for a whole list. `evict…` frees a claim whose owner ended, whoever is in
//! its group by now. `force_free` frees it even if its owner lives, for `release --force`.
//! `undo_start` takes back a start that failed. All go through `take_back`, which says in which
//! order things are undone, and why.

/// Frees what dead owners hold, by claim and by list.
pub(super) mod reap;
/// Puts a whole site in order.
pub(super) mod reconcile;
/// Ends the owners of one id.
pub(super) mod release;
/// Undoes what was done for one owner.
pub(super) mod take_back;
/// Frees claims that cannot be read.
pub(super) mod unreadable;

use anyhow::Error;

use crate::claims::Claim;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fate {
    /// Its owner was dead; its lists are free.
    Freed,
    /// A process of its owner lives.
    Held,
}

/// What became of a claim that was freed or else refreshed.
#[must_use]
pub(crate) enum Settled {
    /// Its owner was dead; its lists are free.
    Freed,
    /// A process of its owner lives; this is the claim as it is now.
    Held(Box<Claim>),
}

/// Warns that a claim stays held because of an error.
pub(crate) fn warn_held(claim: &Claim, error: &Error) {
    log::warn!("{} counts as held: {error:#}", claim.shown());
}
