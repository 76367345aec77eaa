//! Making and changing pools.

/// The pools that the configuration declares.
pub(super) mod apply;
/// Owners of a shared list that grows.
pub(super) mod follow;
/// The first pools.
pub(super) mod init;
/// Which pool could give up cores.
pub(super) mod room;
/// Adding, removing, resizing.
pub(super) mod steps;
/// The cores that pools are cut from.
pub(super) mod stock;
