//! What the cases stand on: worlds, engines, containers, processes, and how a case is run.

pub(crate) mod bundle;
pub(crate) mod case;
pub(crate) mod cgroups;
pub(crate) mod command_line;
pub(crate) mod container;
pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod ctr;
pub(crate) mod daemon;
pub(crate) mod docker;
pub(crate) mod engines;
pub(crate) mod image;
pub(crate) mod needs;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod podman;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod service;
pub(crate) mod site;
pub(crate) mod snapshot;
pub(crate) mod strace;
pub(crate) mod syslog;
pub(crate) mod with_hooks;
pub(crate) mod world;
