//! Reads the state of one container, as runc or crun keeps it, or as a bundle of containerd's tasks
//! has it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::MOST_BYTES;
use crate::files;
use crate::host::Host;
use crate::oci::Config;

const CONFIG: &str = "config.json";

/// The state of a container.
#[derive(Debug)]
pub(super) struct RuntimeState {
    pub(super) pid: i32,
    /// When the process started, in clock ticks since boot; `None` if the runtime did not note it.
    pub(super) start: Option<u64>,
    /// When the pid was written, in seconds since the epoch.
    pub(super) written: i64,
    pub(super) config: Config,
    /// The path that the configuration had when the container was made.
    pub(super) config_path: PathBuf,
}

/// runc's `state.json` (runc: libcontainer/container.go, `BaseState`).
#[derive(Deserialize)]
struct Runc {
    init_process_pid: i32,
    init_process_start: u64,
    config: RuncConfig,
}

/// The configuration in it (runc: libcontainer/configs/config.go). Annotations are among the
/// labels, as `key=value`.
#[derive(Deserialize)]
struct RuncConfig {
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default, rename = "Hooks")]
    hooks: Value,
}

/// crun's `status` (crun: src/libcrun/status.c). Older versions note no start.
#[derive(Deserialize)]
struct Crun {
    pid: i32,
    #[serde(default, rename = "process-start-time")]
    start: Option<u64>,
    #[serde(default)]
    bundle: String,
}

/// Reads the state from a runtime's directory of a container; `None` if it has none of a known
/// form.
pub(super) fn of_runtime(host: &Host, dir: &Path) -> Result<Option<RuntimeState>> {
    if let Some((text, written)) = read(&dir.join("state.json"))? {
        // Another runtime's state can have this file name too.
        let state = serde_json::from_str::<Runc>(&text).ok();
        return Ok(state.map(|state| RuntimeState {
            pid: state.init_process_pid,
            start: Some(state.init_process_start),
            written,
            config_path: host.path(state.config.bundle()).join(CONFIG),
            config: state.config.into_oci(),
        }));
    }
    let status = dir.join("status");
    let Some((text, written)) = read(&status)? else {
        return Ok(None);
    };
    let state: Crun =
        serde_json::from_str(&text).with_context(|| format!("read {}", status.display()))?;
    // crun copies the configuration with which the container was started. Older versions did not.
    let bundle = host.path(&state.bundle);
    let config = match config(dir)? {
        None if state.bundle.starts_with('/') => config(&bundle)?,
        copy => copy,
    };
    Ok(config.map(|config| RuntimeState {
        pid: state.pid,
        start: state.start.filter(|start| *start != 0),
        written,
        config,
        config_path: bundle.join(CONFIG),
    }))
}

/// Reads the state from a task's bundle; `None` if it has none.
pub(super) fn of_bundle(dir: &Path) -> Result<Option<RuntimeState>> {
    let Some((pid, written)) = read(&dir.join("init.pid"))? else {
        return Ok(None);
    };
    let (Ok(pid), Some(config)) = (pid.trim().parse(), config(dir)?) else {
        return Ok(None);
    };
    Ok(Some(RuntimeState {
        pid,
        start: None,
        written,
        config,
        config_path: dir.join(CONFIG),
    }))
}

fn config(dir: &Path) -> Result<Option<Config>> {
    let path = dir.join(CONFIG);
    let Some((text, _)) = read(&path)? else {
        return Ok(None);
    };
    let config = Config::parse(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(config))
}

/// A file's text, and when it was last written, in seconds since the epoch; `None` if it does not
/// exist.
fn read(path: &Path) -> Result<Option<(String, i64)>> {
    let file = match files::open_regular(path) {
        Err(error) if is_gone(&error) => return Ok(None),
        other => other?,
    };
    let attempt = || -> io::Result<(String, i64)> {
        let written = file.metadata()?.mtime();
        Ok((files::read_bounded(&file, MOST_BYTES)?, written))
    };
    let read = attempt().with_context(|| format!("read {}", path.display()))?;
    Ok(Some(read))
}

fn is_gone(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(files::is_gone)
}

impl RuncConfig {
    /// The bundle's path: runc adds its own label of this key as the last one.
    fn bundle(&self) -> &str {
        let mut labels = self.labels.iter().rev();
        let bundle = labels.find_map(|label| label.strip_prefix("bundle="));
        bundle.unwrap_or_default()
    }

    /// The parts of the configuration that we read, as they were when the container was started.
    fn into_oci(self) -> Config {
        let annotation = |label: &String| {
            let (key, value) = label.split_once('=')?;
            Some((key.to_owned(), Value::from(value)))
        };
        let annotations: Map<String, Value> = self.labels.iter().filter_map(annotation).collect();
        Config::of(annotations, self.hooks)
    }
}
