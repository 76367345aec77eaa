//! Ending an owner: its group is restored, and its CPU lists are freed.

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
