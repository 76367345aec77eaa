//! The OCI runtime behind `pinfold-runtime`: which one it is, and whether it is fit for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::config::Runtime;
use crate::files;
use crate::host::Host;
use crate::oci_config::STAGES;

/// The runtimes that are taken, the first that is there, where the configuration names none.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Runtimes that make no host process of the container's own for our hooks to confine, whatever their features say; by file
/// name, and why (gVisor: runsc/container/container.go; Kata Containers: src/runtime/pkg/katautils/hook.go; railcar:
/// oci/src/lib.rs).
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

/// The runtime of the configuration, or the first that is there.
pub fn runtime(host: &Host, config: &Runtime) -> Result<PathBuf> {
    let path = match (&config.path, &config.allow) {
        (Some(path), allow) => {
            if let Some(allow) = allow {
                ensure!(
                    allow.contains(path),
                    "the runtime {} is not in runtime.allow of Pinfold's configuration: add it, or name another as runtime.path",
                    path.display()
                );
            }
            path.clone()
        }
        (None, Some(allow)) => {
            let there = allow.iter().find(|path| path.is_file());
            let there = there.context("none of the runtimes in runtime.allow of Pinfold's configuration is there: install one")?;
            there.clone()
        }
        (None, None) => RUNTIMES.iter().find_map(|name| host.program(name)).with_context(|| {
            format!("there is no {}: install one, or name it as runtime.path in Pinfold's configuration", RUNTIMES.join(" and no "))
        })?,
    };
    let real = path.canonicalize().with_context(|| {
        format!("look at the runtime {}: install it, or name another as runtime.path in Pinfold's configuration", path.display())
    })?;
    files::trusted_of_machine(&real, || host.unknown_root())?;
    is_not_us(&real)?;
    Ok(path)
}

/// A runtime that says which hooks it runs (`features`, OCI runtime specification) has to run ours: without them the
/// container would start on any CPUs. Older ones say nothing.
pub fn ensure_runs_our_hooks(runtime: &Path) -> Result<()> {
    let real = runtime
        .canonicalize()
        .with_context(|| format!("look at the runtime {}", runtime.display()))?;
    for path in [runtime, &real] {
        let unfit = UNFIT
            .iter()
            .find(|(name, _)| path.file_name() == Some(OsStr::new(name)));
        if let Some((name, reason)) = unfit {
            bail!(
                "the runtime {name} {reason}: name runc or crun as runtime.path in Pinfold's configuration"
            );
        }
    }
    let said = Command::new(runtime)
        .arg("features")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("execute {}", runtime.display()))?;
    ensure!(
        !said.status.success() || has_our_stages(&said.stdout),
        "the runtime {} runs no createRuntime or no poststop hooks: name runc or crun as runtime.path in Pinfold's configuration",
        runtime.display()
    );
    Ok(())
}

/// Are the stages of our hooks among those that a runtime's features list? What lists none counts as silent.
fn has_our_stages(features: &[u8]) -> bool {
    let features: Value = serde_json::from_slice(features).unwrap_or_default();
    match features["hooks"].as_array() {
        Some(stages) => STAGES
            .iter()
            .all(|ours| stages.iter().any(|stage| stage == ours)),
        None => true,
    }
}

/// A runtime that is this program would call itself for ever.
fn is_not_us(runtime: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find out where this program is")?;
    if own == runtime {
        bail!(
            "the runtime {} is Pinfold's own: name runc or crun as runtime.path",
            runtime.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_lists_hooks_has_to_list_ours() {
        for (features, expected) in [
            (r#"{"hooks":["prestart","createRuntime","poststop"]}"#, true),
            (r#"{"hooks":["prestart","poststop"]}"#, false),
            (r#"{"hooks":[]}"#, false),
            (r#"{"hooks":null}"#, true),
            ("{}", true),
            ("", true),
            ("usage: runtime", true),
        ] {
            assert_eq!(has_our_stages(features.as_bytes()), expected, "{features}");
        }
    }

    #[test]
    fn one_that_is_known_to_be_unfit_is_not_even_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("/bin/false", path("runsc")).unwrap();
        std::os::unix::fs::symlink("runsc", path("gvisor")).unwrap();
        std::os::unix::fs::symlink("/bin/false", path("other")).unwrap();
        let error = ensure_runs_our_hooks(&path("runsc")).unwrap_err();
        assert!(error.to_string().contains("runsc gives hooks"), "{error}");
        ensure_runs_our_hooks(&path("other")).unwrap();
    }

    #[test]
    fn only_a_runtime_that_is_allowed_is_taken() {
        let config = |path: Option<&str>, allow: &[&str]| Runtime {
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
            match (runtime(&host, &config(path, allow)), taken) {
                (Ok(path), Ok(taken)) => assert_eq!(path, Path::new(taken)),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (outcome, _) => panic!("{path:?} of {allow:?}: {outcome:?}"),
            }
        }
    }
}
