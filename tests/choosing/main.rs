//! Topologies of many machines, what is chosen on them, and how they are drawn.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

mod answers;
mod kubelet;
mod machines;
mod odd;
mod pictures;
mod plans;
mod pool;
mod properties;
mod reading;
mod tables;
