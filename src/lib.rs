//! Pinfold gives a container CPUs of its own; `docs/ARCHITECTURE.md` tells the way of one container
//! through these modules.

pub mod auditor;
pub mod bundle;
pub mod caller;
pub mod cgroup;
pub mod check;
pub mod child;
pub mod choose;
pub mod claims;
pub mod cli;
pub mod commands;
pub mod config;
pub mod containers;
pub mod cpulist;
pub mod device;
pub mod engines;
pub mod files;
pub mod host;
pub mod install;
pub mod last_words;
pub mod limits;
pub mod low_level;
pub mod names;
pub mod oci;
pub mod oci_config;
pub mod placement;
pub mod pools;
pub mod process;
pub mod refusal;
pub mod refusals;
pub mod request;
pub mod runtime_line;
pub mod runtime_log;
pub mod system_log;
pub mod text;
pub mod topology;
