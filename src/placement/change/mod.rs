//! Making and changing pools.

/// Makes the pools that the configuration declares.
pub(super) mod apply;
/// Gives owners the CPUs that their shared list grows by.
pub(super) mod follow;
/// Makes the first pools.
pub(super) mod init;
/// Finds a pool that could give up cores.
pub(super) mod room;
/// Adds, removes and resizes pools.
pub(super) mod steps;
/// Finds the cores that pools are cut from.
pub(super) mod stock;
