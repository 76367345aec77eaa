//! The runtime that `pinfold-runtime` becomes: which one, whether it can run our hooks, and which
//! one made a container.

mod features;
mod maker;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::config::RuntimeTable;
use crate::files;
use crate::host::Host;
use crate::refusal::{OrRefuse, Refusal};

/// The default runtimes: the first that is installed.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Runtimes whose containers have no host process that our hooks could confine, whatever their
/// features say: the file name and why (gVisor: runsc/container/container.go; Kata Containers:
/// src/runtime/pkg/katautils/hook.go; railcar: oci/src/lib.rs).
const UNFIT: [(&str, &str); 4] = [
    (
        "runsc",
        "gives hooks the process of a sandbox, which all containers of a pod share",
    ),
    ("kata-runtime", "gives hooks the process of a hypervisor"),
    (
        "containerd-shim-kata-v2",
        "gives hooks the process of a hypervisor",
    ),
    ("railcar", "runs no createRuntime hooks"),
];

const NAME_ANOTHER: &str = "name runc or crun as runtime.path in Pinfold's configuration";

/// An OCI runtime, named by the path that is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime(PathBuf);

impl Runtime {
    /// Finds the runtime: the configured one; else `default`, the engine's own; else the first of
    /// the default ones that is installed.
    ///
    /// # Errors
    /// The runtime is not there or not allowed, others can change it, or it is this program.
    pub fn find(
        host: &Host,
        table: &RuntimeTable,
        default: impl FnOnce() -> Option<PathBuf>,
    ) -> Result<Runtime> {
        let path = match (&table.path, &table.allow) {
            (Some(path), Some(allow)) => allowed(path, allow)?,
            (Some(path), None) => path.clone(),
            (None, Some(allow)) => first_there(allow)?,
            (None, None) => {
                let known =
                    default().or_else(|| RUNTIMES.iter().find_map(|name| host.program(name)));
                known.ok_or_else(|| {
                    Refusal::new(
                        format!("there is no {}", RUNTIMES.join(" and no ")),
                        "install one, or name it as runtime.path in Pinfold's configuration",
                    )
                })?
            }
        };
        let real = path.canonicalize().or_refuse(|| {
            Refusal::new(
                format!("look at the runtime {}", path.display()),
                "install it, or name another as runtime.path in Pinfold's configuration",
            )
        })?;
        files::trusted_of_machine(&real, || host.unknown_root())?;
        is_not_us(&real)?;
        Ok(Runtime(path))
    }

    /// The path that is executed.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Refuses a runtime whose hooks see no process of the container, whatever its features say.
    pub fn ensure_fit(&self) -> Result<()> {
        let real = self.real()?;
        for path in [&self.0, &real] {
            let unfit = UNFIT
                .iter()
                .find(|(name, _)| path.file_name() == Some(OsStr::new(name)));
            if let Some((name, reason)) = unfit {
                bail!(Refusal::new(
                    format!("the runtime {name} {reason}"),
                    NAME_ANOTHER
                ));
            }
        }
        Ok(())
    }

    fn real(&self) -> Result<PathBuf> {
        let real = self.0.canonicalize();
        real.with_context(|| format!("look at the runtime {}", self.0.display()))
    }
}

fn allowed(path: &Path, allow: &[PathBuf]) -> Result<PathBuf> {
    ensure!(
        allow.iter().any(|allowed| allowed == path),
        Refusal::new(
            format!(
                "the runtime {} is not in runtime.allow of Pinfold's configuration",
                path.display()
            ),
            "add it, or name another as runtime.path"
        )
    );
    Ok(path.to_owned())
}

fn first_there(allow: &[PathBuf]) -> Result<PathBuf> {
    let mut there = None;
    for path in allow {
        let metadata = files::metadata_if_there(path)?;
        if there.is_none() && metadata.is_some_and(|metadata| metadata.is_file()) {
            there = Some(path.clone());
        }
    }
    there.ok_or_else(|| {
        let what = "none of the runtimes in runtime.allow of Pinfold's configuration is there";
        Refusal::new(what, "install one").into()
    })
}

/// Refuses this program as its own runtime: it would execute itself for ever.
fn is_not_us(runtime: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find out where this program is")?;
    if own == runtime {
        bail!(Refusal::new(
            format!("the runtime {} is Pinfold's own", runtime.display()),
            NAME_ANOTHER
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_runtime_that_is_allowed_is_taken() {
        let config = |path: Option<&str>, allow: &[&str]| RuntimeTable {
            path: path.map(PathBuf::from),
            allow: Some(allow.iter().map(PathBuf::from).collect()),
            engine: None,
        };
        let host = Host::new("/");
        for (path, allow, taken) in [
            (Some("/bin/sh"), &["/bin/sh"][..], Ok("/bin/sh")),
            (None, &["/no/such", "/bin/sh"], Ok("/bin/sh")),
            (Some("/bin/sh"), &["/bin/cat"], Err("runtime.allow")),
            (Some("/bin/sh"), &[], Err("runtime.allow")),
            (None, &["/no/such"], Err("runtime.allow")),
        ] {
            match (Runtime::find(&host, &config(path, allow), || None), taken) {
                (Ok(found), Ok(taken)) => assert_eq!(found.path(), Path::new(taken)),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (outcome, _) => panic!("{path:?} of {allow:?}: {outcome:?}"),
            }
        }
    }
}
