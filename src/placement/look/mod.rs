//! Looking at who owns what, whether that is true, and why a request can or cannot be met. Nothing
//! here changes anything.

/// Checks whether the claims are true.
pub(super) mod audit;
/// Finds who else was given CPUs of a pool.
pub(super) mod beside;
/// Tells of each CPU list what somebody who hands out single lists has to know.
pub(super) mod devices;
/// Explains what a request would get.
pub(super) mod explain;
/// Finds the owner that somebody means.
pub(super) mod find;
/// Tells whether a survey may be out of date.
pub(super) mod seen;
/// Finds who owns what.
pub(super) mod survey;
/// Finds containers that ask for CPUs and have none.
pub(super) mod unpinned;
