//! The runtime that an engine uses by default, for which `pinfold-runtime` stands in.

use std::path::PathBuf;

use anyhow::Result;

use super::{Place, containerd_configuration, crio_files, daemon_json, podman_files};
use crate::engines::containerd::runtime_without_ours;
use crate::engines::{Engine, SHIM, docker};
use crate::files;
use crate::host::Host;

/// The default runtime in an engine's files, ours left out; else the engine's built-in one. `None`
/// if that program is not there.
///
/// # Errors
/// The files cannot be read, or are not in the engine's form.
pub fn default_runtime(place: &Place<'_>, engine: Engine) -> Result<Option<PathBuf>> {
    let named = match engine {
        Engine::Podman => podman_files(place)?.all.runtimes_without_ours(),
        Engine::Crio => {
            let files = crio_files(place)?;
            let named = files.all.runtime_without_ours();
            named.map(str::to_owned).into_iter().collect()
        }
        Engine::Containerd => {
            let configuration = containerd_configuration(place)?;
            runtime_without_ours(&configuration.files)
                .into_iter()
                .collect()
        }
        Engine::Docker => {
            let (_, text) = daemon_json(place)?;
            vec![docker::runtime_without_ours(&text)?]
        }
    };
    Ok(named.iter().find_map(|name| program(place.host, name)))
}

/// A program by its path or its name, if it exists and is not the shim.
fn program(host: &Host, named: &str) -> Option<PathBuf> {
    if !named.contains('/') {
        return host.program(named);
    }
    let real = host.resolve(named).ok()?;
    let is_ours = real
        .file_name()
        .is_some_and(|name| name == SHIM || name == "pinfold");
    let is_gone = real.metadata().is_err_and(|error| files::is_gone(&error));
    (!is_ours && !is_gone).then(|| host.path(named))
}
