//! The configuration files of container engines. Pure: text in and text out. `install` knows where
//! they are, and writes them.

pub mod cdi;
pub mod containerd;
pub mod crio;
pub mod docker;
pub mod hooks;
pub mod nri;
pub mod podman;
mod toml_text;

/// The name by which engines know the shim: a handler of containerd and CRI-O, a runtime of docker
/// and podman.
pub const RUNTIME: &str = "pinfold";

/// The shim's file name. It is the same program as `pinfold`, which acts by the name by which it is
/// called.
pub const SHIM: &str = "pinfold-runtime";

/// Is this program, given by its path or name, the shim? A runtime called [`RUNTIME`] need not be
/// ours.
pub fn is_shim(program: &str) -> bool {
    program.rsplit('/').next() == Some(SHIM)
}

/// The annotations that an engine is to pass on to a container, as a glob of containerd's (Go:
/// `path.Match`).
pub const ANNOTATIONS: &str = "pinfold.io/*";

/// A container engine that can be made to use Pinfold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// podman.
    Podman,
    /// CRI-O.
    Crio,
    /// containerd, for its CRI plugin.
    Containerd,
    /// docker.
    Docker,
}

impl Engine {
    /// All engines, in the order in which they are shown.
    pub const ALL: [Engine; 4] = [
        Engine::Podman,
        Engine::Crio,
        Engine::Containerd,
        Engine::Docker,
    ];

    /// The word for it on the command line and in a hook's arguments.
    pub fn word(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Crio => "crio",
            Engine::Containerd => "containerd",
            Engine::Docker => "docker",
        }
    }

    /// The engine with this word.
    pub fn by_word(word: &str) -> Option<Engine> {
        Engine::ALL.into_iter().find(|engine| engine.word() == word)
    }

    /// The file name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Engine::Docker => "dockerd",
            other => other.word(),
        }
    }

    /// The service that has to be restarted before a change of its configuration takes effect;
    /// `None` for podman, which reads it at each start.
    pub fn service(self) -> Option<&'static str> {
        match self {
            Engine::Podman => None,
            other => Some(other.word()),
        }
    }
}

/// The paths of our two programs, as an engine sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `pinfold`, which hooks run.
    pub pinfold: String,
    /// `pinfold-runtime`, which stands in for a runtime; `None` if it is missing.
    pub shim: Option<String>,
}
