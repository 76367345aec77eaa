//! Starting an owner: CPU lists are picked, recorded, and the owner is confined to them.

/// A command, as `isolate` runs one.
pub(super) mod command;
/// A container: by its hook, or with what the shim reserved for it.
pub(super) mod container;
/// Record, confine, verify.
pub(super) mod give;
/// Which lists: reads the pool, and calls `choose`.
pub(super) mod pick;
/// A reservation of the shim.
pub(super) mod reserve;
