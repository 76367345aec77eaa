//! The container engines: runc and crun called directly, and podman with either, with either cgroup
//! driver.

use crate::case::{Columns, Means};
use crate::cgroups;
use crate::needs::{self, Need};
use crate::world::World;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    Direct,
    Podman,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    Runc,
    Crun,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

/// The way in which a container's request comes to pinfold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Hooks in the container's configuration, from wherever the engine takes them.
    Hooks,
    /// The shim, as the engine's runtime.
    Shim,
    /// A CDI device.
    Cdi,
    /// Hooks that our NRI plugin adds.
    Nri,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Engine {
    pub(crate) front: Front,
    pub(crate) runtime: Runtime,
    pub(crate) driver: Driver,
    pub(crate) door: Door,
}

impl Engine {
    pub(crate) fn direct() -> Vec<Engine> {
        Engine::of(&[Front::Direct])
    }

    pub(crate) fn podman() -> Vec<Engine> {
        Engine::of(&[Front::Podman])
    }

    pub(crate) fn all() -> Vec<Engine> {
        Engine::of(&[Front::Direct, Front::Podman])
    }

    /// The same engines, where a request comes in by another door.
    pub(crate) fn by(door: Door, engines: Vec<Engine>) -> Vec<Engine> {
        let by = |engine| Engine { door, ..engine };
        engines.into_iter().map(by).collect()
    }

    fn of(fronts: &[Front]) -> Vec<Engine> {
        let mut engines = Vec::new();
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            for &front in fronts {
                engines.extend([Runtime::Runc, Runtime::Crun].map(|runtime| Engine {
                    front,
                    runtime,
                    driver,
                    door: Door::Hooks,
                }));
            }
        }
        engines
    }
}

impl Means for Engine {
    fn needs(self) -> Vec<Need> {
        let mut needs = vec![Need::Root, self.runtime.need()];
        needs.extend((self.front == Front::Podman).then_some(Need::Podman));
        needs.extend((self.driver == Driver::Systemd).then_some(Need::Systemd));
        needs
    }

    fn columns(self) -> Columns {
        Columns {
            engine: match self.front {
                Front::Direct => "direct",
                Front::Podman => "podman",
            },
            runtime: self.runtime.name(),
            door: self.door.name(),
            driver: self.driver.name(),
        }
    }
}

impl Door {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Door::Hooks => "hooks",
            Door::Shim => "shim",
            Door::Cdi => "cdi",
            Door::Nri => "nri",
        }
    }
}

impl Runtime {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
        }
    }

    pub(crate) fn need(self) -> Need {
        match self {
            Runtime::Runc => Need::Runc,
            Runtime::Crun => Need::Crun,
        }
    }
}

impl Driver {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }

    /// A cgroup or slice of this name below that of a world.
    pub(crate) fn below(self, world: &World, name: &str) -> String {
        match self {
            Driver::Cgroupfs => format!("/{}/{name}", world.tag),
            Driver::Systemd => format!("{}-{name}.slice", world.tag),
        }
    }

    /// The cgroup or slice that is above all containers of a world.
    pub(crate) fn parent(self, world: &World) -> String {
        match self {
            Driver::Cgroupfs => format!("/{}", world.tag),
            Driver::Systemd => format!("{}.slice", world.tag),
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let front = if self.front == Front::Podman {
            "podman-"
        } else {
            ""
        };
        write!(f, "{front}{}-{}", self.runtime.name(), self.driver.name())
    }
}

/// The runtime, by a way in which it works here. On a hybrid host crun wants a mount namespace in
/// which the unified hierarchy is out of its sight; the wrapper keeps the file name, by which
/// podman knows what a runtime can do.
pub(crate) fn runtime_path(world: &World, runtime: Runtime) -> PathBuf {
    let found = needs::find(runtime.name()).expect("the runtime is installed");
    match cgroups::unified_in_the_way() {
        Some(unified) if runtime == Runtime::Crun => {
            wrapper(&world.dir.join("bin"), &found, &unified)
        }
        _ => found,
    }
}

fn wrapper(dir: &Path, crun: &Path, unified: &Path) -> PathBuf {
    let path = dir.join("crun");
    if !path.exists() {
        let (crun, unified) = (crun.display(), unified.display());
        let script = format!(
            "#!/bin/sh\nexec unshare -m sh -c 'umount {unified} && exec {crun} \"$@\"' crun \"$@\"\n"
        );
        std::fs::create_dir(dir).expect("make a directory for the wrapper");
        std::fs::write(&path, script).expect("write the wrapper");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
            .expect("chmod the wrapper");
    }
    path
}
