//! The configuration files of container engines: pure, text in and text out. What stands where, and
//! what is written, is for `install`.

pub mod cdi;
pub mod containerd;
pub mod crio;
pub mod docker;
pub mod hooks;
pub mod podman;
mod toml_text;

/// The name under which engines know the shim: a handler of containerd and CRI-O, a runtime of
/// docker and podman.
pub const RUNTIME: &str = "pinfold";

/// The file name of the shim; the same program as `pinfold`, which goes by the name it is called
/// by.
pub const SHIM: &str = "pinfold-runtime";

/// Is this program, by its path or name, the shim? Somebody else can have called a runtime as we
/// do.
pub fn is_shim(program: &str) -> bool {
    program.rsplit('/').next() == Some(SHIM)
}

/// Which annotations an engine is to pass on to a container (path.Match globs of containerd).
pub const ANNOTATIONS: &str = "pinfold.io/*";

/// A container engine that can be told of Pinfold.
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
    /// All of them, in the order they are shown.
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

    /// The engine that this word is for.
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

    /// The service that has to be restarted before a change of its configuration counts; podman
    /// reads it at each start.
    pub fn service(self) -> Option<&'static str> {
        match self {
            Engine::Podman => None,
            other => Some(other.word()),
        }
    }
}

/// Where our two programs lie, as an engine sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `pinfold`, which hooks run.
    pub pinfold: String,
    /// `pinfold-runtime`, which stands in for a runtime, where it is there.
    pub shim: Option<String>,
}
