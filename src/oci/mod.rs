//! What the OCI runtime specification defines: a container's id, the state that a hook reads, the
//! bundle and its configuration, a runtime's command line, and the runtime itself.

mod bundle;
mod command_line;
mod config;
mod id;
mod pin;
mod runtime;
mod state;

pub use bundle::Bundle;
pub use command_line::{CgroupManager, CommandLine};
pub use config::{Config, STAGES};
pub use id::Id;
pub use pin::Pinning;
pub use runtime::Runtime;
pub use state::{MOST_STATE, State};
