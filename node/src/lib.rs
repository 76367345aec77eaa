//! `pinfold-node` tells a Kubernetes node's kubelet and container engine of Pinfold's CPU lists. It
//! is a program of its own: what every start of a container runs has none of its crates.
//!
//! `docs/ARCHITECTURE.md` has a section on it.

pub mod books;
pub mod cdi;
pub mod cli;
pub mod device_plugin;
pub mod install;
pub mod metrics;
pub mod node_lock;
pub mod nri;
pub mod run;
pub mod said;
pub mod status;
