//! `pinfold-runtime`: an OCI runtime for engines that have no hooks. It adds our hooks to a container with a request, and
//! becomes the runtime; everything else it hands on as it is.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::config::{Config, Runtime};
use crate::cpulist::CpuSet;
use crate::engines::Engine;
use crate::files;
use crate::host::Host;
use crate::oci_config::{OciConfig, STAGES};
use crate::request;
use crate::runtime_line::RuntimeLine;
use crate::system_log::{self, Severity};
use crate::topology;

/// The runtimes that are taken, the first that is there, where the configuration names none.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Becomes the runtime; returns only with what went wrong before that.
///
/// # Errors
/// A configuration that cannot be read or changed, a request that is none, no runtime.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let line = RuntimeLine::parse(arguments);
    let host = Host::new("/");
    let config = Config::load(&host, None)?.runtime.unwrap_or_default();
    let runtime = runtime(&host, &config)?;
    prepare(&host, &line, &config, &runtime)?;
    let error = Command::new(&runtime).args(arguments).exec();
    Err(error).with_context(|| format!("execute {}", runtime.display()))
}

/// Tells an engine where it looks for it, and the system log, what went wrong.
pub fn report(arguments: &[OsString], message: &str) {
    system_log::send(&Host::new("/"), Severity::Error, message);
    let line = RuntimeLine::parse(arguments);
    let Some(log) = line.log else {
        return;
    };
    let entry = if line.log_is_json {
        json!({"level": "error", "msg": message}).to_string()
    } else {
        format!("level=error msg={message:?}")
    };
    // An engine that gave a log that cannot be written reads stderr.
    let _ = files::append_line(&log, &entry);
}

/// Adds our hooks where the container has a request.
fn prepare(host: &Host, line: &RuntimeLine, settings: &Runtime, runtime: &Path) -> Result<()> {
    let verb = line.verb.as_deref().unwrap_or_default();
    if !matches!(verb, "create" | "run" | "restore") {
        return Ok(());
    }
    let path = line.config_path();
    let text = files::read_text_if_there(&path)?;
    let text = text.with_context(|| format!("there is no {}", path.display()))?;
    let mut config = OciConfig::parse(&text).with_context(|| path.display().to_string())?;
    let annotations = config.annotations(request::is_ours)?;
    let Some(request) = request::from_annotations(&annotations)? else {
        return Ok(());
    };
    if verb == "restore" {
        bail!(
            "a container on CPUs of pool {} cannot be restored: start it anew",
            request.pool
        );
    }
    let engine = settings.engine.as_deref();
    ensure!(
        engine.is_none_or(|engine| Engine::ALL.iter().any(|known| known.word() == engine)),
        "runtime.engine in Pinfold's configuration is none of podman, crio, containerd and docker"
    );
    runs_our_hooks(runtime)?;
    let own = std::env::current_exe().context("find out where this program is")?;
    let own = own
        .to_str()
        .with_context(|| format!("{} is no UTF-8", own.display()))?;
    let near = nodes_near(host, &config)?;
    if config
        .add_hooks(own, engine, &near)
        .with_context(|| path.display().to_string())?
    {
        let like = path
            .metadata()
            .with_context(|| format!("look at {}", path.display()))?;
        files::replace_like(&path, config.print()?.as_bytes(), &like)?;
    }
    Ok(())
}

/// The NUMA nodes of the container's devices; those that the kernel tells no node of have none.
fn nodes_near(host: &Host, config: &OciConfig) -> Result<CpuSet> {
    let mut nodes = CpuSet::new();
    for (is_block, major, minor) in config.devices() {
        nodes.extend(&topology::nodes_near_number(host, is_block, major, minor)?);
    }
    Ok(nodes)
}

/// The runtime of the configuration, or the first that is there.
fn runtime(host: &Host, config: &Runtime) -> Result<PathBuf> {
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
    let real = path
        .canonicalize()
        .with_context(|| format!("look at the runtime {}", path.display()))?;
    files::trusted(&real)?;
    is_not_us(&real)?;
    Ok(path)
}

/// A runtime that says which hooks it runs (`features`, OCI runtime specification) has to run ours: without them the
/// container would start on any CPUs. Older ones say nothing.
fn runs_our_hooks(runtime: &Path) -> Result<()> {
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
