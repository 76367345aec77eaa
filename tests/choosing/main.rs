//! Topologies of many machines, and what is chosen on them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

mod kubelet;
mod machines;
mod odd;
mod plans;
mod pool;
mod properties;
mod reading;
mod tables;
