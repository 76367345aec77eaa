//! Looking: who owns what, whether that is true, and why a request can or cannot be met. Nothing
//! here changes anything.

/// Are the claims true.
pub(super) mod audit;
/// Who else was given the CPUs of a pool.
pub(super) mod beside;
/// Why a request can or cannot be met.
pub(super) mod explain;
/// Which owner somebody means.
pub(super) mod find;
/// Can a survey be out of date.
pub(super) mod seen;
/// Who owns what.
pub(super) mod survey;
/// Who asks and has no claim.
pub(super) mod unpinned;
