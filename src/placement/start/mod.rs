//! Starting an owner: CPU lists are picked and recorded, and the owner is confined to them.

/// Starts a command, for `isolate`.
pub(super) mod command;
/// Starts a container, for the hook.
pub(super) mod container;
/// Gives the very list that is asked for, and further ones.
pub(super) mod exact;
/// Records, confines, verifies.
pub(super) mod give;
/// Picks lists: reads the pool and calls `choose`.
pub(super) mod pick;
/// Reserves for a container, for the shim.
pub(super) mod reserve;
